//! Nanoseconds a packet, as docs/performance.md describes: pristine frames of many flows through
//! the loaded program, the wrapper's own time subtracted, alternating with a fixed yardstick (one
//! hash lookup in the same wrapper), medians of many runs. What is timed is checked by its
//! counters, run by run, and by the frames that come out.
//!
//! cargo bench --bench packet_path            # minutes; FILTER: rows whose name contains it
//! cargo bench --bench packet_path -- --quick # seconds, for whether it works

#![allow(clippy::unwrap_used)]

use std::env;
use std::process::ExitCode;

use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::Verdict;
use katran::Vip;
use katran::VipFlags;
use katran_lab::require_root;
use katran_yardstick::Yardstick;
use katran_yardstick::ipv4_check;
use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

const TX: u32 = 3;
const PASS: u32 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const PORT: u16 = 80;
/// No VIP has it.
const OTHER_PORT: u16 = 81;

struct Effort {
    packets: u32,
    rounds: usize,
    flows: &'static [u32],
    /// Entries: far more than flows, so that none is evicted.
    flow_table_size: u64,
}

const FULL: Effort = Effort {
    packets: 2_000_000,
    rounds: 15,
    flows: &[1, 1 << 10, 1 << 16, 1 << 20],
    flow_table_size: 4_000_000,
};
const QUICK: Effort = Effort {
    packets: 200_000,
    rounds: 5,
    flows: &[1, 1 << 16],
    flow_table_size: 262_144,
};

/// What the balancer makes of each packet.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// Sent to a real that the flow table remembers, once the flow is known.
    Known,
    /// Sent to a real as a new flow each time.
    New,
    Passed,
}

struct Traffic {
    name: &'static str,
    frame: Vec<u8>,
    expected: Expected,
    /// Whether the flood guard may act: it then keeps new flows out of the flow table.
    guarded: bool,
}

fn main() -> ExitCode {
    let (mut quick, mut bench, mut filter) = (false, false, String::new());
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--quick" => quick = true,
            "--bench" => bench = true,
            name if !name.starts_with('-') => filter = argument,
            _ => {
                eprintln!("packet_path: {argument} is not known; there are --quick and FILTER");
                return ExitCode::from(2);
            }
        }
    }
    require_root();
    // Like criterion: without --bench it is a test that the bench works.
    let effort = if quick || !bench { QUICK } else { FULL };
    let cpu = stay_on_one_cpu();
    println!(
        "{} packets a run, medians of {} runs (quartiles), wrapper subtracted; CPU {cpu}, flow \
         table of {} entries; ratio to one hash lookup in the same wrapper",
        effort.packets, effort.rounds, effort.flow_table_size
    );
    println!(
        "{:<30} {:>9} {:>20} {:>19} {:>6}",
        "traffic", "flows", "ns a packet", "lookup, ns", "ratio"
    );
    let mut instructions = 0;
    for traffic in traffics().iter().filter(|row| row.name.contains(&filter)) {
        let katran = balancer(traffic, &effort, cpu);
        instructions = katran.program_size().unwrap() / 8;
        let mut known = 0;
        for &flows in effort.flows {
            measure(&katran, traffic, flows, flows - known, &effort);
            known = flows;
        }
    }
    println!("the program has {instructions} instructions after the verifier");
    ExitCode::SUCCESS
}

/// One CPU, so that one flow table sees all flows: the first that this process may run on.
fn stay_on_one_cpu() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count())
        .find(|cpu| allowed.is_set(*cpu).unwrap())
        .unwrap();
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    cpu
}

fn traffics() -> [Traffic; 6] {
    let row = |name, frame, expected, guarded| Traffic {
        name,
        frame,
        expected,
        guarded,
    };
    let (known, new) = (Expected::Known, Expected::New);
    [
        row(
            "TCP/IPv4 established, IPIP",
            frame(false, TCP, ACK, PORT),
            known,
            false,
        ),
        row(
            "TCP/IPv4 SYN, flood guard acts",
            frame(false, TCP, SYN, PORT),
            new,
            true,
        ),
        row(
            "TCP/IPv4 SYN, all remembered",
            frame(false, TCP, SYN, PORT),
            new,
            false,
        ),
        row("UDP/IPv4", frame(false, UDP, 0, PORT), known, false),
        row(
            "TCP/IPv6 established, IPIP",
            frame(true, TCP, ACK, PORT),
            known,
            false,
        ),
        row(
            "not a VIP: passed on",
            frame(false, TCP, ACK, OTHER_PORT),
            Expected::Passed,
            false,
        ),
    ]
}

/// A frame of 100 bytes to 203.0.113.1 or 2001:db8:1::1. The wrapper changes source address and
/// port without the transport checksum; nothing under test reads that.
fn frame(v6: bool, protocol: u8, tcp_flags: u8, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 46, protocol, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        let mut ip = [0x45, 0, 0, 86, 0, 1, 0, 0, 64, protocol, 0, 0].to_vec();
        ip.extend([100, 64, 0, 0, 203, 0, 113, 1]);
        let check = ipv4_check(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&check);
        frame.extend([8, 0]);
        frame.extend(ip);
    }
    frame.extend([4, 0]);
    frame.extend(port.to_be_bytes());
    if protocol == TCP {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp_flags, 0x20, 0, 0, 0, 0, 0]);
    } else {
        let length: u8 = if v6 { 46 } else { 66 };
        frame.extend([0, length, 0, 0]);
    }
    frame.resize(100, 0xab);
    frame
}

