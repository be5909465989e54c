//! The recent past of counters that only grow. A diagnosis warns of what still happens, so it needs
//! to know how much a counter has grown lately, and for how long it has not.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::counters::DropReason;

/// The recent past is this long; longer only if nothing looked in the meantime.
const WINDOW: Duration = Duration::from_secs(60);

/// Looks that follow sooner share one record.
const SPACING: Duration = Duration::from_secs(1);

/// A frame's VLAN in a mark; the other bits change with each frame.
const VLAN: u16 = 0xfff;

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counted {
    /// Packets that a CPU forwarded.
    Forwarded(u32),
    /// Frames that the program sent.
    Sent,
    Dropped(DropReason),
    /// Frames that an interface failed to send.
    Unsent {
        namespace: u64,
        index: u32,
    },
}

/// The counters at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// Absent counters keep their last value; those never seen are 0.
    pub(crate) counts: BTreeMap<Counted, u64>,
    /// Each CPU's mark of the last tagged frame that left; 0: there was none.
    pub(crate) marks: Vec<u16>,
}

/// How a counter grew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) total: u64,
    /// The part of the recent past.
    pub(crate) recent: u64,
    /// The length of the recent past.
    pub(crate) window: Duration,
    /// How long ago a look last saw it grow, or the first look was.
    pub(crate) quiet: Duration,
}

impl Growth {
    /// Of two counters together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            recent: self.recent + other.recent,
            window: self.window.max(other.window),
            quiet: self.quiet.min(other.quiet),
        }
    }

    /// The recent past in words.
    pub(super) fn lately(&self) -> String {
        let seconds = self.window.as_secs_f64().ceil().max(1.0);
        format!("in the last {seconds} s")
    }

    /// For how long it has not grown, in words.
    pub(super) fn silence(&self) -> String {
        silence(self.quiet)
    }
}

/// The VLANs of frames that left with tags. A look sees the last frame of each CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    /// Those of the recent past.
    pub(crate) recent: Vec<u16>,
    /// Those of earlier frames alone.
    pub(crate) earlier: Vec<u16>,
    /// For how long no frame with a tag has left.
    pub(crate) quiet: Duration,
}

impl Tags {
    /// That time in words.
    pub(super) fn silence(&self) -> String {
        silence(self.quiet)
    }
}

fn silence(quiet: Duration) -> String {
    format!("none in the last {} s", quiet.as_secs())
}

/// What earlier looks saw.
#[derive(Debug)]
pub(crate) struct Recent {
    began: Instant,
    /// The look that begins the recent past.
    edge: (Instant, BTreeMap<Counted, u64>),
    /// Later looks, oldest first.
    looks: VecDeque<(Instant, BTreeMap<Counted, u64>)>,
    last: Look,
    /// When a look found that a counter had grown.
    grew: BTreeMap<Counted, Instant>,
    /// When a look found that frames had left with this VLAN; `None`: before the first look.
    vlans: BTreeMap<u16, Option<Instant>>,
}

impl Recent {
    /// Begins with a first look. What it counted happened earlier, nobody knows when.
    pub(crate) fn begin(now: Instant, first: Look) -> Self {
        let vlans = first.marks.iter().map(|mark| mark & VLAN);
        Self {
            began: now,
            edge: (now, first.counts.clone()),
            looks: VecDeque::new(),
            vlans: vlans
                .filter(|vlan| *vlan != 0)
                .map(|vlan| (vlan, None))
                .collect(),
            last: first,
            grew: BTreeMap::new(),
        }
    }

    pub(crate) fn look(&mut self, now: Instant, look: Look) {
        for (counted, count) in look.counts {
            let before = self.last.counts.insert(counted, count).unwrap_or(0);
            // A lower count has begun again.
            if count != before && count != 0 {
                self.grew.insert(counted, now);
            }
        }
        self.last.marks.resize(look.marks.len(), 0);
        for (mark, before) in look.marks.iter().zip(&self.last.marks) {
            // A priority tag (number 0) belongs to no VLAN.
            if mark != before && mark & VLAN != 0 {
                self.vlans.insert(mark & VLAN, Some(now));
            }
        }
        self.last.marks = look.marks;
        let age = |of: &(Instant, _)| now.saturating_duration_since(of.0);
        if age(self.looks.back().unwrap_or(&self.edge)) >= SPACING {
            self.looks.push_back((now, self.last.counts.clone()));
        }
        while self.looks.front().is_some_and(|of| age(of) >= WINDOW)
            && let Some(edge) = self.looks.pop_front()
        {
            self.edge = edge;
        }
    }

    pub(crate) fn growth(&self, now: Instant, counted: Counted) -> Growth {
        let (edge, earlier) = &self.edge;
        let count = |of: &BTreeMap<_, _>| of.get(&counted).copied().unwrap_or(0);
        let (total, before) = (count(&self.last.counts), count(earlier));
        let since = self.grew.get(&counted).copied().unwrap_or(self.began);
        Growth {
            total,
            recent: total.checked_sub(before).unwrap_or(total),
            window: now.saturating_duration_since(*edge),
            quiet: now.saturating_duration_since(since),
        }
    }

