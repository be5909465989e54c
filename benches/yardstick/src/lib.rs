//! Measures XDP programs on pristine frames of many flows.
//!
//! A [`Yardstick`] wraps a program under test so that each run of it gets the same frame again, as
//! one of the next of N flows. The time of the wrapper alone is to be subtracted, and the time of
//! a program that does one hash lookup is what machines can be compared by.

#![allow(clippy::all, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod skel {
    #![allow(clippy::undocumented_unsafe_blocks, missing_docs, unused)]
    include!(concat!(env!("OUT_DIR"), "/yardstick.skel.rs"));
}

use std::io;
use std::mem;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Instant;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;

/// Bytes at the start of the frame that are restored before each run.
const HEAD: usize = 80;

/// A frame, a number of flows, and the programs to run on them.
pub struct Yardstick {
    frame: Vec<u8>,
    wrapper: OwnedFd,
    nothing: OwnedFd,
    one_lookup: OwnedFd,
    under_test: MapHandle,
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
    /// least 80 bytes), each as one of the next of `flows` flows, at most 2^26.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(frame: &[u8], flows: u32) -> io::Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let mut open = skel::YardstickSkelBuilder::default()
            .open(&mut storage)
            .map_err(io::Error::other)?;
        let constants = open
            .maps
            .rodata_data
            .as_deref_mut()
            .ok_or_else(|| io::Error::other("no constants"))?;
        constants.frame_length = frame.len() as u32;
        constants.flows = flows;
        constants.v6 = u8::from(frame[12..14] == [0x86, 0xdd]);
        let skel = open.load().map_err(io::Error::other)?;
        let head = &frame[..HEAD];
        let zero = 0u32.to_ne_bytes();
        let update = |map: &dyn MapCore, key: &[u8], value: &[u8]| {
            map.update(key, value, MapFlags::ANY)
                .map_err(io::Error::other)
        };
        update(&skel.maps.pristine, &zero, head)?;
        update(&skel.maps.one_map, &7u32.to_ne_bytes(), &1u64.to_ne_bytes())?;
        let own = |program: BorrowedFd<'_>| program.try_clone_to_owned();
        Ok(Self {
            frame: frame.to_vec(),
            wrapper: own(skel.progs.wrapper.as_fd())?,
            nothing: own(skel.progs.nothing.as_fd())?,
            one_lookup: own(skel.progs.one_lookup.as_fd())?,
            under_test: MapHandle::try_from(&skel.maps.under_test).map_err(io::Error::other)?,
        })
    }

    /// Runs `program` `times` times.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(&self, program: BorrowedFd<'_>, times: u32) -> io::Result<Measured> {
        self.under_test
            .update(
                &0u32.to_ne_bytes(),
                &program.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(io::Error::other)?;
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            data_in: self.frame.as_ptr().cast(),
            data_size_in: self.frame.len() as u32,
            repeat: times as i32,
            ..Default::default()
        };
        let began = Instant::now();
        // SAFETY: the frame is as long as the options say and outlives the call; no output is
        // asked for.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.wrapper.as_raw_fd(), &mut options) };
        let elapsed = began.elapsed();
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        Ok(Measured {
            nanoseconds: elapsed.as_nanos() as f64 / f64::from(times),
            action: options.retval,
        })
    }

    /// A program that does nothing: the cost of the wrapper.
    pub fn nothing(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    /// A program that does one lookup in a hash map: what to compare machines by.
    pub fn one_lookup(&self) -> BorrowedFd<'_> {
        self.one_lookup.as_fd()
    }
}
