//! Numbers that packets have met in another balancer, which did not replace this one after all.
//! Entries in flow tables that both share may name them, so this table must not give them out as if
//! they were new.

use serde::Deserialize;
use serde::Serialize;

use super::records::Table;
use crate::types::Nonsense;
use crate::types::RealNumber;

/// Such numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Met {
    vips: Vec<u16>,
    /// With their generations.
    reals: Vec<(u16, u16)>,
}

impl Met {
    pub(crate) fn is_empty(&self) -> bool {
        self.vips.is_empty() && self.reals.is_empty()
    }
}

impl Table {
    /// Numbers that packets may have met in a balancer with the other table, but not with this one.
    pub(crate) fn met_in(&self, other: &Self) -> Met {
        let own = self.vip_ids.in_hand();
        let vips = other.vips().map(|(_, entry)| entry.number.0);
        let mut vips: Vec<u16> = vips.filter(|number| !own.contains(number)).collect();
        vips.sort_unstable();
        let reals = other.reals().map(|(_, entry)| entry);
        let mut reals: Vec<(u16, u16)> = reals
            .filter(|entry| entry.generation > self.last_generation(entry.number))
            .map(|entry| (entry.number.0, entry.generation))
            .collect();
        reals.sort_unstable();
        Met { vips, reals }
    }

    /// Makes sure that such numbers are given out as late as possible, after a grace period, and
    /// reals' with later generations.
    ///
    /// # Errors
    /// If a number has no generation.
    pub(crate) fn take_met(&mut self, met: &Met) -> Result<(), Nonsense> {
        if met.reals.iter().any(|(_, generation)| *generation == 0) {
            return Err(Nonsense("a number was met that no real has had"));
        }
        for number in &met.vips {
            self.vip_ids.pass_over(*number, true);
        }
        for (number, generation) in &met.reals {
            self.use_up(RealNumber(*number), *generation);
            self.real_ids.pass_over(*number, *generation < u16::MAX);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::table::Deltas;
    use crate::types::HashFunction;
    use crate::types::Vip;
    use crate::types::VipFlags;

    fn real(octet: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, octet])
    }

    fn vip(octet: u8) -> Vip {
        Vip::tcp(([203, 0, 113, octet], 80).into())
    }

    fn name(table: &mut Table, octet: u8, delta: i64) -> (u16, u16) {
        let deltas: Deltas = BTreeMap::from([(real(octet), delta)]);
        let before = table.real(real(octet)).copied();
        let staged = table.stage_references(&deltas).unwrap();
        table.commit(staged);
        let entry = table.real(real(octet)).copied().or(before).unwrap();
        (entry.number.0, entry.generation)
    }

    fn add(table: &mut Table, octet: u8) -> (u16, bool) {
        let flags = VipFlags::empty();
        let staged = table.stage_add_vip(vip(octet), flags, HashFunction::default());
        let staged = staged.unwrap();
        let added = (staged.number.0, staged.unsettled);
        table.commit(staged);
        added
    }

    /// A table that was written and read again.
    fn read(table: &Table, count: u16) -> Table {
        let mut read = Table::new(count, count);
        for vip in table.stored_vips() {
            read.restore_vip(vip).unwrap();
        }
        for real in table.stored_reals() {
            read.restore_real(real).unwrap();
        }
        read.restore_numbers(table.stored_numbers()).unwrap();
        read.check_whole().unwrap();
        read
    }

    #[test]
    fn a_number_that_was_met_elsewhere_comes_late_and_under_another_generation() {
        let mut table = Table::new(3, 3);
        assert_eq!(name(&mut table, 1, 1), (1, 1));
        assert_eq!(add(&mut table, 1), (0, false));
        let mut other = table.with_room(8, 8).unwrap();
        assert_eq!(name(&mut other, 2, 1), (2, 1));
        assert_eq!(name(&mut other, 3, 1), (3, 1));
        assert_eq!(name(&mut other, 3, -1), (3, 1));
        assert_eq!(name(&mut other, 4, 1), (4, 1));
        assert_eq!(add(&mut other, 2), (1, false));
        let met = table.met_in(&other);
        let expected = Met {
            vips: vec![1],
            reals: vec![(2, 1), (4, 1)],
        };
        assert_eq!(met, expected);
        table.take_met(&met).unwrap();
        let still = Met {
            vips: vec![1],
            reals: Vec::new(),
        };
        assert_eq!(table.met_in(&other), still);
        let mut read = read(&table, 3);
        for table in [&mut table, &mut read] {
            // The number that no packet has met comes first.
            assert_eq!(name(table, 5, 1), (3, 1));
            assert_eq!(name(table, 6, 1), (2, 2));
            assert_eq!(add(table, 3), (2, false));
            assert_eq!(add(table, 4), (1, true));
        }
        // Once there is room, that one comes late as well.
        for table in [table, read] {
            let mut larger = table.with_room(8, 5).unwrap();
            assert_eq!(name(&mut larger, 7, 1), (5, 1));
            assert_eq!(name(&mut larger, 8, 1), (4, 2));
        }
    }

    #[test]
    fn a_vips_number_that_was_met_where_there_is_no_room_yet_is_known_when_there_is() {
        let mut table = Table::new(1, 1);
        assert_eq!(add(&mut table, 1), (0, false));
        let mut other = table.with_room(4, 1).unwrap();
        assert_eq!(add(&mut other, 2), (1, false));
        assert_eq!(add(&mut other, 3), (2, false));
        table.take_met(&table.met_in(&other)).unwrap();
        let read = read(&table, 1);
        assert_eq!(read, table.unsettled());
        for table in [table, read] {
            let former: Vec<u16> = table.former_vips().collect();
            assert_eq!(former, [1, 2]);
            // Step by step.
            let larger = table.with_room(2, 1).unwrap();
            let mut larger = larger.with_room(4, 1).unwrap();
            assert_eq!(add(&mut larger, 4), (3, false));
            assert_eq!(add(&mut larger, 5), (1, true));
            assert_eq!(add(&mut larger, 6), (2, true));
        }
    }

    #[test]
    fn a_real_that_has_such_a_number_keeps_it_and_the_next_one_has_a_later_generation() {
        let mut table = Table::new(1, 1);
        assert_eq!(name(&mut table, 1, 1), (1, 1));
        let mut other = table.clone();
        name(&mut other, 1, -1);
        assert_eq!(name(&mut other, 2, 1), (1, 2));
        let met = table.met_in(&other);
        table.take_met(&met).unwrap();
        let mut read = read(&table, 1);
        for table in [&mut table, &mut read] {
            // Named again.
            assert_eq!(name(table, 1, 1), (1, 1));
            assert_eq!(name(table, 1, -2), (1, 1));
            assert_eq!(name(table, 3, 1), (1, 3));
        }
    }

    #[test]
    fn a_number_that_has_met_its_last_generation_elsewhere_is_never_given_out() {
        let mut table = Table::new(1, 2);
        assert_eq!(name(&mut table, 1, 1), (1, 1));
        let met = Met {
            vips: Vec::new(),
            reals: vec![(1, u16::MAX), (2, u16::MAX)],
        };
        table.take_met(&met).unwrap();
        name(&mut table, 1, -1);
        assert_eq!(table.real_ids.free(), 0);
        let never = Met {
            vips: Vec::new(),
            reals: vec![(1, 0)],
        };
        table.take_met(&never).unwrap_err();
    }
}
