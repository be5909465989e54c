//! From the ring buffer to the destination of events: a monitor's thread. It starts when everything
//! that may fail is done, and ends with the monitor.

use std::any::Any;
use std::mem;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use libbpf_rs::MapHandle;
use libbpf_rs::RingBuffer;
use libbpf_rs::RingBufferBuilder;
use nix::time::ClockId;

use super::Event;
use super::EventKind;
use super::MOST_BYTES;
use super::Monitor;
use super::MonitorOptions;
use super::Shared;
use super::Switch;
use super::Turn;
use super::pcap;
use super::pcap::Files;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::skel::katran::types;
use crate::sys::object::numbered;
use crate::sys::process::Owner;
use crate::sys::rcu::GracePeriod;
use crate::sys::tenure::Tenure;

/// Bytes of an event before those of the packet.
const HEAD: usize = 24;
const _: () = assert!(size_of::<types::event>() == HEAD + MOST_BYTES as usize);

/// How often the thread checks whether to stop.
const PERIOD: Duration = Duration::from_millis(50);

/// How often the wall clock is read.
const CLOCK_PERIOD: Duration = Duration::from_secs(1);

/// Starts monitors, for [`Katran`](crate::Katran).
pub(crate) struct Start<'a> {
    pub(crate) options: MonitorOptions,
    pub(crate) switch: &'a Arc<Switch>,
    pub(crate) events: &'a MapHandle,
    /// While the thread has it, no other monitor begins.
    pub(crate) turn: Turn,
}

enum Sink {
    Callback(Box<dyn FnMut(&Event) + Send>),
    Files(Files),
    List { capacity: usize },
}

impl Start<'_> {
    pub(crate) fn callback(self, callback: Box<dyn FnMut(&Event) + Send>) -> Result<Monitor> {
        self.options.check()?;
        self.run(Sink::Callback(callback))
    }

    pub(crate) fn files(self, directory: &Path) -> Result<Monitor> {
        self.options.check()?;
        let files = Files::create(directory, &self.options.kinds, self.options.snap_length)?;
        let made = files.paths();
        self.run(Sink::Files(files))
            .inspect_err(|_| made.iter().for_each(|path| pcap::remove_empty(path)))
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
        let failed = |error| kernel_error("listen to", "events", error);
        // Nothing else reads the buffer.
        let tenure = self.switch.tenure();
        let _permit = tenure.permit()?;
        let events = numbered(|| MapHandle::try_from(self.events)).map_err(failed)?;
        let shared = Arc::<Shared>::default();
        let (bits, limit) = (self.options.bits(), self.options.rate_limit);
        let mut delivery = Delivery {
            clock: Clock::new()?,
            shared: Arc::clone(&shared),
            switch: Arc::clone(self.switch),
            delivered: [0; EventKind::ALL.len()],
            options: self.options,
            sink,
        };
        let mut builder = RingBufferBuilder::new();
        let each = move |bytes: &[u8]| {
            delivery.take(bytes);
            0
        };
        numbered(|| builder.add(&events, each).map(drop)).map_err(failed)?;
        let buffer = numbered(|| builder.build()).map_err(failed)?;
        // What a monitor before this one may have left.
        numbered(|| buffer.consume()).map_err(failed)?;
        shared.listening.store(true, Ordering::Release);
        let (of_thread, turn) = (Arc::clone(&shared), self.turn);
        let its_tenure = Arc::clone(&tenure);
        let thread = thread::Builder::new()
            .name("katran-monitor".to_owned())
            .spawn(move || {
                listen(&buffer, &of_thread, &its_tenure);
                // In this order, so that the next one does not begin before this one is gone.
                drop((buffer, events));
                drop(turn);
            })
            .map_err(|error| kernel_error("start", "a thread for events", error))?;
        self.switch.set(bits, limit);
        Ok(Monitor {
            shared,
            thread: Some(thread),
            switch: Arc::clone(self.switch),
            owner: Owner::new(),
        })
    }
}

