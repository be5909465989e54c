//! VIPs that change between frames, in the balancer and its model, so that their slots become
//! unsettled and settle again. An impossible change does nothing, so any step can be left out.

use std::ffi::CString;

use fastrand::Rng;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran_lab::eventually;
use katran_lab::is_thread_there;
use katran_model::Balancer;
use nix::sys::prctl;
use nix::unistd::gettid;

use crate::balancers::real;
use crate::common::bpf;
use crate::common::mirror;
use crate::generate::Service;
use crate::pair::Step;

/// Reals that VIPs lose and get: other VIPs have them too, so that the library always knows them.
const REALS: u16 = 7;
/// Changes before a batch's first frame, and later ones, which pause briefly each.
const EARLY: usize = 80;
const LATE: usize = 5;
/// This many VIPs get half of the changes, and most flows.
const HOT: usize = 6;

/// A change of the VIP at this place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    vip: usize,
    what: What,
}

/// Reals by their numbers in `balancers`.
#[derive(Clone, Debug, PartialEq)]
enum What {
    /// The VIP has this real, with this weight.
    Weight(u16, u32),
    Remove(u16),
    Down(u16),
    Up(u16),
    /// Switches the ring's hash function.
    Function,
    /// Switches source routing on or off, and so between remembering all flows and changed ones.
    Routing,
    /// On and off: all slots become unsettled, for longer than all timeouts.
    RoutingTwice,
    Purge,
    PurgeReal(u16),
}

/// VIPs whose flows only the ring, the table and source routes place.
pub(crate) fn changeable(katran: &Katran) -> Vec<usize> {
    let placed_otherwise = VipFlags::QUIC
        | VipFlags::UDP_STABLE_ROUTING
        | VipFlags::GLOBAL_LRU
        | VipFlags::UDP_FLOW_MIGRATION;
    let vips = katran.vips();
    let may_change = |vip| !katran.vip_flags(vip).unwrap().intersects(placed_otherwise);
    let places = (0..vips.len()).filter(|place| may_change(vips[*place]));
    places.collect()
}

/// Picks some VIPs whose flows depend on slots, for [`draw`] and the generator.
pub(crate) fn draw_hot(rng: &mut Rng, katran: &Katran, vips: &[usize]) -> Vec<usize> {
    let all = katran.vips();
    let otherwise = VipFlags::SRC_ROUTING | VipFlags::DPORT_HASH | VipFlags::LRU_BYPASS;
    let mut hot = vips.to_vec();
    hot.retain(|place| {
        let vip = all[*place];
        !katran.vip_flags(vip).unwrap().intersects(otherwise) && vip.port() != 0
    });
    rng.shuffle(&mut hot);
    hot.truncate(HOT);
    hot
}

/// The addresses of these VIPs.
pub(crate) fn services(katran: &Katran, hot: &[usize]) -> Vec<Service> {
    let all = katran.vips();
    let of = |place: &usize| {
        let vip = all[*place];
        (vip.address(), vip.port(), vip.protocol() == Protocol::Tcp)
    };
    hot.iter().map(of).collect()
}

/// Draws a change that reverts another, so that flows with entries return to their bases.
fn draw_late(rng: &mut Rng, vips: &[usize], hot: &[usize]) -> Change {
    let what = match rng.u32(0..10) {
        0..4 => What::Function,
        4..7 => What::Routing,
        _ => return draw_one(rng, vips, hot),
    };
    let vip = hot[rng.usize(0..hot.len())];
    Change { vip, what }
}

fn draw_one(rng: &mut Rng, vips: &[usize], hot: &[usize]) -> Change {
    let vips = if rng.bool() { hot } else { vips };
    let number = rng.u16(0..REALS);
    let what = match rng.u32(0..100) {
        0..45 => {
            let weight = [0, 0, 1, 1, 2, 3][rng.usize(0..6)];
            What::Weight(number, weight)
        }
        45..53 => What::Remove(number),
        53..61 => What::Down(number),
        61..69 => What::Up(number),
        69..83 => What::Function,
        83..87 => What::Routing,
        87..93 => What::RoutingTwice,
        93..96 => What::Purge,
        _ => What::PurgeReal(number),
    };
    let vip = vips[rng.usize(0..vips.len())];
    Change { vip, what }
}

