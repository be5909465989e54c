//! How well the flow tables keep flows: hit rates of models and of the loaded program under uniform
//! and Zipf traffic, and how many entries established flows keep under a SYN flood.
//! docs/performance.md shows and explains the tables; the rates also go to `figures/hit_rate.json`
//! in the target directory.
//!
//! cargo bench --bench hit_rate            # a minute
//! cargo bench --bench hit_rate -- --quick # seconds: only whether it works
//! cargo bench --bench hit_rate -- --table kernel-lru

#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;

use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_yardstick::ExactLru;
use katran_yardstick::Flood;
use katran_yardstick::FlowTable;
use katran_yardstick::HashKeys;
use katran_yardstick::Packets;
use katran_yardstick::Pattern;
use katran_yardstick::RST;
use katran_yardstick::SYN;
use katran_yardstick::SetAssociative;
use katran_yardstick::WAYS;
use katran_yardstick::Yardstick;
use katran_yardstick::ipv4_check;
use katran_yardstick::scattered;
use serde_json::Value;
use serde_json::json;

const OCCUPANCIES: [u32; 4] = [50, 90, 100, 150];
const PATTERNS: [Pattern; 2] = [Pattern::Uniform, Pattern::Zipf];
const SEED: u64 = 20_000;

struct Effort {
    /// The tables' configured flows.
    flows: u32,
    /// Packets before the measured ones, after each flow has sent once.
    warm_up: usize,
    packets: usize,
    /// Repetitions with other hash keys.
    draws: u64,
    /// The flood's length.
    seconds: u32,
    /// New flows a second that the flood guard allows.
    limit: u32,
}

const FULL: Effort = Effort {
    flows: 1 << 18,
    warm_up: 1_000_000,
    packets: 2_000_000,
    draws: 500,
    seconds: 20,
    limit: 125_000,
};
const QUICK: Effort = Effort {
    flows: 1 << 16,
    warm_up: 200_000,
    packets: 400_000,
    draws: 50,
    seconds: 5,
    limit: 31_250,
};

fn main() -> ExitCode {
    let (mut quick, mut bench, mut kinds) = (
        false,
        false,
        vec![FlowTableKind::SetAssociative, FlowTableKind::KernelLru],
    );
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--bench" => bench = true,
            "--table" => match arguments.next().unwrap_or_default().parse() {
                Ok(kind) => kinds = vec![kind],
                Err(error) => {
                    eprintln!("hit_rate: {error}");
                    return ExitCode::from(2);
                }
            },
            _ => {
                eprintln!("hit_rate: {argument} is not known; there are --quick and --table KIND");
                return ExitCode::from(2);
            }
        }
    }
    require_root();
    // Like criterion: without --bench it only tests that the bench works.
    let effort = if quick || !bench { QUICK } else { FULL };
    // One CPU, so that one flow table sees all flows.
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    let cpu = cpu as u32;
    for kind in &kinds {
        print_memory(*kind, cpu);
    }
    write(&hit_rates(&kinds, &effort, cpu));
    recency_by_ticks(&effort);
    full_sets(&effort);
    floods(&kinds, &effort, cpu);
    ExitCode::SUCCESS
}

fn print_memory(kind: FlowTableKind, cpu: u32) {
    const FLOWS: u64 = 1 << 20;
    let builder = Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .forwarding_cpus([cpu])
        .flow_table(kind)
        .flow_table_size(FLOWS);
    let estimate = builder.memory_estimate().unwrap();
    let flows = estimate.maps().iter().find(|map| map.name == "flows");
    let bytes = flows.unwrap().at_capacity as f64 / FLOWS as f64;
    println!("{kind}: {bytes:.1} bytes for each flow that it is configured for");
}

/// A result for the JSON file.
fn row(pattern: Pattern, occupancy: u32, table: &str, source: &str, rate: f64) -> Value {
    json!({
        "traffic": pattern.to_string(),
        "occupancy_percent": occupancy,
        "table": table,
        "source": source,
        "hit_rate": rate,
    })
}

fn write(rows: &[Value]) {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let directory = Path::new(&target).join("figures");
    fs::create_dir_all(&directory).unwrap();
    let text = serde_json::to_string_pretty(rows).unwrap();
    fs::write(directory.join("hit_rate.json"), text + "\n").unwrap();
}

/// Packets, in the same order for all tables.
struct Traffic {
    /// Each flow once, then unmeasured packets like the measured ones.
    before: Vec<u32>,
    measured: Vec<u32>,
}

impl Traffic {
    fn new(pattern: Pattern, flows: u32, effort: &Effort) -> Self {
        let mut before: Vec<u32> = (0..flows).map(scattered).collect();
        before.extend(pattern.packets(flows, effort.warm_up, SEED));
        Self {
            before,
            measured: pattern.packets(flows, effort.packets, SEED + 1),
        }
    }

