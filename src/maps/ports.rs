//! Numbers of the interfaces that packets can be redirected to. A released number is reused as late
//! as possible, and never before a grace period has passed: a packet that has just read it would
//! leave by another interface.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io;
use std::mem;

use super::grace::GracePeriods;
use super::grace::Moment;
use crate::skel::katran::types::hop_constant;

/// The most interfaces that packets can be sent out of, besides the one where they arrived.
const MAX_PORTS: u16 = hop_constant::PORTS.0 as u16 - 1;

/// Interfaces by their index, with their numbers: 1 to [`MAX_PORTS`].
#[derive(Debug)]
pub(crate) struct Ports {
    grace: GracePeriods,
    numbers: BTreeMap<u32, u16>,
    /// The largest number that was ever in use.
    used: u16,
    /// Numbers of interfaces that are gone, or belong to a previous follower: hops may lead there.
    left: Vec<u16>,
    /// Released numbers, in that order: packets may have read them until the moment has passed.
    given_back: VecDeque<(Moment, u16)>,
}

impl Ports {
    pub(super) fn new(grace: GracePeriods) -> Self {
        Self {
            grace,
            numbers: BTreeMap::new(),
            used: 0,
            left: Vec::new(),
            given_back: VecDeque::new(),
        }
    }

    /// Ports that a previous process made, by their number, with their interfaces; hops lead to
    /// some.
    pub(super) fn resume(&mut self, made: &BTreeMap<u16, u32>, used_by_hops: &BTreeSet<u16>) {
        for (port, index) in made {
            self.used = self.used.max(*port);
            match used_by_hops.contains(port) {
                true if !self.numbers.contains_key(index) => {
                    self.numbers.insert(*index, *port);
                }
                true => self.left.push(*port),
                false => self.given_back.push_back((self.grace.begin(), *port)),
            }
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<u16> {
        self.numbers.get(&index).copied()
    }

    pub(crate) fn list(&self) -> Vec<(u32, u16)> {
        let numbers = self.numbers.iter();
        numbers.map(|(index, port)| (*index, *port)).collect()
    }

    /// A number that neither an interface nor a packet has. Waits for a grace period if all were in
    /// use a moment ago.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(crate) fn free(&self) -> io::Result<Option<u16>> {
        if self.used < MAX_PORTS {
            return Ok(Some(self.used + 1));
        }
        let Some((moment, port)) = self.given_back.front() else {
            return Ok(None);
        };
        if *moment > self.grace.passed() {
            self.grace.wait()?;
        }
        Ok(Some(*port))
    }

    /// Gives an interface the number that [`free`](Self::free) returned.
    pub(crate) fn take(&mut self, index: u32, port: u16) {
        self.numbers.insert(index, port);
        self.given_back.retain(|(_, free)| *free != port);
        self.used = self.used.max(port);
    }

    /// The interface is gone; its number is still in use.
    pub(crate) fn forget(&mut self, index: u32) {
        self.left.extend(self.numbers.remove(&index));
    }

    /// All interfaces are unknown again; their numbers are still in use.
    pub(crate) fn forget_all(&mut self) {
        self.left.extend(mem::take(&mut self.numbers).into_values());
    }

    /// No hop leads to forgotten interfaces any more: releases their numbers.
    pub(crate) fn give_back(&mut self) {
        if !self.left.is_empty() {
            let moment = self.grace.begin();
            let left = self.left.drain(..);
            self.given_back.extend(left.map(|port| (moment, port)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Ports {
        Ports::new(GracePeriods::new().unwrap())
    }

    #[test]
    #[cfg_attr(miri, ignore = "membarrier(2) is the kernel's")]
    fn numbers_come_again_as_late_as_possible() {
        let mut ports = ports();
        for index in 1..=u32::from(MAX_PORTS) {
            let port = ports.free().unwrap().unwrap();
            assert_eq!(u32::from(port), index);
            ports.take(index, port);
            // The first two are gone soon; their numbers must wait.
            if index <= 2 {
                ports.forget(index);
                ports.give_back();
            }
        }
        for (index, expected) in [(100, Some(1)), (101, Some(2)), (102, None)] {
            assert_eq!(ports.free().unwrap(), expected);
            if let Some(port) = expected {
                ports.take(index, port);
                assert_eq!(ports.get(index), Some(port));
            }
        }
        assert_eq!(ports.list().len(), usize::from(MAX_PORTS));
        // Hops may still lead there.
        ports.forget_all();
        assert_eq!((ports.free().unwrap(), ports.list()), (None, Vec::new()));
        ports.give_back();
        assert!(ports.free().unwrap().is_some());
    }

    #[test]
    #[cfg_attr(miri, ignore = "membarrier(2) is the kernel's")]
    fn a_number_comes_again_when_no_packet_has_it() {
        let mut ports = ports();
        for port in 1..=MAX_PORTS {
            ports.take(port.into(), port);
        }
        for port in 1..=MAX_PORTS {
            ports.forget(port.into());
            ports.give_back();
            let (moment, _) = ports.given_back[0];
            assert_eq!(ports.free().unwrap(), Some(port));
            assert!(moment <= ports.grace.passed(), "a packet may be under way");
            ports.take(port.into(), port);
        }
    }
}
