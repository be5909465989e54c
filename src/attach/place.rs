//! What attachments are on: interfaces, which an index tells apart within a network namespace only, and
//! the names by which callers mean them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use nix::net::if_::if_indextoname;
use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Requests;
use crate::sys::namespace::network_namespace;

/// An interface, as the kernel tells it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The kernel's number of its network namespace.
    pub(crate) namespace: u64,
    /// Its index there.
    pub(crate) index: u32,
}

/// An interface that something is attached to, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) place: Place,
    /// Its name when this was looked up.
    pub(crate) name: String,
}

impl Target {
    /// The interface of this name in the calling thread's network namespace. One whose packets have no
    /// Ethernet header is refused, for all programs of this crate begin with that.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let missing = || Error::NoSuchInterface {
            interface: name.to_owned(),
        };
        let failed = |error| kernel_error("ask about the interface", name, error);
        let index = if_nametoindex(name).map_err(|_| missing())?;
        let interface = Requests::new().and_then(|mut requests| requests.interface(index));
        let interface = interface.map_err(failed)?.ok_or_else(missing)?;
        if !interface.ethernet {
            return Err(Error::Unsupported {
                what: format!("a program on {name}"),
                reason: "its packets have no Ethernet header: choose an interface whose packets have \
                         one, such as that below a tunnel",
            });
        }
        Ok(Self {
            place: Place {
                namespace: network_namespace().map_err(failed)?,
                index,
            },
            name: name.to_owned(),
        })
    }

    /// What the interface is called now, if it is of the namespace `here`, which is the calling thread's;
    /// else what it was called when it was looked up.
    pub(crate) fn present_name(&self, here: Option<u64>) -> String {
        let name = match here == Some(self.place.namespace) {
            true => if_indextoname(self.place.index).ok(),
            false => None,
        };
        let name = name.and_then(|name| name.into_string().ok());
        // For an index without interface nix 0.31 returns an empty name instead of the error.
        let name = name.filter(|name| !name.is_empty());
        name.unwrap_or_else(|| self.name.clone())
    }
}

/// The calling thread's network namespace, if the kernel tells.
pub(crate) fn here() -> Option<u64> {
    network_namespace()
        .inspect_err(|error| log::warn!("cannot ask for the network namespace: {error}"))
        .ok()
}

/// An interface as a caller names it, who may be in its namespace or in another one.
#[derive(Debug)]
pub(crate) struct Named<'a> {
    pub(crate) name: &'a str,
    /// The caller's namespace.
    here: Option<u64>,
    /// The interface of that name there.
    place: Option<Place>,
}

impl<'a> Named<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        let here = here();
        let index = if_nametoindex(name).ok();
        Self {
            name,
            here,
            place: here
                .zip(index)
                .map(|(namespace, index)| Place { namespace, index }),
        }
    }

    /// Whether the interface has the name now.
    pub(crate) fn is(&self, target: &Target) -> bool {
        Some(target.place) == self.place
    }

    /// Which of these the caller means: the interface that has the name now; else the one that had it
    /// when it was attached to, in the caller's namespace before others. `Err` if there are several.
    pub(crate) fn choose<'t>(
        &self,
        targets: impl Iterator<Item = &'t Target> + Clone,
    ) -> Result<Option<usize>> {
        if let Some(position) = targets.clone().position(|target| self.is(target)) {
            return Ok(Some(position));
        }
        let named: Vec<_> = targets
            .enumerate()
            .filter(|(_, target)| target.name == self.name)
            .collect();
        let is_here = |target: &Target| Some(target.place.namespace) == self.here;
        let of_here = named.iter().find(|(_, target)| is_here(target));
        match (of_here, &named[..]) {
            (Some((position, _)), _) | (None, [(position, _)]) => Ok(Some(*position)),
            (None, []) => Ok(None),
            (None, _) => Err(Error::InvalidConfig {
                setting: "interface",
                value: self.name.to_owned(),
                reason:
                    "interfaces of this name in several network namespaces are attached to: call \
                         from the namespace of the one that is meant"
                        .to_owned(),
            }),
        }
    }
}

/// A network namespace, which lives as long as this does.
#[derive(Debug)]
pub(crate) struct Namespace {
    number: u64,
    file: File,
}

impl Namespace {
    /// The calling thread's.
    pub(crate) fn here() -> io::Result<Self> {
        Ok(Self {
            number: network_namespace()?,
            file: File::open("/proc/thread-self/ns/net")?,
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Runs `f` in this namespace: at once if the caller is there, which takes no privilege, else on a
    /// thread of its own, so that the caller's stays where it is.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        if network_namespace()? == self.number {
            return Ok(f());
        }
        thread::scope(|scope| {
            let there = || {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(f())
            };
            let thread = thread::Builder::new().spawn_scoped(scope, there)?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(namespace: u64, index: u32, name: &str) -> Target {
        Target {
            place: Place { namespace, index },
            name: name.to_owned(),
        }
    }

    #[test]
    fn an_interface_that_is_gone_keeps_the_name_that_it_had() {
        let here = network_namespace().unwrap();
        let gone = target(here, i32::MAX as u32, "eth0");
        assert_eq!(gone.present_name(Some(here)), "eth0");
        let loopback = target(here, 1, "eth0");
        assert_eq!(loopback.present_name(Some(here)), "lo");
        assert_eq!(loopback.present_name(None), "eth0");
    }

    #[test]
    fn the_interface_that_has_the_name_now_is_meant_before_those_that_had_it() {
        let targets = [
            target(1, 2, "eth0"), // renamed since then
            target(1, 3, "eth1"),
            target(1, 5, "eth5"), // eth0 by now
            target(2, 2, "eth1"),
            target(3, 2, "eth1"),
        ];
        let named = |name, here, index: Option<u32>| Named {
            name,
            here: Some(here),
            place: index.map(|index| Place {
                namespace: here,
                index,
            }),
        };
        for (name, here, index, expected) in [
            ("eth0", 1, Some(5), Some(2)),
            // Another interface has the name now, which is none of these.
            ("eth0", 1, Some(9), Some(0)),
            ("eth0", 1, None, Some(0)),
            ("eth0", 4, Some(2), Some(0)),
            ("eth1", 2, None, Some(3)),
            ("eth1", 3, Some(2), Some(4)),
            ("eth9", 1, None, None),
        ] {
            let chosen = named(name, here, index).choose(targets.iter()).unwrap();
            assert_eq!(chosen, expected, "{name} in {here}");
        }
        let error = named("eth1", 4, None).choose(targets.iter()).unwrap_err();
        assert!(error.to_string().contains("several"), "{error}");
    }
}