    /// Plays it on a model whose clock ticks once in `packets_a_tick` packets; `missed` gets each
    /// measured packet that missed.
    fn play(
        &self,
        table: &mut impl FlowTable,
        packets_a_tick: usize,
        mut missed: impl FnMut(u32),
    ) -> f64 {
        let mut count = 0;
        let mut send = |flow| {
            count += 1;
            table.packet(flow, (count / packets_a_tick) as u32)
        };
        for flow in &self.before {
            send(*flow);
        }
        let mut misses = 0;
        for flow in &self.measured {
            if !send(*flow) {
                misses += 1;
                missed(*flow);
            }
        }
        1.0 - f64::from(misses) / self.measured.len() as f64
    }
}

fn hit_rates(kinds: &[FlowTableKind], effort: &Effort, cpu: u32) -> Vec<Value> {
    let flows = effort.flows;
    println!(
        "\nHit rates, percent. All tables are configured for {flows} flows: exact LRU with as many \
         entries,\nexact LRU with twice as many, and the set-associative table, which has {} slots; \
         {} packets",
        2 * flows.next_multiple_of(4),
        effort.packets
    );
    print!(
        "{:<8} {:>9} {:>10} {:>10} {:>16}",
        "traffic", "occupancy", "exact LRU", "twice", "set-associative"
    );
    kinds
        .iter()
        .for_each(|kind| print!(" {:>24}", format!("{kind}, kernel")));
    println!();
    let mut rows = Vec::new();
    for pattern in PATTERNS {
        for occupancy in OCCUPANCIES {
            let distinct = (u64::from(flows) * u64::from(occupancy) / 100) as u32;
            let traffic = Traffic::new(pattern, distinct, effort);
            let mut result = |table: &str, source, rate| {
                rows.push(row(pattern, occupancy, table, source, rate));
            };
            let [once, twice] = [1, 2].map(|times| {
                let entries = NonZeroUsize::new(times * flows as usize).unwrap();
                traffic.play(&mut ExactLru::new(entries), 1, |_| ())
            });
            result("exact-lru", "model", once);
            result("exact-lru-2x", "model", twice);
            let (sets, error) = model_of_sets(&traffic, flows, 1);
            result("set-associative", "model", sets);
            print!(
                "{pattern:<8} {occupancy:>8}% {:>10.3} {:>10.3} {:>16}",
                100.0 * once,
                100.0 * twice,
                format!("{:.3} ± {:.3}", 100.0 * sets, 100.0 * error)
            );
            for kind in kinds {
                let rate = in_kernel(*kind, &traffic, flows, cpu);
                let name = kind.to_string();
                result(&name, "kernel", rate);
                print!(" {:>24.3}", 100.0 * rate);
                check(&name, occupancy, rate, once, (sets, error));
            }
            println!();
        }
    }
    rows
}

/// The set-associative model's hit rate, and its standard error: how much it varies with the hash
/// keys. Sets are alike and nearly independent, so the variance of the misses is that of one set's
/// misses times the number of sets.
fn model_of_sets(traffic: &Traffic, flows: u32, packets_a_tick: usize) -> (f64, f64) {
    let mut table = SetAssociative::new(flows, SEED);
    let keys = HashKeys::draw(SEED);
    let sets = table.sets();
    let mut misses = vec![0.0; sets];
    let rate = traffic.play(&mut table, packets_a_tick, |flow| {
        misses[keys.set(flow, sets as u32) as usize] += 1.0;
    });
    let count = sets as f64;
    let mean = misses.iter().sum::<f64>() / count;
    let variance = misses.iter().map(|each| (each - mean).powi(2)).sum::<f64>() / count;
    let packets = traffic.measured.len() as f64;
    (rate, (variance * count).sqrt() / packets)
}

/// The hit rate of the loaded program, without the flood guard.
fn in_kernel(kind: FlowTableKind, traffic: &Traffic, flows: u32, cpu: u32) -> f64 {
    let katran = balancer(kind, flows, u32::MAX, cpu);
    let stick = Yardstick::for_sequences(&frame()).unwrap();
    play(&katran, &stick, &traffic.before);
    let misses = play(&katran, &stick, &traffic.measured);
    1.0 - misses as f64 / traffic.measured.len() as f64
}

/// Checks the kernel table's hit rate.
fn check(kind: &str, occupancy: u32, rate: f64, exact: f64, (sets, error): (f64, f64)) {
    let (expected, tolerance) = if kind == "set-associative" {
        // The program has other random hash keys than the model: the difference of two draws. Six
        // standard errors occur by chance once in 10^9 times. The constant allows for the clock,
        // and for errors estimated from few misses.
        (sets, 6.0 * 2f64.sqrt() * error + 0.001)
    } else if occupancy < 100 {
        (exact, 0.001)
    } else {
        // The kernel's order is not exact, but must be close.
        (exact, 0.05)
    };
    assert!(
        (rate - expected).abs() < tolerance,
        "{kind} at {occupancy} %: {rate} in the kernel, {expected} by the model, within {tolerance}"
    );
}

