//! What a pinned directory says of itself: a small map whose form never changes, so that every version of the crate
//! can read which layout the rest has, who made it, and whether it is whole.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::time::ClockId;

use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::mapping::Mapping;
use crate::sys::pin;

/// How the directory is laid out, and what its maps mean. Count it up whenever a program of another version of the
/// crate could not go on with what this one has pinned.
pub(crate) const LAYOUT: u64 = 1;

/// "katran" and the form of this map.
const MAGIC: u64 = u64::from_be_bytes(*b"katran\0\x01");
/// The map's name, as the kernel keeps it.
const NAME: &str = "katran_identity";
/// Words: magic, layout, state, when it was loaded (nanoseconds since boot), the version's text, and when its owner gave the
/// last sign of life.
const WORDS: usize = 16;
const AT_LAYOUT: usize = 1;
const AT_STATE: usize = 2;
const AT_LOADED: usize = 3;
const AT_VERSION: usize = 4;
const AT_LIFE: usize = 15;

/// How far a directory has come.
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
pub(crate) struct Identity(Mapping);

impl Identity {
    /// Makes one, whose stage is [`Stage::Making`], and pins it: from then on the directory is a balancer's.
    pub(super) fn pin(path: &Path) -> io::Result<Self> {
        let map = map::create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: NAME,
            key_size: 4,
            value_size: (WORDS * size_of::<u64>()) as u32,
            max_entries: 1,
            flags: libbpf_sys::BPF_F_MMAPABLE,
            numa_node: None,
        })?;
        let identity = Self(Mapping::new(map.as_fd(), WORDS * size_of::<u64>())?);
        let mut version = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
        version.resize((AT_LIFE - AT_VERSION) * size_of::<u64>(), 0);
        let version = version.chunks(size_of::<u64>()).map(|chunk| {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let made = now()?;
        let fixed = [MAGIC, LAYOUT, Stage::Making as u64, made];
        for (word, value) in identity
            .words()
            .iter()
            .zip(fixed.into_iter().chain(version))
        {
            word.store(value, Ordering::Relaxed);
        }
        identity.words()[AT_LIFE].store(made, Ordering::Relaxed);
        pin::pin(map.as_fd(), path)?;
        Ok(identity)
    }

    /// The one that is pinned at a path; `None` if nothing is, or something else.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let map = match pin::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if pin::kind(map.as_fd())? != Some(pin::Kind::Map) {
            return Ok(None);
        }
        let info = map::info(map.as_fd())?;
        let bytes = WORDS * size_of::<u64>();
        let fits = info.kind == libbpf_sys::BPF_MAP_TYPE_ARRAY
            && info.name == NAME
            && info.value_size as usize == bytes;
        if !fits {
            return Ok(None);
        }
        let identity = Self(Mapping::new(map.as_fd(), bytes)?);
        Ok((identity.word(0) == MAGIC).then_some(identity))
    }

    fn words(&self) -> &[AtomicU64] {
        self.0.u64s()
    }

    fn word(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }

    pub(crate) fn layout(&self) -> u64 {
        self.word(AT_LAYOUT)
    }

    /// The version of the crate that has made it.
    pub(crate) fn version(&self) -> String {
        let words = AT_VERSION..AT_LIFE;
        let bytes: Vec<u8> = words.flat_map(|at| self.word(at).to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').to_owned()
    }

    /// How long ago it was loaded, times of sleep included.
    pub(crate) fn age(&self) -> io::Result<Duration> {
        let age = now()?.saturating_sub(self.word(AT_LOADED));
        Ok(Duration::from_nanos(age))
    }

    /// The owner lives.
    pub(crate) fn show_life(&self) {
        // Without a clock there is none to say when.
        if let Ok(now) = now() {
            self.words()[AT_LIFE].store(now, Ordering::Release);
        }
    }

    /// How long ago an owner gave the last sign of life, times of sleep included.
    pub(crate) fn silence(&self) -> io::Result<Duration> {
        let silence = now()?.saturating_sub(self.word(AT_LIFE));
        Ok(Duration::from_nanos(silence))
    }

    pub(crate) fn stage(&self) -> Stage {
        let number = self.word(AT_STATE);
        let stage = Stage::ALL.into_iter().find(|of| *of as u64 == number);
        // A number of a later version: it can be removed.
        stage.unwrap_or(Stage::Removing)
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.words()[AT_STATE].store(stage as u64, Ordering::Release);
    }
}

fn now() -> io::Result<u64> {
    let now = Duration::from(ClockId::CLOCK_BOOTTIME.now()?);
    Ok(now.as_nanos() as u64)
}
