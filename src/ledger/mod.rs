//! What the kernel's maps do not say about a balancer, kept in memory that outlives the process: a
//! pinned map.
//!
//! A change is a transaction. Before the first store that packets may see, the library writes an
//! *intent*, the new values of everything the change touches; when the change is made, *done*; when
//! it has been rolled back, *undone*. So a process that ends at any moment leaves the last state
//! that a call returned `Ok` for, and the change under way, if any: the next owner finishes or
//! undoes it. `log.rs` writes records, `record.rs` defines them, and `kept.rs` turns them into a
//! state.

#[cfg(test)]
pub(crate) mod death;
mod ground;
#[cfg(test)]
pub(crate) mod heap;
mod kept;
mod log;
mod record;

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::Weak;

pub(crate) use ground::Ground;
pub(crate) use kept::Kept;
pub(crate) use kept::Small;
pub(crate) use kept::View;
use log::Log;
use log::Unreadable;
pub(crate) use record::Change;
pub(crate) use record::Drawn;
pub(crate) use record::Intent;
use record::Record;
pub(crate) use record::StoredMatch;

use crate::document::State;
use crate::table::Met;
use crate::types::Vip;

/// Bytes that are enough to begin with; the ground grows when needed.
pub(crate) const FIRST_BYTES: usize = 1 << 20;

/// Why a ledger cannot be read.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the record of the balancer's state cannot be read: {}",
            self.0
        )
    }
}

impl From<Unreadable> for Refused {
    fn from(error: Unreadable) -> Self {
        Self(error.to_string())
    }
}

/// The result of reading a ledger.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// The last state that a call returned `Ok` for; within a change of several steps, the state
    /// after the last step.
    pub(crate) kept: Kept,
    /// The change that was under way, for [`Kept::finish`] or [`Kept::give_up`].
    pub(crate) under_way: Option<Intent>,
    /// The state before a change of several steps (`apply`), if one was under way: the next owner
    /// goes back to it.
    pub(crate) before: Option<Before>,
}

/// The state before a change of several steps.
#[derive(Debug, PartialEq)]
pub(crate) struct Before {
    pub(crate) state: State,
    /// The VIP whose misses were counted, which the state does not include.
    pub(crate) watched: Option<Vip>,
}

/// Records changes.
pub(crate) struct Ledger {
    log: Log,
    /// A change is under way.
    is_open: bool,
    /// Within a change of several steps.
    group: Option<Group>,
    /// A change that could not be refused was not recorded: a snapshot is due.
    is_behind: bool,
}

/// A change of several steps, during which no snapshot is written: it would lose the state before.
struct Group {
    /// Gone once the call that makes the change has returned. `None`: a previous owner began it,
    /// and this one goes back.
    call: Option<Weak<()>>,
    /// Further steps lead back to the previous state.
    is_going_back: bool,
}

/// The call that makes a change of several steps.
#[must_use = "dropping this ends the change of several steps"]
#[derive(Debug)]
pub(crate) struct Steps {
    _call: Arc<()>,
}

impl Ledger {
    /// Begins a ledger, and publishes its ground, or a larger one.
    ///
    /// # Errors
    /// If there is no memory, or the ground cannot be published.
    pub(crate) fn create(ground: Box<dyn Ground>, view: &View<'_>) -> io::Result<Self> {
        let log = Log::create(ground, &|write| snapshot(view, write))?;
        Ok(Self::of(log))
    }

    fn of(log: Log) -> Self {
        Self {
            log,
            is_open: false,
            group: None,
            is_behind: false,
        }
    }

