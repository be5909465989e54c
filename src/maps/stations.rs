//! The Ethernet addresses by which packets tell frames for this station from others: a place for each, and
//! one word that nearly all frames are decided by.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::cells::Live;
use crate::skel::katran::types;
use crate::types::MacAddr;

/// Interfaces have places by their index, modulo.
const PLACES: usize = types::station_constant::STATIONS.0 as usize;

const SHIFT: u32 = types::station_constant::STATION_SHIFT.0;
const GROUP_SHIFT: u32 = types::station_constant::STATION_GROUP_SHIFT.0;
/// A word that no frame's, shifted, is.
const NOBODY: u64 = 1;

/// The place of the shift in words of 32 bits; of the rest in words of 64 bits. A place has addresses, then the
/// interface.
const SHIFT_WORD: usize = std::mem::offset_of!(types::live, station_shift) / 4;
const STATION: usize = std::mem::offset_of!(types::live, station) / 8;
const FIRST: usize = std::mem::offset_of!(types::live, stations) / 8;

const MACS: usize = types::station_constant::STATION_MACS.0 as usize;

const _: () = assert!(size_of::<types::station>() == 8 * (MACS + 1));

impl Live {
    /// Frames that come in by these interfaces are for this station if they are for one of these addresses;
    /// by others, all are that are for no group. While this is under way a frame for another station may be
    /// taken for one of ours, never the other way round. What does not fit is left out: of an interface more
    /// than three addresses, of two interfaces in one place the later one.
    pub(crate) fn set_stations(&self, stations: &BTreeMap<u32, BTreeSet<MacAddr>>) {
        let words = self.memory.u64s();
        // All frames look into the places meanwhile.
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