/// Draws a batch's changes: some before all frames, some between them.
pub(crate) fn draw(
    rng: &mut Rng,
    vips: &[usize],
    hot: &[usize],
    steps: &mut Vec<Step>,
    late: bool,
) {
    let early = rng.usize(EARLY / 2..=EARLY);
    let mut all = Vec::new();
    if rng.bool() {
        // Slots have long been unsettled, so that entries count as long as they can, and most have
        // a base other than the ring's real, so that there are entries.
        for vip in hot.iter().copied() {
            for what in [What::RoutingTwice, What::Function] {
                all.push(Change { vip, what });
            }
        }
    }
    all.extend((0..early).map(|_| draw_one(rng, vips, hot)));
    let mut all: Vec<Step> = all.into_iter().map(Step::Change).collect();
    if late {
        for _ in 0..rng.usize(0..=LATE) {
            let place = rng.usize(0..steps.len());
            steps[place] = Step::Change(draw_late(rng, vips, hot));
        }
    }
    all.append(steps);
    *steps = all;
}

/// Waits until the library has removed void entries, which the model does at once.
pub(crate) fn wait_for_sweeps(katran: &Katran) {
    /// From enum void_reason in `bpf/shared.h`.
    const VOID_REMOVED: u32 = 2;
    eventually("the sweep is over", || {
        let pairs = bpf::dump(katran.map_fd("down_reals").unwrap());
        let is_removed = |reason: &Vec<u8>| *reason == VOID_REMOVED.to_ne_bytes();
        !is_thread_there("katran-sweep") && !pairs.values().any(is_removed)
    });
}

/// Gives this thread a unique name, for [`is_thread_there`].
pub(crate) fn name_thread() {
    let name = CString::new(format!("fuzz-{}", gettid())).unwrap();
    prctl::set_name(&name).unwrap();
}

/// Restores the document's VIPs, with all slots settled.
pub(crate) fn undo(katran: &mut Katran, state: &State) {
    let _ = katran.apply(state).unwrap();
    for vip in katran.vips() {
        let slots = katran.stats().slots(vip).unwrap();
        if slots.unsettled != 0 {
            katran.flows_mut().purge(vip).unwrap();
        }
    }
}

fn turn_routing(katran: &mut Katran, vip: Vip) {
    let flags = katran.vip_flags(vip).unwrap() ^ VipFlags::SRC_ROUTING;
    katran.set_vip_flags(vip, flags).unwrap();
}

impl Change {
    /// Makes the change, at the model's time `now`.
    pub(crate) fn make(&self, katran: &mut Katran, model: &mut Balancer, now: u64) {
        let vip = katran.vips()[self.vip];
        let number = self.vip as u32;
        let of_vip = &model.tables.vips[&number];
        let id = |of: u16| katran.real_index(real(of)).map(|id| id.get());
        let has = |of: u16| id(of).is_some_and(|id| of_vip.reals.contains(&id));
        match self.what {
            What::Weight(of, weight) => {
                let real = Real::new(real(of)).weight(weight);
                katran.add_real(vip, real).unwrap();
            }
            What::Remove(of) if has(of) => katran.remove_real(vip, real(of)).unwrap(),
            What::Down(of) if has(of) => katran.mark_down(vip, real(of)).unwrap(),
            What::Up(of) if has(of) => katran.mark_up(vip, real(of)).unwrap(),
            What::Function => {
                let function = match katran.hash_function(vip).unwrap() {
                    HashFunction::Maglev => HashFunction::MaglevV2,
                    _ => HashFunction::Maglev,
                };
                katran.set_hash_function(vip, function).unwrap();
            }
            What::Routing => turn_routing(katran, vip),
            What::RoutingTwice => {
                turn_routing(katran, vip);
                model.change_vip(number, mirror::vip_of(katran, vip), now);
                turn_routing(katran, vip);
            }
            What::Purge => {
                katran.flows_mut().purge(vip).unwrap();
                model.purge(number);
                return;
            }
            What::PurgeReal(of) => {
                if let Some(id) = id(of) {
                    katran.flows_mut().purge_real(vip, real(of)).unwrap();
                    model.purge_real(number, id);
                }
                return;
            }
            What::Remove(_) | What::Down(_) | What::Up(_) => return,
        }
        model.change_vip(number, mirror::vip_of(katran, vip), now);
    }
}
