//! What compilers and the verifier have made of the programs: a lookup is one direct call, or
//! loads, never a call through the map, and searching a set has no branch that depends on its
//! contents.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use katran::Builder;
use katran::Encapsulation;
use katran::Features;
use katran::Flow;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::VipFlags;
use katran_lab::Newer;
use katran_lab::stay_on;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::frames::frame;
use crate::common::load;
use crate::common::serve;
use crate::machine::Machine;

/// The kernel functions that these tests name, by their distance from the address that calls are
/// relative to.
fn kernel_functions() -> BTreeMap<i64, String> {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap();
    let symbols: Vec<(i64, &str)> = symbols
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((address as i64, words.nth(1)?))
        })
        .collect();
    let (base, _) = symbols
        .iter()
        .find(|(address, name)| *address != 0 && *name == "__bpf_call_base")
        .unwrap_or_else(|| panic!("no symbols: kernel.kptr_restrict must be below 2"));
    let calls = symbols
        .iter()
        .filter(|(_, name)| name.ends_with("lookup_elem") || name.ends_with("update_elem"));
    calls
        .map(|(address, name)| (address - base, (*name).to_owned()))
        .collect()
}

/// The map functions that a program calls after verification.
fn calls(program: BorrowedFd<'_>, functions: &BTreeMap<i64, String>) -> BTreeSet<String> {
    const CALL: u8 = 0x85;
    const OF_KERNEL: u8 = 0;
    bpf::translated(program)
        .chunks_exact(8)
        .filter(|insn| insn[0] == CALL && insn[1] >> 4 == OF_KERNEL)
        .filter_map(|insn| {
            let offset = i32::from_le_bytes(insn[4..].try_into().unwrap());
            functions.get(&offset.into()).cloned()
        })
        .collect()
}

/// The calls of every program on a packet's way.
fn all_calls(katran: &Katran, functions: &BTreeMap<i64, String>) -> BTreeSet<String> {
    let others = bpf::programs_in(katran.map_fd("special_programs").unwrap());
    let others = others.iter().map(|program| program.as_fd());
    others
        .chain([katran.program_fd()])
        .flat_map(|program| calls(program, functions))
        .collect()
}

fn settings(table: FlowTableKind, encapsulation: Encapsulation, features: Features) -> Builder {
    builder()
        .flow_tracking(FlowTracking::All)
        .source_v4("198.18.0.10".parse().unwrap())
        .source_v6("2001:db8:ffff::10".parse().unwrap())
        .flow_table(table)
        .encapsulation(encapsulation)
        .features(features)
}

fn all_features() -> Features {
    Features::all() - Features::FLOW_DEBUG
}

/// The generic lookup reads the map's type and calls that type's function: two calls, one through a
/// pointer. Programs are left with it where a compiler merges lookups in different maps.
#[test]
fn no_call_goes_through_the_map() {
    const GENERIC: [&str; 2] = ["bpf_map_lookup_elem", "bpf_map_update_elem"];
    // Array lookups are loads. The rest are by address, prefix or flow, and called directly.
    let mut expected = BTreeSet::from([
        "__htab_map_lookup_elem",
        "htab_lru_map_update_elem",
        "trie_lookup_elem",
    ]);
    if !Newer::LoadsOfCpus.is_here() {
        expected.insert("percpu_array_map_lookup_elem");
    }
    let functions = kernel_functions();
    for name in GENERIC {
        assert!(functions.values().any(|known| known == name), "{name}");
    }
    let mut seen = BTreeSet::new();
    for table in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
        for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
            let each = all_features().iter().chain([
                Features::empty(),
                Features::default(),
                all_features(),
            ]);
            let changed = [Features::default(), all_features()];
            let changed = changed.map(|features| (features, FlowTracking::Changed));
            let each = each.map(|features| (features, FlowTracking::All));
            for (features, tracking) in each.chain(changed) {
                let settings = settings(table, encapsulation, features);
                let katran = load(settings.flow_tracking(tracking));
                let calls = all_calls(&katran, &functions);
                println!("{table} {encapsulation} {tracking} {features}: {calls:?}");
                for name in &calls {
                    let is_expected = expected.contains(name.as_str());
                    assert!(is_expected, "{table} {encapsulation} {features}: {name}");
                }
                seen.extend(calls);
            }
        }
    }
    let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, expected);
}

/// Flows of the VIP below, enough to split the table's sets.
const FLOWS: u16 = 400;
/// Checks all flows whenever this many were added.
const STEP: u16 = 50;

/// The set-associative table has flows in each entry of a line, and in sets that have been split
/// and others. An established flow executes the same instructions wherever its entry is, but for
/// one choice: which line.
#[test]
fn the_set_search_does_not_branch_on_its_contents() {
    for features in [Features::default(), all_features()] {
        // Keys are random: now and then a set overflows, and the flow that lost its entry is new.
        let (places, traces) = (0..20)
            .map(|_| flows_in_sets(features))
            .find(|(places, _)| places[7] == 0)
            .expect("a table without a full set");
        println!("{features}: flows by entry {places:?}; by trace {traces:?}");
        assert!(places[..4].iter().all(|flows| *flows > 0), "{places:?}");
        assert!(traces.len() <= 2, "{features}: {} ways", traces.len());
    }
}

/// Makes a new balancer remember flows; returns how many are in which entry of their set, and how
/// many packets of known flows execute the same instructions.
fn flows_in_sets(features: Features) -> ([usize; 8], Vec<usize>) {
    let cpu = 0;
    stay_on(cpu);
    let table = FlowTableKind::SetAssociative;
    let mut katran =
        load(settings(table, Encapsulation::Ipip, features).forwarding_cpus([cpu as u32]));
    let vip = "203.0.113.1:443/udp";
    serve(&mut katran, vip, VipFlags::empty(), &["198.51.100.1"]);
    let machine = Machine::new(&katran);
    let frames = (1..=FLOWS).map(|port| {
        frame(Flow::udp(
            at(&format!("192.0.2.7:{port}")),
            at("203.0.113.1:443"),
        ))
    });
    let frames: Vec<Vec<u8>> = frames.collect();
    let mut news = Vec::new();
    let mut traces: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for first in (0..FLOWS).step_by(usize::from(STEP)) {
        let (known, new) = frames.split_at(first.into());
        if let Some(new) = new.first() {
            let (_, executed, _) = machine.execute(new, cpu, "a new flow");
            news.push(executed.trace);
        }
        for frame in &new[1..usize::from(STEP)] {
            katran.simulate(frame).unwrap();
        }
        for frame in known.iter().chain(&new[..usize::from(STEP)]) {
            let (_, executed, _) = machine.execute(frame, cpu, "a flow that is known");
            *traces.entry(executed.trace).or_default() += 1;
        }
    }
    let sets = bpf::inner(katran.map_fd("flow_tables").unwrap(), cpu as u32);
    let places = places(sets.as_fd());
    if places[7] == 0 {
        // New flows must take another path, or these traces would prove nothing.
        assert!(
            news.iter().all(|new| !traces.contains_key(new)),
            "{features}"
        );
    }
    (places, traces.into_values().collect())
}

/// How many flows are in their set's first entry, second entry, and so on.
fn places(sets: BorrowedFd<'_>) -> [usize; 8] {
    const ENTRY: usize = 16;
    let mut places = [0; 8];
    for set in bpf::dump(sets).into_values() {
        for (place, entry) in set.chunks_exact(ENTRY).enumerate() {
            places[place] += usize::from(entry.iter().any(|byte| *byte != 0));
        }
    }
    places
}
