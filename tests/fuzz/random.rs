//! Random and mutated frames, `KATRAN_FRAMES` of them.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use katran::stats::DropReason;
use katran_model::bytes::PROTOCOL_TCP;
use katran_model::bytes::PROTOCOL_UDP;

use crate::balancers::KINDS;
use crate::balancers::Kind;
use crate::changes;
use crate::generate::Generator;
use crate::generate::Target;
use crate::pair::Counted;
use crate::pair::Difference;
use crate::pair::Pair;
use crate::pair::Step;
use crate::pair::hex;
use crate::pair::in_slots;
use crate::shrink;

/// Frames in a row, starting with empty tables.
const BATCH: usize = 1000;
/// With a flood guard batches are fewer and longer: each waits for the guard's window.
const FLOOD_BATCH: usize = 5 * BATCH;
/// A balancer's share of all frames, with a guard and without.
const FLOOD_SHARE: u64 = 1;
const SHARE: u64 = 4;
/// How often to repeat a batch that took too long, and how many of a hundred may stay undecided
/// (`KATRAN_UNDECIDED`: more on an emulated machine).
const TRIES: usize = 5;
const MOST_UNDECIDED: u64 = 2;
/// One in this many batches has a pause or two, and so has each with changing VIPs. No sum of
/// pauses is close to a timeout, as the clock also advances.
const WITH_A_WAIT: u64 = 2;
/// One in this many batches leaves changeable VIPs alone.
const STEADY: u64 = 8;
/// With changing VIPs, this many frames follow a last pause.
const LAST_FRAMES: usize = 100;
const WAITS: [u64; 4] = [3_000, 8_000, 25_000, 40_000];
/// With this many frames everything happens that can, except these drop reasons: they need a kernel
/// that cannot move a frame's head or tail, a program or real removed during a packet, or maps that
/// another process has written.
const ENOUGH: u64 = 150_000;
const NEVER: [DropReason; 9] = [
    DropReason::RingUnknownReal,
    DropReason::EncapV4,
    DropReason::EncapV6,
    DropReason::ReplyFailed,
    DropReason::QuicRealGone,
    DropReason::StableUdpRealGone,
    DropReason::DecapFailed,
    DropReason::VlanFailed,
    DropReason::ProgramMissing,
];
/// At least this many packets for each way that slots choose a real.
const FEWEST_BY_SLOTS: u64 = 5;
/// Without multi-buffer support, and with it.
const LONGEST: usize = 3520;
const LONGEST_FRAGS: usize = 9014;

pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.replace('_', "").parse().unwrap())
}

/// A batch's seed, from the overall seed and the batch's place.
fn seed_of(seed: u64, kind: usize, batch: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed ^ (kind as u64) << 56 ^ batch);
    rng.u64(..)
}

pub(crate) fn target(kind: &Kind, pair: &Pair) -> Target {
    Target {
        gue_port: pair.gue_port(),
        max_frame: pair.max_frame(),
        longest: if kind.frags { LONGEST_FRAGS } else { LONGEST },
    }
}

#[test]
fn the_model_and_the_program_agree_on_random_frames() {
    let frames = setting("KATRAN_FRAMES", 200_000);
    let seed = setting("KATRAN_SEED", fastrand::u64(..));
    eprintln!("KATRAN_SEED={seed} KATRAN_FRAMES={frames}");
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let results: Vec<Result<Played, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|cpu| {
                let next = &next;
                scope.spawn(move || on_cpu(cpu, next, seed, frames))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut all = Played::default();
    let mut faults = Vec::new();
    for result in results {
        match result {
            Ok(played) => all.add(&played),
            Err(fault) => faults.push(fault),
        }
    }
    let took = begin.elapsed();
    eprintln!(
        "{} frames in {took:?}, {:?} of it loading",
        all.frames,
        all.loading / 2
    );
    eprintln!("{} of {} batches undecided", all.undecided, all.batches);
    for (what, count) in &all.seen {
        eprintln!("{count:>10} {what}");
    }
    assert!(
        faults.is_empty(),
        "KATRAN_SEED={seed}\n{}",
        faults.join("\n\n")
    );
    assert!(
        all.undecided * 100 <= all.batches * setting("KATRAN_UNDECIDED", MOST_UNDECIDED),
        "{} of {} batches took so long that timeouts may have passed",
        all.undecided,
        all.batches
    );
    if all.frames >= ENOUGH && std::env::var("KATRAN_KIND").is_err() {
        for reason in DropReason::ALL {
            let seen = all
                .seen
                .contains_key(&format!("drop_reasons.{}", reason.name()));
            assert_eq!(seen, !NEVER.contains(&reason), "{reason}");
        }
        for (by, ipv4, protocol) in ways_of_slots() {
            let name = in_slots(by, ipv4, protocol);
            let seen = all.seen.get(&name).copied().unwrap_or(0);
            assert!(seen >= FEWEST_BY_SLOTS, "{name}: {seen}");
        }
    }
}

/// All ways that slots choose a real, by family and protocol.
fn ways_of_slots() -> impl Iterator<Item = (&'static str, bool, u8)> {
    const WAYS: [&str; 4] = ["settled slot", "flow table", "base", "ring"];
    let protocols = [PROTOCOL_TCP, PROTOCOL_UDP].into_iter();
    protocols.flat_map(|protocol| {
        let of_family = move |ipv4| WAYS.map(|by| (by, ipv4, protocol));
        [true, false].into_iter().flat_map(of_family)
    })
}

/// A run's results.
#[derive(Debug, Default)]
struct Played {
    frames: u64,
    batches: u64,
    undecided: u64,
    loading: Duration,
    seen: Counted,
}

impl Played {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.batches += other.batches;
        self.undecided += other.undecided;
        self.loading += other.loading;
        for (name, count) in &other.seen {
            *self.seen.entry(name.clone()).or_default() += count;
        }
    }
}

