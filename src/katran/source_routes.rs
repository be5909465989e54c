//! Source routes: reals chosen by the client's prefix.

use std::collections::HashSet;
use std::net::IpAddr;

use super::Katran;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use super::names::Named;
use crate::error::Error;
use crate::error::Result;
use crate::ledger::Change;
use crate::maps::SourceRouteMaps;
use crate::table::Room;
use crate::types::Prefix;
use crate::types::SourceRoute;

/// Reads the source routes: [`Katran::source_routes`].
///
/// ```no_run
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// println!("{} routes", katran.source_routes().count());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct SourceRoutes<'a> {
    katran: &'a Katran,
}

impl SourceRoutes<'_> {
    /// All source routes, sorted by prefix.
    #[doc(alias = "getSrcRoutingRule")]
    pub fn list(&self) -> Vec<SourceRoute> {
        let katran = self.katran;
        katran
            .source_routes
            .iter()
            .filter_map(|(prefix, real)| {
                Some(SourceRoute::new(prefix, katran.table.address_of(real)?))
            })
            .collect()
    }

    /// The number of source routes of both families.
    #[doc(alias = "getSrcRoutingRuleSize")]
    pub fn count(&self) -> usize {
        self.katran.source_routes.counts().iter().sum()
    }
}

/// Changes the source routes: [`Katran::source_routes_mut`].
///
/// ```no_run
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// let prefixes = ["100.64.0.0/10".parse()?, "2001:db8:64::/48".parse()?];
/// let real = "198.51.100.1".parse().unwrap();
/// katran.source_routes_mut().add(&prefixes, real)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct SourceRoutesMut<'a> {
    katran: &'a mut Katran,
}

/// # Changing routes
impl SourceRoutesMut<'_> {
    /// Sends new flows of clients in these prefixes to a real, of either family, at VIPs with
    /// [`VipFlags::SRC_ROUTING`](crate::VipFlags::SRC_ROUTING). The longest prefix wins, so
    /// prefixes may contain others. Flows that a flow table knows stay. While the flood guard acts,
    /// new flows follow the routes, too, but are not remembered.
    ///
    /// A real exists while a prefix names it, in a VIP or not. The library adds all prefixes or
    /// none; a million take some seconds.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without
    /// [`Features::SOURCE_ROUTING`](crate::Features::SOURCE_ROUTING); [`Error::AlreadyExists`] for
    /// a prefix that exists, or occurs twice in `prefixes` (to change its real, remove it first, or
    /// use [`apply`](Katran::apply)); [`Error::Exhausted`] beyond `max_source_routes` of a family
    /// or `max_reals`; [`Error::InvalidAddress`]; [`Error::Kernel`]. Nothing has changed then.
    #[doc(alias = "addSrcRoutingRule")]
    pub fn add(&mut self, prefixes: &[Prefix], real: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        let real = real.to_canonical();
        let routes: Vec<_> = prefixes.iter().map(|prefix| (*prefix, real)).collect();
        let news = self
            .katran
            .change_source_routes(&[], &routes, Room::Limited)?;
        self.katran.tell(news);
        Ok(())
    }

    /// Removes source routes, all or none. Flows that followed them stay while the flow table knows
    /// them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without
    /// [`Features::SOURCE_ROUTING`](crate::Features::SOURCE_ROUTING); [`Error::NotFound`] for a
    /// prefix that does not exist, or occurs twice in `prefixes`; [`Error::Kernel`].
    #[doc(alias = "delSrcRoutingRule")]
    pub fn remove(&mut self, prefixes: &[Prefix]) -> Result<()> {
        let _call = self.katran.call()?;
        let news = self
            .katran
            .change_source_routes(prefixes, &[], Room::Limited)?;
        self.katran.tell(news);
        Ok(())
    }

    /// Removes all source routes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without
    /// [`Features::SOURCE_ROUTING`](crate::Features::SOURCE_ROUTING); [`Error::Kernel`]: none is
    /// removed then.
    #[doc(alias = "clearAllSrcRoutingRules")]
    pub fn clear(&mut self) -> Result<()> {
        let all: Vec<Prefix> = self
            .katran
            .source_routes
            .iter()
            .map(|(prefix, _)| prefix)
            .collect();
        self.remove(&all)
    }
}

/// # Source routes
impl Katran {
    /// Reads the source routes: reals chosen by the client's prefix.
    pub fn source_routes(&self) -> SourceRoutes<'_> {
        SourceRoutes { katran: self }
    }

    /// Changes the source routes.
    pub fn source_routes_mut(&mut self) -> SourceRoutesMut<'_> {
        SourceRoutesMut { katran: self }
    }

    /// Removes source routes and adds others in one change. A prefix in both changes its real by
    /// one store.
    pub(super) fn change_source_routes(
        &mut self,
        remove: &[Prefix],
        add: &[(Prefix, IpAddr)],
        room: Room,
    ) -> Result<News> {
        self.collect();
        self.source_route_maps()?;
        let deltas = self.note(self.source_routes.stage(remove, add, room, &self.table))?;
        let staged = self.table.stage_references(&deltas)?;
        let named = self.named(&staged, add);
        let kept = |_: &Katran| {
            let add = named.iter();
            Ok(vec![Change::SourceRoutes {
                remove: remove.iter().map(|prefix| (*prefix).into()).collect(),
                add: add.map(|new| (new.name.into(), new.number.0)).collect(),
            }])
        };
        let written = Prepared::new(staged, kept)
            .write_in_sight(self, |katran| katran.write_source_routes(remove, &named))?;
        let switched = written.switch(self, |katran, ()| {
            let named = named.iter().map(|new| (new.name, new.number));
            katran.source_routes.commit(remove, named);
            Left::Nothing
        });
        Ok(switched.retire(self))
    }

    pub(super) fn source_route_maps(&self) -> Result<&SourceRouteMaps> {
        self.maps
            .features
            .source_routes
            .as_ref()
            .ok_or_else(Self::no_source_routing)
    }

    pub(super) fn no_source_routing() -> Error {
        Error::Unsupported {
            what: "a source route".to_owned(),
            reason: "the balancer was loaded without the feature source-routing: switch it on",
        }
    }

    fn write_source_routes(&self, remove: &[Prefix], add: &[Named<Prefix>]) -> Result<()> {
        let maps = self.source_route_maps()?;
        let new: Vec<(Prefix, u32)> = add.iter().map(|new| (new.name, new.number.get())).collect();
        // If nothing goes there is nothing to leave out.
        let new_prefixes = new.iter().map(|(prefix, _)| *prefix);
        let coming: HashSet<Prefix> = match remove {
            [] => HashSet::new(),
            _ => new_prefixes.collect(),
        };
        let going: Vec<Prefix> = remove
            .iter()
            .filter(|prefix| !coming.contains(prefix))
            .copied()
            .collect();
        let written = maps.insert(&new).and_then(|()| maps.remove(&going));
        if written.is_err() {
            self.restore_source_routes(maps, new.iter().map(|(prefix, _)| *prefix).chain(going));
        }
        self.kernel.check("change", "the source routes", written)
    }

    /// Makes the kernel's routes for these prefixes match the library's, one by one.
    pub(super) fn restore_source_routes(
        &self,
        maps: &SourceRouteMaps,
        prefixes: impl Iterator<Item = Prefix>,
    ) {
        for prefix in prefixes {
            let known = self.source_routes.get(prefix).map(|real| real.get());
            // The check counts and logs it.
            let _ = self.kernel.check(
                "restore the source route",
                &prefix.to_string(),
                maps.set(prefix, known),
            );
        }
    }
}
