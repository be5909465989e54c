//! What the control side tells the health check program while packets flow.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::skel::healthcheck::types;
use crate::sys::map::Typed;
use crate::sys::mapping::Mapping;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::address_bytes;

/// Most ways of probes per real: by marks, and by two kinds of matches.
pub(crate) const MAX_WAYS: u32 = 3;

const _: () = assert!(size_of::<types::probe_settings>() == 88);

/// 64-bit words of `settings`.
const GATEWAY_MACS: ByFamily<usize> = ByFamily { v4: 0, v6: 1 };
const OWN_MAC: usize = 2;
/// 32-bit words.
const INTERFACE: usize = 6;
const MATCHES: [usize; 2] = [7, 8];
const OWN_CURRENT: usize = 9;
const OWN: usize = 10;
const MARKED: usize = 20;
const OWN_WORDS: usize = size_of::<types::own_addresses>() / 4;

/// How to reach a real if reals have their own next hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeWay {
    /// The interface that leads to it; 0: the one for all probes.
    pub(crate) interface: u32,
    /// By the gateway's Ethernet address; otherwise by the neighbour table.
    pub(crate) by_gateway: bool,
}

/// `settings`, and the ways to reals.
pub(crate) struct ProbeCells {
    /// Keeps the memory's map.
    map: OwnedFd,
    memory: Mapping,
    /// If reals have their own next hops.
    ways: Option<Ways>,
    /// The interface that probes leave by, with its network namespace, if not the one they are sent
    /// on. Only under this lock do owner and follower write it to memory.
    leave_by: Mutex<Option<(u64, u32)>>,
}

/// The ways to all reals that marks and matches lead to.
struct Ways {
    map: Typed<types::probe_match, types::probe_way>,
    /// Ways must be written in the order in which they become known, so writing happens under the
    /// lock: one bpf(2) call, which waits for nothing. Routing tables are never asked under it.
    known: Mutex<BTreeMap<IpAddr, Known>>,
}

struct Known {
    /// Marks and matches that lead to the real.
    users: usize,
    /// `None`: a query is under way.
    way: Option<ProbeWay>,
}

impl Ways {
    /// A panic leaves nothing half done.
    fn known(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, real: IpAddr, way: ProbeWay) -> io::Result<()> {
        let value = types::probe_way {
            interface: way.interface,
            by_gateway: way.by_gateway.into(),
        };
        self.map.update(&match_key((real, 0).into()), &value)
    }
}

/// The program's key for an address and port.
pub(crate) fn match_key(address: SocketAddr) -> types::probe_match {
    types::probe_match {
        address: address_bytes(address.ip()),
        port: address.port().to_be(),
        family: Family::of(address.ip()).number().into(),
    }
}

impl ProbeCells {
    /// Takes the maps; `ways` is there if reals have their own next hops.
    pub(crate) fn new(map: OwnedFd, ways: Option<OwnedFd>) -> io::Result<Self> {
        let memory = Mapping::new(map.as_fd(), size_of::<types::probe_settings>())?;
        let ways = match ways {
            Some(map) => Some(Ways {
                map: Typed::new(map)?,
                known: Mutex::default(),
            }),
            None => None,
        };
        Ok(Self {
            map,
            memory,
            ways,
            leave_by: Mutex::default(),
        })
    }

