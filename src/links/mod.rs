//! What the links are like that frames come in and leave by: the Ethernet addresses of frames for this
//! station, and the longest frame that is forwarded, where that is to be found out: what the smallest of them
//! can send, less what the encapsulation adds. A thread hears of changes and writes both into the memory that
//! packets read.
//!
//! What cannot be found out is not told apart: packets then look only whether a frame is for a group, and go by the
//! usual MTU.

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

/// Of an Ethernet interface of the usual MTU, while nothing is attached.
const UNATTACHED: u32 = 1514;
const ETHERNET: u32 = 14;
/// The range of the setting: every IPv4 host takes packets of 576 bytes, and there are none above 65,535.
const SHORTEST: u32 = 590;
const LONGEST: u32 = 65_549;

/// The longest frame that an interface of this MTU can send with so much around it.
pub(crate) fn longest_frame(mtu: u32, overhead: u32) -> u32 {
    let longest = mtu.saturating_sub(overhead).saturating_add(ETHERNET);
    longest.clamp(SHORTEST, LONGEST)
}

/// An interface by which frames come in and leave: the kernel's number of its network namespace, and its index.
pub(crate) type Place = (u64, u32);

/// Sees to it that packets know what the links are like.
pub(crate) struct Links {
    encapsulation: Encapsulation,
    live: LivePointer,
    /// If the longest frame is to be found out.
    auto: bool,
    /// How many reals have addresses of IPv6.
    reals_v6: usize,
    /// While the balancer is attached.
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

    /// The longest frame, as packets go by it now.
    pub(crate) fn longest(&self) -> u32 {
        self.live.lock().max_frame()
    }

    /// From now on packets read other memory, which comes to say what this has said until now.
    pub(crate) fn move_to(&self, live: &Arc<Live>) {
        self.live.move_to(live);
    }

    /// So many reals of IPv6 have come, or gone. Headers around packets to them are the longer ones; which
    /// real a packet goes to is not known yet where its length is looked at.
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

    /// Frames come in and leave here from now on. New places are in the calling thread's network namespace.
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
                    log::warn!("MTUs and Ethernet addresses are not followed: {error}");
                    self.ask_once(places);
                    return;
                }
            }
        }
        if let Some(follower) = &mut self.follower {
            follower.set_places(places);
        }
    }

    /// Where nothing can be followed: goes by the MTUs in the calling thread's namespace as they are now.
    fn ask_once(&self, places: &[Place]) {
        let found = places
            .iter()
            .filter_map(|place| Some((place.1, ask_once(*place)?)));
        let found: Vec<_> = found.collect();
        let found = found.iter().map(|(interface, found)| (*interface, found));
        Told::new(self).tell(found, self.overhead());
    }
}

/// What packets were told last.
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

    /// Tells packets what was found by interface, if that is something else than before.
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
            log::info!("frames of up to {longest} bytes are forwarded");
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
            // No less than what every host takes, no more than there is.
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