fn balancer(kind: FlowTableKind, flows: u32, limit: u32, cpu: u32) -> Katran {
    let mut katran = Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .forwarding_cpus([cpu])
        .flow_table(kind)
        .flow_tracking(FlowTracking::All)
        .flow_table_size(flows.into())
        .flood_threshold(limit)
        .load()
        .unwrap();
    let vip: Vip = "203.0.113.1:80/tcp".parse().unwrap();
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    let reals: Vec<_> = (1..=100)
        .map(|last| RealChange::Add(Real::new([198, 51, 100, last].into())))
        .collect();
    katran.modify_reals(vip, &reals).unwrap();
    katran
}

/// A frame of 100 bytes with ACK from 100.64.0.0 to 203.0.113.1. The wrapper changes source and
/// flags but not the transport checksum, which the program does not read.
fn frame() -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 86, 0, 1, 0, 0, 64, 6, 0, 0];
    ip.extend([100, 64, 0, 0, 203, 0, 113, 1]);
    let check = ipv4_check(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&check);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ip);
    frame.extend([4, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0]);
    frame.resize(100, 0);
    frame
}

/// Plays packets on the loaded program; returns how many were of new flows.
fn play(katran: &Katran, stick: &Yardstick, packets: &[u32]) -> u64 {
    const TX: u32 = 3;
    let before = katran.stats().flow_table().unwrap();
    let action = stick.play(katran.program_fd(), packets).unwrap().action;
    let after = katran.stats().flow_table().unwrap();
    assert_eq!(action, TX);
    assert_eq!(after.packets - before.packets, packets.len() as u64);
    assert_eq!(after.fallback, before.fallback);
    after.misses - before.misses
}

/// The kernel's clock ticks every 1 to 10 ms: how much a faster table loses by that.
fn recency_by_ticks(effort: &Effort) {
    const VISITS: [f64; 5] = [0.25, 1.0, 4.0, 16.0, 1e6];
    println!(
        "\nHit rates of the set-associative model at 150 %, percent, by how often a set is visited \
         in a tick of the clock"
    );
    print!("{:<8} {:>8}", "traffic", "exact");
    VISITS[..4].iter().for_each(|visits| print!(" {visits:>8}"));
    println!(" {:>8}", "no clock");
    for pattern in PATTERNS {
        let traffic = Traffic::new(pattern, effort.flows / 2 * 3, effort);
        let rate = |packets| 100.0 * model_of_sets(&traffic, effort.flows, packets).0;
        print!("{pattern:<8} {:>8.3}", rate(1));
        for visits in VISITS {
            print!(
                " {:>8.3}",
                rate((visits * f64::from(effort.flows / 4)) as usize)
            );
        }
        println!();
    }
}

/// How evenly flows fall on sets, over many random hash keys.
fn full_sets(effort: &Effort) {
    println!(
        "\nFlows that find eight others in their set at 100 %, percent, over {} draws of the hash's \
         keys",
        effort.draws
    );
    println!(
        "{:<22} {:<12} {:>8} {:>8} {:>8} {:>8}",
        "clients", "hash", "least", "median", "1 in 100", "most"
    );
    let order: fn(u32) -> u32 = |i| i;
    for (clients, flow) in [
        ("scattered", scattered as fn(u32) -> u32),
        ("ports in order", order),
    ] {
        for (name, hash) in [
            (
                "linear",
                HashKeys::linear_set as fn(&HashKeys, u32, u32) -> u32,
            ),
            ("mixed", HashKeys::set),
        ] {
            let mut shares: Vec<f64> = (0..effort.draws)
                .map(|seed| share_in_full_sets(effort.flows, flow, seed, hash))
                .collect();
            shares.sort_by(f64::total_cmp);
            let at = |share: f64| 100.0 * shares[((shares.len() - 1) as f64 * share) as usize];
            println!(
                "{clients:<22} {name:<12} {:>8.3} {:>8.3} {:>8.3} {:>8.3}",
                at(0.0),
                at(0.5),
                at(0.99),
                at(1.0)
            );
            if name == "mixed" {
                // Balls into bins, four a bin: 0.84 % meet eight others, with little variation.
                assert!(shares.iter().all(|share| (0.006..0.011).contains(share)));
            }
        }
    }
}

