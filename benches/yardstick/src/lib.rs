//! Measures XDP programs on pristine frames of many flows.
//!
//! A [`Yardstick`] wraps a program under test so that each run of it gets the same frame again, as
//! one of the next of N flows, or of the flows of a sequence. Subtract the wrapper's own time;
//! compare machines by the time of a program with one hash lookup. There are also models of flow
//! tables, and traffic to compare the kernel's tables with them.

mod flood;
mod latency;
mod live;
mod lru;
mod peer;
mod sets;
mod skel {
    #![allow(
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::undocumented_unsafe_blocks
    )]
    #![allow(missing_docs, unreachable_pub, unsafe_op_in_unsafe_fn, unused)]
    include!(concat!(env!("OUT_DIR"), "/yardstick.skel.rs"));
}

mod traffic;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;
use nix::time::ClockId;

pub use crate::flood::Flood;
pub use crate::flood::Packets;
pub use crate::latency::memory_latency;
pub use crate::live::Arrived;
pub use crate::lru::ExactLru;
pub use crate::peer::Peer;
pub use crate::peer::PeerCounts;
pub use crate::peer::PeerVip;
pub use crate::sets::HashKeys;
pub use crate::sets::SetAssociative;
pub use crate::sets::WAYS;
use crate::skel::YardstickSkel;
use crate::skel::YardstickSkelBuilder;
pub use crate::traffic::Pattern;
pub use crate::traffic::scattered;

/// Bytes at the start of the frame that are restored before each run.
const HEAD: usize = 80;
const ETHERNET: usize = 14;
/// As in the wrapper: flows differ in the port's low bits, then in the address's tail.
const PORT_BITS: u32 = 14;
const FIRST_PORT: u16 = 1024;
const MOST_FLOWS: u32 = 1 << (PORT_BITS + 16);
const MOST_DESTINATIONS: u32 = 1 << 16;
/// In a sequence: this packet of the flow has SYN as its only TCP flag.
pub const SYN: u32 = 1 << 31;
/// In a sequence: this packet of the flow has RST as its only TCP flag.
pub const RST: u32 = 1 << 30;
/// The most packets of a sequence in the kernel at a time.
const SEQUENCE: usize = 1 << 18;
/// Fewer packets are faster one by one: for repeated runs in one call the kernel patches its XDP
/// dispatcher and waits until no CPU runs the old one, tens of milliseconds.
const FEW: usize = 1 << 10;
/// Room for what a program adds before a frame.
const GROWTH: usize = 256;

/// A model of a flow table. Flows are numbers, and `now` is the time that a table may stamp them
/// with.
pub trait FlowTable {
    /// Whether the flow is known; if so, this counts as a use.
    fn find(&mut self, flow: u32, now: u32) -> bool;

    /// Makes the flow known and used now; may evict another one.
    fn remember(&mut self, flow: u32, now: u32);

    /// A packet of the flow: looks it up, and remembers it if new. Returns whether it was known.
    fn packet(&mut self, flow: u32, now: u32) -> bool {
        let known = self.find(flow, now);
        if !known {
            self.remember(flow, now);
        }
        known
    }
}

/// A frame, a number of flows, and the programs to run on them.
pub struct Yardstick {
    frame: Vec<u8>,
    flows: u32,
    destinations: u32,
    in_sequence: bool,
    skel: YardstickSkel<'static>,
}

/// The result of repeated runs.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Nanoseconds a run, including the wrapper.
    pub nanoseconds: f64,
    /// The last run's return value: an XDP action.
    pub action: u32,
}

impl Yardstick {
    /// A wrapper for runs on `frame` (Ethernet, IPv4 without options or IPv6, TCP or UDP; at least
    /// 80 bytes; the last 16 bits of its source address are 0), each as one of the next of `flows`
    /// flows, at most 2^30.
    ///
    /// # Errors
    /// Those of the kernel; `InvalidInput` for another frame or number of flows.
    pub fn new(frame: &[u8], flows: u32) -> io::Result<Self> {
        Self::load(frame, flows, 1, false)
    }

