//! The Ethernet addresses by which packets tell frames for this station from others: a place for
//! each interface, and one word that decides nearly all frames.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::cells::Live;
use crate::skel::katran::types;
use crate::types::MacAddr;

/// The number of places; an interface has the one of its index, modulo this.
const PLACES: usize = types::station_constant::STATIONS.0 as usize;

const SHIFT: u32 = types::station_constant::STATION_SHIFT.0;
const GROUP_SHIFT: u32 = types::station_constant::STATION_GROUP_SHIFT.0;
/// A word that no shifted frame has.
const NOBODY: u64 = 1;

/// The position of the shift in 32-bit words, and of the rest in 64-bit words. A place has
/// addresses, then the interface.
const SHIFT_WORD: usize = std::mem::offset_of!(types::live, station_shift) / 4;
const STATION: usize = std::mem::offset_of!(types::live, station) / 8;
const FIRST: usize = std::mem::offset_of!(types::live, stations) / 8;

const MACS: usize = types::station_constant::STATION_MACS.0 as usize;

const _: () = assert!(size_of::<types::station>() == 8 * (MACS + 1));

impl Live {
    /// Sets the addresses that frames arriving on these interfaces may be for; frames on other
    /// interfaces are for this station unless they are for a group. During this call a frame for
    /// another station may be taken for ours, never the reverse. What does not fit is left out:
    /// more than three addresses of an interface, and the later of two interfaces with the same
    /// place.
    pub(crate) fn set_stations(&self, stations: &BTreeMap<u32, BTreeSet<MacAddr>>) {
        let words = self.memory.u64s();
        // All frames look at the places meanwhile.
        words[STATION].store(NOBODY, Ordering::Release);

        let mut wanted = [const { (0, [0; MACS]) }; PLACES];
        for (interface, addresses) in stations {
            let place = &mut wanted[*interface as usize % PLACES];
            if place.0 == 0 && addresses.len() <= MACS {
                place.0 = *interface;
                for (to, mac) in place.1.iter_mut().zip(addresses) {
                    *to = word(*mac);
                }
            }
        }
        for (place, (interface, macs)) in words[FIRST..].chunks_exact(MACS + 1).zip(wanted) {
            let is_held = place[..MACS].iter().zip(macs);
            let mut is_held = is_held.map(|(held, mac)| held.load(Ordering::Relaxed) == mac);
            // The interface is the low half of its word: the program is little-endian only.
            let held = place[MACS].load(Ordering::Relaxed);
            if held == u64::from(interface) && is_held.all(|is_held| is_held) {
                continue;
            }
            place[MACS].store(0, Ordering::Release);
            for (to, mac) in place.iter().zip(macs) {
                to.store(mac, Ordering::Release);
            }
            place[MACS].store(interface.into(), Ordering::Release);
        }

        let mut all = stations.values().flatten();
        let first = all.next();
        let (station, shift) = match first {
            None => (0, GROUP_SHIFT),
            Some(mac) if all.all(|other| other == mac) => (word(*mac), SHIFT),
            Some(_) => (NOBODY, SHIFT),
        };
        self.memory.u32s()[SHIFT_WORD].store(shift, Ordering::Release);
        words[STATION].store(station, Ordering::Release);
    }
}

fn word(mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.octets();
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) << SHIFT
}
