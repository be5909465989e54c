//! Events: noteworthy packets, which the program hands over with their first bytes through a ring buffer
//! (Linux, Documentation/bpf/ringbuf.rst), to a callback, to pcap files or to a list.

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

/// What happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// A TCP packet other than a SYN belongs to a flow that no table knows: most likely its
    /// connection came by another host or CPU before, or its entry has been pushed out.
    #[doc(alias = "TCP_NONSYN_LRUMISS")]
    TcpNonSynMiss,
    /// A frame above `max_frame`.
    #[doc(alias = "PACKET_TOOBIG")]
    PacketTooBig,
    /// A QUIC connection id names a server whose real is just going.
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

    /// Its [`name`](Self::name), hyphens for underscores allowed.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.replace('-', "_");
        let mut kinds = Self::ALL.into_iter();
        kinds
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "an event: tcp_non_syn_miss, packet_too_big or quic_real_gone",
            })
    }
}

/// An event, with the beginning of the packet that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When, to the precision of the kernel's monotonic clock; as the clock of the day tells it, which
    /// is asked again every second.
    pub time: SystemTime,
    /// The index of the interface that the frame came in on.
    pub interface: u32,
    /// Bytes of the whole frame, without VLAN tags; of one that came in a tunnel which ended here, of
    /// what was in it, with an Ethernet header.
    pub length: u32,
    /// The first bytes of the same frame, from its Ethernet header on.
    pub packet: Vec<u8>,
}

/// What to listen to, and how much of it.
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

impl MonitorOptions {
    /// All events, up to 1000 of each kind a second and CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to these kinds only.
    pub fn events(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// The most events of each kind, of each CPU, in a second; the program leaves out, and counts,
    /// those beyond. A flood of one kind leaves the others their share.
    ///
    /// Default: 1000. Range: from 1.
    pub fn rate_limit(mut self, events: u32) -> Self {
        self.rate_limit = events;
        self
    }

    /// Bytes to keep of each packet. Default and largest: 128. Range: from 14, an Ethernet header.
    #[doc(alias = "snapLen")]
    pub fn snap_length(mut self, bytes: u32) -> Self {
        self.snap_length = bytes;
        self
    }

    /// The most packets to deliver of each kind; those beyond are counted, so the program goes on
    /// handing them over, up to the rate limit. Default: no limit.
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
            return refuse("events", &"(none)", "at least one kind is needed");
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

/// What a monitor has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MonitorStats {
    /// Events that were delivered.
    pub delivered: u64,
    /// Events beyond the packet limit.
    pub over_limit: u64,
    /// Events that were thrown away because the list was full, oldest first.
    pub overwritten: u64,
    /// Events that could not be read, or not be written to their file.
    pub failed: u64,
    /// Why the last one could not; or that the callback has panicked, and nothing has been delivered
    /// since.
    pub failure: Option<String>,
}

/// What the thread and the handle share.
#[derive(Default)]
struct Shared {
    /// Whether what comes is delivered: not what was there before, nor after a panic.
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

/// Listens to events until it is stopped or dropped, even if its balancer is dropped before. If that is pinned, events are the
/// next handle's from then on, and [`MonitorStats::failure`] says that the handle was dropped.
///
/// Stopping and dropping wait for the callback to return. Whoever does so while holding a lock that the
/// callback waits for waits for ever. The callback itself may do it: nobody waits then, what is under way
/// is delivered after it has returned, and the balancer [is monitored](crate::events::Events::is_running) until
/// then.
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

impl Monitor {
    /// What it has done so far. What the program has left out is among
    /// [`Stats::events`](crate::stats::Stats::events).
    pub fn stats(&self) -> MonitorStats {
        self.shared.lock().stats.clone()
    }

    /// Takes the events that wait in the list of
    /// [`Events::to_list`](crate::events::Events::to_list), oldest first.
    pub fn take(&self) -> Vec<Event> {
        self.shared.lock().list.drain(..).collect()
    }

    /// Stops listening, delivers what is under way, and tells what was done.
    pub fn stop(mut self) -> MonitorStats {
        self.end();
        self.stats()
    }

    /// Once: when the thread has ended, events are those of the next monitor.
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
            log::error!("what the callback of a monitor owned has panicked when it went");
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
