//! From the ring buffer to wherever events are to go: the thread of a monitor. It is started when all that
//! may fail has been done, and ends when the monitor does.

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
use super::Turn;
use super::pcap;
use super::pcap::Files;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::Live;
use crate::skel::katran::types;
use crate::sys::object::into_io;
use crate::sys::process::Owner;
use crate::sys::rcu::GracePeriod;

/// Bytes of an event before those of the packet.
const HEAD: usize = 24;
const _: () = assert!(size_of::<types::event>() == HEAD + MOST_BYTES as usize);

/// How often the thread looks whether it is to stop.
const PERIOD: Duration = Duration::from_millis(50);

/// How often it is asked what time of the day it is.
const CLOCK_PERIOD: Duration = Duration::from_secs(1);

/// Starts of monitors, which [`Katran`](crate::Katran) offers.
pub(crate) struct Start<'a> {
    pub(crate) options: MonitorOptions,
    pub(crate) live: &'a Arc<Live>,
    pub(crate) events: &'a MapHandle,
    /// As long as the thread has it, no other monitor begins.
    pub(crate) turn: Turn,
}

/// Where events go.
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
        let failed = |error| kernel_error("listen to", "events", into_io(error));
        let events = MapHandle::try_from(self.events).map_err(failed)?;
        let shared = Arc::<Shared>::default();
        let (bits, limit) = (self.options.bits(), self.options.rate_limit);
        let mut delivery = Delivery {
            clock: Clock::new()?,
            shared: Arc::clone(&shared),
            live: Arc::clone(self.live),
            delivered: [0; EventKind::ALL.len()],
            options: self.options,
            sink,
        };
        let mut builder = RingBufferBuilder::new();
        let each = move |bytes: &[u8]| {
            delivery.take(bytes);
            0
        };
        builder.add(&events, each).map_err(failed)?;
        let buffer = builder.build().map_err(failed)?;
        // What a monitor before this one may have left.
        buffer.consume().map_err(failed)?;
        shared.listening.store(true, Ordering::Release);
        let (of_thread, turn) = (Arc::clone(&shared), self.turn);
        let thread = thread::Builder::new()
            .name("katran-monitor".to_owned())
            .spawn(move || {
                listen(&buffer, &of_thread);
                // In this order, so that the next one does not come before this one is gone.
                drop((buffer, events));
                drop(turn);
            })
            .map_err(|error| kernel_error("start", "a thread for events", error))?;
        self.live.set_events(bits, limit);
        Ok(Monitor {
            shared,
            thread: Some(thread),
            live: Arc::clone(self.live),
            owner: Owner::new(),
        })
    }
}

/// Delivers until it is told to stop, and then what is left. Nothing that a packet has handed over is lost and
/// nothing comes to the next monitor: the owner makes the program stop (`set_events`) before it sets `stop`, whose
/// load here sees both; a packet that read the old word is one that was under way then, and has handed over
/// what it will when the grace period ends; what lies in the buffer after that is delivered, and the
/// turn is given up after the buffer, so no other monitor has begun. A callback that stops its own monitor is on this
/// thread: it comes back here and sees `stop`.
fn listen(buffer: &RingBuffer<'_>, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        // Interrupted or not, it goes on; but not in circles.
        if buffer.poll(PERIOD).is_err() {
            thread::sleep(PERIOD);
        }
    }
    // A packet that was under way when the program was told to stop may still hand something over.
    if let Err(error) = GracePeriod::new().and_then(|period| period.wait()) {
        log::warn!("the last events may be missing: {error}");
    }
    let _ = buffer.consume();
}

/// When the kernel's monotonic clock stood at 0, by the clock of the day, which may be set meanwhile.
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
    fn at(&mut self, nanoseconds: u64) -> SystemTime {
        if self.asked.elapsed() > CLOCK_PERIOD
            && let Ok(anew) = Self::new()
        {
            *self = anew;
        }
        self.boot + Duration::from_nanos(nanoseconds)
    }
}

/// The thread's side.
struct Delivery {
    shared: Arc<Shared>,
    live: Arc<Live>,
    options: MonitorOptions,
    sink: Sink,
    clock: Clock,
    delivered: [u64; EventKind::ALL.len()],
}

impl Delivery {
    /// What libbpf calls with each event. A panic must not get there: its frames cannot be unwound, so
    /// the process would end.
    fn take(&mut self, bytes: &[u8]) {
        if !self.shared.listening.load(Ordering::Acquire) {
            return;
        }
        let delivered = panic::catch_unwind(AssertUnwindSafe(|| {
            if let Some(event) = self.parse(bytes) {
                self.deliver(event);
            }
        }));
        if let Err(panic) = delivered {
            self.give_up(&*panic);
            // What a panic has left may itself panic when it is dropped.
            mem::forget(panic);
        }
    }

    /// The callback is in no known state, so it is not called again.
    fn give_up(&mut self, panic: &(dyn Any + Send)) {
        self.shared.listening.store(false, Ordering::Release);
        self.live.set_events(0, 0);
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a text");
        self.shared.lock().stats.failure = Some(format!(
            "the callback has panicked and is not called again: {text}"
        ));
    }

    fn parse(&mut self, bytes: &[u8]) -> Option<Event> {
        let (head, data) = bytes.split_at_checked(HEAD)?;
        let word = |at: usize| -> Option<u32> {
            let word = head.get(at..at + 4)?;
            Some(u32::from_ne_bytes(word.try_into().ok()?))
        };
        let nanoseconds = u64::from_ne_bytes(head.get(..8)?.try_into().ok()?);
        let kind = word(8)? as usize;
        let mut kinds = self.options.kinds.iter();
        let kind = *kinds.find(|of| of.number() == kind)?;
        let captured = word(20)?.min(self.options.snap_length) as usize;
        Some(Event {
            kind,
            time: self.clock.at(nanoseconds),
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
