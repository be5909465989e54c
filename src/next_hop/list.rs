//! The list of next hops as the public has it: a snapshot that takes no time to make, however many reals there
//! are. It shares what is known with the board, and is put together by those who read it.

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

/// Interfaces by their index: names, and whether packets from where the balancer is attached come there.
pub(super) type Names = BTreeMap<u32, (Arc<str>, bool)>;

/// Where packets go next, and what is known of that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextHop {
    /// The real; `None`: all reals of the address's family.
    pub real: Option<IpAddr>,
    /// The router, or the real itself if it is on this host's segment; `None`: there is no route.
    pub address: Option<IpAddr>,
    /// The interface that leads there, if there is a route.
    pub interface: Option<Arc<str>>,
    /// The Ethernet address in use; `None`: not known, packets are dropped.
    pub mac: Option<MacAddr>,
    /// The address answers for itself, or its Ethernet address was given. If it does not, `mac` is the
    /// last one that was known.
    pub answers: bool,
    /// Packets come to the interface from where the balancer is attached: to it, to the link that it
    /// lies on, or to a member of it. True as well if that cannot be told, and with
    /// [`NextHops::Redirect`], which sends them there.
    pub attached: bool,
    /// The real is an address of this host.
    pub here: bool,
}

impl NextHop {
    /// Whether there is no way to it, or it does not answer: packets to it are dropped, or go to the Ethernet address that
    /// was known last.
    pub fn is_silent(&self) -> bool {
        // Without an address the Ethernet address was given.
        !self.here && !self.answers && (self.mac.is_none() || self.address.is_some())
    }
}

/// All next hops and what was known of them at one moment: [`Gateways::next_hops`](crate::attachments::Gateways::next_hops).
///
/// A slice of [`NextHop`]s, in the order of the reals' numbers, that does not change any more. To ask for a list,
/// or to clone one, takes below a microsecond whatever the number of reals. The list is put together when it is
/// first looked into, once for all its clones: 65,535 reals take some milliseconds then, of the thread that
/// looks; whoever asks for another list meanwhile does not wait.
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
    /// `None`: nothing is followed.
    known: Option<Known>,
    list: OnceLock<Vec<NextHop>>,
}

/// What a list is put together from.
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

/// What is known, as the public has it.
pub(super) fn list(
    wanted: &Wanted,
    gateways: &ByFamily<Hop>,
    reals: impl Iterator<Item = (IpAddr, Hop)>,
    names: &Names,
) -> Vec<NextHop> {
    let public = |real: Option<IpAddr>, hop: &Hop| {
        let interface = names.get(&hop.interface);
        NextHop {
            real,
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
        return reals.map(|(real, hop)| public(Some(real), &hop)).collect();
    }
    let of_family = |family: Family| {
        let hop = &gateways[family];
        let mac = gateway(wanted, gateways, family);
        NextHop {
            mac,
            ..public(None, hop)
        }
    };
    Family::ALL.map(of_family).into()
}
