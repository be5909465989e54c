//! Events: noteworthy packets, which the program hands over with their first bytes through a ring buffer
//! (Linux, Documentation/bpf/ringbuf.rst), to a callback, to pcap files or to a list.

mod pcap;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::SystemTime;

use libbpf_rs::MapHandle;
use libbpf_rs::RingBufferBuilder;
use nix::time::ClockId;

use crate::Error;
use crate::Result;
use crate::maps::Live;
use crate::maps::kernel_error;
use crate::skel::katran::types;
use crate::sys::object::into_io;
use pcap::Files;

/// The most bytes of a packet that an event holds.
const MOST_BYTES: u32 = 128;
/// Bytes before them.
const HEAD: usize = 24;
const _: () = assert!(size_of::<types::event>() == HEAD + MOST_BYTES as usize);

/// How often the thread looks whether it is to stop.
const PERIOD: Duration = Duration::from_millis(50);

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
    /// When, to the precision of the kernel's monotonic clock.
    pub time: SystemTime,
    /// The index of the interface that the frame came in on.
    pub interface: u32,
    /// Bytes of the whole frame, without VLAN tags.
    pub length: u32,
    /// The frame's first bytes, from its Ethernet header on, without VLAN tags.
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
    /// All events, up to 1000 a second and CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to these kinds only.
    pub fn events(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// The most events of each CPU in a second; the program leaves out, and counts, those beyond.
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

    /// The most packets to deliver of each kind; those beyond are counted. Default: no limit.
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
    /// Events that could not be written to their file.
    pub failed: u64,
    /// Why the last one could not.
    pub failure: Option<String>,
}

/// Where events go.
enum Sink {
    Callback(Box<dyn FnMut(&Event) + Send>),
    Files(Files),
    List { capacity: usize },
}

/// What the thread and the handle share.
#[derive(Default)]
struct Shared {
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

/// Listens to events until it is stopped or dropped.
#[must_use = "a monitor ends when its handle is dropped"]
pub struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    live: Arc<Live>,
    /// Tells the balancer that one is there.
    _token: Arc<()>,
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
    /// [`Katran::event_counters`](crate::Katran::event_counters).
    pub fn stats(&self) -> MonitorStats {
        self.shared.lock().stats.clone()
    }

    /// Takes the events that wait in the list of
    /// [`Katran::monitor_to_list`](crate::Katran::monitor_to_list), oldest first.
    pub fn take(&self) -> Vec<Event> {
        self.shared.lock().list.drain(..).collect()
    }

    /// Stops listening, delivers what is under way, and tells what was done.
    pub fn stop(mut self) -> MonitorStats {
        self.end();
        self.stats()
    }

    fn end(&mut self) {
        self.live.set_events(0, 0);
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the callback of a monitor has panicked");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts of monitors, which [`Katran`](crate::Katran) offers.
pub(crate) struct Start<'a> {
    pub(crate) options: MonitorOptions,
    pub(crate) live: &'a Arc<Live>,
    pub(crate) events: &'a MapHandle,
    pub(crate) token: Arc<()>,
}

impl Start<'_> {
    pub(crate) fn callback(self, callback: Box<dyn FnMut(&Event) + Send>) -> Result<Monitor> {
        self.options.check()?;
        self.run(Sink::Callback(callback))
    }

    pub(crate) fn files(self, directory: &Path) -> Result<Monitor> {
        self.options.check()?;
        let files = Files::create(directory, &self.options.kinds, self.options.snap_length)?;
        self.run(Sink::Files(files))
    }

    pub(crate) fn list(self, capacity: usize) -> Result<Monitor> {
        self.options.check()?;
        if capacity == 0 {
            return Err(Error::InvalidConfig {
                setting: "capacity",
                value: "0".to_owned(),
                reason: "must be at least 1".to_owned(),
            });
        }
        self.run(Sink::List { capacity })
    }

