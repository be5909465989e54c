//! Server ids: which real the numbers in packets name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Katran;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use crate::error::Result;
use crate::ledger::Change;
use crate::maps::real_id;
use crate::table::Room;
use crate::types::ServerId;

/// The numbers in packets that name reals: [`Katran::server_ids`].
///
/// ```no_run
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// for id in katran.server_ids().list() {
///     println!("{} names {}", id.id(), id.real());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct ServerIds<'a> {
    katran: &'a Katran,
}

impl ServerIds<'_> {
    /// Every server id with its real, ascending; invalid ones too.
    pub fn list(&self) -> Vec<ServerId> {
        let katran = self.katran;
        katran
            .server_ids
            .iter()
            .filter_map(|(id, real)| Some(ServerId::new(id, katran.table.address_of(real)?)))
            .collect()
    }

    /// The ids that have been invalidated, ascending.
    pub fn invalid(&self) -> Vec<u32> {
        self.katran.invalid_ids.iter().copied().collect()
    }
}

/// Changes which real the numbers in packets name: [`Katran::server_ids_mut`].
///
/// ```no_run
/// use katran::ServerId;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// let real = "198.51.100.1".parse().unwrap();
/// katran.server_ids_mut().add(&[ServerId::new(1000, real)])?;
/// // Its server is about to go: packets that carry the id go by flow table and ring.
/// katran.server_ids_mut().invalidate(&[1000])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct ServerIdsMut<'a> {
    katran: &'a mut Katran,
}

impl ServerIdsMut<'_> {
    /// Names reals by numbers that their servers put into packets: QUIC connection ids, the TCP
    /// option, stable UDP routing. Packets that carry such a number go to its real, whatever ring
    /// and flow table say.
    ///
    /// A real lives while an id names it, in a VIP or not. All ids are added, or none.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for an id that is there, or twice in
    /// the batch; [`Error::InvalidConfig`](crate::Error::InvalidConfig) for id 0;
    /// [`Error::Exhausted`](crate::Error::Exhausted) beyond `max_server_ids` or `max_reals`;
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress);
    /// [`Error::Kernel`](crate::Error::Kernel). Nothing has changed then.
    #[doc(alias = "modifyQuicRealsMapping")]
    pub fn add(&mut self, ids: &[ServerId]) -> Result<()> {
        let _call = self.katran.call()?;
        let ids: Vec<_> = ids.iter().map(|id| (id.id(), id.real())).collect();
        let news = self.katran.change_server_ids(&[], &ids, Room::Limited)?;
        self.katran.tell(news);
        Ok(())
    }

    /// Removes ids; packets that carry them go by flow table and ring. All are removed, or none.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that is not there, or twice in the
    /// batch.
    pub fn remove(&mut self, ids: &[u32]) -> Result<()> {
        let _call = self.katran.call()?;
        let news = self.katran.change_server_ids(ids, &[], Room::Limited)?;
        self.katran.tell(news);
        Ok(())
    }

    /// Stops routing by ids, without forgetting which real they name: packets that carry them go by
    /// flow table and ring. Those that are invalid already stay so.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that is not there; nothing has changed
    /// then.
    #[doc(alias = "invalidateServerIds")]
    pub fn invalidate(&mut self, ids: &[u32]) -> Result<()> {
        let _call = self.katran.call()?;
        let valid = self.katran.with_validity(ids, Validity::Valid)?;
        let kept = |_: &Katran| Ok(vec![validity(&valid, false)]);
        self.katran.change_at_once(kept, |katran| {
            let live = &katran.maps.live;
            katran.maps.server_ids.remove(live, valid.iter().copied());
            katran.invalid_ids.extend(&valid);
            Ok(())
        })
    }

    /// Routes by ids again that had been invalidated. Those that are valid stay so.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that is not there;
    /// [`Error::Kernel`](crate::Error::Kernel). Nothing has changed then.
    #[doc(alias = "revalidateServerIds")]
    pub fn revalidate(&mut self, ids: &[u32]) -> Result<()> {
        let _call = self.katran.call()?;
        let invalid = self.katran.with_validity(ids, Validity::Invalid)?;
        let katran = &*self.katran;
        let entries: Vec<(u32, u32)> = invalid
            .iter()
            .filter_map(|id| {
                let real = katran.server_ids.get(*id)?;
                let entry = katran.table.real(katran.table.address_of(real)?)?;
                Some((*id, real_id(entry.number.0, entry.generation)))
            })
            .collect();
        let kept = |_: &Katran| Ok(vec![validity(&invalid, true)]);
        self.katran.change_at_once(kept, |katran| {
            let live = &katran.maps.live;
            let inserted = katran.maps.server_ids.insert(live, &entries);
            let kernel = &katran.kernel;
            kernel.check("make room for", "server_ids", inserted)?;
            for id in &invalid {
                katran.invalid_ids.remove(id);
            }
            Ok(())
        })
    }
}

fn validity(ids: &BTreeSet<u32>, valid: bool) -> Change {
    let ids = ids.iter().copied().collect();
    Change::Validity { ids, valid }
}

/// Whether packets are routed by an id.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validity {
    Valid,
    Invalid,
}

impl Katran {
    /// The server ids: numbers in packets that name reals.
    pub fn server_ids(&self) -> ServerIds<'_> {
        ServerIds { katran: self }
    }

    /// Changes the server ids.
    pub fn server_ids_mut(&mut self) -> ServerIdsMut<'_> {
        ServerIdsMut { katran: self }
    }

    /// Removes ids and adds others in one change; an id in both comes to name another real, by one
    /// store, and is valid then.
    pub(super) fn change_server_ids(
        &mut self,
        remove: &[u32],
        add: &[(u32, IpAddr)],
        room: Room,
    ) -> Result<News> {
        self.collect();
        let deltas = self.note(self.server_ids.stage(remove, add, room, &self.table))?;
        let staged = self.table.stage_references(&deltas)?;
        let named = self.named(&staged, add);
        let kept = |_: &Katran| {
            Ok(vec![Change::ServerIds {
                remove: remove.to_vec(),
                add: named.iter().map(|new| (new.name, new.number.0)).collect(),
            }])
        };
        let written = Prepared::new(staged, kept).write_in_sight(self, |katran| {
            let entries: Vec<(u32, u32)> = named.iter().map(|new| (new.name, new.id)).collect();
            let live = &katran.maps.live;
            let inserted = katran.maps.server_ids.insert(live, &entries);
            katran.kernel.check("make room for", "server_ids", inserted)
        })?;
        let switched = written.switch(self, |katran, ()| {
            // What has come is not what goes.
            let coming: BTreeSet<u32> = named.iter().map(|new| new.name).collect();
            let going = remove.iter().copied().filter(|id| !coming.contains(id));
            katran.maps.server_ids.remove(&katran.maps.live, going);
            for id in remove.iter().chain(&coming) {
                katran.invalid_ids.remove(id);
            }
            let named = named.iter().map(|new| (new.name, new.number));
            katran.server_ids.commit(remove, named);
            Left::Nothing
        });
        Ok(switched.retire(self))
    }

    /// Those of the ids that are valid, or not; an error if one is unknown.
    fn with_validity(&self, ids: &[u32], wanted: Validity) -> Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for id in ids {
            self.server_ids.known(*id)?;
            let is = match self.invalid_ids.contains(id) {
                true => Validity::Invalid,
                false => Validity::Valid,
            };
            if is == wanted {
                found.insert(*id);
            }
        }
        Ok(found)
    }
}
