//! Packets per second on one core, on a real path: frames that a driver passes to the program, and
//! that leave through the driver. One CPU does it all: the kernel makes frames and lets an
//! interface receive them (`BPF_F_TEST_XDP_LIVE_FRAMES`, since Linux 5.18), the balancer's program
//! handles them, the driver of the virtual Ethernet pair takes them to the other end, and a program
//! there counts and drops them. With `--peer` Katran's own program and this crate's take turns. The
//! first row is the path alone: its program sends frames back unchanged. Each run is checked: the
//! balancer must have counted all frames, and all must arrive at the other end with a packet
//! inside.
//!
//! Seconds are CPU time, including the kernel's part.
//!
//! cargo bench --bench live_frames                      # minutes
//! cargo bench --bench live_frames -- --peer OBJECT     # compiled as docs/performance.md says
//! cargo bench --bench live_frames -- --tracking KIND --changed
//! cargo bench --bench live_frames -- --quick           # seconds: only whether it works
//!
//! Separate from `packet_path`, which times the program alone and needs no network.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "packet_path/counts.rs"]
mod counts;
#[allow(dead_code, reason = "this bench uses a part")]
#[path = "packet_path/timed.rs"]
mod timed;
#[allow(dead_code, reason = "this bench uses a part")]
#[path = "packet_path/traffic.rs"]
mod traffic;

use std::env;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use katran_lab::Host;
use katran_lab::allowed_cpus;
use katran_lab::eventually;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_lab::veth;
use katran_yardstick::Peer;
use katran_yardstick::Yardstick;
use libbpf_rs::Xdp;
use libbpf_rs::XdpFlags;

use crate::common::ACK;
use crate::common::PORT;
use crate::common::Spread;
use crate::common::TCP;
use crate::common::frame;
use crate::common::grouped;
use crate::common::machine::Machine;
use crate::common::machine::load;
use crate::common::options::Options;
use crate::timed::Balancer;
use crate::timed::Ours;
use crate::traffic::Traffic;
use crate::traffic::traffics;

const USAGE: &str = "usage: cargo bench --bench live_frames -- [OPTION ...]";

/// The traffic to send; other rows of `packet_path` differ only in the program's own time.
const TRAFFICS: [&str; 3] = [
    "TCP/IPv4 established",
    "UDP/IPv4 established",
    "TCP/IPv6 established, IPv6 reals",
];
const INTERFACE: &str = "eth0";
/// Room for the outer header.
const MTU: u32 = 1600;

struct Effort {
    frames: u32,
    rounds: usize,
    flows: &'static [u32],
    /// Entries: far more than flows, so that almost none is evicted.
    flow_table_size: u64,
}

const FULL: Effort = Effort {
    frames: 1_000_000,
    rounds: 9,
    flows: &[1, 1 << 10, 1 << 16, 1 << 20],
    flow_table_size: 4_000_000,
};
const QUICK: Effort = Effort {
    frames: 50_000,
    rounds: 5,
    flows: &[1, 1 << 10],
    flow_table_size: 262_144,
};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1), USAGE, |_| false) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("live_frames: {error}");
            return ExitCode::from(2);
        }
    };
    require_root();
    let effort = if options.quick { QUICK } else { FULL };
    // Frames arrive on the CPU that sends them.
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    println!(
        "{}\n{} frames a run, medians of {} runs (quartiles); millions of packets a second of CPU \
         {cpu}'s time, which makes, balances and receives the frames\n{}\n",
        Machine::now(),
        effort.frames,
        effort.rounds,
        options.balancer()
    );
    println!("| traffic | flows | path alone | Katran | this crate | ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let wire = Wire::new(cpu);
    for traffic in traffics() {
        if !TRAFFICS.contains(&traffic.name) {
            continue;
        }
        let settings = options.settings(effort.flow_table_size, traffic.flood_threshold, cpu);
        let mut katran = traffic.balancer(settings);
        if options.changed {
            traffic.change_every_slot(&mut katran);
        }
        let peer = options
            .peer
            .as_ref()
            .map(|object| traffic.peer(object, &katran, cpu as u32, effort.flow_table_size as u32));
        let peer = match peer.transpose() {
            Ok(peer) => peer,
            Err(error) => {
                eprintln!("live_frames: {error}");
                return ExitCode::FAILURE;
            }
        };
        let mut known = 0;
        for &flows in effort.flows {
            let balancers = Balancers {
                ours: Ours {
                    katran: &katran,
                    slots: traffic.slots(&options),
                },
                peer: peer.as_ref(),
            };
            let rates = wire.rates(balancers, &traffic, flows, flows - known, &effort);
            println!("{}", rates.row(&traffic, flows));
            known = flows;
        }
    }
    println!("\nThe machine's load is {:.2} now.", load());
    ExitCode::SUCCESS
}

#[derive(Clone, Copy)]
struct Balancers<'a> {
    ours: Ours<'a>,
    peer: Option<&'a Peer>,
}

/// Millions of packets a second, for each round in order.
#[derive(Default)]
struct Rates {
    path: Vec<f64>,
    katrans: Vec<f64>,
    ours: Vec<f64>,
}

