//! A watched interface: how to ask the kernel for it, and its last answer.
//!
//! # Other network namespaces
//! A socket keeps its network namespace alive, and a balancer must not do that to a container. So
//! the sockets belong to the process's namespace, which numbers the others (`ip netns list-id`): by
//! these numbers the kernel reports their interfaces and changes. A number keeps nothing alive.
//! When its namespace is gone, another may get it, so an interface that was once missing is never
//! asked for again.

use std::io;

use nix::libc;

use super::Place;
use super::link::Found;
use super::link::ask;
use crate::rtnetlink::Requests;

/// The state of an interface.
pub(super) struct Watched {
    pub(super) place: Place,
    way: Way,
    /// `None`: gone, or not known yet.
    pub(super) found: Option<Found>,
    /// The last question failed and will be repeated.
    pub(super) is_open: bool,
}

/// How to ask the kernel for an interface.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// It is in the process's namespace.
    Home,
    /// By the number of its namespace there.
    Numbered(i32),
    /// Never again: its namespace has no number, because a privilege is missing, or it is gone and
    /// the number may be another's.
    Never,
}

impl Watched {
    pub(super) fn new(place: Place, way: Way) -> Self {
        Self {
            place,
            way,
            found: None,
            is_open: false,
        }
    }

    /// An interface that is not asked for again.
    pub(super) fn once(place: Place, found: Option<Found>) -> Self {
        Self {
            found,
            ..Self::new(place, Way::Never)
        }
    }

    /// Whether it is in another network namespace and still asked for.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.way, Way::Numbered(_))
    }

    /// Whether a change of this interface, in any namespace, may concern it.
    pub(super) fn is_about(&self, interface: u32) -> bool {
        match &self.found {
            Some(found) => found.touched.contains(&interface),
            None => self.place.1 == interface,
        }
    }

    pub(super) fn ask(&mut self, requests: &mut Requests) {
        let namespace = match self.way {
            Way::Home => None,
            Way::Numbered(number) => Some(number),
            Way::Never => return,
        };
        self.take(ask(requests, namespace, self.place.1));
    }

    /// Records the kernel's answer. An error keeps the previous state.
    fn take(&mut self, answer: io::Result<Option<Found>>) {
        let answer = match answer {
            // Nobody has the number: the namespace is gone.
            Err(error) if self.is_elsewhere() && error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(None)
            }
            answer => answer,
        };
        match answer {
            Ok(found) => {
                if found.is_none() && self.is_elsewhere() {
                    self.way = Way::Never;
                }
                (self.found, self.is_open) = (found, false);
            }
            Err(error) => {
                if !self.is_open {
                    let index = self.place.1;
                    log::warn!(
                        "interface {index}: cannot read MTU and MAC address, trying again: {error}"
                    );
                }
                self.is_open = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mtu: u32) -> Option<Found> {
        Some(Found {
            mtu,
            ..Found::default()
        })
    }

    #[test]
    fn an_error_leaves_what_was_known_and_is_asked_again() {
        let error = |number| Err(io::Error::from_raw_os_error(number));
        let place = (1, 2);
        let after = |way, answer| {
            let mut watched = Watched::new(place, way);
            watched.take(Ok(found(1500)));
            watched.take(answer);
            let is_asked = !matches!(watched.way, Way::Never);
            let mtu = watched.found.map(|found| found.mtu);
            (mtu, watched.is_open, is_asked)
        };
        for way in [Way::Home, Way::Numbered(3)] {
            assert_eq!(after(way, error(libc::ENOBUFS)), (Some(1500), true, true));
            assert_eq!(after(way, Ok(found(1400))), (Some(1400), false, true));
        }
        assert_eq!(
            after(Way::Home, error(libc::EINVAL)),
            (Some(1500), true, true)
        );
        // At home it may return; elsewhere the number may get another meaning.
        assert_eq!(after(Way::Home, Ok(None)), (None, false, true));
        assert_eq!(after(Way::Numbered(3), Ok(None)), (None, false, false));
        assert_eq!(
            after(Way::Numbered(3), error(libc::EINVAL)),
            (None, false, false)
        );
        let mut watched = Watched::new(place, Way::Home);
        watched.take(error(libc::ENOMEM));
        watched.take(Ok(found(9000)));
        assert_eq!((watched.found, watched.is_open), (found(9000), false));
    }

    #[test]
    fn a_notice_is_about_what_was_asked_for_and_found() {
        let mut watched = Watched::new((1, 2), Way::Home);
        assert_eq!([2, 3].map(|index| watched.is_about(index)), [true, false]);
        watched.take(Ok(Some(Found {
            touched: vec![2, 3],
            ..Found::default()
        })));
        let about = [2, 3, 4].map(|index| watched.is_about(index));
        assert_eq!(about, [true, true, false]);
    }
}