    /// Whether a ground holds a ledger of the layout that this version reads.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub(crate) fn check(ground: &dyn Ground) -> Result<(), Refused> {
        Ok(Log::check(ground)?)
    }

    /// Reads a ledger. Writes nothing: a change under way stays so until [`done`](Self::done) or
    /// [`undone`](Self::undone), and one of several steps until [`end`](Self::end).
    ///
    /// # Errors
    /// If it has another layout, or was corrupted; says what to do about it.
    pub(crate) fn read(ground: Box<dyn Ground>) -> Result<(Self, Replayed), Refused> {
        let mut replay = Replay::default();
        let log = Log::open(ground, |bytes| {
            let record = postcard::from_bytes(bytes);
            let record = record
                .map_err(|_| Refused("this version does not know a record's type".to_owned()))?;
            replay.take(record).map_err(Refused)
        })?;
        let replayed = replay.finish().map_err(Refused)?;
        let ledger = Self {
            is_open: replayed.under_way.is_some(),
            group: replayed.before.is_some().then_some(Group {
                call: None,
                is_going_back: true,
            }),
            ..Self::of(log)
        };
        Ok((ledger, replayed))
    }

    /// Records the new values of what a change touches. Calls `view` for the state before it if a
    /// snapshot is due.
    ///
    /// # Errors
    /// If there is no memory for it. The caller must then not make the change, except on the [way
    /// back](Self::go_back).
    pub(crate) fn intend<'a>(
        &mut self,
        intent: Intent,
        view: impl FnOnce() -> io::Result<View<'a>>,
    ) -> io::Result<()> {
        self.look_for_what_was_cut_off();
        self.put(&Record::Intent(intent), view)?;
        self.is_open = true;
        Ok(())
    }

    /// A panic that the application caught may have cut a change off: the current state counts.
    fn look_for_what_was_cut_off(&mut self) {
        let call = self.group.as_ref().and_then(|group| group.call.as_ref());
        let is_over = call.is_some_and(|call| call.strong_count() == 0);
        if is_over {
            self.group = None;
        }
        if mem::take(&mut self.is_open) || is_over {
            ::log::error!("a change begins before the previous one has ended");
            self.is_behind = true;
        }
    }

    /// While undoing, make steps even if they cannot be recorded: the next owner restores the
    /// earlier state anyway.
    pub(crate) fn is_going_back(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.is_going_back)
    }

    /// The change under way, if any, is made.
    pub(crate) fn done(&mut self) {
        if mem::take(&mut self.is_open) {
            #[cfg(test)]
            death::at_done();
            self.close(&Record::Done);
        }
    }

    /// The change under way is rolled back. `met`: packets may have met its new reals, whose
    /// numbers it returns.
    pub(crate) fn undone(&mut self, met: bool) {
        if mem::take(&mut self.is_open) {
            self.close(&Record::Undone { met });
        }
    }

    /// Records numbers that packets have met, when there is no view of this ledger's balancer
    /// because another one is about to replace it. No change is under way, except one of several
    /// steps.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn meet(&mut self, met: Met) -> io::Result<()> {
        let intent = Intent {
            changes: vec![Change::Met(met)],
            ..Intent::default()
        };
        let bytes = encode(&Record::Intent(intent))?;
        if !self.log.fits(bytes.len()) {
            self.log.grow(bytes.len())?;
        }
        self.log.append(&bytes);
        self.is_open = true;
        self.done();
        Ok(())
    }

    /// Begins a change of several steps, until [`end`](Self::end). Dropping the result before that
    /// means that a panic has cut the change off.
    ///
    /// # Errors
    /// As [`intend`](Self::intend).
    pub(crate) fn begin<'a>(
        &mut self,
        view: impl FnOnce() -> io::Result<View<'a>>,
    ) -> io::Result<Steps> {
        self.look_for_what_was_cut_off();
        self.put(&Record::Begin, view)?;
        let call = Arc::new(());
        self.group = Some(Group {
            call: Some(Arc::downgrade(&call)),
            is_going_back: false,
        });
        Ok(Steps { _call: call })
    }

    /// A step was refused: the next steps lead back to the state before.
    pub(crate) fn go_back(&mut self) {
        if let Some(group) = &mut self.group {
            group.is_going_back = true;
        }
    }

    /// The whole change of several steps is made, or undone. `view`: the current state, for a
    /// snapshot, if some steps back are not recorded. If there is no room for a snapshot, the next
    /// owner goes back from the last recorded step.
    pub(crate) fn end<'a>(&mut self, view: impl FnOnce() -> io::Result<View<'a>>) {
        if self.group.take().is_none() {
            return;
        }
        if !self.is_behind {
            self.close(&Record::End);
        } else if let Err(error) = view().and_then(|view| self.compact(0, &view)) {
            ::log::warn!("cannot record the rollback of a change: {error}");
        }
    }

    /// A change is made although it could not be recorded: the next one begins with a snapshot.
    pub(crate) fn fall_behind(&mut self) {
        self.is_behind = true;
    }

    fn put<'a>(
        &mut self,
        record: &Record,
        view: impl FnOnce() -> io::Result<View<'a>>,
    ) -> io::Result<()> {
        let bytes = encode(record)?;
        if self.group.is_some() {
            if self.is_behind {
                // A step that undoes something is missing before it, so the next owner must read no
                // further.
                return Err(io::Error::other("a previous step is not recorded"));
            }
            if !self.log.fits(bytes.len()) {
                self.log.grow(bytes.len())?;
            }
        } else if self.is_behind || !self.log.fits(bytes.len()) {
            self.compact(bytes.len(), &view()?)?;
        }
        self.log.append(&bytes);
        Ok(())
    }

    /// Writes a snapshot, with room for `bytes` behind it.
    fn compact(&mut self, bytes: usize, view: &View<'_>) -> io::Result<()> {
        self.log.compact(bytes, &|write| snapshot(view, write))?;
        self.is_behind = false;
        Ok(())
    }

    /// Appends the record that ends a change, for which there is room.
    fn close(&mut self, record: &Record) {
        match encode(record) {
            Ok(bytes) => self.log.append(&bytes),
            // Encoding a byte or two into our own memory cannot fail.
            Err(error) => {
                ::log::error!("cannot record the end of a change: {error}");
                self.is_behind = true;
            }
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("is_open", &self.is_open)
            .finish_non_exhaustive()
    }
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(record).map_err(io::Error::other)
}