/// Delivers until it is stopped, and then the rest. No event is lost and none reaches the next
/// monitor: the owner stops the program's events (`set_events`) before it sets `stop`, whose load
/// here sees both. A packet that read the old word was under way then, and has sent its events when
/// the grace period ends. The events in the buffer after that are delivered, and the turn is given
/// up after the buffer, so no other monitor has begun. A callback that stops its own monitor is on
/// this thread: it returns here and sees `stop`.
///
/// If the balancer is handed over, the buffer is another process's from then on: unread events are
/// for the monitor there.
fn listen(buffer: &RingBuffer<'_>, shared: &Shared, tenure: &Tenure) {
    while !shared.stop.load(Ordering::Acquire) {
        let _permit = match tenure.permit() {
            Ok(permit) => permit,
            Err(over) => {
                shared.lock().stats.failure = Some(over.to_string());
                return;
            }
        };
        // Interrupted or not, it continues, without spinning.
        if buffer.poll(PERIOD).is_err() {
            thread::sleep(PERIOD);
        }
    }
    // A packet under way when events were switched off may still send one.
    if let Err(error) = GracePeriod::new().and_then(|period| period.wait()) {
        log::warn!("the last events may be missing: {error}");
    }
    if let Ok(_permit) = tenure.permit() {
        let _ = buffer.consume();
    }
}

/// The wall-clock time at which the kernel's monotonic clock was 0; the wall clock may be set
/// meanwhile.
struct Clock {
    boot: SystemTime,
    asked: Instant,
}

impl Clock {
    fn new() -> Result<Self> {
        let now = ClockId::CLOCK_MONOTONIC
            .now()
            .map_err(|errno| kernel_error("read", "the monotonic clock", errno.into()))?;
        Ok(Self {
            boot: SystemTime::now() - Duration::from(now),
            asked: Instant::now(),
        })
    }

    /// The time at so many nanoseconds of the monotonic clock.
    fn at(&mut self, nanoseconds: u64) -> Option<SystemTime> {
        if self.asked.elapsed() > CLOCK_PERIOD
            && let Ok(anew) = Self::new()
        {
            *self = anew;
        }
        self.boot.checked_add(Duration::from_nanos(nanoseconds))
    }
}

fn unreadable(bytes: &[u8]) -> Error {
    Error::Unsupported {
        what: format!("an event of {} bytes", bytes.len()),
        reason: "another build of this crate loaded the running program",
    }
}

struct Delivery {
    shared: Arc<Shared>,
    switch: Arc<Switch>,
    options: MonitorOptions,
    sink: Sink,
    clock: Clock,
    delivered: [u64; EventKind::ALL.len()],
}

impl Delivery {
    /// libbpf calls this with each event. A panic must not get there: its frames cannot be unwound,
    /// so the process would end.
    fn take(&mut self, bytes: &[u8]) {
        if !self.shared.listening.load(Ordering::Acquire) {
            return;
        }
        let delivered = panic::catch_unwind(AssertUnwindSafe(|| {
            match self.parse(bytes) {
                Some(event) if self.options.kinds.contains(&event.kind) => self.deliver(event),
                // A packet that was under way when another monitor listened to it.
                Some(_) => {}
                None => self.count(Err(unreadable(bytes))),
            }
        }));
        if let Err(panic) = delivered {
            self.give_up(&*panic);
            // A panic's payload may itself panic when dropped.
            mem::forget(panic);
        }
    }

    /// The callback is in an unknown state, so it is not called again.
    fn give_up(&mut self, panic: &(dyn Any + Send)) {
        self.shared.listening.store(false, Ordering::Release);
        self.switch.set(0, 0);
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a text");
        self.shared.lock().stats.failure = Some(format!(
            "the callback has panicked and is not called again: {text}"
        ));
    }