impl Rates {
    /// A row of a Markdown table.
    fn row(self, traffic: &Traffic, flows: u32) -> String {
        let ratios: Vec<f64> = self
            .ours
            .iter()
            .zip(&self.katrans)
            .map(|(ours, katrans)| ours / katrans)
            .collect();
        let cells = [self.path, self.katrans, self.ours, ratios].map(|rates| {
            if rates.is_empty() {
                String::new()
            } else {
                Spread::of(rates).text(2)
            }
        });
        let flows = grouped(flows.into());
        format!("| {} | {flows} | {} |", traffic.name, cells.join(" | "))
    }
}

/// A pair of virtual Ethernet interfaces between two hosts. The far end counts arrivals.
struct Wire {
    near: Host,
    _far: Host,
    interface: u32,
    counter: Yardstick,
    soft_interrupts: SoftInterrupts,
}

impl Wire {
    /// For frames on one CPU, to which this thread is bound.
    fn new(cpu: usize) -> Self {
        let (near, far) = (Host::new("near").unwrap(), Host::new("far").unwrap());
        veth(near.port(INTERFACE), far.port(INTERFACE), MTU).unwrap();
        let counter = Yardstick::new(&frame(false, TCP, ACK, PORT), 1).unwrap();
        // The near end needs a program, though it sees no frames, so that the driver accepts XDP's.
        for (host, program) in [(&near, counter.nothing()), (&far, counter.arrivals())] {
            let index = host.interface_index(INTERFACE).unwrap() as i32;
            let xdp = Xdp::new(program);
            host.run(|| xdp.attach(index, XdpFlags::DRV_MODE).unwrap());
        }
        let interface = near.interface_index(INTERFACE).unwrap();
        Self {
            near,
            _far: far,
            interface,
            counter,
            soft_interrupts: SoftInterrupts::of(cpu),
        }
    }

    /// Lets the programs handle frames alternately.
    fn rates(
        &self,
        balancers: Balancers<'_>,
        traffic: &Traffic,
        flows: u32,
        unknown: u32,
        effort: &Effort,
    ) -> Rates {
        let stick = Yardstick::new(&traffic.frame, flows).unwrap();
        let mut programs = vec![Balancer::Ours(balancers.ours)];
        programs.extend(balancers.peer.map(Balancer::Katrans));
        // All flows once, so that the flow table knows them.
        for program in &programs {
            program.run(&stick, traffic, flows, unknown);
        }
        let frames = effort.frames;
        let mut rates = Rates::default();
        for _ in 0..effort.rounds {
            let path = self.send(&stick, stick.send_back(), frames, false);
            rates.path.push(path);
            for program in &programs {
                let rate = program.counted(traffic, frames, 0, |program| {
                    self.send(&stick, program, frames, true)
                });
                match program {
                    Balancer::Ours(_) => rates.ours.push(rate),
                    Balancer::Katrans(_) => rates.katrans.push(rate),
                }
            }
            // The first in one round is the last in the next.
            programs.reverse();
        }
        for program in &programs {
            for flow in [0, flows / 2, flows - 1] {
                program.check_frame(&stick, traffic, flow, balancers.ours.katran);
            }
        }
        rates
    }

    /// Millions of frames that a program handles per second of CPU time. All must arrive, with a
    /// packet inside or unchanged.
    fn send(
        &self,
        stick: &Yardstick,
        program: BorrowedFd<'_>,
        frames: u32,
        tunnelled: bool,
    ) -> f64 {
        let before = self.counter.arrived().unwrap();
        let interrupts = self.soft_interrupts.time();
        let inside = self.near.enter().unwrap();
        let took = stick.receive(program, self.interface, frames).unwrap();
        drop(inside);
        let wanted = match (u64::from(frames), tunnelled) {
            (frames, true) => (before.tunnelled + frames, before.others),
            (frames, false) => (before.tunnelled, before.others + frames),
        };
        eventually("all frames have arrived at the other end", || {
            let arrived = self.counter.arrived().unwrap();
            (arrived.tunnelled, arrived.others) == wanted
        });
        let busy = took + self.soft_interrupts.time() - interrupts;
        f64::from(frames) / busy.as_secs_f64() / 1e6
    }
}

/// The kernel thread that handles a CPU's soft interrupts when there are many; otherwise the
/// interrupts that this process causes run in its own time.
struct SoftInterrupts {
    /// The file with its times, if this process sees kernel threads.
    times: Option<PathBuf>,
}

impl SoftInterrupts {
    fn of(cpu: usize) -> Self {
        let name = format!("ksoftirqd/{cpu}");
        let processes = fs::read_dir("/proc").unwrap();
        let times = processes
            .flatten()
            .map(|process| process.path())
            .find(|process| {
                let of_process = fs::read_to_string(process.join("comm"));
                of_process.is_ok_and(|of_process| of_process.trim_end() == name)
            });
        if times.is_none() {
            println!("{name} is not seen from here: its time is left out\n");
        }
        Self {
            times: times.map(|process| process.join("schedstat")),
        }
    }

    /// The CPU time it has used.
    fn time(&self) -> Duration {
        let text = self
            .times
            .as_ref()
            .map(|path| fs::read_to_string(path).unwrap());
        let first = text.as_deref().and_then(|text| text.split(' ').next());
        Duration::from_nanos(first.map_or(0, |number| number.parse().unwrap()))
    }
}
