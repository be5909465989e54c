//! CPUs share nothing that they write: compares all maps of the program, byte by byte, before and
//! after traffic on one CPU. Only that CPU's flow table and its copies of the counters, which the
//! kernel keeps on separate pages, may change. `cargo bench --bench scaling` measures how much
//! faster two CPUs are.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use katran::Flow;
use katran::FlowTableKind;
use katran::Katran;
use katran::Protocol;
use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::stay_on;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::query::ProgInfoQueryOptions;

use crate::common::all_in_table;
use crate::common::bpf::run;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::load;
use crate::common::serve;

const CPUS: [u32; 2] = [0, 1];
const FLOWS: u16 = 200;
const KINDS: [fn() -> FlowTableKind; 2] = [FlowTableKind::default, || FlowTableKind::KernelLru];
const COUNTERS: [&str; 3] = ["cpus", "real_counters", "vip_counters"];

/// A memory area, by which CPUs use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Area {
    /// A map that every CPU shares.
    Shared { name: String, id: u32 },
    /// A CPU's copy of a per-CPU map.
    OfCpu { name: String, cpu: u32 },
}

type Contents = BTreeMap<Area, Vec<(Vec<u8>, Vec<u8>)>>;

/// The kernel's id of a map or program, from its descriptor.
fn number(descriptor: BorrowedFd<'_>, key: &str) -> u32 {
    let about = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let about = fs::read_to_string(about).unwrap();
    let number = about.lines().find_map(|line| line.strip_prefix(key));
    number.unwrap().trim().parse().unwrap()
}

/// Every byte of every map that the program can reach.
fn contents(katran: &Katran) -> Contents {
    let program = number(katran.program_fd(), "prog_id:");
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let mut programs = ProgInfoIter::with_query_opts(options);
    let program = programs.find(|info| info.id == program).unwrap();
    let mut contents = Contents::new();
    for id in program.map_ids {
        read(id, &mut contents);
    }
    contents
}

fn read(id: u32, contents: &mut Contents) {
    let map = MapHandle::from_map_id(id).unwrap();
    let name = map.name().to_str().unwrap().to_owned();
    let per_cpu = map.map_type().is_percpu();
    if !per_cpu {
        let name = name.clone();
        contents.insert(Area::Shared { name, id }, Vec::new());
    }
    for key in map.keys() {
        if per_cpu {
            let values = map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap();
            for (cpu, value) in (0..).zip(values) {
                let name = name.clone();
                let area = contents.entry(Area::OfCpu { name, cpu }).or_default();
                area.push((key.clone(), value));
            }
            continue;
        }
        // An empty place.
        let Some(value) = map.lookup(&key, MapFlags::ANY).unwrap() else {
            continue;
        };
        if map.map_type() == MapType::ArrayOfMaps {
            read(
                u32::from_ne_bytes(value.clone().try_into().unwrap()),
                contents,
            );
        }
        let name = name.clone();
        let area = contents.entry(Area::Shared { name, id }).or_default();
        area.push((key, value));
    }
}

/// Sends the frames on a CPU and returns what changed.
fn written_by(katran: &Katran, cpu: u32, frames: &[Vec<u8>]) -> BTreeSet<Area> {
    stay_on(cpu as usize);
    let before = contents(katran);
    for frame in frames {
        assert_eq!(run(katran.program_fd(), frame).verdict, Verdict::Tx);
    }
    let after = contents(katran);
    assert!(before.keys().eq(after.keys()), "the set of maps changed");
    let changed = before.into_iter().filter(|(area, old)| after[area] != *old);
    changed.map(|(area, _)| area).collect()
}

/// VIPs of both families and protocols, one a prefix, with reals of both families.
fn balancer(kind: FlowTableKind, cpus: &[u32]) -> Katran {
    let settings = all_in_table().flow_table(kind).flow_table_size(40_000);
    let mut katran = load(settings.forwarding_cpus(cpus.iter().copied()));
    let reals = ["198.51.100.1", "198.51.100.2", "2001:db8:2::1"];
    for vip in [
        "203.0.113.1:80/tcp",
        "203.0.113.1:80/udp",
        "[2001:db8:1::1]:80/tcp",
        "192.0.2.0/24:80/tcp",
    ] {
        serve(&mut katran, vip, VipFlags::empty(), &reals);
    }
    katran
}

fn all_flows() -> Vec<Flow> {
    [
        (Protocol::Tcp, "203.0.113.1:80"),
        (Protocol::Udp, "203.0.113.1:80"),
        (Protocol::Tcp, "[2001:db8:1::1]:80"),
        (Protocol::Tcp, "192.0.2.7:80"),
    ]
    .into_iter()
    .flat_map(|(protocol, destination)| flows(protocol, destination, FLOWS))
    .collect()
}

fn counters_of(cpu: u32) -> BTreeSet<Area> {
    let of = |name: &str| Area::OfCpu {
        name: name.to_owned(),
        cpu,
    };
    COUNTERS.map(of).into()
}

fn table(map: BorrowedFd<'_>) -> impl Fn(&&Area) -> bool {
    let table = number(map, "map_id:");
    move |area| matches!(area, Area::Shared { id, .. } if *id == table)
}

#[test]
fn a_packet_writes_only_what_belongs_to_its_cpu() {
    for kind in KINDS.map(|kind| kind()) {
        let katran = balancer(kind, &CPUS);
        let new: Vec<_> = all_flows().into_iter().map(syn).collect();
        let established: Vec<_> = all_flows().into_iter().map(frame).collect();
        for cpu in CPUS {
            let is_own_table = table(katran.flows().table_fd(cpu).unwrap());
            let written = written_by(&katran, cpu, &new);
            // Proves that the comparison sees writes to a flow table.
            assert_eq!(written.iter().filter(&is_own_table).count(), 1, "{kind}");
            let rest = |written: BTreeSet<Area>| -> BTreeSet<Area> {
                let others = written.into_iter().filter(|area| !is_own_table(&area));
                others.collect()
            };
            assert_eq!(rest(written), counters_of(cpu), "{kind}: new flows");

            let misses = || katran.stats().flow_table().unwrap().misses;
            let before = misses();
            let written = written_by(&katran, cpu, &established);
            assert_eq!(rest(written), counters_of(cpu), "{kind}: established");
            // Now and then a set is full, and a flow is new again.
            let most = established.len() as u64 / 100;
            assert!(misses() - before <= most, "{kind}");
        }
    }
}

/// The exception, which shows that the test above can fail: CPUs without a table share one.
#[test]
fn a_cpu_without_a_table_writes_to_the_shared_one() {
    for kind in KINDS.map(|kind| kind()) {
        let katran = balancer(kind, &CPUS[..1]);
        let frames: Vec<_> = all_flows().into_iter().map(syn).collect();
        let written = written_by(&katran, CPUS[1], &frames);
        let (shared, own): (BTreeSet<_>, BTreeSet<_>) = written
            .into_iter()
            .partition(|area| matches!(area, Area::Shared { .. }));
        assert_eq!(own, counters_of(CPUS[1]), "{kind}");
        assert_eq!(shared.len(), 1, "{kind}: {shared:?}");
        let fallback = katran.map_fd("fallback_flows").unwrap();
        assert!(shared.iter().all(|area| table(fallback)(&area)));
    }
}
