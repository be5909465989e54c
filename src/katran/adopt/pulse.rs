//! Signs of life during adoption: verifying programs, filling maps and waiting for a gateway may
//! take longer than an `orphan_limit`.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::Config;
use crate::error::Error;
use crate::error::Result;
use crate::katran::load::tick;
use crate::kernel::kernel_error;
use crate::maps::Live;
use crate::pins::Home;
use crate::pins::Part;
use crate::pins::PinnedSet;
use crate::sys::ticks::ticks;

/// The interval of signs, also before the first: an adoption that fails at once, again and again,
/// gives none.
const EVERY: Duration = Duration::from_secs(1);

/// A thread that gives signs until this is dropped; then the keeper does (`katran/keeper.rs`). None
/// where packets do not depend on signs of life.
pub(super) struct Pulse {
    lives: Arc<Mutex<Vec<Arc<Live>>>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Pulse {
    /// Starts it, for everything that packets may read now.
    pub(super) fn start(home: &Home, config: &Config) -> Result<Self> {
        let mut pulse = Self {
            lives: Arc::default(),
            thread: None,
        };
        if config.orphan_limit.is_zero() {
            return Ok(pulse);
        }
        for set in [home.set(), home.next_set()] {
            if let Some(live) = live_of(&set)? {
                pulse.also(&Arc::new(live));
            }
        }
        let (sender, stop) = mpsc::channel::<()>();
        let (lives, tick) = (Arc::clone(&pulse.lives), tick()?);
        let beat = move || {
            while stop.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
                lives.iter().for_each(|live| live.show_life(ticks(tick)));
            }
        };
        let thread = thread::Builder::new().name("katran-pulse".to_owned());
        let thread = thread
            .spawn(beat)
            .map_err(|error| kernel_error("start", "a thread for signs of life", error))?;
        pulse.thread = Some((sender, thread));
        Ok(pulse)
    }

    /// Gives them to what packets are about to read, too.
    pub(super) fn also(&self, live: &Arc<Live>) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.push(Arc::clone(live));
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let Some((sender, thread)) = self.thread.take() else {
            return;
        };
        drop(sender);
        if thread.join().is_err() {
            log::error!("the thread that gives signs of life during an adoption has panicked");
        }
    }
}

/// What packets read of a set, if this version knows its layout.
fn live_of(set: &PinnedSet) -> Result<Option<Live>> {
    let contents = set.contents()?;
    if !contents.is_some_and(|of| of.knows(Part::State)) {
        return Ok(None);
    }
    let map = match set.map(".data.live") {
        // It was not filled; if it is the current set, adopting it will report that.
        Err(Error::NotFound { .. }) => return Ok(None),
        map => map?,
    };
    let live = Live::new(map, Arc::default());
    let live = live.map_err(|error| kernel_error("open", ".data.live", error))?;
    Ok(Some(live))
}
