//! A loaded balancer's program, executed here instead of by the kernel: instruction by instruction
//! as libbpf passes it to the kernel, on the balancer's maps. It shows what the kernel does not:
//! the instructions that a frame executes. The bench `instructions` counts them, and tests of the
//! walk compare them.

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
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use katran::Katran;
use katran::flows::Verdict;
use libbpf_rs::MapCore;
use libbpf_rs::MapHandle;
use libbpf_rs::libbpf_sys::bpf_insn;
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::query::ProgInfoQueryOptions;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::Skel;
use libbpf_rs::skel::SkelBuilder;

pub(crate) use self::interpreter::Executed;
use self::interpreter::execute;
pub(crate) use self::kernel::Kernel;
use self::memory::Memory;

/// A balancer's attached program, and those that it continues in.
pub(crate) struct Machine<'a> {
    katran: &'a Katran,
    program: Program,
    others: BTreeMap<u32, Program>,
    /// The maps' ids by the program's descriptors.
    maps: BTreeMap<i32, u32>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(katran: &'a Katran) -> Self {
        let (program, others, maps) = linked(katran);
        Self {
            katran,
            program,
            others,
            maps,
        }
    }

    /// Executes the program on a frame here, then in the kernel, which must agree. `cpu`: this
    /// thread's CPU.
    pub(crate) fn execute(
        &self,
        frame: &[u8],
        cpu: usize,
        what: &str,
    ) -> (Verdict, Executed, Kernel) {
        let mut memory = Memory::default();
        let mut kernel = Kernel::new(self.maps.clone(), frame, cpu, &mut memory);
        let executed = execute(&self.program, &self.others, &mut kernel, &mut memory);

        let simulation = self.katran.simulate(frame).unwrap();
        let action = match simulation.verdict {
            Verdict::Drop => 1,
            Verdict::Pass => 2,
            _ => 3,
        };
        assert_eq!(executed.result, action, "{what}");
        assert_eq!(kernel.frame(&memory), simulation.frame, "{what}");
        (simulation.verdict, executed, kernel)
    }
}

/// The positions of the programs that the attached one continues in, as in `enum program`.
const IDS: u32 = 0;
const SEND: u32 = 1;
const SPECIAL: u32 = 2;
const RARE: u32 = 4;
const QUIC: u32 = 6;

type Program = Vec<bpf_insn>;

/// The attached program's instructions as libbpf passes them to the kernel, with descriptors of the
/// loaded balancer's maps; the programs that it continues in; and the maps' ids by those
/// descriptors.
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
        // The length of names in the kernel.
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
                // A data section may have been enlarged.
                if map.value_size() != of_kernel.value_size() {
                    map.set_value_size(of_kernel.value_size()).unwrap();
                }
                map.reuse_fd(of_kernel.as_fd()).unwrap();
            }
            None => match katran.map_fd(&map.name().to_string_lossy()) {
                // A map of other programs, which are loaded as well.
                Some(other) => map.reuse_fd(other).unwrap(),
                // A map of a disabled feature.
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
    let progs = &skel.progs;
    let others = [
        (IDS, &progs.katran_ids),
        (SEND, &progs.katran_send),
        (SPECIAL, &progs.katran_special),
        (RARE, &progs.katran_rare),
        (QUIC, &progs.katran_quic),
    ];
    let others = others.map(|(number, program)| (number, program.insns().to_vec()));
    let others = BTreeMap::from(others);
    (skel.progs.katran.insns().to_vec(), others, numbers)
}

/// The ids of the attached program's maps.
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
