//! The public list of next hops: a snapshot that takes constant time to make. It shares data with
//! the board, and its reader assembles it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;
use std::sync::OnceLock;

use super::hop::Followed;
use super::hop::Hop;
use super::hop::gateway;
use super::pages::Pages;
use super::wanted::Wanted;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::NextHops;

/// Interfaces by index: names, and whether packets from the balancer's interfaces reach them.
pub(super) type Names = BTreeMap<u32, (Arc<str>, bool)>;

/// A next hop and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextHop {
    /// The real; `None` for all reals of [`family`](Self::family).
    pub real: Option<IpAddr>,
    /// The address family of the real or reals.
    pub family: Family,
    /// The router, or the real itself if it is on this host's segment; `None` without a route.
    pub address: Option<IpAddr>,
    /// The interface towards it, if there is a route.
    pub interface: Option<Arc<str>>,
    /// The MAC address in use; `None` if unknown, and then packets are dropped.
    pub mac: Option<MacAddr>,
    /// The address answers, or its MAC address is configured. If not, `mac` is the last known one.
    pub answers: bool,
    /// Packets from the balancer's interfaces reach `interface`: the balancer is attached to it, to
    /// the link below it, or to a member of it. Also true if unknown, and with
    /// [`NextHops::Redirect`].
    pub attached: bool,
    /// The real is an address of this host.
    pub here: bool,
}

impl NextHop {
    /// Whether it has no route or does not answer: packets to it are dropped, or go to the last
    /// known MAC address.
    pub fn is_silent(&self) -> bool {
        // Without an address, the MAC address is configured.
        !self.here && !self.answers && (self.mac.is_none() || self.address.is_some())
    }
}

/// All next hops at one moment: [`Gateways::next_hops`](crate::attachments::Gateways::next_hops).
///
/// An immutable slice of [`NextHop`]s, in the order of the reals' numbers. Getting or cloning a
/// list takes less than a microsecond for any number of reals. The first access assembles it, once
/// for all clones: for 65,535 reals that takes the accessing thread some milliseconds, and
/// delays no other thread.
///
/// ```no_run
/// # fn example(katran: &katran::Katran) {
/// let hops = katran.gateways().next_hops();
/// let silent = hops.iter().filter(|hop| !hop.answers).count();
/// println!("{silent} of {} next hops do not answer", hops.len());
/// # }
/// ```
#[derive(Clone, Default)]
pub struct NextHopList(Arc<Snapshot>);

#[derive(Default)]
struct Snapshot {
    /// `None` if nothing is followed.
    known: Option<Known>,
    list: OnceLock<Vec<NextHop>>,
}

/// The data to assemble a list from.
pub(super) struct Known {
    pub(super) wanted: Wanted,
    pub(super) gateways: ByFamily<Hop>,
    pub(super) reals: Pages<Followed>,
    pub(super) names: Arc<Names>,
}

impl From<Known> for NextHopList {
    fn from(known: Known) -> Self {
        Self(Arc::new(Snapshot {
            known: Some(known),
            list: OnceLock::new(),
        }))
    }
}

impl Deref for NextHopList {
    type Target = [NextHop];

    fn deref(&self) -> &[NextHop] {
        let put_together = || {
            self.0.known.as_ref().map_or_else(Vec::new, |known| {
                let reals = known.reals.iter().map(|real| (real.address, real.hop));
                list(&known.wanted, &known.gateways, reals, &known.names)
            })
        };
        self.0.list.get_or_init(put_together)
    }
}

impl<'a> IntoIterator for &'a NextHopList {
    type Item = &'a NextHop;
    type IntoIter = slice::Iter<'a, NextHop>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for NextHopList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl PartialEq for NextHopList {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl Eq for NextHopList {}

/// The known next hops in the public form.
pub(super) fn list(
    wanted: &Wanted,
    gateways: &ByFamily<Hop>,
    reals: impl Iterator<Item = (IpAddr, Hop)>,
    names: &Names,
) -> Vec<NextHop> {
    let public = |real: Option<IpAddr>, family: Family, hop: &Hop| {
        let interface = names.get(&hop.interface);
        NextHop {
            real,
            family,
            address: hop.address,
            interface: interface.map(|(name, _)| Arc::clone(name)),
            mac: hop.mac,
            answers: hop.address.is_some() && !hop.is_open(),
            here: hop.here,
            attached: wanted.mode == NextHops::Redirect
                || interface.is_none_or(|(_, attached)| *attached),
        }
    };
    if wanted.mode != NextHops::Gateway {
        let of_real = |(real, hop)| public(Some(real), Family::of(real), &hop);
        return reals.map(of_real).collect();
    }
    let of_family = |family: Family| {
        let hop = &gateways[family];
        let mac = gateway(wanted, gateways, family);
        NextHop {
            mac,
            ..public(None, family, hop)
        }
    };
    Family::ALL.map(of_family).into()
}
