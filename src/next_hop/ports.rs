//! Numbers of the interfaces that packets can be redirected to. A number that is given back is used again
//! as late as possible: a packet that has just read it may still be on its way.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::maps::MAX_PORTS;

/// Interfaces by their index, with their numbers: 1 to [`MAX_PORTS`].
#[derive(Debug, Default)]
pub(super) struct Ports {
    numbers: BTreeMap<u32, u16>,
    /// The largest number that was ever in use.
    used: u16,
    /// Numbers that were given back, in that order.
    given_back: VecDeque<u16>,
}

impl Ports {
    pub(super) fn get(&self, index: u32) -> Option<u16> {
        self.numbers.get(&index).copied()
    }

    pub(super) fn list(&self) -> Vec<(u32, u16)> {
        let numbers = self.numbers.iter();
        numbers.map(|(index, port)| (*index, *port)).collect()
    }

    /// A number that nobody has.
    pub(super) fn free(&self) -> Option<u16> {
        match self.used < MAX_PORTS {
            true => Some(self.used + 1),
            false => self.given_back.front().copied(),
        }
    }

    /// Gives the number that [`free`](Self::free) has told to an interface.
    pub(super) fn take(&mut self, index: u32, port: u16) {
        self.numbers.insert(index, port);
        self.given_back.retain(|free| *free != port);
        self.used = self.used.max(port);
    }

    /// The interface is gone; its number is still in use.
    pub(super) fn forget(&mut self, index: u32) {
        self.numbers.remove(&index);
    }

    pub(super) fn give_back(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.given_back.extend(ports);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_again_as_late_as_possible() {
        let mut ports = Ports::default();
        for index in 1..=u32::from(MAX_PORTS) {
            let port = ports.free().unwrap();
            assert_eq!(u32::from(port), index);
            ports.take(index, port);
            // The first two are gone soon; their numbers have to wait.
            if index <= 2 {
                ports.forget(index);
                ports.give_back([port]);
            }
        }
        for (index, expected) in [(100, Some(1)), (101, Some(2)), (102, None)] {
            assert_eq!(ports.free(), expected);
            if let Some(port) = expected {
                ports.take(index, port);
                assert_eq!(ports.get(index), Some(port));
            }
        }
        assert_eq!(ports.list().len(), usize::from(MAX_PORTS));
    }
}
