//! Measures XDP programs on pristine frames of many flows.
//!
//! A [`Yardstick`] wraps a program under test so that each run of it gets the same frame again, as
//! one of the next of N flows. The time of the wrapper alone is to be subtracted, and the time of
//! a program that does one hash lookup is what machines can be compared by.

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

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;
use nix::time::ClockId;

use crate::skel::YardstickSkel;
use crate::skel::YardstickSkelBuilder;

/// Bytes at the start of the frame that are restored before each run.
const HEAD: usize = 80;
const ETHERNET: usize = 14;
/// As in the wrapper: flows differ in the low bits of the port, then in the address's tail.
const PORT_BITS: u32 = 14;
const FIRST_PORT: u16 = 1024;
const MOST_FLOWS: u32 = 1 << (PORT_BITS + 16);
/// Room for what a program puts in front of a frame.
const GROWTH: usize = 256;

/// A frame, a number of flows, and the programs to run on them.
pub struct Yardstick {
    frame: Vec<u8>,
    flows: u32,
    skel: YardstickSkel<'static>,
}

/// The result of many runs.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Nanoseconds a run, the wrapper included.
    pub nanoseconds: f64,
    /// What the last run returned: an XDP action.
    pub action: u32,
}

impl Yardstick {
    /// A wrapper for runs on `frame` (Ethernet, IPv4 without options or IPv6, TCP or UDP; at
    /// least 80 bytes; the last 16 bits of its source address are 0), each as one of the next of
    /// `flows` flows, at most 2^30.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for another frame or number of flows.
    pub fn new(frame: &[u8], flows: u32) -> io::Result<Self> {
        let refuse = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if frame.len() < HEAD || frame[tail_at(frame)..][..2] != [0, 0] {
            return refuse("a frame of at least 80 bytes, with room for a flow, is needed");
        }
        if !(1..=MOST_FLOWS).contains(&flows) {
            return refuse("1 to 2^30 flows are possible");
        }
        // A few bytes for each yardstick; the skeleton then needs no lifetime.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = YardstickSkelBuilder::default()
            .open(storage)
            .map_err(io::Error::other)?;
        let Some(constants) = open.maps.rodata_data.as_deref_mut() else {
            return refuse("the object has no constants");
        };
        constants.frame_length = frame.len() as u32;
        constants.flows = flows;
        constants.v6 = is_v6(frame).into();
        let skel = open.load().map_err(io::Error::other)?;
        let zero = 0u32.to_ne_bytes();
        update(&skel.maps.pristine, &zero, &frame[..HEAD])?;
        update(&skel.maps.one_map, &7u32.to_ne_bytes(), &1u64.to_ne_bytes())?;
        Ok(Self {
            frame: frame.to_vec(),
            flows,
            skel,
        })
    }

    /// Runs `program` `times` times and takes the time.
    ///
    /// It is this thread's time on the CPU: what other threads took meanwhile is no part of it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(&self, program: BorrowedFd<'_>, times: u32) -> io::Result<Measured> {
        self.put_under_test(program)?;
        let began = cpu_time()?;
        let input = ProgramInput {
            data_in: Some(&self.frame),
            repeat: times,
            ..Default::default()
        };
        let output = self.skel.progs.wrapper.test_run(input);
        let elapsed = cpu_time()? - began;
        Ok(Measured {
            nanoseconds: elapsed.as_nanos() as f64 / f64::from(times),
            action: output.map_err(io::Error::other)?.return_value,
        })
    }

    /// Runs `program` once on the frame of one flow: what it returned, and the frame as it left
    /// it. The next run goes on with the flow after it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run_flow(&self, program: BorrowedFd<'_>, flow: u32) -> io::Result<(u32, Vec<u8>)> {
        self.put_under_test(program)?;
        update(
            &self.skel.maps.bss,
            &0u32.to_ne_bytes(),
            &flow.to_ne_bytes(),
        )?;
        let mut out = vec![0; self.frame.len() + GROWTH];
        let input = ProgramInput {
            data_in: Some(&self.frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..Default::default()
        };
        let output = self
            .skel
            .progs
            .wrapper
            .test_run(input)
            .map_err(io::Error::other)?;
        let frame = output.data.map(|data| data.to_vec()).unwrap_or_default();
        Ok((output.return_value, frame))
    }

    /// The frame that a program gets to see as one of flow `flow`.
    pub fn frame(&self, flow: u32) -> Vec<u8> {
        let mut frame = self.frame.clone();
        let tail = ((flow % self.flows) >> PORT_BITS) as u16;
        let port = FIRST_PORT + (flow % self.flows % (1 << PORT_BITS)) as u16;
        let at = tail_at(&frame);
        frame[at..][..2].copy_from_slice(&tail.to_be_bytes());
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

    /// The wrapper itself, which [`run`](Self::run) hands to the kernel.
    pub fn wrapper_fd(&self) -> BorrowedFd<'_> {
        self.skel.progs.wrapper.as_fd()
    }

    /// A program that does nothing: the cost of the wrapper.
    pub fn nothing(&self) -> BorrowedFd<'_> {
        self.skel.progs.nothing.as_fd()
    }

    /// A program that does one lookup in a hash map: what to compare machines by.
    pub fn one_lookup(&self) -> BorrowedFd<'_> {
        self.skel.progs.one_lookup.as_fd()
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

fn is_v6(frame: &[u8]) -> bool {
    frame[12..ETHERNET] == [0x86, 0xdd]
}

/// Where the last 16 bits of the source address are.
fn tail_at(frame: &[u8]) -> usize {
    ETHERNET + if is_v6(frame) { 22 } else { 14 }
}

fn update(map: &impl MapCore, key: &[u8], value: &[u8]) -> io::Result<()> {
    map.update(key, value, MapFlags::ANY)
        .map_err(io::Error::other)
}

fn cpu_time() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}
