//! A pinned directory's description of itself, in a map whose form never changes: its tenant, its
//! arrangement, the version that made it, and whether it is whole.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::time::ClockId;

use super::tenant::Tenant;
use super::words::VERSION;
use super::words::Words;
use super::words::with_version;

/// The arrangement of the directory: what is where, and how attachments are kept. `contents.rs`
/// says what maps mean.
pub(crate) const LAYOUT: u64 = 3;

/// "katran" and the form of this map.
const MAGIC: u64 = u64::from_be_bytes(*b"katran\0\x01");
/// The map's name, as the kernel keeps it.
const NAME: &str = "katran_identity";
/// Words: magic, layout, state, when it was loaded and when an owner last gave a sign of life
/// (nanoseconds since boot), the tenant, and the text of its current version.
const AT_LAYOUT: usize = 1;
const AT_STATE: usize = 2;
const AT_LOADED: usize = 3;
const AT_LIFE: usize = 4;
const AT_TENANT: usize = 5;
const AT_VERSION: usize = 6;

/// The state of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its load was cut off: nothing is attached.
    Making,
    Whole,
    /// Its removal was cut off.
    Removing,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Making, Self::Whole, Self::Removing];
}

/// The identity of one directory.
pub(crate) struct Identity(Words);

impl Identity {
    /// Makes one in [`Stage::Making`], and pins it, which makes the directory that tenant's.
    pub(super) fn pin(path: &Path, tenant: Tenant) -> io::Result<Self> {
        let made = now()?;
        let stage = Stage::Making as u64;
        let fixed = [MAGIC, LAYOUT, stage, made, made, tenant.number()];
        Words::pin(path, NAME, with_version(fixed)).map(Self)
    }

    /// The identity that is pinned at a path; `None` if there is none.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        Ok(Words::open(path, NAME, MAGIC)?.map(Self))
    }

    /// Its tenant; `None`: a later version made it.
    pub(super) fn tenant(&self) -> Option<Tenant> {
        Tenant::of(self.0.get(AT_TENANT))
    }

    pub(crate) fn layout(&self) -> u64 {
        self.0.get(AT_LAYOUT)
    }

    /// The version of the crate that has it, or had it last.
    pub(crate) fn version(&self) -> String {
        self.0.text(AT_VERSION)
    }

    /// Records that programs of this version run it.
    pub(super) fn set_version(&self) {
        self.0.set_text(AT_VERSION, VERSION);
    }

    /// How long ago it was loaded, including time asleep.
    pub(crate) fn age(&self) -> io::Result<Duration> {
        let age = now()?.saturating_sub(self.0.get(AT_LOADED));
        Ok(Duration::from_nanos(age))
    }

    /// Records a sign of life of the owner.
    pub(crate) fn show_life(&self) {
        // Without a clock there is no time to record.
        if let Ok(now) = now() {
            self.0.set(AT_LIFE, now);
        }
    }

    /// How long ago an owner last gave a sign of life, including time asleep.
    pub(crate) fn silence(&self) -> io::Result<Duration> {
        let silence = now()?.saturating_sub(self.0.get(AT_LIFE));
        Ok(Duration::from_nanos(silence))
    }

    pub(crate) fn stage(&self) -> Stage {
        let number = self.0.get(AT_STATE);
        let stage = Stage::ALL.into_iter().find(|of| *of as u64 == number);
        // A later version's number: the directory can be removed.
        stage.unwrap_or(Stage::Removing)
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.0.set(AT_STATE, stage as u64);
    }
}

fn now() -> io::Result<u64> {
    let now = Duration::from(ClockId::CLOCK_BOOTTIME.now()?);
    Ok(now.as_nanos() as u64)
}
