//! The cost of each path through the program: executed instructions, branches among them, map
//! lookups and other helper calls, for one packet of each kind of traffic.
//!
//! The kernel does not count instructions. So the bench executes the program itself, as compiled
//! and linked with the loaded balancer's maps, and for every packet verdict and frame must agree
//! with the kernel's. The kernel's verifier optimises further: it removes branches that constants
//! decide, and turns array lookups into loads. The counts are exact, without noise.
//!
//! cargo bench --bench instructions
//! cargo bench --bench instructions -- --table KIND --tracking all|changed --changed
//!
//! `--changed` counts after every slot of every ring has changed its real.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod machine;

use std::env;
use std::process::ExitCode;

use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::flows::Verdict;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;

use crate::common::ACK;
use crate::common::OTHER_PORT;
use crate::common::PORT;
use crate::common::Reals;
use crate::common::SYN;
use crate::common::TCP;
use crate::common::UDP;
use crate::common::change_every_slot;
use crate::common::frame;
use crate::common::quic_short;
use crate::common::serve;
use crate::common::serve_quic;
use crate::common::settings;
use crate::common::with_payload;
use crate::machine::Executed;
use crate::machine::Kernel;
use crate::machine::Machine;

/// Entries; any number will do.
const FLOW_TABLE_SIZE: u64 = 10_000;
/// Flows before the counted one, for a flood.
const FLOOD: u16 = 10;

/// A packet, and those sent before it.
struct Path {
    name: &'static str,
    frame: Vec<u8>,
    verdict: Verdict,
    before: Before,
    /// The UDP VIPs use QUIC connection ids.
    quic: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    /// The same packet.
    Same,
    /// More new flows than the flood guard allows.
    Flood,
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let mut table = FlowTableKind::default();
    let mut tracking = FlowTracking::default();
    let mut changed = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // It is quick already.
            "--quick" | "--bench" => {}
            "--table" => match arguments.next().unwrap_or_default().parse() {
                Ok(kind) => table = kind,
                Err(error) => {
                    eprintln!("instructions: {error}");
                    return ExitCode::from(2);
                }
            },
            "--tracking" => match arguments.next().unwrap_or_default().parse() {
                Ok(which) => tracking = which,
                Err(error) => {
                    eprintln!("instructions: {error}");
                    return ExitCode::from(2);
                }
            },
            "--changed" => changed = true,
            _ => {
                eprintln!(
                    "instructions: {argument} is not known; there are --table KIND, --tracking KIND and --changed"
                );
                return ExitCode::from(2);
            }
        }
    }
    require_root();
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    println!("flow table {table}, tracking {tracking}; one packet of each kind\n");
    println!(
        "| path | instructions | conditional jumps | lookups in hashes | in arrays | other helpers |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for path in paths() {
        let threshold = match path.before {
            Before::Flood => Some(1),
            Before::Nothing | Before::Same => None,
        };
        let builder = settings(table, FLOW_TABLE_SIZE, threshold, &[cpu as u32]);
        let mut katran = serve(builder.flow_tracking(tracking));
        if path.quic {
            serve_quic(&mut katran);
        }
        if changed {
            change_every_slot(&mut katran, Reals::V4);
        }
        path.prepare(&katran);
        let (executed, kernel) = path.execute(&katran, cpu);
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            path.name,
            executed.trace.len(),
            executed.jumps,
            list(kernel.lookups_of("hash")),
            list(kernel.lookups_of("array")),
            list(kernel.calls.iter().map(|(name, count)| (*name, *count)))
        );
    }
    ExitCode::SUCCESS
}

/// A total with its parts.
fn list<'a>(counts: impl Iterator<Item = (&'a str, u32)> + Clone) -> String {
    let total: u32 = counts.clone().map(|(_, count)| count).sum();
    let names: Vec<String> = counts
        .map(|(name, count)| match count {
            1 => format!("`{name}`"),
            _ => format!("{count} `{name}`"),
        })
        .collect();
    if names.is_empty() {
        total.to_string()
    } else {
        format!("{total}: {}", names.join(", "))
    }
}

fn paths() -> Vec<Path> {
    let path = |name, frame, before| Path {
        name,
        frame,
        verdict: Verdict::Tx,
        before,
        quic: false,
    };
    let verdict = |name, verdict, frame| Path {
        name,
        frame,
        verdict,
        before: Before::Nothing,
        quic: false,
    };
    let quic = |name, v6, payload: &[u8], before| Path {
        quic: true,
        ..path(
            name,
            with_payload(&frame(v6, UDP, 0, PORT), payload),
            before,
        )
    };
    let (nothing, same) = (Before::Nothing, Before::Same);
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut fragment = frame(false, TCP, ACK, PORT);
    fragment[20] = 0x20; // "more fragments"
    vec![
        path("TCP/IPv4 established", frame(false, TCP, ACK, PORT), same),
        path(
            "TCP/IPv4 SYN, remembered",
            frame(false, TCP, SYN, PORT),
            nothing,
        ),
        path(
            "TCP/IPv4 SYN, flood guard acts",
            frame(false, TCP, SYN, PORT),
            Before::Flood,
        ),
        path("UDP/IPv4 established", frame(false, UDP, 0, PORT), same),
        path(
            "UDP/IPv4 new, remembered",
            frame(false, UDP, 0, PORT),
            nothing,
        ),
        path("TCP/IPv6 established", frame(true, TCP, ACK, PORT), same),
        path(
            "TCP/IPv6 SYN, remembered",
            frame(true, TCP, SYN, PORT),
            nothing,
        ),
        path("UDP/IPv6 established", frame(true, UDP, 0, PORT), same),
        quic("QUIC/IPv4 by connection id", false, &quic_short(), same),
        quic(
            "QUIC/IPv4 by connection id, new",
            false,
            &quic_short(),
            nothing,
        ),
        quic("QUIC/IPv6 by connection id", true, &quic_short(), same),
        quic("QUIC/IPv4 initial, known", false, &QUIC_INITIAL, same),
        path("ICMP echo request", echo(), nothing),
        verdict(
            "not a VIP",
            Verdict::Pass,
            frame(false, TCP, ACK, OTHER_PORT),
        ),
        verdict("not IP", Verdict::Pass, arp),
        verdict("IPv4 fragment", Verdict::Drop, fragment),
    ]
}

/// A long header of version 1 with a client's connection id.
const QUIC_INITIAL: [u8; 14] = [0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8];

/// A ping of the IPv4 VIP; nothing here reads its checksum.
fn echo() -> Vec<u8> {
    let mut echo = frame(false, 1, 0, 0);
    echo[34..36].copy_from_slice(&[8, 0]);
    echo
}

impl Path {
    /// Sends the earlier packets.
    fn prepare(&self, katran: &Katran) {
        let send = |frame: &[u8]| {
            katran.simulate(frame).unwrap();
        };
        match self.before {
            Before::Nothing => {}
            Before::Same => send(&self.frame),
            Before::Flood => {
                for port in 1..=FLOOD {
                    let mut frame = self.frame.clone();
                    frame[34..36].copy_from_slice(&port.to_be_bytes());
                    send(&frame);
                }
            }
        }
    }

    /// Executes the program here, then in the kernel, which must agree.
    fn execute(&self, katran: &Katran, cpu: usize) -> (Executed, Kernel) {
        let machine = Machine::new(katran);
        let (verdict, executed, kernel) = machine.execute(&self.frame, cpu, self.name);
        assert_eq!(verdict, self.verdict, "{}", self.name);
        (executed, kernel)
    }
}
