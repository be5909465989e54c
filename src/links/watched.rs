//! An entrance that is watched: how the kernel is asked for it, and what it told last.
//!
//! # Other network namespaces
//! A socket keeps its network namespace alive, and a balancer must not do that to a container. So the sockets
//! belong to the namespace of the process, which gives the others numbers (`ip netns list-id`): by these
//! the kernel tells of their interfaces, and of changes there. A number keeps nothing alive. When its
//! namespace is gone it may be given to another one, so an interface that was not there once is not asked
//! for any more.

use std::io;

use nix::libc;

use super::Place;
use super::link::Found;
use super::link::ask;
use crate::rtnetlink::Requests;

/// What is known of a place.
pub(super) struct Watched {
    pub(super) place: Place,
    way: Way,
    /// `None`: it is gone, or nothing is known yet.
    pub(super) found: Option<Found>,
    /// The last question has failed, and is asked again.
    pub(super) is_open: bool,
}

/// How the kernel is asked for an interface.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// It is in the namespace of the process.
    Home,
    /// By the number that its namespace has there.
    Numbered(i32),
    /// Not again: its namespace has no number, for which this process lacks a privilege, or it is not there any
    /// more, and its number may be another one's.
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

    /// One that is not asked for again.
    pub(super) fn once(place: Place, found: Option<Found>) -> Self {
        Self {
            found,
            ..Self::new(place, Way::Never)
        }
    }

    /// Whether it is in another network namespace, and asked for.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.way, Way::Numbered(_))
    }

    /// Whether a change of this interface, in whatever namespace, may be one of it.
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

    /// Takes the kernel's answer. An error leaves what was known.
    fn take(&mut self, answer: io::Result<Option<Found>>) {
        let answer = match answer {
            // The number is nobody's: the namespace is gone.
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
                        "interface {index}: MTU and Ethernet address are asked for again: {error}"
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
        // At home it may come back, elsewhere the number may come to mean something else.
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
