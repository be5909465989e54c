//! Random histories of one VIP, played by the program's rules in `bpf/route.h`, before a judge that
//! remembers every flow: no flow moves while its real exists and it is not silent for too long. The
//! tests also show that the judge notices if a rule is left out.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::*;

const SLOTS: usize = 13;
/// Moments.
const IDLE: u32 = 100;
const IDLE_UDP: u32 = 30;
const FRESH: u32 = 5;

/// A rule to leave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sabotage {
    None,
    /// Entries older than the change count.
    Since,
    /// An entry stays when a connection begins on its slot's base.
    Clear,
    /// Packets that go elsewhere than their ring says leave no stamp.
    Stamp,
    /// A change of an unsettled slot does not restart the clock.
    Restart,
    /// A base that is gone remains a base.
    Gone,
}

/// Random numbers (splitmix64, Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % limit
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The words of a ring's place, with its padding.
fn words() -> Vec<AtomicU16> {
    (0..SLOTS + PLANES).map(|_| AtomicU16::new(0)).collect()
}

/// A VIP, with a table without a limit. Numbers of reals are not reused, so each is a generation.
struct Vip {
    udp: bool,
    weights: BTreeMap<u16, u64>,
    ring: Vec<AtomicU16>,
    planes: [Vec<AtomicU16>; PLANES],
    table: HashMap<u64, (u16, u32)>,
    sabotage: Sabotage,
}

impl Vip {
    fn new(udp: bool, sabotage: Sabotage) -> Self {
        let mut vip = Self {
            udp,
            weights: (1..=3).map(|real| (real, 1)).collect(),
            ring: Vec::new(),
            planes: std::array::from_fn(|_| words()),
            table: HashMap::new(),
            sabotage,
        };
        vip.ring = vip.numbers().into_iter().map(AtomicU16::new).collect();
        vip
    }

    /// The numbers in the slots, by highest random weight.
    fn numbers(&self) -> Vec<u16> {
        let best = |slot: u64| {
            let weigh = |real: u16, weight: u64| {
                (mix(slot << 32 | u64::from(real)) >> 8).wrapping_mul(weight)
            };
            let live = self.weights.iter().filter(|(_, weight)| **weight > 0);
            let best = live.max_by_key(|(real, weight)| weigh(**real, **weight));
            best.map_or(0, |(real, _)| *real)
        };
        (0..SLOTS as u64).map(best).collect()
    }

    fn planes(&self) -> Planes<'_> {
        Planes(self.planes.each_ref().map(Vec::as_slice))
    }

    fn change(&mut self, now: u32) {
        let mut after = self.numbers();
        let reals = self.weights.iter();
        let standings = Standings::new(reals.map(|(real, weight)| (*real, *weight > 0)));
        let stamps: Vec<u16> = (0..SLOTS)
            .map(|slot| self.planes().load(slot, Past::Deviated))
            .collect();
        let needed = needs_history(&self.ring, &after, &standings);
        let marked = mark(&self.ring, &mut after, self.planes(), &standings, at(now));
        assert!(needed || marked == 0);
        if self.sabotage == Sabotage::Restart {
            for (slot, stamp) in stamps.into_iter().enumerate() {
                if load(&self.ring, slot) & UNSETTLED != 0 {
                    self.planes().store(slot, Past::Deviated, stamp);
                }
            }
        }
        self.ring = after.into_iter().map(AtomicU16::new).collect();
        if self.sabotage != Sabotage::Gone {
            refresh(&self.ring, self.planes(), &standings);
        }
    }

    fn settle(&self, now: u32) -> Unsettled {
        let idle = if self.udp { IDLE_UDP } else { IDLE };
        settle(&self.ring, self.planes(), 0..SLOTS, idle as u16, at(now))
    }

    fn packet(&mut self, flow: u64, syn: bool, flood: bool, now: u32) -> u16 {
        let slot = (mix(flow) % SLOTS as u64) as usize;
        let current = number_in(load(&self.ring, slot));
        let Some(before) = before(&self.ring, self.planes(), slot) else {
            return current;
        };
        let base = before.base;
        let takes_new = self.planes().load(slot, Past::Base) & TAKES_NEW != 0;
        let entry = self.table.get(&flow).copied().filter(|(real, used)| {
            let counts = at(*used).is_not_before(before.since) || self.sabotage == Sabotage::Since;
            counts && self.weights.contains_key(real)
        });
        let to = if self.udp {
            let to = match entry {
                Some((real, used)) if now - used <= IDLE_UDP => real,
                _ if base != 0 && u32::from(at(now).after(before.since)) <= IDLE_UDP => base,
                _ => current,
            };
            if to != 0 {
                self.table.insert(flow, (to, now));
            }
            to
        } else if syn {
            match entry {
                Some((real, used)) if now - used <= FRESH => real,
                _ => {
                    let to = if flood && takes_new { base } else { current };
                    if to == 0 {
                        return 0;
                    }
                    if to != base {
                        self.table.insert(flow, (to, now));
                    } else if self.sabotage != Sabotage::Clear {
                        self.table.remove(&flow);
                    }
                    to
                }
            }
        } else {
            match entry {
                Some((real, _)) => {
                    self.table.insert(flow, (real, now));
                    real
                }
                None if base != 0 => base,
                None => current,
            }
        };
        if to != current && self.sabotage != Sabotage::Stamp {
            self.planes().store(slot, Past::Deviated, at(now).0);
        }
        to
    }
}

fn at(now: u32) -> At {
    At::of_ticks(now, 0)
}

