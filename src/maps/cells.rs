//! Arrays that packets read and the library writes through shared memory: reals, and settings that
//! change while packets flow. A store here is not a system call, so it cannot fail; the order of
//! stores keeps packets right.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use crate::skel::katran::types;
use crate::sys::mapping::Mapping;
use crate::sys::tenure::Tenure;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::RealFlags;
use crate::types::address_bytes;

const _: () = assert!(std::mem::offset_of!(types::live, station) == 96);

/// `reals`: six 32-bit words per real, four of address, the id, the flags.
pub(crate) struct RealCells {
    map: OwnedFd,
    memory: Mapping,
}

const REAL_WORDS: usize = size_of::<types::real>() / 4;
const REAL_ID: usize = 4;
const REAL_FLAGS: usize = 5;

impl RealCells {
    pub(crate) fn new(map: OwnedFd, max_reals: u32) -> io::Result<Self> {
        let bytes = (max_reals as usize + 1) * size_of::<types::real>();
        let memory = Mapping::new(map.as_fd(), bytes)?;
        Ok(Self { map, memory })
    }

    fn words(&self, number: u16) -> &[AtomicU32] {
        let first = usize::from(number) * REAL_WORDS;
        &self.memory.u32s()[first..first + REAL_WORDS]
    }

    /// Gives a number to an address. Nothing refers to the number yet: no ring, and no flow with
    /// this generation.
    pub(crate) fn publish(&self, number: u16, address: IpAddr, generation: u16, flags: RealFlags) {
        let words = self.words(number);
        for (word, bytes) in words.iter().zip(address_bytes(address).chunks_exact(4)) {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        self.set_flags(number, address, flags);
        let id = real_id(number, generation);
        words[REAL_ID].store(id, Ordering::Release);
    }

    /// Sets the flags of a real; the family's bit follows from the address.
    pub(crate) fn set_flags(&self, number: u16, address: IpAddr, flags: RealFlags) {
        let mut flags = flags;
        flags.set(RealFlags::IPV6, address.is_ipv6());
        let word = u32::from_ne_bytes([flags.bits(), 0, 0, 0]);
        self.words(number)[REAL_FLAGS].store(word, Ordering::Release);
    }

    /// Takes a number back: from now on no flow's entry matches it.
    pub(crate) fn withdraw(&self, number: u16) {
        self.words(number)[REAL_ID].store(0, Ordering::Release);
    }
}

/// A real's id in flow entries: its number, and above it a count of the number's owners.
pub(crate) fn real_id(number: u16, generation: u16) -> u32 {
    u32::from(number) | u32::from(generation) << types::flow_table_constant::REAL_NUMBER_BITS.0
}

impl AsFd for RealCells {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// 32-bit words of `live`.
const MAX_FRAME: usize = 6;
const OWN_IN_FORCE: usize = 7;
const OWN: usize = 8;
/// 64-bit words of it.
const GATEWAY_MACS: ByFamily<usize> = ByFamily { v4: 0, v6: 9 };
/// 32-bit words again.
const EVENTS: usize = 20;
const EVENT_LIMIT: usize = 21;
const SERVER_IDS: usize = 22;
const ALIVE: usize = std::mem::offset_of!(types::live, alive) / 8;
const OWN_WORDS: usize = size_of::<types::own_addresses>() / 4;

/// `live`: what changes while packets flow.
#[derive(Debug)]
pub(crate) struct Live {
    map: OwnedFd,
    pub(super) memory: Mapping,
    tenure: Arc<Tenure>,
}

impl Live {
    pub(crate) fn new(map: OwnedFd, tenure: Arc<Tenure>) -> io::Result<Self> {
        let memory = Mapping::new(map.as_fd(), size_of::<types::live>())?;
        Ok(Self {
            map,
            memory,
            tenure,
        })
    }

    /// Shows packets that the balancer has an owner, at this time of the clock that they read.
    pub(crate) fn show_life(&self, ticks: u64) {
        self.memory.u64s()[ALIVE].store(ticks, Ordering::Release);
    }

    /// The time for which this process may write what packets see.
    pub(crate) fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// Sets where packets for reals of a family go.
    pub(crate) fn set_gateway_mac(&self, family: Family, mac: MacAddr) {
        let [a, b, c, d, e, f] = mac.octets();
        let word = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        self.memory.u64s()[GATEWAY_MACS[family]].store(word, Ordering::Release);
    }

