//! A sample of a flow table: are its sets so crowded that new flows replace live ones?

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::flows::ENTRY_VALUE;
use super::flows::ENTRY_WORDS;
use super::flows::FlowTable;
use super::flows::SET_WORDS;
use super::flows::set_bytes;
use crate::skel::katran::types::flow_table_constant;
use crate::sys::mapping::Mapping;

/// A hash spreads flows over sets, so the first sets are as good as any. This many fill whole
/// pages.
const SAMPLE: u32 = 256;
/// As in the program: with this many single-packet entries, one of them makes room.
const ONCE_STAY: usize = 2;

/// The findings of a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crowding {
    /// Sets examined.
    pub(crate) sets: usize,
    /// For each crowded set, how long the next flow to be replaced has been silent, in ticks.
    pub(crate) silent: Vec<u32>,
}

impl FlowTable {
    /// Samples a set-associative table with `active` sets in use, at `now` in ticks. Finds nothing
    /// while the table still adds sets, and in a hash of the kernel.
    pub(crate) fn crowding(&self, active: u32, now: u32) -> io::Result<Crowding> {
        let Self::Sets { map, sets } = self else {
            return Ok(Crowding::default());
        };
        if active < *sets {
            return Ok(Crowding::default());
        }
        let bytes = set_bytes(SAMPLE.min(*sets));
        let memory = Mapping::part(map.as_fd(), 0, bytes)?;
        let sample = memory.u64s().chunks_exact(SET_WORDS);
        Ok(Crowding {
            sets: sample.len(),
            silent: sample.filter_map(|set| makes_room(set, now)).collect(),
        })
    }
}

/// How long the flow that is replaced next has been silent; `None`: there is room, or a
/// single-packet flow is replaced.
fn makes_room(set: &[AtomicU64], now: u32) -> Option<u32> {
    let (mut once, mut longest) = (0, 0);
    for entry in set.chunks_exact(ENTRY_WORDS) {
        let word = entry[ENTRY_VALUE].load(Ordering::Relaxed);
        let (id, used) = (word as u32, (word >> 32) as u32);
        if id == 0 {
            return None;
        }
        once += usize::from(used & flow_table_constant::USED_AGAIN.0 == 0);
        // A packet may have come since the clock was read.
        let silent = now.wrapping_sub(used & !flow_table_constant::USED_BITS.0);
        longest = longest.max(if silent > u32::MAX / 2 { 0 } else { silent });
    }
    (once < ONCE_STAY).then_some(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 4_000;

    fn set(used: &[u32]) -> Vec<AtomicU64> {
        let mut words = vec![0; SET_WORDS];
        for (entry, used) in words.chunks_exact_mut(ENTRY_WORDS).zip(used) {
            entry[ENTRY_VALUE] = u64::from(*used) << 32 | 1;
        }
        words.into_iter().map(AtomicU64::new).collect()
    }

    #[test]
    fn only_full_sets_of_flows_that_go_on_are_crowded() {
        let again = 3_000 | flow_table_constant::USED_AGAIN.0;
        let mut all = [again; 8];
        assert_eq!(makes_room(&set(&all[..7]), NOW), None);
        assert_eq!(makes_room(&set(&all), NOW), Some(1_000));
        // The flow silent for longest goes first; one that has just come is silent for no time.
        all[3] -= 1_000;
        all[4] = (NOW + 8) | flow_table_constant::USED_AGAIN.0;
        assert_eq!(makes_room(&set(&all), NOW), Some(2_000));
        // A single-packet flow stays; of two, one makes room.
        all[0] = 3_500;
        assert_eq!(makes_room(&set(&all), NOW), Some(2_000));
        all[1] = 3_500;
        assert_eq!(makes_room(&set(&all), NOW), None);
    }
}
