//! A small map whose form never changes, so that every version of the crate can read it: words, of
//! which the first identifies it.

use std::io;
use std::iter;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::sys::map;
use crate::sys::mapping::Mapping;
use crate::sys::pin;

/// Words of such a map.
pub(super) const WORDS: usize = 16;
const BYTES: usize = WORDS * size_of::<u64>();

pub(super) struct Words(Mapping);

impl Words {
    /// Makes one with this name and these words, and pins it.
    pub(super) fn pin(path: &Path, name: &str, values: [u64; WORDS]) -> io::Result<Self> {
        let map = map::create_value(name, BYTES)?;
        let words = Self(Mapping::new(map.as_fd(), BYTES)?);
        for (word, value) in words.words().iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        pin::pin(map.as_fd(), path)?;
        Ok(words)
    }

    /// The one with this name and first word that is pinned at a path; `None` if there is none.
    pub(super) fn open(path: &Path, name: &str, first: u64) -> io::Result<Option<Self>> {
        let map = match pin::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if pin::kind(map.as_fd())? != Some(pin::Kind::Map) {
            return Ok(None);
        }
        let info = map::info(map.as_fd())?;
        let fits = info.kind == libbpf_sys::BPF_MAP_TYPE_ARRAY
            && info.name == name
            && info.value_size as usize == BYTES;
        if !fits {
            return Ok(None);
        }
        let words = Self(Mapping::new(map.as_fd(), BYTES)?);
        Ok((words.get(0) == first).then_some(words))
    }

    fn words(&self) -> &[AtomicU64] {
        self.0.u64s()
    }

    pub(super) fn get(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }

    pub(super) fn set(&self, at: usize, value: u64) {
        self.words()[at].store(value, Ordering::Release);
    }

    /// Replaces the text that starts at a word. A process that dies in between leaves a mix of
    /// both.
    pub(super) fn set_text(&self, from: usize, text: &str) {
        let words = text_words(text).chain(iter::repeat(0));
        for (at, word) in (from..WORDS).zip(words) {
            self.set(at, word);
        }
    }

    /// The text that starts at a word.
    pub(super) fn text(&self, from: usize) -> String {
        let bytes: Vec<u8> = (from..WORDS)
            .flat_map(|at| self.get(at).to_le_bytes())
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').to_owned()
    }
}

/// The crate's version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

fn text_words(text: &str) -> impl Iterator<Item = u64> {
    text.as_bytes().chunks(size_of::<u64>()).map(|chunk| {
        let mut word = [0; size_of::<u64>()];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    })
}

/// Words that begin with `fixed`, followed by the crate's version, cut to fit.
pub(super) fn with_version<const FIXED: usize>(fixed: [u64; FIXED]) -> [u64; WORDS] {
    let mut version = text_words(VERSION);
    std::array::from_fn(|at| match fixed.get(at) {
        Some(word) => *word,
        None => version.next().unwrap_or(0),
    })
}
