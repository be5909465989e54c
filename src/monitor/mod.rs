//! Events: noteworthy packets. The program sends them with their first bytes through a ring buffer
//! (Linux, Documentation/bpf/ringbuf.rst), for a callback, pcap files or a list.

mod delivery;
mod pcap;
mod turn;

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::SystemTime;

pub(crate) use delivery::Start;
pub(crate) use turn::Switch;
pub(crate) use turn::Turn;

use crate::error::Error;
use crate::error::Result;
use crate::skel::katran::types;
use crate::sys::process::Owner;

/// The most bytes of a packet that an event holds.
const MOST_BYTES: u32 = 128;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// A TCP packet other than a SYN, of a flow that no table knows: most likely its connection
    /// used another host or CPU before, or lost its entry.
    #[doc(alias = "TCP_NONSYN_LRUMISS")]
    TcpNonSynMiss,
    /// A frame longer than `max_frame`.
    #[doc(alias = "PACKET_TOOBIG")]
    PacketTooBig,
    /// A QUIC connection id names a server whose real is being removed.
    #[doc(alias = "QUIC_PACKET_DROP_NO_REAL")]
    QuicRealGone,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; types::event_kind::EVENT_KINDS.0 as usize] =
        [Self::TcpNonSynMiss, Self::PacketTooBig, Self::QuicRealGone];

    /// Its name, such as `tcp_non_syn_miss`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpNonSynMiss => "tcp_non_syn_miss",
            Self::PacketTooBig => "packet_too_big",
            Self::QuicRealGone => "quic_real_gone",
        }
    }

    /// The program's number for it.
    pub(crate) const fn number(self) -> usize {
        let kind = match self {
            Self::TcpNonSynMiss => types::event_kind::EVENT_TCP_NON_SYN_MISS,
            Self::PacketTooBig => types::event_kind::EVENT_TOO_BIG,
            Self::QuicRealGone => types::event_kind::EVENT_QUIC_REAL_GONE,
        };
        kind.0 as usize
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EventKind {
    type Err = Error;

    /// Reads a [`name`](Self::name), with hyphens or underscores.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.replace('-', "_");
        let mut kinds = Self::ALL.into_iter();
        kinds
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "an event kind (`tcp_non_syn_miss`, `packet_too_big` or \
                           `quic_real_gone`)",
            })
    }
}

/// An event, with the beginning of the packet that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The time, to the precision of the kernel's monotonic clock, converted to wall-clock time by
    /// an offset that is refreshed every second.
    pub time: SystemTime,
    /// The index of the interface that the frame arrived on.
    pub interface: u32,
    /// Bytes of the whole frame, without VLAN tags. For a frame in a tunnel that ended here: of the
    /// inner packet with an Ethernet header.
    pub length: u32,
    /// The first bytes of that frame, from its Ethernet header on.
    pub packet: Vec<u8>,
}

/// Which events to listen to, and how many.
///
/// ```
/// use katran::events::EventKind;
/// use katran::events::MonitorOptions;
///
/// let options = MonitorOptions::new()
///     .events([EventKind::TcpNonSynMiss])
///     .rate_limit(100)
///     .snap_length(64);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing is listened to until a monitor is started"]
pub struct MonitorOptions {
    kinds: Vec<EventKind>,
    rate_limit: u32,
    snap_length: u32,
    packet_limit: Option<u64>,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self {
            kinds: EventKind::ALL.to_vec(),
            rate_limit: 1000,
            snap_length: MOST_BYTES,
            packet_limit: None,
        }
    }
}