fn share_in_full_sets(
    flows: u32,
    flow: fn(u32) -> u32,
    seed: u64,
    hash: fn(&HashKeys, u32, u32) -> u32,
) -> f64 {
    let keys = HashKeys::draw(seed);
    let sets = flows.div_ceil(4);
    let mut taken = vec![0u32; sets as usize];
    let mut late = 0;
    for i in 0..flows {
        let of_set = &mut taken[hash(&keys, flow(i), sets) as usize];
        late += u32::from(*of_set >= WAYS as u32);
        *of_set += 1;
    }
    f64::from(late) / f64::from(flows)
}

/// How many entries established flows keep under a flood.
fn floods(kinds: &[FlowTableKind], effort: &Effort, cpu: u32) {
    let flood = |limit| Flood {
        // In 2.1 s the guard allows as many flows as the table is configured for.
        intervals: vec![150, 250, 500, 1050, 2100, 4200],
        flows: 1000,
        rate: 10 * effort.limit,
        limit,
    };
    let (guarded, open) = (flood(effort.limit), flood(u32::MAX));
    let (flows, seconds) = (effort.flows, effort.seconds);
    println!(
        "\nA flood of {} SYNs a second of which the guard lets {} be remembered; tables for {flows} \
         flows.\nPackets of established flows that find their entry, percent: by how often a flow \
         sends, in the second half of {seconds} s;\nand over time, of those that send every 2.1 s",
        guarded.rate, guarded.limit
    );
    print!("{:<38}", "table");
    for interval in &guarded.intervals {
        print!(" {:>6.2} s", f64::from(*interval) / 1000.0);
    }
    print!("  |");
    let moments: Vec<u32> = [1, 2, 4, 8, 16]
        .into_iter()
        .filter(|s| *s <= seconds)
        .collect();
    moments.iter().for_each(|second| print!(" {second:>6}. s"));
    println!();
    let print = |name: &str, shares: &[Vec<f64>]| {
        print!("{name:<38}");
        settled(shares).for_each(|share| print!(" {:>8.1}", 100.0 * share));
        print!("  |");
        for second in &moments {
            print!(" {:>8.1}", 100.0 * shares[*second as usize - 1][4]);
        }
        println!();
    };
    for (flood, guard) in [(&open, ", no guard"), (&guarded, "")] {
        for (name, times) in [("exact LRU", 1), ("exact LRU, twice the entries", 2)] {
            let entries = NonZeroUsize::new(times * flows as usize).unwrap();
            let shares = flood.play(&mut ExactLru::new(entries), seconds);
            print(&format!("{name}{guard}"), &shares);
        }
        let shares = flood.play(&mut SetAssociative::new(flows, SEED), seconds);
        print(&format!("set-associative{guard}"), &shares);
    }
    let model = guarded.play(&mut SetAssociative::new(flows, SEED), seconds);
    for kind in kinds {
        let shares = flood_in_kernel(&guarded, *kind, effort, cpu);
        print(&format!("{kind}, kernel"), &shares);
        for (share, expected) in settled(&shares).zip(settled(&model)) {
            // The keys differ: two binomial draws of 1,000 flows, as if each were always or never
            // there; and one percent for when ticks fall.
            let error = (2.0 * expected * (1.0 - expected) / 1000.0).sqrt();
            assert!(
                kind.to_string() != "set-associative"
                    || (share - expected).abs() < 5.0 * error + 0.01,
                "{kind}: {share} in the kernel, {expected} by the model"
            );
        }
    }
}

/// Each group's shares over the second half of the time.
fn settled(seconds: &[Vec<f64>]) -> impl Iterator<Item = f64> {
    let half = &seconds[seconds.len() / 2..];
    let of_group = |group| half.iter().map(|second| second[group]).sum::<f64>();
    (0..seconds[0].len()).map(move |group| of_group(group) / half.len() as f64)
}

/// The same in the loaded program, as fast as possible and so without its own guard, which works by
/// seconds (`tests/walk/flow_table_model.rs` tests that). An RST is looked up like any packet and
/// never remembered, as are the packets that the guard holds back.
fn flood_in_kernel(flood: &Flood, kind: FlowTableKind, effort: &Effort, cpu: u32) -> Vec<Vec<f64>> {
    let katran = balancer(kind, effort.flows, u32::MAX, cpu);
    let stick = Yardstick::for_sequences(&frame()).unwrap();
    let all: Vec<u32> = flood.all_established().collect();
    assert_eq!(play(&katran, &stick, &all), all.len() as u64);
    flood.shares(effort.seconds, |step, packets| {
        let (flows, flag) = match packets {
            Packets::Established(flows) if flood.guarded(step) => (flows, RST),
            Packets::Established(flows) => (flows, 0),
            Packets::Remembered(flows) => (flows, SYN),
        };
        let packets: Vec<u32> = flows.iter().map(|flow| flow | flag).collect();
        packets.len() as u64 - play(&katran, &stick, &packets)
    })
}
