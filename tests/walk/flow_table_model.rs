//! Flow tables under pressure, of each type: hit rates as modelled, established flows that survive
//! a SYN flood, and connections that stay on their real without an entry.

use std::thread;
use std::time::Duration;

use katran::FlowTableKind;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::stay_on;
use katran_yardstick::FlowTable;
use katran_yardstick::Pattern;
use katran_yardstick::SYN;
use katran_yardstick::SetAssociative;
use katran_yardstick::Yardstick;
use katran_yardstick::scattered;

use crate::common;
use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::load;
use crate::common::serve;

const REALS: [&str; 4] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
];
const ESTABLISHED: u32 = 200;
/// More than the resolution of entries' times (four ticks, of 4 ms with most kernels), so that what
/// was used before counts as older.
const TICK: Duration = Duration::from_millis(20);

const KINDS: [FlowTableKind; 2] = [FlowTableKind::SetAssociative, FlowTableKind::KernelLru];

/// A balancer with one flow table, and a way to send it packets of many flows at once.
struct Bench {
    katran: Katran,
    stick: Yardstick,
}

impl Bench {
    fn new(kind: FlowTableKind, flows: u32, flood_threshold: u32) -> Self {
        stay_on(0);
        let mut katran = load(
            all_in_table()
                .forwarding_cpus([0])
                .flow_table(kind)
                .flow_table_size(flows.into())
                .flood_threshold(flood_threshold),
        );
        serve(&mut katran, "203.0.113.1:80/tcp", VipFlags::empty(), &REALS);
        let stick = Yardstick::for_sequences(&frame()).unwrap();
        Self { katran, stick }
    }

    /// Plays packets and returns how many missed.
    fn play(&self, packets: &[u32]) -> u64 {
        let before = self.katran.stats().flow_table().unwrap();
        let played = self.stick.play(self.katran.program_fd(), packets).unwrap();
        let after = self.katran.stats().flow_table().unwrap();
        assert_eq!(played.action, libbpf_sys::XDP_TX);
        assert_eq!(after.packets - before.packets, packets.len() as u64);
        assert_eq!(after.fallback, 0);
        after.misses - before.misses
    }
}

/// A packet with ACK from 100.64.0.0 to the VIP.
fn frame() -> Vec<u8> {
    let from = common::at("100.64.0.0:1024");
    let flow = katran::Flow::tcp(from, common::at("203.0.113.1:80"));
    common::frames::Packet::new(flow).payload(60).frame()
}

fn established() -> Vec<u32> {
    (0..ESTABLISHED).map(scattered).collect()
}

/// This many SYNs of new flows, different ones in each run.
fn syns(run: u32, count: u32) -> Vec<u32> {
    let first = ESTABLISHED + run * count;
    (first..first + count).map(|i| scattered(i) | SYN).collect()
}

#[test]
fn the_flood_guard_keeps_a_flood_from_established_flows() {
    const FLOWS: u32 = 16_384;
    const LIMIT: u32 = 512;
    for kind in KINDS {
        for (limit, survive) in [(LIMIT, true), (u32::MAX, false)] {
            let bench = Bench::new(kind, FLOWS, limit);
            assert_eq!(bench.play(&established()), u64::from(ESTABLISHED));
            let mut missed = 0;
            for run in 0..10 {
                thread::sleep(TICK);
                // Four flows for each entry of either type.
                let flood = syns(run, 8 * FLOWS);
                assert_eq!(bench.play(&flood), flood.len() as u64, "all are new");
                missed += bench.play(&established());
            }
            let packets = u64::from(ESTABLISHED) * 10;
            if survive {
                // Established flows of one packet are new themselves: now and then the flood's
                // first ones evict one, before the guard acts.
                assert!(missed <= packets / 50, "{kind}: {missed} of {packets}");
            } else {
                assert!(missed > packets * 9 / 10, "{kind}: {missed} of {packets}");
            }
        }
    }
}

