//! Nanoseconds a packet, as docs/performance.md describes: pristine frames of many flows through
//! the loaded program, the wrapper's own time subtracted, alternating with a fixed yardstick (one
//! hash lookup in the same wrapper), medians of many runs.
//!
//! cargo bench --bench packet_path            # minutes
//! cargo bench --bench packet_path -- --quick # seconds, for whether it works

#![allow(clippy::unwrap_used)]

use std::env;

use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran_lab::require_root;
use katran_yardstick::Yardstick;
use nix::sched::CpuSet;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

const TX: u32 = 3;
const PASS: u32 = 2;
const FLOWS: [u32; 4] = [1, 1 << 10, 1 << 16, 1 << 20];
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

struct Effort {
    packets: u32,
    rounds: usize,
    flows: &'static [u32],
}

const FULL: Effort = Effort {
    packets: 2_000_000,
    rounds: 9,
    flows: &FLOWS,
};
const QUICK: Effort = Effort {
    packets: 500_000,
    rounds: 3,
    flows: &[1, 1 << 16],
};

struct Traffic {
    name: &'static str,
    frame: Vec<u8>,
    action: u32,
    /// Whether every packet is a new flow, whatever the table remembers.
    always_new: bool,
}

fn main() {
    require_root();
    let effort = if env::args().any(|argument| argument == "--quick") {
        QUICK
    } else {
        FULL
    };
    // One CPU, so that one flow table sees all flows.
    let cpu = 0;
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();

    println!(
        "{} packets a run, median of {} runs (lowest .. highest); CPU {cpu}; ratio to one hash \
         lookup in the same wrapper",
        effort.packets, effort.rounds
    );
    println!(
        "{:<28} {:>9} {:>22} {:>10} {:>7}",
        "traffic", "flows", "ns a packet", "lookup ns", "ratio"
    );
    for traffic in traffics() {
        for flows in effort.flows {
            measure(&traffic, *flows, &effort, cpu);
        }
    }
}

fn traffics() -> [Traffic; 5] {
    let v4 = |protocol, flags, port| frame(false, protocol, flags, port);
    [
        Traffic {
            name: "TCP/IPv4 established, IPIP",
            frame: v4(6, ACK, 80),
            action: TX,
            always_new: false,
        },
        Traffic {
            name: "TCP/IPv4 SYN",
            frame: v4(6, SYN, 80),
            action: TX,
            always_new: true,
        },
        Traffic {
            name: "UDP/IPv4",
            frame: v4(17, 0, 80),
            action: TX,
            always_new: false,
        },
        Traffic {
            name: "TCP/IPv6 established, IPIP",
            frame: frame(true, 6, ACK, 80),
            action: TX,
            always_new: false,
        },
        Traffic {
            name: "not a VIP: passed on",
            frame: v4(6, ACK, 81),
            action: PASS,
            always_new: false,
        },
    ]
}

/// A frame of 100 bytes to 203.0.113.1 or 2001:db8:1::1. The wrapper sets the source, so the inner
/// checksums are not right; nothing under test reads them.
fn frame(v6: bool, protocol: u8, tcp_flags: u8, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 46, protocol, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 86, 0, 1, 0, 0, 64, protocol, 0, 0]);
        frame.extend([100, 64, 0, 0, 203, 0, 113, 1]);
    }
    frame.extend([4, 0]);
    frame.extend(port.to_be_bytes());
    if protocol == 6 {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp_flags, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend([0, 66, 0, 0]);
    }
    frame.resize(100, 0xab);
    frame
}

/// A balancer as large as the measurements in the table that is to be beaten: 4 million entries.
fn balancer(cpu: usize) -> Katran {
    let mut katran = Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .forwarding_cpus([cpu as u32])
        .flow_table_size(4_000_000)
        .flood_threshold(u32::MAX)
        .load()
        .unwrap();
    for address in ["203.0.113.1:80", "[2001:db8:1::1]:80"] {
        let address = address.parse().unwrap();
        for vip in [Vip::tcp(address), Vip::udp(address)] {
            katran.add_vip(vip, VipFlags::empty()).unwrap();
            for last in 1..=100u8 {
                katran
                    .add_real(vip, Real::new([198, 51, 100, last].into()))
                    .unwrap();
            }
        }
    }
    katran
}

fn measure(traffic: &Traffic, flows: u32, effort: &Effort, cpu: usize) {
    let katran = balancer(cpu);
    let stick = Yardstick::new(&traffic.frame, flows).unwrap();

    // What is timed has to be what it is called: every packet with its verdict, and new flows
    // only where they belong.
    let warm_up = stick.run(katran.program_fd(), flows).unwrap();
    assert_eq!(warm_up.action, traffic.action, "{}", traffic.name);
    let before = counts(&katran);
    let packets = u64::from(effort.packets);
    assert_eq!(
        stick
            .run(katran.program_fd(), effort.packets)
            .unwrap()
            .action,
        traffic.action
    );
    let after = counts(&katran);
    let balanced = if traffic.action == TX { packets } else { 0 };
    let new = if traffic.always_new { balanced } else { 0 };
    assert_eq!(after.0 - before.0, balanced, "{}: packets", traffic.name);
    assert_eq!(after.1 - before.1, new, "{}: new flows", traffic.name);
    assert_eq!(after.2, 0, "{}: drops", traffic.name);

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let run = |program| stick.run(program, effort.packets).unwrap().nanoseconds;
        let wrapper = run(stick.nothing());
        ours.push(run(katran.program_fd()) - wrapper);
        theirs.push(run(stick.one_lookup()) - wrapper);
    }
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    let (median, lookup) = (ours[ours.len() / 2], theirs[theirs.len() / 2]);
    println!(
        "{:<28} {flows:>9} {:>22} {lookup:>10.1} {:>7.1}",
        traffic.name,
        format!(
            "{median:.0} ({:.0} .. {:.0})",
            ours[0],
            ours[ours.len() - 1]
        ),
        median / lookup
    );
}

/// Packets of VIPs, new flows, drops.
fn counts(katran: &Katran) -> (u64, u64, u64) {
    let flow_table = katran.flow_table_counters().unwrap();
    let drops = katran.totals().unwrap().drop.packets;
    (flow_table.packets, flow_table.misses, drops)
}
