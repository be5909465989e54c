//! Server ids: the real that a number in a packet names.

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

/// Reads the server ids: [`Katran::server_ids`].
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
    /// All server ids with their reals, ascending; including invalid ones.
    pub fn list(&self) -> Vec<ServerId> {
        let katran = self.katran;
        katran
            .server_ids
            .iter()
            .filter_map(|(id, real)| Some(ServerId::new(id, katran.table.address_of(real)?)))
            .collect()
    }

    /// All invalid ids, ascending.
    pub fn invalid(&self) -> Vec<u32> {
        self.katran.invalid_ids.iter().copied().collect()
    }
}

/// Changes the server ids: [`Katran::server_ids_mut`].
///
/// ```no_run
/// use katran::ServerId;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// let real = "198.51.100.1".parse().unwrap();
/// katran.server_ids_mut().add(&[ServerId::new(1000, real)])?;
/// // Before its server goes: packets with the id follow flow table and ring.
/// katran.server_ids_mut().invalidate(&[1000])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct ServerIdsMut<'a> {
    katran: &'a mut Katran,
}

/// # Changing ids
impl ServerIdsMut<'_> {
    /// Names reals by numbers that servers put into packets: QUIC connection ids, the TCP option,
    /// stable UDP routing. A packet with such a number goes to that real, whatever ring and flow
    /// table say.
    ///
    /// A real exists while an id names it, in a VIP or not. The library adds all ids or none. An id
    /// takes 16 to 64 bytes of kernel memory, at least 128 KiB in all. Add many in one call: 2^20
    /// take seconds.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for an id that exists, or occurs twice
    /// in `ids`; [`Error::InvalidConfig`](crate::Error::InvalidConfig) for id 0;
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

    /// Removes ids, all or none; packets with them follow flow table and ring.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that does not exist, or occurs twice
    /// in `ids`.
    pub fn remove(&mut self, ids: &[u32]) -> Result<()> {
        let _call = self.katran.call()?;
        let news = self.katran.change_server_ids(ids, &[], Room::Limited)?;
        self.katran.tell(news);
        Ok(())
    }

    /// Stops routing by ids without forgetting their reals: packets with them follow flow table and
    /// ring. Ids that are invalid stay so.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that does not exist; nothing has
    /// changed then.
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

    /// Resumes routing by invalidated ids. Ids that are valid stay so.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that does not exist;
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

/// # Server ids
impl Katran {
    /// Reads the server ids: numbers in packets that name reals.
    pub fn server_ids(&self) -> ServerIds<'_> {
        ServerIds { katran: self }
    }

    /// Changes the server ids.
    pub fn server_ids_mut(&mut self) -> ServerIdsMut<'_> {
        ServerIdsMut { katran: self }
    }

    /// Removes ids and adds others in one change. An id in both changes its real by one store, and
    /// is valid then.
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
            // An id in both does not go.
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

    /// The ids that are valid, or those that are not; an error if one is unknown.
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