#[test]
fn active_flows_stay_while_new_ones_keep_filling_the_table() {
    const FLOWS: u32 = 4096;
    const RUNS: u32 = 200;
    // A sixteenth of the flows: a set of the set-associative table gets one every four runs.
    const NEW: u32 = FLOWS / 16;
    for kind in KINDS {
        let bench = Bench::new(kind, FLOWS, u32::MAX);
        bench.play(&established());
        let mut missed = 0;
        for run in 0..RUNS {
            bench.play(&syns(run, NEW));
            thread::sleep(TICK);
            missed += bench.play(&established());
        }
        // The kernel's LRU sometimes takes an active flow for idle.
        let packets = u64::from(RUNS * ESTABLISHED);
        assert!(missed <= packets / 1000, "{kind}: {missed} of {packets}");
        // Flows that were silent meanwhile are gone.
        let last = syns(RUNS - 1, NEW).into_iter().map(|flow| flow & !SYN);
        let first = syns(0, NEW).into_iter().map(|flow| flow & !SYN);
        assert_eq!(
            bench.play(&first.collect::<Vec<_>>()),
            u64::from(NEW),
            "{kind}"
        );
        assert!(bench.play(&last.collect::<Vec<_>>()) < u64::from(NEW) / 10);
    }
}

#[test]
fn an_evicted_flow_goes_to_the_same_real_while_the_ring_is_unchanged() {
    const FLOWS: u32 = 512;
    for kind in KINDS {
        let bench = Bench::new(kind, FLOWS, u32::MAX);
        let flows: Vec<u32> = (0..FLOWS).map(scattered).collect();
        // The same frames, run one by one to see where each is sent.
        let frames: Vec<Vec<u8>> = flows.iter().map(|flow| bench.stick.frame(*flow)).collect();
        let run = || -> Vec<bpf::Ran> {
            let program = bench.katran.program_fd();
            frames
                .iter()
                .map(|frame| bpf::run(program, frame))
                .collect()
        };
        let before = run();
        let reals: std::collections::BTreeSet<&[u8]> = before
            .iter()
            .map(|ran| {
                assert_eq!(ran.verdict, Verdict::Tx);
                // The outer IPv4 header's protocol and destination.
                assert_eq!(ran.frame[14 + 9], 4);
                &ran.frame[14 + 16..14 + 20]
            })
            .collect();
        assert_eq!(reals.len(), REALS.len(), "{kind}");

        bench.play(&syns(1, 100 * FLOWS));
        let misses = || bench.katran.stats().flow_table().unwrap().misses;
        let missed = misses();
        let after = run();
        assert_eq!(
            misses() - missed,
            u64::from(FLOWS),
            "{kind}: all were evicted"
        );
        assert_eq!(after, before, "{kind}");
    }
}

#[test]
fn the_set_associative_table_hits_as_often_as_its_model() {
    const FLOWS: u32 = 32_768;
    const POPULATION: u32 = FLOWS / 2 * 3;
    const PACKETS: usize = 200_000;
    /// Packets between two ticks, the same number on a fast machine and on a slow one: entries of
    /// equal age are evicted in another order, which changes the misses by up to a seventh.
    const A_TICK: usize = 10_000;
    for pattern in [Pattern::Uniform, Pattern::Zipf] {
        let warm_up: Vec<u32> = (0..POPULATION)
            .map(scattered)
            .chain(pattern.packets(POPULATION, PACKETS, 1))
            .collect();
        let packets = pattern.packets(POPULATION, PACKETS, 2);
        let model = |seed| {
            let mut table = SetAssociative::new(FLOWS, seed);
            let mut now = 0;
            let mut misses = |packets: &[u32]| {
                let mut misses = 0;
                for tick in packets.chunks(A_TICK) {
                    now += 1;
                    misses += tick
                        .iter()
                        .filter(|flow| !table.packet(**flow, now))
                        .count();
                }
                misses as f64
            };
            misses(&warm_up);
            misses(&packets)
        };
        let models: Vec<f64> = (0..16).map(model).collect();
        let mean = models.iter().sum::<f64>() / models.len() as f64;
        let squares: f64 = models.iter().map(|misses| (misses - mean).powi(2)).sum();
        let deviation = (squares / (models.len() - 1) as f64).sqrt();

        let bench = Bench::new(FlowTableKind::SetAssociative, FLOWS, u32::MAX);
        let play = |packets: &[u32]| -> u64 {
            let ticks = packets.chunks(A_TICK).map(|tick| {
                thread::sleep(TICK);
                bench.play(tick)
            });
            ticks.sum()
        };
        play(&warm_up);
        let misses = play(&packets) as f64;
        // Thousands of seeds give normally distributed misses. The kernel's clock may also tick
        // within `A_TICK` packets, which changes them by less than the two percent.
        let tolerance = 8.0 * deviation + 0.02 * mean;
        assert!(
            (misses - mean).abs() < tolerance,
            "{pattern}: {misses} in the kernel, {models:?} by the model"
        );
        // Tight enough: a table of half the size would miss twice as often.
        assert!(tolerance < mean / 2.0, "{tolerance}, {mean}");
    }
}
