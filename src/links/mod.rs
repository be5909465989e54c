//! Tells packets about the links of the balancer: the MAC addresses of frames for this host and,
//! for `max_frame = "auto"`, the longest frame to forward: what the smallest link can send, less
//! the encapsulation. A thread follows changes and writes both into the memory that packets read.
//!
//! Without an answer from the kernel, packets use the usual MTU, and only check whether a frame is
//! multicast.

mod follower;
mod link;
mod watched;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::follower::Follower;
use self::link::Found;
use self::link::ask_once;
use crate::maps::Live;
use crate::maps::LivePointer;
use crate::sys::tenure::Tenure;
use crate::types::Encapsulation;
use crate::types::Family;
use crate::types::MaxFrame;

/// For an Ethernet interface with the usual MTU, while nothing is attached.
const UNATTACHED: u32 = 1514;
const ETHERNET: u32 = 14;
/// The range of the setting: every IPv4 host accepts packets of 576 bytes, and none exceed 65,535.
const SHORTEST: u32 = 590;
const LONGEST: u32 = 65_549;

/// The longest frame that fits an interface's MTU with so much overhead.
pub(crate) fn longest_frame(mtu: u32, overhead: u32) -> u32 {
    let longest = mtu.saturating_sub(overhead).saturating_add(ETHERNET);
    longest.clamp(SHORTEST, LONGEST)
}

/// One of the balancer's interfaces: the kernel's id of its network namespace, and its index.
pub(crate) type Place = (u64, u32);

/// Keeps packets informed about links.
pub(crate) struct Links {
    encapsulation: Encapsulation,
    live: LivePointer,
    /// Whether the longest frame follows the MTU.
    auto: bool,
    /// The number of IPv6 reals.
    reals_v6: usize,
    /// Exists while the balancer is attached.
    follower: Option<Follower>,
}

impl Links {
    pub(crate) fn new(wanted: MaxFrame, encapsulation: Encapsulation, live: Arc<Live>) -> Self {
        let longest = match wanted {
            MaxFrame::Bytes(bytes) => bytes,
            MaxFrame::Auto => UNATTACHED,
        };
        live.set_max_frame(longest);
        Self {
            encapsulation,
            live: LivePointer::new(live),
            auto: wanted == MaxFrame::Auto,
            reals_v6: 0,
            follower: None,
        }
    }

    /// The longest frame that packets currently accept.
    pub(crate) fn longest(&self) -> u32 {
        self.live.lock().max_frame()
    }

    /// From now on packets read other memory, which gets the current values.
    pub(crate) fn move_to(&self, live: &Arc<Live>) {
        self.live.move_to(live);
    }

    /// Adjusts the number of IPv6 reals, whose outer headers are longer. The program checks a
    /// packet's length before it knows its real.
    pub(crate) fn count_reals(&mut self, come: usize, gone: usize) {
        let before = self.overhead();
        self.reals_v6 = (self.reals_v6 + come).saturating_sub(gone);
        let overhead = self.overhead();
        if let Some(follower) = &self.follower
            && overhead != before
        {
            follower.set_overhead(overhead);
        }
    }

    fn overhead(&self) -> u32 {
        let outer = match self.reals_v6 {
            0 => Family::V4,
            _ => Family::V6,
        };
        self.encapsulation.overhead(outer)
    }

    /// Sets the balancer's interfaces. New ones are in the calling thread's network namespace.
    pub(crate) fn set(&mut self, places: &[Place]) {
        if places.is_empty() {
            if let Some(follower) = self.follower.take() {
                drop(follower);
                Told::new(self).tell([].into_iter(), self.overhead());
            }
            return;
        }
        if self.follower.is_none() {
            match Follower::start(Told::new(self), self.overhead()) {
                Ok(follower) => self.follower = Some(follower),
                Err(error) => {
                    log::warn!("cannot follow MTUs and MAC addresses: {error}");
                    self.ask_once(places);
                    return;
                }
            }
        }
        if let Some(follower) = &mut self.follower {
            follower.set_places(places);
        }
    }

    /// Uses the current MTUs in the calling thread's namespace, when changes cannot be followed.
    fn ask_once(&self, places: &[Place]) {
        let found = places
            .iter()
            .filter_map(|place| Some((place.1, ask_once(*place)?)));
        let found: Vec<_> = found.collect();
        let found = found.iter().map(|(interface, found)| (*interface, found));
        Told::new(self).tell(found, self.overhead());
    }
}

/// What packets last got.
struct Told {
    live: LivePointer,
    auto: bool,
    stations: BTreeMap<u32, link::Stations>,
}

impl Told {
    fn new(links: &Links) -> Self {
        let stations = BTreeMap::new();
        links.live.lock().set_stations(&stations);
        Self {
            live: links.live.clone(),
            auto: links.auto,
            stations,
        }
    }

    fn tenure(&self) -> Arc<Tenure> {
        Arc::clone(self.live.lock().tenure())
    }

    /// Tells packets the state by interface, if it changed.
    fn tell<'a>(&mut self, found: impl Iterator<Item = (u32, &'a Found)> + Clone, overhead: u32) {
        let mut stations: BTreeMap<u32, link::Stations> = BTreeMap::new();
        for (interface, found) in found.clone().filter(|(_, of)| !of.stations.is_empty()) {
            stations
                .entry(interface)
                .or_default()
                .extend(&found.stations);
        }
        let live = self.live.lock();
        if stations != self.stations {
            live.set_stations(&stations);
            self.stations = stations;
        }
        let smallest = found.map(|(_, found)| found.mtu).min();
        let longest = smallest.map_or(UNATTACHED, |mtu| longest_frame(mtu, overhead));
        if self.auto && longest != live.max_frame() {
            log::info!("forwarding frames of up to {longest} bytes");
            live.set_max_frame(longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_around_packets_is_taken_off_the_mtu() {
        use Encapsulation::Gue;
        use Encapsulation::Ipip;
        let cases = [
            (1500, Ipip, Family::V4, 1494),
            (1500, Ipip, Family::V6, 1474),
            (1500, Gue, Family::V4, 1486),
            (1500, Gue, Family::V6, 1466),
            (9000, Ipip, Family::V4, 8994),
            // At least what every host accepts, at most what exists.
            (68, Ipip, Family::V4, 590),
            (0, Gue, Family::V6, 590),
            (65_536, Ipip, Family::V4, 65_530),
            (u32::MAX, Gue, Family::V6, 65_549),
        ];
        for (mtu, encapsulation, outer, expected) in cases {
            let longest = longest_frame(mtu, encapsulation.overhead(outer));
            assert_eq!(longest, expected, "{mtu} {encapsulation} {outer:?}");
        }
    }
}