    pub(crate) fn tags(&self, now: Instant) -> Tags {
        let is_recent = |at: &Option<Instant>| at.is_some_and(|at| at > self.edge.0);
        let numbers = |recent| {
            let vlans = self.vlans.iter();
            let vlans = vlans.filter(move |(_, at)| is_recent(at) == recent);
            vlans.map(|(vlan, _)| *vlan).collect()
        };
        let last = self.vlans.values().flatten().max();
        Tags {
            recent: numbers(true),
            earlier: numbers(false),
            quiet: now.saturating_duration_since(*last.unwrap_or(&self.began)),
        }
    }
}

#[cfg(test)]
impl Growth {
    pub(super) fn now(frames: u64) -> Self {
        Self {
            total: frames,
            recent: frames,
            window: WINDOW,
            quiet: Duration::ZERO,
        }
    }

    pub(super) fn earlier(frames: u64) -> Self {
        Self {
            recent: 0,
            quiet: Duration::from_millis(75_900),
            ..Self::now(frames)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Counted = Counted::Sent;

    fn look(sent: u64, marks: &[u16]) -> Look {
        Look {
            counts: [(SENT, sent)].into(),
            marks: marks.to_vec(),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_counted_is_recent_for_a_minute() {
        let begin = Instant::now();
        let mut recent = Recent::begin(begin, Look::default());
        let mut at = |second, sent| {
            let now = begin + seconds(second);
            recent.look(now, look(sent, &[]));
            recent.growth(now, SENT)
        };
        assert_eq!(at(5, 0).recent, 0);
        let found = at(10, 3);
        assert_eq!((found.total, found.recent), (3, 3));
        assert_eq!((found.window, found.quiet), (seconds(10), seconds(0)));
        for second in (20..=60).step_by(10) {
            let found = at(second, 3);
            assert_eq!((found.recent, found.quiet), (3, seconds(second - 10)));
        }
        let found = at(65, 3);
        assert_eq!((found.recent, found.window), (3, seconds(60)));
        let found = at(70, 3);
        assert_eq!((found.total, found.recent), (3, 0));
        assert_eq!((found.window, found.quiet), (seconds(60), seconds(60)));
        // After a long time without a look, all of it is the recent past.
        let found = at(3600, 5);
        assert_eq!((found.total, found.recent), (5, 2));
        assert_eq!((found.window, found.quiet), (seconds(3530), seconds(0)));
        assert_eq!(at(3659, 5).recent, 2);
        assert_eq!(at(3660, 5).recent, 0);
        // Counters that begin again, as those of an interface that is attached to again.
        assert_eq!(at(3661, 0).recent, 0);
        assert_eq!(at(3662, 1).recent, 1);
    }

    #[test]
    fn what_was_counted_before_the_first_look_is_not_recent() {
        let begin = Instant::now();
        let mut recent = Recent::begin(begin, look(7, &[0x1007, 0]));
        let now = begin + seconds(9);
        recent.look(now, look(7, &[0x1007, 0]));
        let found = recent.growth(now, SENT);
        assert_eq!((found.total, found.recent), (7, 0));
        assert_eq!(found.quiet, seconds(9));
        let tags = recent.tags(now);
        assert_eq!((tags.recent, tags.earlier), (vec![], vec![7]));
        assert_eq!(tags.quiet, seconds(9));
    }

    #[test]
    fn vlans_are_recent_while_frames_leave_with_them() {
        let begin = Instant::now();
        let mut recent = Recent::begin(begin, Look::default());
        let mut at = |second, marks: &[u16]| {
            let now = begin + seconds(second);
            recent.look(now, look(0, marks));
            let tags = recent.tags(now);
            (tags.recent, tags.earlier, tags.quiet)
        };
        assert_eq!(at(1, &[0, 0x1000]), (vec![], vec![], seconds(1)));
        assert_eq!(at(2, &[0x1007, 0]), (vec![7], vec![], seconds(0)));
        assert_eq!(at(32, &[0x2007, 0x1008]), (vec![7, 8], vec![], seconds(0)));
        // A frame of the same VLAN changes the mark.
        assert_eq!(at(62, &[0x2007, 0x2008]), (vec![7, 8], vec![], seconds(0)));
        assert_eq!(at(92, &[0x2007, 0x2008]), (vec![8], vec![7], seconds(30)));
        assert_eq!(
            at(122, &[0x2007, 0x2008]),
            (vec![], vec![7, 8], seconds(60))
        );
    }

    #[test]
    fn many_looks_take_no_room() {
        let begin = Instant::now();
        let mut recent = Recent::begin(begin, Look::default());
        for tenth in 0..10_000 {
            recent.look(begin + tenth * SPACING / 10, look(tenth.into(), &[]));
        }
        assert!(recent.looks.len() <= 62, "{}", recent.looks.len());
    }
}