fn share(kind: &Kind) -> u64 {
    if kind.flood.is_some() && !kind.changes() {
        FLOOD_SHARE
    } else {
        SHARE
    }
}

/// Plays the kinds on this CPU, until there is none left.
fn on_cpu(cpu: u32, next: &AtomicUsize, seed: u64, frames: u64) -> Result<Played, String> {
    let shares: u64 = KINDS.iter().map(share).sum();
    let mut played = Played::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(kind) = KINDS.get(number) else {
            return Ok(played);
        };
        let only = std::env::var("KATRAN_KIND");
        if only.is_ok_and(|only| only != kind.name) {
            continue;
        }
        let begin = Instant::now();
        let mut pair = Pair::new(*kind, cpu);
        played.loading += begin.elapsed();
        let batch = if kind.flood.is_some() {
            FLOOD_BATCH
        } else {
            BATCH
        };
        let frames = frames * share(kind) / shares;
        for i in 0..frames.div_ceil(batch as u64) {
            let seed = seed_of(seed, number, i);
            let mut generator = Generator::new(seed, target(kind, &pair));
            let changes = kind.changes() && i % STEADY != STEADY - 1;
            let vips = pair.changeable();
            let mut hot = Vec::new();
            if changes {
                hot = changes::draw_hot(&mut generator.rng, &pair.katran, &vips);
                generator.prefer(changes::services(&pair.katran, &hot));
            }
            let mut steps: Vec<Step> = (0..batch).map(|_| Step::Frame(generator.frame())).collect();
            if changes {
                let late = kind.flood.is_none();
                changes::draw(&mut generator.rng, &vips, &hot, &mut steps, late);
            }
            if kind.flood.is_none() && (changes || i % WITH_A_WAIT == 0) {
                for _ in 0..generator.rng.usize(1..3) {
                    let place = generator.rng.usize(0..steps.len());
                    steps[place] = Step::Wait(WAITS[generator.rng.usize(0..WAITS.len())]);
                }
            }
            if changes && kind.flood.is_none() {
                // Many flows have only one packet after it, which may or may not refresh an entry.
                let place = steps.len() - LAST_FRAMES;
                steps[place] = Step::Wait(WAITS[0]);
            }
            match decide(&mut pair, &steps) {
                Ok(said) => played.undecided += u64::from(!said),
                Err(first) => return Err(explain(&mut pair, steps, &first)),
            }
            played.batches += 1;
            played.frames += batch as u64;
        }
        let seen = Played {
            seen: pair.seen.clone(),
            ..Played::default()
        };
        played.add(&seen);
    }
}

/// Compares both on a batch; `Ok(false)` if every attempt took too long.
pub(crate) fn decide(pair: &mut Pair, steps: &[Step]) -> Result<bool, Difference> {
    for _ in 0..TRIES {
        if pair.play(steps)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The difference, with the fewest and smallest frames that show it.
pub(crate) fn explain(pair: &mut Pair, mut steps: Vec<Step>, once: &Difference) -> String {
    let Err(first) = pair.play(&steps) else {
        return format!(
            "{}: frames that agree when they come again (step {:?}: {})",
            pair.kind.name, once.step, once.what
        );
    };
    if let Some(last) = first.step {
        steps.truncate(last + 1);
    }
    // `make sabotage` only needs to know that there is a difference.
    let is_wanted = std::env::var("KATRAN_SHRINK").is_err();
    let small = match is_wanted {
        true => shrink::shrink(steps, |steps| pair.play(steps).is_err()),
        false => steps.split_off(steps.len() - 1),
    };
    let what = match pair.play(&small) {
        Err(difference) => difference.what,
        Ok(_) => "no difference the last time: time plays a part".to_owned(),
    };
    let steps: Vec<String> = small
        .iter()
        .map(|step| match step {
            Step::Frame(frame) => hex(frame),
            Step::Wait(milliseconds) => format!("{milliseconds} ms"),
            Step::Change(change) => format!("{change:?}"),
            Step::Until(milliseconds) => format!("until {milliseconds} ms"),
        })
        .collect();
    format!(
        "balancer `{}`\nframes:\n  {}\n{what}\n(first: {})\n\n{}",
        pair.kind.name,
        steps.join("\n  "),
        first.what,
        document(pair)
    )
}

/// Writes the balancer's document to a file, as it is long.
fn document(pair: &Pair) -> String {
    let path = std::env::temp_dir().join(format!("katran-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, pair.state.to_toml().unwrap()).unwrap();
    format!("its document: {}", path.display())
}
