//! Frames through the driver: the wrapper's frames enter an interface as if received, and leave
//! through it as the program under test sends them, to be counted at the wire's other end.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;

use crate::Yardstick;
use crate::cpu_time;

/// `BPF_F_TEST_XDP_LIVE_FRAMES`: since Linux 5.18.
const LIVE_FRAMES: u32 = 1 << 1;
/// The words of `struct xdp_md`: the frame from 0 to its end, without metadata, and the interface
/// it arrived on.
const DATA_END: usize = 1;
const INGRESS_INTERFACE: usize = 3;
const CONTEXT_WORDS: usize = 6;

/// Frames that arrived at the wire's other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// IP packets with an IP packet inside.
    pub tunnelled: u64,
    /// All other frames.
    pub others: u64,
}

impl Yardstick {
    /// Makes an interface of this thread's network namespace receive `frames` frames, each of the
    /// next flow, for `program` to handle. The interface needs its own XDP program, whatever
    /// it does, and a driver that can send XDP programs' frames. Returns this thread's CPU time,
    /// which includes most of the kernel's further work for the frames.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn receive(
        &self,
        program: BorrowedFd<'_>,
        interface: u32,
        frames: u32,
    ) -> io::Result<Duration> {
        self.put_under_test(program)?;
        let mut context = [0u32; CONTEXT_WORDS];
        context[DATA_END] = self.frame.len() as u32;
        context[INGRESS_INTERFACE] = interface;
        let mut context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&self.frame),
            flags: LIVE_FRAMES,
            repeat: frames,
            ..Default::default()
        };
        let began = cpu_time()?;
        self.current().test_run(input).map_err(io::Error::other)?;
        Ok(cpu_time()? - began)
    }

    /// A program that sends every frame back.
    pub fn send_back(&self) -> BorrowedFd<'_> {
        self.skel.progs.send_back.as_fd()
    }

    /// A program for the wire's other end, which counts and drops each frame.
    pub fn arrivals(&self) -> BorrowedFd<'_> {
        self.skel.progs.arrivals.as_fd()
    }

    /// The counters of [`arrivals`](Self::arrivals) so far.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn arrived(&self) -> io::Result<Arrived> {
        let map = &self.skel.maps.arrived;
        let records = map
            .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(io::Error::other)?;
        let mut all = Arrived::default();
        for record in records.unwrap_or_default() {
            let mut words = record.chunks_exact(8).map(|word| {
                let word = word.first_chunk().copied().unwrap_or_default();
                u64::from_ne_bytes(word)
            });
            all.tunnelled += words.next().unwrap_or_default();
            all.others += words.next().unwrap_or_default();
        }
        Ok(all)
    }
}
