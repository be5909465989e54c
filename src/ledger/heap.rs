//! Memory for tests: after the process has died, what was published last is left.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::death;
use super::ground::Ground;

type Words = Arc<[AtomicU64]>;

/// What survives the process.
#[derive(Clone)]
pub(crate) struct Heap {
    words: Words,
    found: Arc<Mutex<Words>>,
    /// The largest size that there is memory for.
    limit: Arc<AtomicUsize>,
    /// How often a larger ground can still be made or published.
    left: Arc<AtomicUsize>,
}

impl Heap {
    pub(crate) fn new(bytes: usize) -> Self {
        let words = zeros(bytes);
        Self {
            found: Arc::new(Mutex::new(Arc::clone(&words))),
            words,
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// Refuses to grow after this many steps; each larger ground takes two, to make it and to
    /// publish it.
    pub(crate) fn refuse_after(&self, steps: usize) {
        self.left.store(steps, Ordering::Relaxed);
    }

    fn grow_a_step(&self) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        let left = left.checked_sub(1).ok_or(io::ErrorKind::OutOfMemory)?;
        self.left.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses to grow beyond `limit`.
    pub(crate) fn limited(self, limit: usize) -> Self {
        self.limit.store(limit, Ordering::Relaxed);
        self
    }

    /// What another process finds: a copy, so that this one can continue.
    pub(crate) fn found(&self) -> Self {
        let found = self.found.lock().unwrap();
        let words: Words = found
            .iter()
            .map(|word| AtomicU64::new(word.load(Ordering::Relaxed)))
            .collect();
        Self {
            found: Arc::new(Mutex::new(Arc::clone(&words))),
            words,
            limit: Arc::clone(&self.limit),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// The bytes, for tests to damage.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = self.words.iter();
        words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect()
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let heap = Self::new(bytes.len());
        for (word, bytes) in heap.words.iter().zip(bytes.chunks_exact(8)) {
            let bytes = bytes.try_into().unwrap();
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        heap
    }
}

fn zeros(bytes: usize) -> Words {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

impl Ground for Heap {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn larger(&self, bytes: usize) -> io::Result<Box<dyn Ground>> {
        if bytes > self.limit.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.grow_a_step()?;
        Ok(Box::new(Self {
            words: zeros(bytes),
            ..self.clone()
        }))
    }

    fn publish(&mut self) -> io::Result<()> {
        self.grow_a_step()?;
        death::step();
        *self.found.lock().unwrap() = Arc::clone(&self.words);
        Ok(())
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("words", &self.words.len())
            .finish()
    }
}
