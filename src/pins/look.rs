//! Looks at a pinned balancer that may be anybody's, or nobody's, without taking it.

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
use super::whole::check_tenant;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::lock::holder;
use crate::sys::lock::is_locked;

/// How far a pinned balancer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinnedStage {
    /// It is being loaded, or its load was cut off: nothing is attached.
    Loading,
    /// All of it is there.
    Whole,
    /// It is being removed, or its removal was cut off.
    Removing,
}

/// Whose a pinned balancer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinnedOwner {
    /// No process has it: it forwards as it was left, and follows nothing.
    Nobody,
    /// The process of this id.
    Process(u32),
    /// One that this process cannot see, as in another PID namespace.
    Unseen,
}

/// What can be told of a pinned balancer from outside: [`pinned`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedBalancer {
    /// Its directory, from the root on.
    pub path: PathBuf,
    /// What its maps mean: a version of the crate that has another layout puts a set of its own in their place when it adopts
    /// the balancer. `None`: nothing says so yet, or any more.
    pub layout: Option<u64>,
    /// The version of the crate that has made these maps.
    pub version: String,
    /// How far it has come.
    pub stage: PinnedStage,
    /// How long ago it was loaded, times of sleep included.
    pub age: Duration,
    /// Whose it is.
    pub owner: PinnedOwner,
    /// How long ago an owner gave the last sign of life, times of sleep included. A process that has it and works gives one a
    /// second, and one with each change.
    pub silence: Duration,
}

/// In words, such as `owner: process 123`, or `no owner for 42 s`.
impl fmt::Display for PinnedBalancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silence = self.silence.as_secs();
        match self.owner {
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

impl PinnedBalancer {
    /// For tests.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            path: "/there".into(),
            layout: Some(1),
            version: "0.1.0".to_owned(),
            stage: PinnedStage::Whole,
            age: Duration::ZERO,
            owner: PinnedOwner::Nobody,
            silence: Duration::ZERO,
        }
    }

    /// Whether the last sign of life is older than it is where an owner works: more than five seconds.
    pub fn is_silent(&self) -> bool {
        self.silence > Duration::from_secs(5)
    }
}

/// Looks at the balancer that is pinned in a directory, whosever it is, and changes nothing.
///
/// # Errors
/// [`Error::NotFound`] if there is none; [`Error::InvalidConfig`] if others can open, change or replace the directory, or something
/// else is pinned there;
/// [`Error::Privilege`]; [`Error::File`]; [`Error::Kernel`].
///
/// ```no_run
/// let pinned = katran::pinned("/sys/fs/bpf/katran")?;
/// println!("{pinned}, katran {}", pinned.version);
/// # Ok::<(), katran::Error>(())
/// ```
pub fn pinned(directory: impl AsRef<Path>) -> Result<PinnedBalancer> {
    let given = directory.as_ref();
    let missing = || Error::NotFound {
        what: format!("a pinned balancer in {}", given.display()),
    };
    if let Ok(false) = given.try_exists() {
        return Err(missing());
    }
    let path = absolute(given)?;
    let file = open_directory(&path)?.ok_or_else(missing)?;
    let identity = identity_in(&path)?.ok_or_else(missing)?;
    check_tenant(Tenant::Balancer, &path, &identity)?;
    let failed = |error| file_error("look whose it is:", &path, error);
    let owner = match holder(&file) {
        Some(id) => PinnedOwner::Process(id),
        None if is_locked(&file).map_err(failed)? => PinnedOwner::Unseen,
        None => PinnedOwner::Nobody,
    };
    let contents = PinnedSet::at(path.join(SET), Tenant::Balancer).contents()?;
    let failed = |error| kernel_error("read", "the time since boot", error);
    Ok(PinnedBalancer {
        layout: contents.as_ref().map(Contents::layout),
        version: contents.map_or_else(|| identity.version(), |of| of.version()),
        stage: match identity.stage() {
            Stage::Making => PinnedStage::Loading,
            Stage::Whole => PinnedStage::Whole,
            Stage::Removing => PinnedStage::Removing,
        },
        age: identity.age().map_err(failed)?,
        owner,
        silence: identity.silence().map_err(failed)?,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whose_it_is() {
        let of = |owner, seconds| PinnedBalancer {
            owner,
            silence: Duration::from_secs(seconds),
            ..PinnedBalancer::example()
        };
        let process = PinnedOwner::Process(7);
        for (pinned, text) in [
            (of(PinnedOwner::Nobody, 42), "no owner for 42 s"),
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