/// # Kinds and limits
impl MonitorOptions {
    /// All events, up to 1000 of each kind per second on each CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to these kinds only.
    pub fn events(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// The most events per second of each kind on each CPU; the program leaves out further ones,
    /// and counts them. A flood of one kind does not affect the others.
    ///
    /// Default: 1000. Range: from 1.
    pub fn rate_limit(mut self, events: u32) -> Self {
        self.rate_limit = events;
        self
    }

    /// Bytes of each packet to keep. Default and largest: 128. Range: from 14, an Ethernet header.
    #[doc(alias = "snapLen")]
    pub fn snap_length(mut self, bytes: u32) -> Self {
        self.snap_length = bytes;
        self
    }

    /// The most packets of each kind to deliver. Further ones are counted, for which the program
    /// still sends them, up to the rate limit. Default: no limit.
    #[doc(alias = "pcktLimit")]
    pub fn packet_limit(mut self, packets: u64) -> Self {
        self.packet_limit = Some(packets);
        self
    }

    fn check(&self) -> Result<()> {
        let refuse = |setting, value: &dyn fmt::Display, reason: &str| {
            Err(Error::InvalidConfig {
                setting,
                value: value.to_string(),
                reason: reason.to_owned(),
            })
        };
        if self.kinds.is_empty() {
            return refuse("events", &"(none)", "choose at least one kind");
        }
        if self.rate_limit == 0 {
            return refuse("rate_limit", &0, "must be at least 1");
        }
        if !(14..=MOST_BYTES).contains(&self.snap_length) {
            return refuse("snap_length", &self.snap_length, "must be 14 to 128");
        }
        Ok(())
    }

    fn bits(&self) -> u32 {
        let kinds = self.kinds.iter();
        kinds.fold(0, |bits, kind| bits | 1 << kind.number())
    }
}

/// A monitor's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MonitorStats {
    /// Events that were delivered.
    pub delivered: u64,
    /// Events beyond the packet limit.
    pub over_limit: u64,
    /// Events discarded because the list was full, oldest first.
    pub overwritten: u64,
    /// Events that could not be read or written to their file.
    pub failed: u64,
    /// The cause of the last failure; or that the callback has panicked, since when nothing is
    /// delivered.
    pub failure: Option<String>,
}

#[derive(Default)]
struct Shared {
    /// Whether events are delivered: not those from before the start, nor after a panic.
    listening: AtomicBool,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stats: MonitorStats,
    list: VecDeque<Event>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens to events until it is stopped or dropped, even if the balancer is dropped first. If that
/// is pinned, later events go to the next handle, and [`MonitorStats::failure`] reports the drop.
///
/// Stopping and dropping wait for the callback to return, so stopping a monitor while holding a
/// lock that its callback needs deadlocks. The callback itself may stop its monitor without
/// waiting: events under way are delivered after it returns, and the balancer [is
/// monitored](crate::events::Events::is_running) until then.
///
/// ```no_run
/// use katran::events::MonitorOptions;
///
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// let monitor = katran.events().start(MonitorOptions::new(), |event| {
///     println!("{}: {} bytes", event.kind, event.length);
/// })?;
/// // later:
/// println!("{} events", monitor.stop().delivered);
/// # Ok(())
/// # }
/// ```
#[must_use = "a monitor ends when its handle is dropped"]
pub struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    switch: Arc<Switch>,
    owner: Owner,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// # Reading and stopping
impl Monitor {
    /// The counters so far. [`Stats::events`](crate::stats::Stats::events) counts what the program
    /// has left out.
    pub fn stats(&self) -> MonitorStats {
        self.shared.lock().stats.clone()
    }

    /// Takes the events out of the list of [`Events::to_list`](crate::events::Events::to_list),
    /// oldest first.
    pub fn take(&self) -> Vec<Event> {
        self.shared.lock().list.drain(..).collect()
    }

    /// Stops listening, delivers the events under way, and returns the counters.
    pub fn stop(mut self) -> MonitorStats {
        self.end();
        self.stats()
    }

    /// Takes effect once: after the thread has ended, events are the next monitor's.
    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !self.owner.is_here() {
            // Its thread is the parent's.
            mem::forget(thread);
            return;
        }
        self.switch.set(0, 0);
        self.shared.stop.store(true, Ordering::Release);
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            log::error!("a monitor's callback panicked when it was dropped");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_numbers_and_names_of_their_own() {
        for (number, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number(), number);
            assert_eq!(kind.name().parse::<EventKind>().unwrap(), kind);
        }
        assert_eq!(
            "quic-real-gone".parse::<EventKind>().unwrap(),
            EventKind::QuicRealGone
        );
        assert!("quic".parse::<EventKind>().is_err());
    }

    #[test]
    fn options_are_checked() {
        let options = MonitorOptions::new;
        assert!(options().check().is_ok());
        assert_eq!(options().bits(), 7);
        assert_eq!(options().events([EventKind::QuicRealGone]).bits(), 4);
        for bad in [
            options().events([]),
            options().rate_limit(0),
            options().snap_length(13),
            options().snap_length(129),
        ] {
            assert!(matches!(bad.check(), Err(Error::InvalidConfig { .. })));
        }
    }
}