fn snapshot(view: &View<'_>, write: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut written = Ok(());
    view.records(&mut |record| match encode(&record) {
        Ok(bytes) => write(&bytes),
        Err(error) => written = Err(error),
    });
    written
}

/// A replay of the records read so far.
#[derive(Default)]
struct Replay {
    kept: Option<Kept>,
    under_way: Option<Intent>,
    /// Changes since a change of several steps began; they wait while the state before it is
    /// needed.
    group: Option<Vec<Ended>>,
}

/// A change that was made, or abandoned.
enum Ended {
    Done(Intent),
    Undone(Intent, bool),
}

impl Replay {
    fn take(&mut self, record: Record) -> Result<(), String> {
        let order = || "its records are in an impossible order".to_owned();
        let is_open = self.under_way.is_some();
        match record {
            Record::Start(settings, drawn) if self.kept.is_none() => {
                self.kept = Some(Kept::start(&settings, drawn)?);
            }
            Record::Intent(intent) if !is_open => self.under_way = Some(intent),
            Record::Done => {
                let intent = self.under_way.take().ok_or_else(order)?;
                self.end(Ended::Done(intent))?;
            }
            Record::Undone { met } => {
                let intent = self.under_way.take().ok_or_else(order)?;
                self.end(Ended::Undone(intent, met))?;
            }
            Record::Begin if !is_open && self.group.is_none() => self.group = Some(Vec::new()),
            Record::End if !is_open => {
                let group = self.group.take().ok_or_else(order)?;
                group.into_iter().try_for_each(|ended| self.end(ended))?;
            }
            part => self.kept().ok_or_else(order)?.part(part)?,
        }
        Ok(())
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        self.kept.as_mut()
    }

    fn end(&mut self, ended: Ended) -> Result<(), String> {
        match (&mut self.group, &mut self.kept) {
            (Some(group), _) => group.push(ended),
            (None, Some(kept)) => ended.on(kept)?,
            (None, None) => return Err("the settings are missing".to_owned()),
        }
        Ok(())
    }

    fn finish(self) -> Result<Replayed, String> {
        let mut kept = self.kept.ok_or("the settings are missing")?;
        kept.check_whole()?;
        let mut before = None;
        if let Some(group) = self.group {
            before = Some(Before {
                state: kept.state(),
                watched: kept.small.watched,
            });
            group
                .into_iter()
                .try_for_each(|ended| ended.on(&mut kept))?;
            kept.check_whole()?;
        }
        Ok(Replayed {
            kept,
            under_way: self.under_way,
            before,
        })
    }
}

impl Ended {
    fn on(self, kept: &mut Kept) -> Result<(), String> {
        match self {
            Self::Done(intent) => kept.finish(intent),
            Self::Undone(intent, met) => kept.give_up(intent, met),
        }
    }
}

#[cfg(test)]
mod tests;