/// Plays a random history that begins at this moment; returns what is wrong with it.
fn judge(seed: u64, udp: bool, sabotage: Sabotage) -> Result<(), String> {
    let mut random = Random(mix(seed));
    let mut next = 3;
    let mut vip = Vip::new(udp, sabotage);
    let idle = if udp { IDLE_UDP } else { IDLE };
    // Moments wrap around in the middle of many of them.
    let mut now = 32_000 + random.below(2000) as u32;
    let mut flows = HashMap::<u64, (u16, u32)>::new();
    for step in 0..400 {
        if random.below(2) == 0 {
            now += [0, 0, 0, 1, 1, 2, 5, 20, 40, 110][random.below(10) as usize];
        }
        // The control side's clock may be a little behind.
        vip.settle(now - random.below(2) as u32);
        match random.below(100) {
            0..12 => {
                let weight = [0, 1, 1, 2, 3][random.below(5) as usize];
                let known = vip.weights.len() as u64;
                let real = match random.below(6) {
                    which if which < known => *vip.weights.keys().nth(which as usize).unwrap(),
                    _ => {
                        next += 1;
                        next
                    }
                };
                vip.weights.insert(real, weight);
                vip.change(now);
            }
            12..16 if vip.weights.len() > 1 => {
                let which = random.below(vip.weights.len() as u64) as usize;
                let real = *vip.weights.keys().nth(which).unwrap();
                vip.weights.remove(&real);
                vip.change(now);
            }
            _ => {
                let flow = random.below(40);
                let lives = flows.get(&flow).copied();
                let lives = lives.filter(|(_, used)| now - used <= idle);
                let begins = lives.is_none() || !udp && random.below(100) < 15;
                let flood = random.below(10) == 0;
                let to = vip.packet(flow, begins && !udp, flood, now);
                if to != 0 && !vip.weights.contains_key(&to) {
                    return Err(format!("seed {seed}, step {step}: to {to}, which is gone"));
                }
                let Some((before, _)) = lives.filter(|_| !begins) else {
                    flows.insert(flow, (to, now));
                    continue;
                };
                let is_there = vip.weights.contains_key(&before);
                if before != 0 && is_there && to != before {
                    return Err(format!(
                        "seed {seed}, step {step}: {flow} from {before} to {to}"
                    ));
                }
                // A connection whose real was removed is dead until its client begins another.
                flows.insert(flow, (if udp || is_there { to } else { 0 }, now));
            }
        }
    }
    match vip.settle(now + idle + 1).slots {
        0 => Ok(()),
        left => Err(format!("seed {seed}: {left} slots do not settle")),
    }
}

#[test]
fn no_flow_moves_while_its_real_is_there() {
    for seed in 0..3000 {
        for udp in [false, true] {
            judge(seed, udp, Sabotage::None).unwrap();
        }
    }
}

#[test]
fn each_rule_that_is_left_out_is_seen() {
    for sabotage in [
        Sabotage::Since,
        Sabotage::Clear,
        Sabotage::Stamp,
        Sabotage::Restart,
        Sabotage::Gone,
    ] {
        let found = (0..3000).find(|seed| judge(*seed, false, sabotage).is_err());
        assert!(found.is_some(), "{sabotage:?}");
    }
}

#[test]
fn a_slot_that_was_in_the_table_alone_keeps_what_is_there() {
    let vip = Vip::new(false, Sabotage::None);
    let standings = Standings::new([(1, true), (2, false)]);
    mark_all(&vip.ring, vip.planes(), &standings, at(40_000));
    for slot in 0..SLOTS {
        let before = before(&vip.ring, vip.planes(), slot).unwrap();
        let current = number_in(load(&vip.ring, slot));
        let wanted = if current == 3 { 0 } else { current };
        assert_eq!(before.base, wanted);
        // No earlier than that: 64 times the longest silence, and more.
        assert!(at(40_000 - 6400).is_not_before(before.since));
    }
    assert_eq!(vip.settle(40_000 + IDLE).slots as usize, SLOTS);
    assert_eq!(vip.settle(40_001 + IDLE).slots, 0);
}

#[test]
fn what_all_flows_of_a_real_are_given_up_for_is_settled() {
    let mut vip = Vip::new(false, Sabotage::None);
    vip.weights.insert(1, 0);
    vip.change(5);
    let unsettled = unsettled(&vip.ring, vip.planes(), at(9));
    assert!(unsettled.slots > 0);
    assert_eq!(unsettled.oldest, 4);
    assert_eq!(silence_of(&vip.ring, vip.planes(), 1, at(9)), Some(4));
    assert_eq!(silence_of(&vip.ring, vip.planes(), 2, at(9)), None);
    let slot = (0..SLOTS).find(|slot| before(&vip.ring, vip.planes(), *slot).is_some());
    let flow = (0..).find(|flow| (mix(*flow) % SLOTS as u64) as usize == slot.unwrap());
    assert_eq!(vip.packet(flow.unwrap(), false, false, 7), 1);
    assert_eq!(silence_of(&vip.ring, vip.planes(), 1, at(9)), Some(2));
    give_up(&vip.ring, vip.planes(), 1);
    assert_eq!(silence_of(&vip.ring, vip.planes(), 1, at(9)), None);
    assert_eq!(vip.settle(9), Unsettled::default());
    assert!(
        vip.ring
            .iter()
            .all(|word| word.load(Ordering::Relaxed) & UNSETTLED == 0)
    );
}

#[test]
fn a_silence_grows_by_ticks_and_is_never_said_to_be_longer_than_it_is() {
    let (packet, shift) = (20, 4);
    let silence = |now| {
        let moments = At::of_ticks(now, shift).after(At::of_ticks(packet, shift));
        ticks_after(moments, now, shift)
    };
    for now in packet..500 {
        let (said, real) = (silence(now), now - packet);
        assert!(said <= real && real < said + (1 << shift), "{now}: {said}");
        assert!(silence(now + 1) - said <= 1, "{now}: {said}");
    }
}
