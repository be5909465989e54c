//! What each path through the program costs, counted: the instructions executed, the lookups in
//! maps and the other helpers called, for one packet of each kind of traffic.
//!
//! The kernel does not count instructions. So the program is executed here, instruction by
//! instruction as compiled and linked with the maps of the loaded balancer, and for every packet
//! the verdict and the frame must be what the kernel makes of it. The kernel's verifier goes on
//! from there: it takes out branches that constants decide, and puts loads in the place of lookups
//! in arrays. The counts are exact and know no noise.
//!
//! cargo bench --bench instructions
//! cargo bench --bench instructions -- --table KIND

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod interpreter;
mod kernel;
mod memory;
mod skel {
    #![allow(
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::undocumented_unsafe_blocks
    )]
    #![allow(unreachable_pub, unsafe_op_in_unsafe_fn, unused)]
    include!(concat!(env!("OUT_DIR"), "/katran.skel.rs"));
}

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use katran::FlowTableKind;
use katran::Katran;
use katran::flows::Verdict;
use katran_lab::require_root;
use libbpf_rs::MapCore;
use libbpf_rs::MapHandle;
use libbpf_rs::libbpf_sys::bpf_insn;
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::query::ProgInfoQueryOptions;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::Skel;
use libbpf_rs::skel::SkelBuilder;

use crate::common::ACK;
use crate::common::OTHER_PORT;
use crate::common::PORT;
use crate::common::SYN;
use crate::common::TCP;
use crate::common::UDP;
use crate::common::allowed_cpus;
use crate::common::balancer;
use crate::common::frame;
use crate::common::stay_on;
use crate::interpreter::execute;
use crate::kernel::Kernel;
use crate::memory::Memory;

/// Entries; any number will do.
const FLOW_TABLE_SIZE: u64 = 10_000;
/// Flows that come before the one that is looked at, when there is to be a flood.
const FLOOD: u16 = 10;

/// A packet, and what has gone before it.
struct Path {
    name: &'static str,
    frame: Vec<u8>,
    verdict: Verdict,
    before: Before,
}

#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    /// The same packet.
    Same,
    /// More new flows than the flood guard lets be remembered.
    Flood,
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let mut table = FlowTableKind::default();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // It takes no time as it is.
            "--quick" | "--bench" => {}
            "--table" => match arguments.next().unwrap_or_default().parse() {
                Ok(kind) => table = kind,
                Err(error) => {
                    eprintln!("instructions: {error}");
                    return ExitCode::from(2);
                }
            },
            _ => {
                eprintln!("instructions: {argument} is not known; there is --table KIND");
                return ExitCode::from(2);
            }
        }
    }
    require_root();
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    println!("flow table {table}; one packet of each kind\n");
    println!("| path | instructions | lookups in hashes | in arrays | other helpers |");
    println!("| --- | --- | --- | --- | --- |");
    for path in paths() {
        let threshold = match path.before {
            Before::Flood => Some(1),
            Before::Nothing | Before::Same => None,
        };
        let katran = balancer(table, FLOW_TABLE_SIZE, threshold, &[cpu as u32]);
        path.prepare(&katran);
        let (executed, kernel) = path.execute(&katran, cpu);
        println!(
            "| {} | {executed} | {} | {} | {} |",
            path.name,
            list(kernel.lookups_of("hash")),
            list(kernel.lookups_of("array")),
            list(kernel.calls.iter().map(|(name, count)| (*name, *count)))
        );
    }
    ExitCode::SUCCESS
}

/// A count, and what it is made of.
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
    };
    let verdict = |name, verdict, frame| Path {
        name,
        frame,
        verdict,
        before: Before::Nothing,
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

/// A ping of the IPv4 VIP; nothing here reads its checksum.
fn echo() -> Vec<u8> {
    let mut echo = frame(false, 1, 0, 0);
    echo[34..36].copy_from_slice(&[8, 0]);
    echo
}

impl Path {
    /// Sends what has gone before.
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

    /// Executes the program here, then in the kernel, which has to agree.
    fn execute(&self, katran: &Katran, cpu: usize) -> (u64, Kernel) {
        let (program, others, maps) = linked(katran);
        let mut memory = Memory::default();
        let mut kernel = Kernel::new(maps, &self.frame, cpu, &mut memory);
        let (verdict, executed) = execute(&program, &others, &mut kernel, &mut memory);

        let simulation = katran.simulate(&self.frame).unwrap();
        assert_eq!(simulation.verdict, self.verdict, "{}", self.name);
        let action = match simulation.verdict {
            Verdict::Drop => 1,
            Verdict::Pass => 2,
            _ => 3,
        };
        assert_eq!(verdict, action, "{}", self.name);
        assert_eq!(kernel.frame(&memory), simulation.frame, "{}", self.name);
        (executed, kernel)
    }
}

/// Where the program for rare frames is, as in `enum program`.
const RARE: u32 = 4;

type Program = Vec<bpf_insn>;

/// The attached program's instructions as libbpf hands them to the kernel, with descriptors of the
/// loaded balancer's maps in them, the programs that it goes on in, and the maps' numbers by those descriptors.
fn linked(katran: &Katran) -> (Program, BTreeMap<u32, Program>, BTreeMap<i32, u32>) {
    let of_kernel: Vec<MapHandle> = map_ids(katran)
        .into_iter()
        .map(|number| MapHandle::from_map_id(number).unwrap())
        .collect();
    let mut storage = MaybeUninit::uninit();
    let mut open = skel::KatranSkelBuilder::default()
        .open(&mut storage)
        .unwrap();
    for mut map in open.open_object_mut().maps_mut() {
        // The kernel keeps so much of a name.
        let name: Vec<u8> = map
            .name()
            .as_encoded_bytes()
            .iter()
            .copied()
            .take(15)
            .collect();
        let same = |of_kernel: &&MapHandle| of_kernel.name().as_encoded_bytes() == name;
        match of_kernel.iter().find(same) {
            Some(of_kernel) => {
                // A data section may have been made larger.
                if map.value_size() != of_kernel.value_size() {
                    map.set_value_size(of_kernel.value_size()).unwrap();
                }
                map.reuse_fd(of_kernel.as_fd()).unwrap();
            }
            None => match katran.map_fd(&map.name().to_string_lossy()) {
                // Of other programs, which load along.
                Some(other) => map.reuse_fd(other).unwrap(),
                // Of what is off.
                None => map.set_autocreate(false).unwrap(),
            },
        }
    }
    open.progs.katran_explain.set_autoload(false);
    open.progs.katran_full.set_autoload(false);
    open.progs.katran_explain_full.set_autoload(false);
    let skel = open.load().unwrap();
    let numbers = skel
        .object()
        .maps()
        .filter(|map| map.autocreate())
        .map(|map| (map.as_fd().as_raw_fd(), map.info().unwrap().info.id))
        .collect();
    let others = BTreeMap::from([(RARE, skel.progs.katran_rare.insns().to_vec())]);
    (skel.progs.katran.insns().to_vec(), others, numbers)
}

/// The maps that the attached program uses, by the kernel's numbers.
fn map_ids(katran: &Katran) -> Vec<u32> {
    let descriptor = katran.program_fd().as_raw_fd();
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
    let mut lines = about.lines();
    let number = lines
        .find_map(|line| line.strip_prefix("prog_id:"))
        .unwrap();
    let number: u32 = number.trim().parse().unwrap();
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let program = ProgInfoIter::with_query_opts(options).find(|program| program.id == number);
    program.unwrap().map_ids
}