    /// `None`: none of the library's programs has written this.
    fn parse(&mut self, bytes: &[u8]) -> Option<Event> {
        let (head, data) = bytes.split_at_checked(HEAD)?;
        let word = |at: usize| -> Option<u32> {
            let word = head.get(at..at + 4)?;
            Some(u32::from_ne_bytes(word.try_into().ok()?))
        };
        let nanoseconds = u64::from_ne_bytes(head.get(..8)?.try_into().ok()?);
        let kind = word(8)? as usize;
        let kind = EventKind::ALL.into_iter().find(|of| of.number() == kind)?;
        let (length, captured) = (word(16)?, word(20)?);
        let whole = data.get(..captured as usize);
        let whole = whole.filter(|_| captured <= length)?;
        let kept = whole.len().min(self.options.snap_length as usize);
        Some(Event {
            kind,
            time: self.clock.at(nanoseconds)?,
            interface: word(12)?,
            length,
            packet: whole[..kept].to_vec(),
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
    use std::fs;
    use std::fs::File;

    use libbpf_sys::BPF_F_MMAPABLE;
    use libbpf_sys::BPF_MAP_TYPE_ARRAY;
    use pcap_file::pcap::PcapReader;

    use super::*;
    use crate::maps::Live;
    use crate::mutate;
    use crate::sys::map;

    fn delivery(options: MonitorOptions, sink: Sink) -> Delivery {
        let map = map::create(&map::Spec {
            kind: BPF_MAP_TYPE_ARRAY,
            name: "live",
            key_size: 4,
            value_size: size_of::<types::live>() as u32,
            max_entries: 1,
            flags: BPF_F_MMAPABLE,
            numa_node: None,
        });
        let shared = Arc::<Shared>::default();
        shared.listening.store(true, Ordering::Release);
        Delivery {
            shared,
            switch: Arc::new(Switch::new(&Arc::new(
                Live::new(map.unwrap(), Arc::default()).unwrap(),
            ))),
            options,
            sink,
            clock: Clock::new().unwrap(),
            delivered: [0; EventKind::ALL.len()],
        }
    }

    /// As the program writes it: time, kind, interface, length, bytes captured, and room for 128.
    fn record(kind: u32, length: u32, captured: u32) -> Vec<u8> {
        let mut bytes = 5_000_000_000_u64.to_ne_bytes().to_vec();
        for word in [kind, 7, length, captured] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend((0..MOST_BYTES).map(|byte| byte as u8));
        bytes
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    #[cfg_attr(miri, ignore = "a map")]
    fn records_are_read_or_counted_as_unreadable() {
        let kinds = [EventKind::TcpNonSynMiss, EventKind::PacketTooBig];
        let options = || MonitorOptions::new().events(kinds).snap_length(64);
        mutate::cases(300, |rng| {
            let mut delivery = delivery(options(), Sink::List { capacity: 4 });
            let (mut delivered, mut failed) = (0, 0);
            for _ in 0..100 {
                let captured = rng.u32(0..=MOST_BYTES);
                let mut bytes = record(rng.u32(0..3), captured + rng.u32(0..2000), captured);
                for _ in 0..rng.u32(0..3) {
                    mutate::bytes(rng, &mut bytes);
                }
                let is_whole = bytes.len() >= HEAD
                    && word(&bytes, 8) < 3
                    && word(&bytes, 20) <= word(&bytes, 16)
                    && word(&bytes, 20) as usize <= bytes.len() - HEAD;
                delivery.take(&bytes);
                match is_whole {
                    true if word(&bytes, 8) < 2 => {
                        delivered += 1;
                        let state = delivery.shared.lock();
                        let event = state.list.back().unwrap();
                        let kept = word(&bytes, 20).min(64) as usize;
                        assert_eq!(event.kind, kinds[word(&bytes, 8) as usize]);
                        assert_eq!(event.packet, bytes[HEAD..HEAD + kept]);
                        assert_eq!(event.interface, word(&bytes, 12));
                        assert_eq!(event.length, word(&bytes, 16));
                    }
                    true => {}
                    false => failed += 1,
                }
                let stats = delivery.shared.lock().stats.clone();
                assert_eq!((stats.delivered, stats.failed), (delivered, failed));
                assert_eq!(stats.failure.is_some(), failed > 0, "{stats:?}");
                assert!(delivery.shared.lock().list.len() <= 4);
            }
        });
    }

    /// A file's contents are a capture that another reader reads to its end, whatever was in the
    /// ring.
    #[test]
    #[cfg_attr(miri, ignore = "a map")]
    fn files_stay_captures() {
        mutate::cases(40, |rng| {
            let directory = tempfile::tempdir().unwrap();
            let options = MonitorOptions::new().snap_length(rng.u32(14..=MOST_BYTES));
            let files = Files::create(directory.path(), &options.kinds, options.snap_length);
            let mut delivery = delivery(options, Sink::Files(files.unwrap()));
            for _ in 0..100 {
                let mut bytes = record(rng.u32(0..3), 1000, rng.u32(0..=MOST_BYTES));
                for _ in 0..rng.u32(0..3) {
                    mutate::bytes(rng, &mut bytes);
                }
                delivery.take(&bytes);
            }
            let stats = delivery.shared.lock().stats.clone();
            assert_eq!(stats.delivered + stats.failed, 100);
            let mut read = 0;
            for file in fs::read_dir(directory.path()).unwrap() {
                let file = File::open(file.unwrap().path()).unwrap();
                let mut reader = PcapReader::new(file).unwrap();
                while let Some(packet) = reader.next_raw_packet() {
                    let packet = packet.unwrap();
                    assert!(packet.incl_len <= packet.orig_len, "{packet:?}");
                    read += 1;
                }
            }
            assert_eq!(read, stats.delivered);
        });
    }
}
