//! Inspects what is pinned in a directory, with any owner or none, without taking it.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::Contents;
use super::PinnedSet;
use super::SET;
use super::Stage;
use super::file_error;
use super::identity_in;
use super::place::absolute;
use super::place::open_directory;
use super::tenant::Tenant;
use super::whole::tenant_of;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::lock::holder;
use crate::sys::lock::is_locked;

/// What is pinned in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinnedKind {
    /// A [`Katran`](crate::Katran).
    Balancer,
    /// A [`Decap`](crate::Decap).
    Decapsulator,
    /// A [`ServerIdOption`](crate::ServerIdOption).
    ServerIdOption,
}

/// Its name, such as `server id option`.
impl fmt::Display for PinnedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tenant().name())
    }
}

impl PinnedKind {
    fn of(tenant: Tenant) -> Self {
        match tenant {
            Tenant::Balancer => Self::Balancer,
            Tenant::Decapsulator => Self::Decapsulator,
            Tenant::ServerIdOption => Self::ServerIdOption,
        }
    }

    fn tenant(self) -> Tenant {
        match self {
            Self::Balancer => Tenant::Balancer,
            Self::Decapsulator => Tenant::Decapsulator,
            Self::ServerIdOption => Tenant::ServerIdOption,
        }
    }
}

/// Whether the pins are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinnedStage {
    /// It is being loaded, or its load was cut off: nothing is attached.
    Loading,
    /// The pins are complete.
    Whole,
    /// It is being removed, or its removal was cut off.
    Removing,
}

/// Its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinnedOwner {
    /// No process has it: it works as its last owner left it, without any updates.
    Nobody,
    /// The process with this id.
    Process(u32),
    /// A process that this one cannot see, for instance in another PID namespace.
    Unseen,
}

/// What [`pinned`] can tell about a pinned directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pinned {
    /// What it is.
    pub kind: PinnedKind,
    /// Its absolute path.
    pub path: PathBuf,
    /// The layout of its maps. A version of the crate with another layout replaces them when it
    /// adopts a balancer. `None`: the directory does not say, because it is being made or removed.
    pub layout: Option<u64>,
    /// The version of the crate that made these maps.
    pub version: String,
    /// The version of its owner, or last owner, whose programs process packets. It differs from
    /// `version` if the owner adopted maps of another version.
    pub owner_version: String,
    /// Whether the pins are complete.
    pub stage: PinnedStage,
    /// How long ago it was loaded, including time asleep.
    pub age: Duration,
    /// Its owner.
    pub owner: PinnedOwner,
    /// How long ago an owner last gave a sign of life, including time asleep. The owner of a
    /// balancer gives one every second and with each change. `None`: the other kinds give none,
    /// because they need no updates.
    pub silence: Option<Duration>,
}

/// Such as `owner: process 123`, or `no owner for 42 s`.
impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silence = self.silence.unwrap_or_default().as_secs();
        match self.owner {
            PinnedOwner::Nobody if self.silence.is_none() => f.write_str("no owner")?,
            PinnedOwner::Nobody => return write!(f, "no owner for {silence} s"),
            PinnedOwner::Process(id) => write!(f, "owner: process {id}")?,
            PinnedOwner::Unseen => f.write_str("owner: a process that cannot be seen from here")?,
        }
        match self.is_silent() {
            true => write!(f, ", no sign of life for {silence} s"),
            false => Ok(()),
        }
    }
}

impl Pinned {
    /// For tests.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            kind: PinnedKind::Balancer,
            path: "/there".into(),
            layout: Some(1),
            version: "0.1.0".to_owned(),
            owner_version: "0.1.0".to_owned(),
            stage: PinnedStage::Whole,
            age: Duration::ZERO,
            owner: PinnedOwner::Nobody,
            silence: Some(Duration::ZERO),
        }
    }

    /// Whether the last sign of life is older than five seconds, longer than a working owner takes.
    /// `false` for kinds that give none.
    pub fn is_silent(&self) -> bool {
        self.silence > Some(Duration::from_secs(5))
    }
}

/// Inspects the balancer, decapsulator or server id option pinned in a directory, whatever its
/// owner. Changes nothing.
///
/// # Errors
/// [`Error::NotFound`] if there is none; [`Error::InvalidConfig`] if others can open, change or
/// replace the directory; [`Error::Unsupported`] if another version of the crate has pinned
/// something that this one does not know; [`Error::Privilege`]; [`Error::File`]; [`Error::Kernel`].
///
/// ```no_run
/// let pinned = katran::pinned("/sys/fs/bpf/katran")?;
/// println!("{}: {pinned}, katran {}", pinned.kind, pinned.owner_version);
/// # Ok::<(), katran::Error>(())
/// ```
pub fn pinned(directory: impl AsRef<Path>) -> Result<Pinned> {
    let given = directory.as_ref();
    let missing = || Error::NotFound {
        what: format!("a pinned balancer or decapsulator in {}", given.display()),
    };
    if let Ok(false) = given.try_exists() {
        return Err(missing());
    }
    let path = absolute(given)?;
    let file = open_directory(&path)?.ok_or_else(missing)?;
    let identity = identity_in(&path)?.ok_or_else(missing)?;
    let kind = PinnedKind::of(tenant_of(&path, &identity)?);
    let failed = |error| file_error("find the owner of", &path, error);
    let owner = match holder(&file) {
        Some(id) => PinnedOwner::Process(id),
        None if is_locked(&file).map_err(failed)? => PinnedOwner::Unseen,
        None => PinnedOwner::Nobody,
    };
    let contents = PinnedSet::at(path.join(SET), kind.tenant()).contents()?;
    let failed = |error| kernel_error("read", "the time since boot", error);
    let silence = identity.silence().map_err(failed)?;
    Ok(Pinned {
        kind,
        layout: contents.as_ref().map(Contents::layout),
        version: contents.map_or_else(|| identity.version(), |of| of.version()),
        owner_version: identity.version(),
        stage: match identity.stage() {
            Stage::Making => PinnedStage::Loading,
            Stage::Whole => PinnedStage::Whole,
            Stage::Removing => PinnedStage::Removing,
        },
        age: identity.age().map_err(failed)?,
        owner,
        silence: (kind == PinnedKind::Balancer).then_some(silence),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whose_it_is() {
        let of = |owner, seconds| Pinned {
            owner,
            silence: Some(Duration::from_secs(seconds)),
            ..Pinned::example()
        };
        let silent = |owner| Pinned {
            silence: None,
            ..of(owner, 0)
        };
        let process = PinnedOwner::Process(7);
        for (pinned, text) in [
            (of(PinnedOwner::Nobody, 42), "no owner for 42 s"),
            (silent(PinnedOwner::Nobody), "no owner"),
            (silent(PinnedOwner::Process(7)), "owner: process 7"),
            (of(process, 1), "owner: process 7"),
            (
                of(process, 42),
                "owner: process 7, no sign of life for 42 s",
            ),
            (
                of(PinnedOwner::Unseen, 0),
                "owner: a process that cannot be seen from here",
            ),
        ] {
            assert_eq!(pinned.to_string(), text);
        }
    }
}
