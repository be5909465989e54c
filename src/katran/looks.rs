//! Looks for a flow in tables that grow meanwhile, a bounded number of times.

use crate::error::Result;

/// The most looks for one flow while tables grow.
const MOST_LOOKS: usize = 64;

/// Looks for a flow's entry in the tables of all CPUs. A packet may split the flow's set meanwhile
/// and move the entry to the other half: then it looks again. A table causes that once for each
/// doubling.
pub(super) fn look_while_it_moves<R, T>(
    read: impl Fn() -> Result<Vec<R>>,
    look: impl Fn(&[R]) -> Result<Option<T>>,
    own_set: impl Fn(&R) -> u32,
) -> Result<Option<T>> {
    let mut records = read()?;
    for _ in 0..MOST_LOOKS {
        let found = look(&records)?;
        if found.is_some() {
            return Ok(found);
        }
        let now = read()?;
        if now.iter().map(&own_set).eq(records.iter().map(&own_set)) {
            break;
        }
        records = now;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::maps::FlowHashKeys;
    use crate::skel::katran::types;

    /// The number of looks for an unknown flow while each look finds `more` new sets in use in two
    /// tables.
    fn looks(more: u32, own_set: impl Fn(&u32) -> u32) -> usize {
        let (sets, looks) = (Cell::new(1000), Cell::new(0));
        let found = look_while_it_moves(
            || {
                sets.set(sets.get() + more);
                Ok(vec![sets.get(), sets.get() / 2])
            },
            |_| {
                looks.set(looks.get() + 1);
                Ok(None::<()>)
            },
            own_set,
        );
        assert_eq!(found.unwrap(), None);
        looks.get()
    }

    #[test]
    #[cfg_attr(miri, ignore = "random keys are the kernel's")]
    fn a_flow_is_looked_for_again_only_when_its_own_set_is_split() {
        for port in 0..200 {
            let keys = FlowHashKeys::draw().unwrap();
            let flow = keys.fingerprint(&types::flow_key {
                source_port: port,
                ..Default::default()
            });
            let looks = looks(3, |sets| flow.set_of(*sets));
            assert!(looks <= 3, "{looks}");
        }
        // It ends in any case.
        assert_eq!(looks(1, |sets| *sets), MOST_LOOKS);
    }
}