    pub(crate) fn settings_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// The ways, if reals have their own next hops.
    pub(crate) fn ways_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ways.as_ref().map(|ways| ways.map.as_fd())
    }

    /// The number of ways.
    pub(crate) fn ways(&self) -> usize {
        self.ways.as_ref().map_or(0, |ways| ways.known().len())
    }

    /// From now on a mark or a match leads to `real`. If the way to it is not known yet, this calls
    /// `find`, which makes the follower report it, and if the follower did not, takes the way that
    /// `or` returns. It calls both without a lock.
    pub(crate) fn use_way(
        &self,
        real: IpAddr,
        find: impl FnOnce(),
        or: impl FnOnce() -> ProbeWay,
    ) -> io::Result<()> {
        let Some(ways) = &self.ways else {
            return Ok(());
        };
        let mut known = ways.known();
        if let Some(known) = known.get_mut(&real) {
            known.users += 1;
            return Ok(());
        }
        // From here the follower watches the real, so no change of its way is missed.
        let asked = Known {
            users: 1,
            way: None,
        };
        known.insert(real, asked);
        drop(known);
        find();
        let is_open = |known: &BTreeMap<IpAddr, Known>| {
            let of_real = known.get(&real);
            of_real.is_some_and(|of_real| of_real.way.is_none())
        };
        let open = is_open(&ways.known());
        if !open {
            return Ok(());
        }
        let way = or();
        let mut known = ways.known();
        match known.get_mut(&real) {
            // Anything that the follower has discovered meanwhile is newer.
            Some(of_real) if of_real.way.is_none() => match ways.write(real, way) {
                Ok(()) => of_real.way = Some(way),
                Err(error) => {
                    known.remove(&real);
                    return Err(error);
                }
            },
            _ => {}
        }
        Ok(())
    }

    /// A mark or a match of the previous owner leads to `real`: its way stays until the follower
    /// finds another.
    pub(crate) fn resume_way(&self, real: IpAddr) -> io::Result<()> {
        let Some(ways) = &self.ways else {
            return Ok(());
        };
        let mut known = ways.known();
        if let Some(known) = known.get_mut(&real) {
            known.users += 1;
            return Ok(());
        }
        let way = ways.map.lookup(&match_key((real, 0).into()))?;
        let way = way.map(|of| ProbeWay {
            interface: of.interface,
            by_gateway: of.by_gateway != 0,
        });
        known.insert(real, Known { users: 1, way });
        Ok(())
    }

    /// One mark or match less leads to `real`.
    pub(crate) fn leave_way(&self, real: IpAddr) {
        let Some(ways) = &self.ways else {
            return;
        };
        let mut known = ways.known();
        let Some(of_real) = known.get_mut(&real) else {
            return;
        };
        of_real.users -= 1;
        if of_real.users == 0 {
            known.remove(&real);
            // Nothing looks up what is left there, and the next use overwrites it.
            if let Err(error) = ways.map.delete(&match_key((real, 0).into())) {
                log::warn!("cannot remove the next hop of probes to {real}: {error}");
            }
        }
    }

    /// The reals that marks and matches lead to, if they have their own ways.
    pub(crate) fn probed(&self) -> Vec<IpAddr> {
        let ways = self.ways.as_ref();
        ways.map_or_else(Vec::new, |ways| ways.known().keys().copied().collect())
    }

    /// Sets the way to a real, if anything still leads there.
    pub(crate) fn set_way(&self, real: IpAddr, way: ProbeWay) {
        let Some(ways) = &self.ways else {
            return;
        };
        let mut known = ways.known();
        let Some(known) = known.get_mut(&real).filter(|known| known.way != Some(way)) else {
            return;
        };
        match ways.write(real, way) {
            Ok(()) => known.way = Some(way),
            Err(error) => log::warn!("cannot write the next hop of probes to {real}: {error}"),
        }
    }

    fn set_mac(&self, word: usize, mac: MacAddr) {
        let [a, b, c, d, e, f] = mac.octets();
        let value = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        self.memory.u64s()[word].store(value, Ordering::Release);
    }

    /// Sets where probes for reals of a family go.
    pub(crate) fn set_gateway_mac(&self, family: Family, mac: MacAddr) {
        self.set_mac(GATEWAY_MACS[family], mac);
    }

    /// Sets the interface of a network namespace that probes leave by; `None`: the one they are
    /// sent on.
    pub(crate) fn leave_by(&self, interface: Option<(u64, u32, MacAddr)>) {
        self.write_interface(&mut self.lock_interface(), interface);
    }

    /// The interface of a network namespace that probes leave by.
    pub(crate) fn leaves_by(&self, namespace: u64) -> Option<u32> {
        let (of, index) = (*self.lock_interface())?;
        (of == namespace).then_some(index)
    }

    /// An interface is gone: probes leave by the next one, or by the one they are sent on. `false`:
    /// they leave by another.
    pub(crate) fn interface_gone(
        &self,
        (namespace, index): (u64, u32),
        next: Option<(u32, MacAddr)>,
    ) -> bool {
        let mut leave_by = self.lock_interface();
        if *leave_by != Some((namespace, index)) {
            return false;
        }
        let next = next.map(|(index, mac)| (namespace, index, mac));
        self.write_interface(&mut leave_by, next);
        true
    }

    fn lock_interface(&self) -> MutexGuard<'_, Option<(u64, u32)>> {
        // Nothing under the lock panics.
        let locked = self.leave_by.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    fn write_interface(&self, leave_by: &mut Option<(u64, u32)>, to: Option<(u64, u32, MacAddr)>) {
        *leave_by = to.map(|(namespace, index, _)| (namespace, index));
        let (index, mac) = to.map_or((0, MacAddr::new([0; 6])), |(_, index, mac)| (index, mac));
        self.set_mac(OWN_MAC, mac);
        self.memory.u32s()[INTERFACE].store(index, Ordering::Release);
    }

    /// Copies what was discovered about gateways, until it is discovered again, and whether there
    /// ever was a mark.
    pub(crate) fn take_over(&self, before: &Self) {
        for family in Family::ALL {
            let [own, its] = [self, before].map(|of| &of.memory.u64s()[GATEWAY_MACS[family]]);
            if own.load(Ordering::Relaxed) == 0 {
                own.store(its.load(Ordering::Acquire), Ordering::Release);
            }
        }
        if before.memory.u32s()[MARKED].load(Ordering::Relaxed) != 0 {
            self.set_marked();
        }
    }

    /// There is a mark, or was one: from here the program tracks connections of marked packets.
    pub(crate) fn set_marked(&self) {
        self.memory.u32s()[MARKED].store(1, Ordering::Release);
    }

    /// Sets the number of matches by destination, and by source.
    pub(crate) fn set_matches(&self, matches: [usize; 2]) {
        for (word, count) in MATCHES.into_iter().zip(matches) {
            self.memory.u32s()[word].store(count as u32, Ordering::Release);
        }
    }

    /// Sets the outer source addresses; a missing one becomes zero. As with packets' addresses, a
    /// grace period must pass before the next call.
    pub(crate) fn set_own_addresses(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let words = self.memory.u32s();
        let spare = words[OWN_CURRENT].load(Ordering::Relaxed) ^ 1;
        let first = OWN + OWN_WORDS * spare as usize;
        let v4 = v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        let v6 = v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets();
        let bytes = v4.chunks_exact(4).chain(v6.chunks_exact(4));
        for (word, bytes) in words[first..].iter().zip(bytes) {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        words[OWN_CURRENT].store(spare, Ordering::Release);
    }
}
