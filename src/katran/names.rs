//! Names of reals besides VIPs: the part that server ids and source routes share.

use std::net::IpAddr;

use super::Katran;
use crate::maps::real_id;
use crate::table::Name;
use crate::table::StagedReferences;
use crate::types::RealNumber;

/// A name with its real's number, and the id that flow entries and maps have for that real.
pub(super) struct Named<K> {
    pub(super) name: K,
    pub(super) number: RealNumber,
    pub(super) id: u32,
}

impl Katran {
    /// The names to write into maps with a staged change of references.
    pub(super) fn named<K: Name>(
        &self,
        staged: &StagedReferences,
        add: &[(K, IpAddr)],
    ) -> Vec<Named<K>> {
        // A real whose number of names stays the same is not staged.
        let real = |address: IpAddr| match staged.records.get(&address) {
            Some(record) => Some((record.number, record.generation)),
            None => {
                let entry = self.table.real(address)?;
                Some((entry.number, entry.generation))
            }
        };
        add.iter()
            .filter_map(|&(name, address)| {
                let (number, generation) = real(address)?;
                let id = real_id(number.0, generation);
                Some(Named { name, number, id })
            })
            .collect()
    }
}
