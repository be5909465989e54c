//! The next hops of single reals, and the interfaces they are behind: arrays that packets read and
//! the library writes through shared memory.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::grace::GracePeriods;
use super::ports::Ports;
use crate::skel::katran::types;
use crate::skel::katran::types::hop_constant;
use crate::sys::map::Typed;
use crate::sys::mapping::Mapping;
use crate::types::MacAddr;

const PORT_WORDS: usize = size_of::<types::port>() / 8;
const _: () = assert!(size_of::<types::port>() == 16);

/// `hops`, `ports` and `devices`.
pub(crate) struct HopCells {
    hops: OwnedFd,
    of_reals: Mapping,
    ports: OwnedFd,
    of_ports: Mapping,
    devices: Typed<u32, u32>,
    /// Outlives each follower, because packets may still read what the previous one wrote. Only a
    /// follower's thread takes the lock.
    numbers: Mutex<Ports>,
}

impl HopCells {
    pub(crate) fn new(
        hops: OwnedFd,
        ports: OwnedFd,
        devices: OwnedFd,
        max_reals: u32,
        grace: GracePeriods,
    ) -> io::Result<Self> {
        let of_reals = Mapping::new(hops.as_fd(), (max_reals as usize + 1) * size_of::<u64>())?;
        let bytes = hop_constant::PORTS.0 as usize * size_of::<types::port>();
        let of_ports = Mapping::new(ports.as_fd(), bytes)?;
        let port_of =
            |word: &AtomicU64| word.load(Ordering::Acquire) >> hop_constant::HOP_PORT_SHIFT.0;
        let used_by_hops = of_reals.u64s().iter().map(|word| port_of(word) as u16);
        let made = of_ports.u64s().chunks_exact(PORT_WORDS).zip(0..);
        let made = made.map(|(words, port)| (port, words[1].load(Ordering::Acquire) as u32));
        let made = made.filter(|(_, interface)| *interface != 0);
        // Made by a previous owner; a new balancer has none.
        let mut numbers = Ports::new(grace);
        numbers.resume(&made.collect(), &used_by_hops.collect());
        Ok(Self {
            hops,
            of_reals,
            ports,
            of_ports,
            devices: Typed::new(devices)?,
            numbers: Mutex::new(numbers),
        })
    }

    /// Sends packets for this real to `mac` by this port; 0: back out of the interface where they
    /// arrived.
    pub(crate) fn set(&self, real: u16, mac: MacAddr, port: u16) {
        let [a, b, c, d, e, f] = mac.octets();
        let word = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
            | u64::from(port) << hop_constant::HOP_PORT_SHIFT.0;
        self.of_reals.u64s()[usize::from(real)].store(word, Ordering::Release);
    }

    /// The next hop of this real is no longer known: its packets are dropped.
    pub(crate) fn clear(&self, real: u16) {
        self.of_reals.u64s()[usize::from(real)].store(0, Ordering::Release);
    }

    /// Copies what is known about these reals and the interfaces they are behind, until it is
    /// discovered again.
    pub(crate) fn take_over(
        &self,
        before: &Self,
        reals: impl Iterator<Item = u16>,
    ) -> io::Result<()> {
        let its = before.numbers();
        let mut own = self.numbers();
        for (index, port) in its.list() {
            let words = &before.of_ports.u64s()[usize::from(port) * PORT_WORDS..];
            let [a, b, c, d, e, f, ..] = words[0].load(Ordering::Relaxed).to_ne_bytes();
            self.set_port(port, index, MacAddr::new([a, b, c, d, e, f]))?;
            own.take(index, port);
        }
        for real in reals.map(usize::from) {
            let hop = before.of_reals.u64s()[real].load(Ordering::Acquire);
            self.of_reals.u64s()[real].store(hop, Ordering::Release);
        }
        Ok(())
    }

    /// The ports' numbers.
    pub(crate) fn numbers(&self) -> MutexGuard<'_, Ports> {
        // Every change of them is complete, even after a panic.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a port of an interface, by its index. No hop refers to the port yet.
    pub(crate) fn set_port(&self, port: u16, interface: u32, mac: MacAddr) -> io::Result<()> {
        self.devices.update(&port.into(), &interface)?;
        let [a, b, c, d, e, f] = mac.octets();
        let words = &self.of_ports.u64s()[usize::from(port) * PORT_WORDS..][..PORT_WORDS];
        words[0].store(
            u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]),
            Ordering::Relaxed,
        );
        words[1].store(interface.into(), Ordering::Release);
        Ok(())
    }

    pub(crate) fn named(&self) -> [(&'static str, BorrowedFd<'_>); 3] {
        [
            (".data.hops", self.hops.as_fd()),
            (".data.ports", self.ports.as_fd()),
            ("devices", self.devices.as_fd()),
        ]
    }
}