    /// A wrapper like [`new`](Self::new)'s, in which each flow goes to the next of `destinations`
    /// addresses (a power of two, at most 2^16): the frame's destination with other last 16 bits,
    /// which are 0 in the frame.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn spread(frame: &[u8], flows: u32, destinations: u32) -> io::Result<Self> {
        Self::load(frame, flows, destinations, false)
    }

    /// A wrapper for runs on `frame` as for [`play`](Self::play), of any of 2^30 flows.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_sequences(frame: &[u8]) -> io::Result<Self> {
        Self::load(frame, MOST_FLOWS, 1, true)
    }

    fn load(frame: &[u8], flows: u32, destinations: u32, in_sequence: bool) -> io::Result<Self> {
        let refuse = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if frame.len() < HEAD || frame[tail_at(frame)..][..2] != [0, 0] {
            return refuse("a frame of at least 80 bytes, with room for a flow, is needed");
        }
        if !(1..=MOST_FLOWS).contains(&flows) {
            return refuse("1 to 2^30 flows are possible");
        }
        if !destinations.is_power_of_two() || destinations > MOST_DESTINATIONS {
            return refuse("a power of two of destinations is possible, up to 2^16");
        }
        if destinations > 1 && frame[destination_tail_at(frame)..][..2] != [0, 0] {
            return refuse("the frame's destination has no room for others");
        }
        // Leaks a few bytes for each yardstick, so that the skeleton needs no lifetime.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = YardstickSkelBuilder::default()
            .open(storage)
            .map_err(io::Error::other)?;
        let Some(constants) = open.maps.rodata_data.as_deref_mut() else {
            return refuse("the object has no constants");
        };
        constants.frame_length = frame.len() as u32;
        constants.flows = flows;
        constants.destinations = destinations;
        constants.v6 = is_v6(frame).into();
        if in_sequence {
            open.maps
                .sequence
                .set_max_entries(SEQUENCE as u32)
                .map_err(io::Error::other)?;
        }
        let skel = open.load().map_err(io::Error::other)?;
        let zero = 0u32.to_ne_bytes();
        update(&skel.maps.pristine, &zero, &frame[..HEAD])?;
        update(&skel.maps.one_map, &7u32.to_ne_bytes(), &1u64.to_ne_bytes())?;
        Ok(Self {
            frame: frame.to_vec(),
            flows,
            destinations,
            in_sequence,
            skel,
        })
    }

    /// Runs `program` `times` times and takes the time.
    ///
    /// Measures this thread's CPU time.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run(&self, program: BorrowedFd<'_>, times: u32) -> io::Result<Measured> {
        self.put_under_test(program)?;
        let began = cpu_time()?;
        let input = ProgramInput {
            data_in: Some(&self.frame),
            repeat: times,
            ..Default::default()
        };
        let output = self.current().test_run(input);
        let elapsed = cpu_time()? - began;
        Ok(Measured {
            nanoseconds: elapsed.as_nanos() as f64 / f64::from(times),
            action: output.map_err(io::Error::other)?.return_value,
        })
    }

    /// Runs `program` once for each packet of a sequence, in order: flow numbers, with [`SYN`],
    /// [`RST`] or neither. Only for a wrapper for sequences. Fewer than 1,024 packets take a call
    /// each, so their time says nothing about the program.
    ///
    /// # Errors
    /// Those of the kernel; `InvalidInput` for an empty sequence.
    pub fn play(&self, program: BorrowedFd<'_>, packets: &[u32]) -> io::Result<Measured> {
        let mut all = Measured {
            nanoseconds: 0.0,
            action: 0,
        };
        if packets.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for part in packets.chunks(SEQUENCE) {
            let count = part.len() as u32;
            let bytes =
                |words: &mut dyn Iterator<Item = u32>| words.flat_map(u32::to_ne_bytes).collect();
            let (keys, values): (Vec<u8>, Vec<u8>) =
                (bytes(&mut (0..count)), bytes(&mut part.iter().copied()));
            let map = &self.skel.maps.sequence;
            map.update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
                .map_err(io::Error::other)?;
            self.go_on_with(0)?;
            let (calls, runs) = if part.len() < FEW {
                (count, 1)
            } else {
                (1, count)
            };
            for _ in 0..calls {
                let measured = self.run(program, runs)?;
                all.nanoseconds += measured.nanoseconds * f64::from(runs) / packets.len() as f64;
                all.action = measured.action;
            }
        }
        Ok(all)
    }

    /// Runs `program` once on the frame of one flow; returns its result, and the frame as it left
    /// it. The next run continues with the flow after it. Not for a wrapper for sequences.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run_flow(&self, program: BorrowedFd<'_>, flow: u32) -> io::Result<(u32, Vec<u8>)> {
        self.put_under_test(program)?;
        self.go_on_with(flow)?;
        let mut out = vec![0; self.frame.len() + GROWTH];
        let input = ProgramInput {
            data_in: Some(&self.frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..Default::default()
        };
        let output = self.current().test_run(input).map_err(io::Error::other)?;
        let frame = output.data.map(|data| data.to_vec()).unwrap_or_default();
        Ok((output.return_value, frame))
    }

    /// The frame of flow `flow`, as a program sees it.
    pub fn frame(&self, flow: u32) -> Vec<u8> {
        let mut frame = self.frame.clone();
        let (tail, port) = tail_and_port(flow % self.flows);
        let at = tail_at(&frame);
        frame[at..][..2].copy_from_slice(&tail.to_be_bytes());
        if self.destinations > 1 {
            let destination = ((flow % self.flows) & (self.destinations - 1)) as u16;
            let at = destination_tail_at(&frame);
            frame[at..][..2].copy_from_slice(&destination.to_be_bytes());
        }
        let (check, ports) = (
            ETHERNET + 10,
            ETHERNET + if is_v6(&frame) { 40 } else { 20 },
        );
        frame[ports..][..2].copy_from_slice(&port.to_be_bytes());
        if !is_v6(&frame) {
            frame[check..][..2].fill(0);
            let sum = ipv4_check(&frame[ETHERNET..ports]);
            frame[check..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }

    /// The wrapper itself, which [`run`](Self::run) runs in the kernel.
    pub fn wrapper_fd(&self) -> BorrowedFd<'_> {
        self.skel.progs.wrapper.as_fd()
    }

    /// A program that does nothing: the cost of the wrapper.
    pub fn nothing(&self) -> BorrowedFd<'_> {
        self.skel.progs.nothing.as_fd()
    }

    /// A program with one lookup in a hash map, by which to compare machines.
    pub fn one_lookup(&self) -> BorrowedFd<'_> {
        self.skel.progs.one_lookup.as_fd()
    }

    fn current(&self) -> &ProgramMut<'static> {
        let programs = &self.skel.progs;
        match self.in_sequence {
            true => &programs.sequence_wrapper,
            false => &programs.wrapper,
        }
    }

    /// Sets the next flow, or the next place in the sequence.
    fn go_on_with(&self, next: u32) -> io::Result<()> {
        update(
            &self.skel.maps.bss,
            &0u32.to_ne_bytes(),
            &next.to_ne_bytes(),
        )
    }

    fn put_under_test(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let descriptor = program.as_raw_fd().to_ne_bytes();
        update(&self.skel.maps.under_test, &0u32.to_ne_bytes(), &descriptor)
    }
}

/// The Internet checksum (RFC 1071) of an IPv4 header whose check field is 0.
pub fn ipv4_check(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The last 16 bits of a flow's source address, and its source port.
fn tail_and_port(flow: u32) -> (u16, u16) {
    let port = FIRST_PORT + (flow % (1 << PORT_BITS)) as u16;
    ((flow >> PORT_BITS) as u16, port)
}

fn is_v6(frame: &[u8]) -> bool {
    frame[12..ETHERNET] == [0x86, 0xdd]
}

/// Where the last 16 bits of the source address are.
fn tail_at(frame: &[u8]) -> usize {
    ETHERNET + if is_v6(frame) { 22 } else { 14 }
}

/// Where the last 16 bits of the destination address are.
fn destination_tail_at(frame: &[u8]) -> usize {
    tail_at(frame) + if is_v6(frame) { 16 } else { 4 }
}

fn update(map: &impl MapCore, key: &[u8], value: &[u8]) -> io::Result<()> {
    map.update(key, value, MapFlags::ANY)
        .map_err(io::Error::other)
}

fn cpu_time() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}
