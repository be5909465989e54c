//! What the health checks' program is told while packets flow.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use crate::MacAddr;
use crate::skel::healthcheck::types;
use crate::sys::mapping::Mapping;

const _: () = assert!(size_of::<types::probe_settings>() == 56);

/// 64-bit words of `settings`.
const GATEWAY_MACS: [usize; 2] = [0, 1];
const OWN_MAC: usize = 2;
/// 32-bit ones.
const INTERFACE: usize = 6;
const MATCHES: [usize; 2] = [7, 8];
const OWN: usize = 9;

/// `settings`.
pub(crate) struct ProbeCells {
    /// Keeps the memory's map.
    _map: OwnedFd,
    memory: Mapping,
}

impl ProbeCells {
    pub(crate) fn new(map: OwnedFd) -> io::Result<Self> {
        use std::os::fd::AsFd;
        let memory = Mapping::new(map.as_fd(), size_of::<types::probe_settings>())?;
        Ok(Self { _map: map, memory })
    }

    fn set_mac(&self, word: usize, mac: MacAddr) {
        let [a, b, c, d, e, f] = mac.octets();
        let value = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        self.memory.u64s()[word].store(value, Ordering::Release);
    }

    /// Where probes of reals of a family go.
    pub(crate) fn set_gateway_mac(&self, v6: bool, mac: MacAddr) {
        self.set_mac(GATEWAY_MACS[usize::from(v6)], mac);
    }

    /// By which interface probes leave.
    pub(crate) fn set_interface(&self, index: u32, own: MacAddr) {
        self.set_mac(OWN_MAC, own);
        self.memory.u32s()[INTERFACE].store(index, Ordering::Release);
    }

    /// How many matches by destination, and by source, there are.
    pub(crate) fn set_matches(&self, matches: [usize; 2]) {
        for (word, count) in MATCHES.into_iter().zip(matches) {
            self.memory.u32s()[word].store(count as u32, Ordering::Release);
        }
    }

    /// The outer source addresses; a missing one is written as zero.
    pub(crate) fn set_own_addresses(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let v4 = v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        let v6 = v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets();
        let bytes = v4.chunks_exact(4).chain(v6.chunks_exact(4));
        for (word, bytes) in self.memory.u32s()[OWN..].iter().zip(bytes) {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
        }
    }
}
