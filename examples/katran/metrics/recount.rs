//! Counts the flow tables' entries now and then, a little at a time: the more flows there are, the
//! longer a walk takes, and no scrape should wait for it.

use std::time::Duration;
use std::time::Instant;

use katran::Katran;
use katran::flows::FlowCount;

/// How long a part of a count may delay requests, and the pause before the next part.
const PART: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_millis(10);

/// The last count, and the time of the next.
pub(crate) struct Recount {
    count: FlowCount,
    every: Duration,
    /// When the next one begins.
    next: Instant,
    is_under_way: bool,
}

impl Recount {
    /// Counts everything once, before the first request.
    pub(crate) fn begin(katran: &Katran, every: Duration) -> katran::Result<Self> {
        Ok(Self {
            count: katran.flows().count()?,
            every,
            next: Instant::now() + every,
            is_under_way: false,
        })
    }

    /// The last count.
    pub(crate) fn count(&self) -> &FlowCount {
        &self.count
    }

    /// How long until there is something to do, at most `most`.
    pub(crate) fn pause(&self, most: Duration) -> Duration {
        let pause = match self.is_under_way {
            true => PAUSE,
            false => self.next.saturating_duration_since(Instant::now()),
        };
        pause.clamp(PAUSE, most)
    }

    /// Continues a count when it is time.
    pub(crate) fn go_on(&mut self, katran: &Katran) -> katran::Result<()> {
        let now = Instant::now();
        if !self.is_under_way {
            if now < self.next {
                return Ok(());
            }
            // From start to start, unless a count takes longer.
            self.next = now + self.every;
        }
        // A count that the kernel refuses ends; the next one comes on time.
        self.is_under_way = false;
        self.is_under_way = !katran.flows().recount(&mut self.count, PART)?;
        Ok(())
    }
}