/// As large as what the table to be beaten was measured with: 4 million entries; 100 reals a VIP.
fn balancer(traffic: &Traffic, effort: &Effort, cpu: usize) -> Katran {
    let mut builder = Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .forwarding_cpus([cpu as u32])
        .flow_table_size(effort.flow_table_size);
    if !traffic.guarded {
        builder = builder.flood_threshold(u32::MAX);
    }
    let mut katran = builder.load().unwrap();
    let reals: Vec<_> = (1..=100)
        .map(|last| RealChange::Add(Real::new([198, 51, 100, last].into())))
        .collect();
    for address in ["203.0.113.1", "2001:db8:1::1"] {
        let address = (address.parse::<std::net::IpAddr>().unwrap(), PORT).into();
        for vip in [Vip::tcp(address), Vip::udp(address)] {
            katran.add_vip(vip, VipFlags::empty()).unwrap();
            katran.modify_reals(vip, &reals).unwrap();
        }
    }
    katran
}

fn measure(katran: &Katran, traffic: &Traffic, flows: u32, unknown: u32, effort: &Effort) {
    let stick = Yardstick::new(&traffic.frame, flows).unwrap();
    let name = traffic.name;

    // All flows once, so that the flow table knows them.
    let before = Counts::of(katran);
    let first = stick.run(katran.program_fd(), flows).unwrap();
    assert_eq!(first.action, traffic.action(), "{name}: verdict");
    let mut counted = Counts::of(katran).since(before);
    if traffic.expected == Expected::Known && counted.new < u64::from(unknown + flows / 1000) {
        counted.new = unknown.into();
    }
    assert_eq!(
        counted,
        traffic.counts(flows, unknown),
        "{name}: first pass"
    );

    let (mut ours, mut lookups) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let run = |program| stick.run(program, effort.packets).unwrap();
        let wrapper = run(stick.nothing());
        let lookup = run(stick.one_lookup());
        assert_eq!((wrapper.action, lookup.action), (PASS, PASS));
        let before = Counts::of(katran);
        let our = run(katran.program_fd());
        let mut counted = Counts::of(katran).since(before);
        if traffic.expected == Expected::Known && counted.new <= u64::from(effort.packets) / 1000 {
            // Some sets had more flows than entries when the table was still small.
            counted.new = 0;
        }
        assert_eq!(our.action, traffic.action(), "{name}: verdict");
        assert_eq!(counted, traffic.counts(effort.packets, 0), "{name}: run");
        ours.push(our.nanoseconds - wrapper.nanoseconds);
        lookups.push(lookup.nanoseconds - wrapper.nanoseconds);
    }
    for flow in [0, flows / 2, flows - 1] {
        check_frame(katran, &stick, traffic, flow);
    }

    let (ours, lookups) = (Spread::of(ours), Spread::of(lookups));
    println!(
        "{name:<30} {flows:>9} {:>20} {:>19} {:>6.2}",
        ours.text(0),
        lookups.text(1),
        ours.median / lookups.median
    );
}

/// What comes out of the wrapper is what the program makes of that flow's frame on its own; a
/// frame that was sent holds the one that came in.
fn check_frame(katran: &Katran, stick: &Yardstick, traffic: &Traffic, flow: u32) {
    let frame = stick.frame(flow);
    let (action, out) = stick.run_flow(katran.program_fd(), flow).unwrap();
    let simulation = katran.simulate(&frame).unwrap();
    let name = traffic.name;
    assert_eq!(action, traffic.action(), "{name}, flow {flow}");
    assert_eq!(out, simulation.frame, "{name}, flow {flow}");
    if traffic.expected == Expected::Passed {
        assert_eq!(simulation.verdict, Verdict::Pass, "{name}, flow {flow}");
        assert_eq!(out, frame, "{name}, flow {flow}");
    } else {
        assert_eq!(simulation.verdict, Verdict::Tx, "{name}, flow {flow}");
        assert_eq!(out[14 + 20..], frame[14..], "{name}, flow {flow}");
    }
}

impl Traffic {
    fn action(&self) -> u32 {
        match self.expected {
            Expected::Passed => PASS,
            Expected::Known | Expected::New => TX,
        }
    }

    /// What `packets` of it count, if so many of their flows are unknown.
    fn counts(&self, packets: u32, unknown: u32) -> Counts {
        let (sent, passed, new) = match self.expected {
            Expected::Known => (packets, 0, unknown),
            Expected::New => (packets, 0, packets),
            Expected::Passed => (0, packets, 0),
        };
        Counts {
            sent: sent.into(),
            passed: passed.into(),
            dropped: 0,
            of_vips: sent.into(),
            new: new.into(),
            without_table: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts {
    sent: u64,
    passed: u64,
    dropped: u64,
    of_vips: u64,
    new: u64,
    /// Packets that the CPU's own flow table did not see.
    without_table: u64,
}

impl Counts {
    fn of(katran: &Katran) -> Self {
        let totals = katran.totals().unwrap();
        let flow_table = katran.flow_table_counters().unwrap();
        Self {
            sent: totals.tx.packets,
            passed: totals.pass.packets,
            dropped: totals.drop.packets,
            of_vips: flow_table.packets,
            new: flow_table.misses,
            without_table: flow_table.fallback,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            passed: self.passed - before.passed,
            dropped: self.dropped - before.dropped,
            of_vips: self.of_vips - before.of_vips,
            new: self.new - before.new,
            without_table: self.without_table - before.without_table,
        }
    }
}

/// The middle of many measurements, and where half of them lie.
struct Spread {
    median: f64,
    quartiles: [f64; 2],
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarter| values[(values.len() - 1) * quarter / 4];
        Self {
            median: at(2),
            quartiles: [at(1), at(3)],
        }
    }

    fn text(&self, decimals: usize) -> String {
        let [low, high] = self.quartiles;
        let median = self.median;
        format!("{median:.decimals$} ({low:.decimals$} .. {high:.decimals$})")
    }
}
