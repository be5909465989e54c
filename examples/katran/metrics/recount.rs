//! Counts the flow tables' entries now and then, a little at a time: a walk through them takes the longer the more
//! flows there are, and no scrape is to wait for it.

use std::time::Duration;
use std::time::Instant;

use katran::Katran;
use katran::flows::FlowCount;

/// For how long requests may have to wait for a part of a count, and how long it leaves them before the next.
const PART: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_millis(10);

/// The last count, and the clock of the next.
pub(crate) struct Recount {
    count: FlowCount,
    every: Duration,
    /// When the next one begins.
    next: Instant,
    is_under_way: bool,
}

impl Recount {
    /// Counts everything once, before anybody can ask.
    pub(crate) fn begin(katran: &Katran, every: Duration) -> katran::Result<Self> {
        Ok(Self {
            count: katran.flows().count()?,
            every,
            next: Instant::now() + every,
            is_under_way: false,
        })
    }

    /// What was last counted.
    pub(crate) fn count(&self) -> &FlowCount {
        &self.count
    }

    /// How long until there is something to do, `most` at most.
    pub(crate) fn pause(&self, most: Duration) -> Duration {
        let pause = match self.is_under_way {
            true => PAUSE,
            false => self.next.saturating_duration_since(Instant::now()),
        };
        pause.clamp(PAUSE, most)
    }

    /// Goes on with a count, if it is time to.
    pub(crate) fn go_on(&mut self, katran: &Katran) -> katran::Result<()> {
        let now = Instant::now();
        if !self.is_under_way {
            if now < self.next {
                return Ok(());
            }
            // From beginning to beginning, unless it takes longer.
            self.next = now + self.every;
        }
        // One that the kernel refuses is over; the next one comes when it would have.
        self.is_under_way = false;
        self.is_under_way = !katran.flows().recount(&mut self.count, PART)?;
        Ok(())
    }
}
