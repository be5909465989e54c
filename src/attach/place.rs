//! What attachments are on: interfaces, which an index identifies only within a network namespace,
//! and the names that callers use.

use std::fmt;
use std::path;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use nix::net::if_::if_indextoname;
use nix::net::if_::if_nametoindex;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Requests;
use crate::sys::namespace::network_namespace;

/// The state of an attachment, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum AttachmentState {
    /// The program is attached, or the kernel does not show whether it is.
    Attached,
    /// The interface (or the array of entries) was removed, even if another one has its name now,
    /// or another process removed the program. No packet reaches the program there until you attach
    /// again or call `reattach`.
    Gone,
    /// The interface moved to another network namespace. The program works there until you detach
    /// it by the name that the interface had. Only a thread of the earlier namespace can detect
    /// this, or any thread if the index changed; others see `Attached`, as do all threads after the
    /// interface moves back. `reattach` leaves it alone.
    Moved,
    /// Another program has replaced it.
    Replaced,
}

impl fmt::Display for AttachmentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attached => "attached",
            Self::Gone => "gone",
            Self::Moved => "moved to another namespace",
            Self::Replaced => "replaced by another program",
        })
    }
}

/// An absolute path, even of something that is gone: the next process may have another working
/// directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    let of_parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    let found = path.canonicalize().ok().or_else(of_parent);
    let found = found.or_else(|| path::absolute(path).ok());
    found.unwrap_or_else(|| path.to_owned())
}

/// An interface, as the kernel identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The kernel's id of its network namespace.
    pub(crate) namespace: u64,
    /// Its index there.
    pub(crate) index: u32,
}

/// An interface that something is or will be attached to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) place: Place,
    /// Its name when this was looked up.
    pub(crate) name: String,
    /// Its name when it was last seen.
    last_name: Mutex<String>,
}

impl Target {
    pub(super) fn new(place: Place, name: &str) -> Self {
        Self {
            place,
            name: name.to_owned(),
            last_name: Mutex::new(name.to_owned()),
        }
    }

    /// The interface of this name in the calling thread's network namespace. Refuses one whose
    /// packets have no Ethernet header, because all programs of this crate begin with it.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let missing = || Error::NoSuchInterface {
            interface: name.to_owned(),
        };
        let failed = |error| kernel_error("inspect the interface", name, error);
        let index = if_nametoindex(name).map_err(|_| missing())?;
        let interface = Requests::new().and_then(|mut requests| requests.interface(index));
        let interface = interface.map_err(failed)?.ok_or_else(missing)?;
        if !interface.ethernet {
            return Err(Error::Unsupported {
                what: format!("a program on {name}"),
                reason: "its packets have no Ethernet header: choose an interface whose packets have \
                         one, for example the one below a tunnel",
            });
        }
        let namespace = network_namespace().map_err(failed)?;
        Ok(Self::new(Place { namespace, index }, name))
    }

    /// The name that the interface had when it was last seen: its current name, or the last one.
    pub(crate) fn last_name(&self) -> String {
        self.last().clone()
    }

    fn last(&self) -> MutexGuard<'_, String> {
        // The string is consistent at any time.
        self.last_name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it had this name when it was attached to, or when last seen.
    fn had(&self, name: &str) -> bool {
        self.name == name || *self.last() == name
    }

    /// Looks for an interface that exists, as a link reports: records its name, and returns whether
    /// it is still in its namespace. `is_it` distinguishes it from another one with its index. Only
    /// a thread of that namespace can tell; for others it is in place.
    pub(super) fn is_in_place(&self, is_it: impl FnOnce() -> bool) -> bool {
        if here() != Some(self.place.namespace) {
            return true;
        }
        match name_of(self.place.index) {
            Some(name) if is_it() => {
                *self.last() = name;
                true
            }
            _ => false,
        }
    }
}

/// The name of an interface in the calling thread's network namespace. For a missing one, nix's
/// `if_indextoname` returns an empty name.
fn name_of(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?.into_string().ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// The calling thread's network namespace, if the kernel tells.
pub(crate) fn here() -> Option<u64> {
    network_namespace()
        .inspect_err(|error| log::warn!("cannot identify the network namespace: {error}"))
        .ok()
}

/// An interface that something is attached to, as just found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) target: &'a Target,
    pub(crate) state: AttachmentState,
}

impl Seen<'_> {
    fn is_gone(&self) -> bool {
        self.state == AttachmentState::Gone
    }
}