    /// Sets the longest frame that is forwarded, in bytes.
    pub(crate) fn set_max_frame(&self, bytes: u32) {
        self.memory.u32s()[MAX_FRAME].store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn max_frame(&self) -> u32 {
        self.memory.u32s()[MAX_FRAME].load(Ordering::Relaxed)
    }

    /// Sets which kinds of events the program emits, a bit each, and how many of each kind per
    /// second on each CPU. Turning all kinds off leaves the limit: a packet may have read the old
    /// kinds but not the limit yet.
    pub(crate) fn set_events(&self, kinds: u32, limit: u32) {
        let words = self.memory.u32s();
        if kinds != 0 {
            words[EVENT_LIMIT].store(limit, Ordering::Relaxed);
        }
        words[EVENTS].store(kinds, Ordering::Release);
    }

    /// Where packets for reals of a family go; `None`: not known.
    pub(crate) fn gateway_mac(&self, family: Family) -> Option<MacAddr> {
        let word = self.memory.u64s()[GATEWAY_MACS[family]].load(Ordering::Acquire);
        let [a, b, c, d, e, f, ..] = word.to_ne_bytes();
        (word != 0).then(|| MacAddr::new([a, b, c, d, e, f]))
    }

    /// The values of [`set_events`](Self::set_events).
    pub(crate) fn events(&self) -> (u32, u32) {
        let words = self.memory.u32s();
        let kinds = words[EVENTS].load(Ordering::Acquire);
        (kinds, words[EVENT_LIMIT].load(Ordering::Relaxed))
    }

    /// Copies what was discovered about links and gateways, until it is discovered again.
    pub(crate) fn take_over(&self, before: &Self) {
        let (own, its) = (self.memory.u64s(), before.memory.u64s());
        for family in Family::ALL {
            let at = GATEWAY_MACS[family];
            if own[at].load(Ordering::Relaxed) == 0 {
                own[at].store(its[at].load(Ordering::Acquire), Ordering::Release);
            }
        }
        self.copy_stations(before);
    }

    fn copy_stations(&self, before: &Self) {
        let (own, its) = (self.memory.u32s(), before.memory.u32s());
        let first = std::mem::offset_of!(types::live, station_shift) / size_of::<u32>();
        let stations = size_of::<types::station>() * types::station_constant::STATIONS.0 as usize;
        let end = (std::mem::offset_of!(types::live, stations) + stations) / size_of::<u32>();
        for (own, its) in own[first..end].iter().zip(&its[first..end]) {
            own.store(its.load(Ordering::Relaxed), Ordering::Release);
        }
    }

    /// The current server-id table: its part and number of lines.
    pub(crate) fn server_ids(&self) -> Option<(u32, u32)> {
        let word = self.memory.u32s()[SERVER_IDS].load(Ordering::Acquire);
        let table = types::server_id_constant::SERVER_ID_TABLE.0;
        (word != 0).then(|| (word / table, word % table + 1))
    }

    /// Switches packets to the server-id table in this part, with `lines` lines (a power of two).
    pub(crate) fn set_server_ids(&self, table: u32, lines: u32) {
        let word = (table * types::server_id_constant::SERVER_ID_TABLE.0) | (lines - 1);
        self.memory.u32s()[SERVER_IDS].store(word, Ordering::Release);
    }

    /// Sets this host's own addresses; a missing one becomes zero. It writes the copy that packets
    /// do not read. A grace period must pass before the next call, because a packet may still be
    /// reading that copy.
    pub(crate) fn set_own_addresses(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let words = self.memory.u32s();
        // Packets read the other copy.
        let spare = words[OWN_IN_FORCE].load(Ordering::Relaxed) ^ 1;
        let first = OWN + OWN_WORDS * spare as usize;
        let v4 = v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        let v6 = v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets();
        let bytes = v4.chunks_exact(4).chain(v6.chunks_exact(4));
        for (word, bytes) in words[first..].iter().zip(bytes) {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        words[OWN_IN_FORCE].store(spare, Ordering::Release);
    }

    /// Counts misses per real for this VIP number only; `None`: for no VIP.
    pub(crate) fn set_watched_vip(&self, number: Option<u16>) {
        let word = number.map_or(0, |number| u32::from(number) + 1);
        self.memory.u32s()[2].store(word, Ordering::Release);
    }

    /// Tells packets which kinds of VIPs to look for beyond exact matches.
    pub(crate) fn set_vip_kinds(&self, kinds: VipKinds) {
        let words = self.memory.u32s();
        words[3].store(kinds.any_port, Ordering::Release);
        words[4].store(kinds.prefix, Ordering::Release);
        words[5].store(kinds.any_port_prefix, Ordering::Release);
    }
}

impl AsFd for Live {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// The memory that packets read now, for threads that write to it.
#[derive(Clone, Debug)]
pub(crate) struct LivePointer(Arc<Mutex<Arc<Live>>>);

impl LivePointer {
    pub(crate) fn new(live: Arc<Live>) -> Self {
        Self(Arc::new(Mutex::new(live)))
    }

    /// It stays the same until this is dropped.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Arc<Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Points to the new memory that packets read, and copies what the old said about links.
    pub(crate) fn move_to(&self, live: &Arc<Live>) {
        let mut present = self.lock();
        live.set_max_frame(present.max_frame());
        live.copy_stations(&present);
        *present = Arc::clone(live);
    }
}

/// The number of VIPs of each kind that takes an extra lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VipKinds {
    pub(crate) any_port: u32,
    pub(crate) prefix: u32,
    pub(crate) any_port_prefix: u32,
}