    fn run(self, sink: Sink) -> Result<Monitor> {
        let failed = |error| kernel_error("copy the descriptor of", "events", into_io(error));
        let events = MapHandle::try_from(self.events).map_err(failed)?;
        let shared = Arc::<Shared>::default();
        let (bits, limit) = (self.options.bits(), self.options.rate_limit);
        let mut delivery = Delivery {
            boot: boot_time()?,
            shared: Arc::clone(&shared),
            delivered: [0; EventKind::ALL.len()],
            options: self.options,
            sink,
        };
        let thread = thread::Builder::new()
            .name("katran-monitor".to_owned())
            .spawn(move || delivery.run(&events))
            .map_err(|error| kernel_error("start", "a thread for events", error))?;
        self.live.set_events(bits, limit);
        Ok(Monitor {
            shared,
            thread: Some(thread),
            live: Arc::clone(self.live),
            _token: self.token,
        })
    }
}

/// When the monotonic clock stood at 0.
fn boot_time() -> Result<SystemTime> {
    let now = ClockId::CLOCK_MONOTONIC
        .now()
        .map_err(|errno| kernel_error("read", "the monotonic clock", errno.into()))?;
    Ok(SystemTime::now() - Duration::from(now))
}

/// The thread's side.
struct Delivery {
    shared: Arc<Shared>,
    options: MonitorOptions,
    sink: Sink,
    boot: SystemTime,
    delivered: [u64; EventKind::ALL.len()],
}

impl Delivery {
    fn run(&mut self, events: &MapHandle) {
        let shared = Arc::clone(&self.shared);
        let this = Mutex::new(self);
        let mut builder = RingBufferBuilder::new();
        let each = |bytes: &[u8]| {
            let mut this = this.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(event) = this.parse(bytes) {
                this.deliver(event);
            }
            0
        };
        let buffer = builder.add(events, each).map(drop);
        let buffer = match buffer.and_then(|()| builder.build()) {
            Ok(buffer) => buffer,
            Err(error) => {
                let mut state = shared.lock();
                state.stats.failure = Some(format!("cannot read the ring buffer: {error}"));
                return;
            }
        };
        while !shared.stop.load(Ordering::Acquire) {
            // Interrupted or not: it goes on.
            let _ = buffer.poll(PERIOD);
        }
        // What came before the program was told to stop.
        let _ = buffer.consume();
    }

    fn parse(&self, bytes: &[u8]) -> Option<Event> {
        let (head, data) = bytes.split_at_checked(HEAD)?;
        let word = |at: usize| -> Option<u32> {
            let word = head.get(at..at + 4)?;
            Some(u32::from_ne_bytes(word.try_into().ok()?))
        };
        let nanoseconds = u64::from_ne_bytes(head.get(..8)?.try_into().ok()?);
        let kind = word(8)? as usize;
        let captured = word(20)?.min(self.options.snap_length) as usize;
        Some(Event {
            kind: EventKind::ALL.into_iter().find(|of| of.number() == kind)?,
            time: self.boot + Duration::from_nanos(nanoseconds),
            interface: word(12)?,
            length: word(16)?,
            packet: data.get(..captured)?.to_vec(),
        })
    }

    fn deliver(&mut self, event: Event) {
        let delivered = &mut self.delivered[event.kind.number()];
        if self
            .options
            .packet_limit
            .is_some_and(|limit| *delivered >= limit)
        {
            self.shared.lock().stats.over_limit += 1;
            return;
        }
        *delivered += 1;
        let written = match &mut self.sink {
            Sink::Callback(callback) => {
                callback(&event);
                Ok(())
            }
            Sink::Files(files) => files.write(&event),
            Sink::List { capacity } => {
                let mut state = self.shared.lock();
                if state.list.len() == *capacity {
                    state.list.pop_front();
                    state.stats.overwritten += 1;
                }
                state.list.push_back(event);
                Ok(())
            }
        };
        self.count(written);
    }

    fn count(&self, written: Result<()>) {
        let mut state = self.shared.lock();
        match written {
            Ok(()) => state.stats.delivered += 1,
            Err(error) => {
                state.stats.failed += 1;
                state.stats.failure = Some(error.to_string());
            }
        }
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