/// An interface as a caller names it, from its own or another namespace.
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

    /// The one that the caller means: the interface with the name now; else a lost one that had it
    /// last, in the caller's namespace first; else the only one that ever had it. `Err` if there
    /// are several. An interface with another name now is never mistaken for a lost one.
    pub(crate) fn choose(&self, held: &[Seen<'_>]) -> Result<Option<usize>> {
        // Of one that was moved another interface may have the index.
        let is = |held: &Seen<'_>| held.state != AttachmentState::Moved && self.is(held.target);
        if let Some(position) = held.iter().position(is) {
            return Ok(Some(position));
        }
        let named = held.iter().enumerate();
        let mut named: Vec<_> = named
            .filter(|(_, held)| held.target.had(self.name))
            .collect();
        let had_last = |held: &Seen<'_>| held.target.last_name() == self.name;
        let is_gone_here =
            |held: &Seen<'_>| held.is_gone() && Some(held.target.place.namespace) == self.here;
        let mut gone = named.iter().filter(|(_, held)| is_gone_here(held));
        let gone_here = gone.clone().find(|(_, held)| had_last(held));
        if let Some((position, _)) = gone_here.or_else(|| gone.next()) {
            return Ok(Some(*position));
        }
        if named.iter().any(|(_, held)| had_last(held)) {
            named.retain(|(_, held)| had_last(held));
        }
        let mut namespaces = named.iter().map(|(_, held)| held.target.place.namespace);
        let first = namespaces.next();
        if namespaces.all(|namespace| Some(namespace) == first)
            && let Some(gone) = named.iter().position(|(_, held)| held.is_gone())
        {
            named = vec![named[gone]];
        }
        match named[..] {
            [] => Ok(None),
            [(position, _)] => Ok(Some(position)),
            _ => Err(Error::InvalidConfig {
                setting: "interface",
                value: self.name.to_owned(),
                reason: "several attached interfaces have had this name: call from the network \
                     namespace of the one you mean, with its current name"
                    .to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(namespace: u64, index: u32, name: &str) -> Target {
        Target::new(Place { namespace, index }, name)
    }

    fn state(is_gone: bool) -> AttachmentState {
        match is_gone {
            true => AttachmentState::Gone,
            false => AttachmentState::Attached,
        }
    }

    fn renamed(namespace: u64, index: u32, name: &str, last: &str) -> Target {
        let target = target(namespace, index, name);
        *target.last() = last.to_owned();
        target
    }

    fn named(name: &str, here: u64, index: Option<u32>) -> Named<'_> {
        Named {
            name,
            here: Some(here),
            place: index.map(|index| Place {
                namespace: here,
                index,
            }),
        }
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
        // That in the caller's namespace is gone.
        let seen: Vec<_> = targets
            .iter()
            .map(|target| Seen {
                target,
                state: state(target.place.namespace == 2),
            })
            .collect();
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
            let chosen = named(name, here, index).choose(&seen).unwrap();
            assert_eq!(chosen, expected, "{name} in {here}");
        }
        let error = named("eth1", 4, None).choose(&seen).unwrap_err();
        assert!(error.to_string().contains("several"), "{error}");
    }

    #[test]
    fn one_that_has_another_name_by_now_is_meant_by_its_old_one_only_if_no_other_had_it() {
        let new0 = renamed(1, 2, "eth0", "new0");
        let unseen = target(1, 2, "eth0");
        let (later, elsewhere) = (target(1, 3, "eth0"), target(2, 2, "eth0"));
        let twin = renamed(1, 4, "eth0", "new1");
        let wan0 = renamed(1, 2, "eth0", "wan0");
        for (held, name, here, expected) in [
            (
                &[(&new0, false), (&later, true)][..],
                "eth0",
                1,
                Some(Some(1)),
            ),
            (&[(&new0, false), (&later, true)], "eth0", 9, Some(Some(1))),
            (
                &[(&unseen, false), (&later, true)],
                "eth0",
                9,
                Some(Some(1)),
            ),
            (&[(&unseen, false), (&later, false)], "eth0", 9, None),
            (&[(&new0, false)], "eth0", 1, Some(Some(0))),
            (&[(&new0, false), (&twin, false)], "eth0", 1, None),
            (
                &[(&new0, false), (&elsewhere, false)],
                "eth0",
                1,
                Some(Some(1)),
            ),
            // A lost interface's last name takes precedence over a first name.
            (&[(&wan0, true)], "wan0", 1, Some(Some(0))),
            (&[(&wan0, true), (&later, true)], "eth0", 1, Some(Some(1))),
            (&[(&wan0, true)], "eth0", 1, Some(Some(0))),
        ] {
            let seen = held.iter().map(|(target, is_gone)| Seen {
                target,
                state: state(*is_gone),
            });
            let seen: Vec<_> = seen.collect();
            let chosen = named(name, here, None).choose(&seen);
            assert_eq!(chosen.ok(), expected, "{name} in {here}: {seen:?}");
        }
    }
}
