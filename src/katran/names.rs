//! What names reals besides VIPs: the part that server ids and source routes have in common.

use std::net::IpAddr;

use super::Katran;
use crate::error::Result;
use crate::maps::real_id;
use crate::table::Deltas;
use crate::table::Name;
use crate::types::RealNumber;

/// A name with the number of its real, and what flow entries and maps know that real by.
pub(super) struct Named<K> {
    pub(super) name: K,
    pub(super) number: RealNumber,
    pub(super) id: u32,
}

impl Katran {
    /// Takes and gives back references to reals, and changes the kernel's map by `write` in between:
    /// reals are there before something names them, and go after nothing does. Nothing has changed
    /// if it fails.
    pub(super) fn rename<K: Name>(
        &mut self,
        deltas: &Deltas,
        add: &[(K, IpAddr)],
        write: impl FnOnce(&mut Self, &[Named<K>]) -> Result<()>,
    ) -> Result<Vec<(K, RealNumber)>> {
        self.collect();
        let staged = self.table.stage_references(deltas)?;
        let added = staged.adjusted.added.clone();
        let released = staged.adjusted.released.clone();
        self.prepare_reals(&added, staged.adjusted.unsettled)?;
        self.publish_reals(&added);
        // A real that is named as often as before is not among the staged ones.
        let real = |address: IpAddr| match staged.records.get(&address) {
            Some(record) => Some((record.number, record.generation)),
            None => {
                let entry = self.table.real(address)?;
                Some((entry.number, entry.generation))
            }
        };
        let named: Vec<Named<K>> = add
            .iter()
            .filter_map(|&(name, address)| {
                let (number, generation) = real(address)?;
                let id = real_id(number.0, generation);
                Some(Named { name, number, id })
            })
            .collect();
        if let Err(error) = write(self, &named) {
            let added: Vec<_> = added
                .iter()
                .map(|real| (real.address, real.number))
                .collect();
            self.withdraw_reals(&added);
            return Err(error);
        }
        self.withdraw_reals(&released);
        self.table.commit(staged);
        self.let_go(None, !released.is_empty());
        self.tell_added(&added);
        self.tell_removed(&released);
        Ok(named.iter().map(|new| (new.name, new.number)).collect())
    }
}
