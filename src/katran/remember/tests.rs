//! What the calls of a loaded balancer record: after any of them the next owner knows what this one
//! does.

pub(in super::super) mod calls;
mod full;

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use calls::CALLS;
use calls::ROUTER;
use calls::address;
use calls::features;
use calls::some_vip;
use calls::vip;
use fastrand::Rng;
use katran_lab::private_bpf_fs;

use super::*;
use crate::config::Builder;
use crate::document::MarkState;
use crate::document::ProbeMatch;
use crate::document::ServerIdState;
use crate::document::State;
use crate::ledger::Replayed;
use crate::ledger::death;
use crate::ledger::heap::Heap;
use crate::mutate;
use crate::mutate::one_of;
use crate::pins::Home;
use crate::pins::Tenant;
use crate::types::Flow;
use crate::types::FlowTracking;
use crate::types::Protocol;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::VipFlags;

fn loaded() -> Katran {
    builder().load().unwrap()
}

fn builder() -> Builder {
    Katran::builder()
        .gateway_mac(ROUTER)
        .features(features())
        .flow_table_size(1000)
        .ring_size(13)
        .max_vips(6)
        .max_reals(12)
        .max_source_routes(50)
        .max_server_ids(50)
        .source_v4(Ipv4Addr::new(192, 0, 2, 1))
        .source_v6("2001:db8::99".parse().unwrap())
}

pub(in super::super) fn kept() -> (Katran, Heap) {
    let mut katran = loaded();
    let heap = keep(&mut katran, Heap::new(1 << 14));
    (katran, heap)
}

fn keep(katran: &mut Katran, heap: Heap) -> Heap {
    katran.keep(Box::new(heap.clone())).unwrap();
    heap
}

pub(in super::super) fn read(heap: &Heap) -> Replayed {
    Ledger::read(Box::new(heap.found())).unwrap().1
}

/// The next owner knows everything.
pub(in super::super) fn assert_known(katran: &Katran, heap: &Heap, after: &str) {
    let found = read(heap);
    assert_eq!(found.under_way, None, "{after}");
    assert_eq!(found.before, None, "{after}");
    let kept = found.kept;
    assert_eq!(kept.state(), katran.state(), "{after}");
    assert_eq!(kept.config, katran.config, "{after}");
    assert_eq!(kept.table.unsettled(), katran.table.unsettled(), "{after}");
    assert_eq!(kept.server_ids, katran.server_ids, "{after}");
    assert_eq!(kept.invalid_ids, katran.invalid_ids, "{after}");
    assert_eq!(kept.source_routes, katran.source_routes, "{after}");
    assert_eq!(kept.decap, katran.decap, "{after}");
    assert_eq!(kept.small, katran.small(), "{after}");
    let fixed = &katran.fixed;
    assert_eq!(kept.drawn, fixed.drawn(), "{after}");
}

#[test]
fn the_next_owner_knows_what_every_call_has_made() {
    let (mut katran, heap) = kept();
    assert_known(&katran, &heap, "loading");
    let mut refused = Vec::new();
    for (name, call) in CALLS {
        if call(&mut katran).is_err() {
            refused.push(*name);
        }
        assert_known(&katran, &heap, name);
    }
    assert_eq!(
        refused,
        [
            "add one again",
            "remove an unknown real",
            "an unknown id",
            "decap again",
            "count none",
            "features in use",
            "apply what cannot be",
        ]
    );
}

/// Wherever a call is cut off, the next owner knows the state before it, with nothing under way or
/// with what leads to the state after it; or the state after it.
#[test]
fn a_call_that_is_cut_off_is_known_whole() {
    let mut katran = loaded();
    for (name, call) in CALLS {
        let (before, watched) = (katran.state(), katran.stats().watched_vip());
        let mut seen: Vec<State> = Vec::new();
        let mut stores = 0;
        loop {
            let heap = keep(&mut katran, Heap::new(1 << 14));
            let lived = death::after(stores, || call(&mut katran));
            let Replayed {
                kept: mut found,
                under_way,
                before: began,
            } = read(&heap);
            if let Some(began) = began {
                // A change of many steps has a way back.
                assert_eq!(began.state, before, "{name} after {stores}");
                assert_eq!(began.watched, watched, "{name} after {stores}");
            } else if let Some(intent) = under_way {
                assert_eq!(found.state(), before, "{name} after {stores}");
                found.finish(intent).unwrap();
                seen.push(found.state());
            } else {
                seen.push(found.state());
            }
            if lived.is_some() {
                break;
            }
            // In this process the call has got so far.
            katran.ledger = None;
            assert!(!katran.is_undoing());
            katran.apply(&before).unwrap();
            if let Some(vip) = watched {
                katran.stats_mut().watch_misses(vip).unwrap();
            }
            // Many stores belong to one record.
            stores += if stores < 8 { 1 } else { 1 + stores / 8 };
        }
        let after = katran.state();
        for state in seen {
            assert!(state == before || state == after, "{name}: {state:#?}");
        }
    }
}

/// Random documents, with calls between them.
#[test]
fn the_next_owner_knows_any_state() {
    let (mut katran, heap) = kept();
    let (mut applied, mut refused) = (0, 0);
    mutate::cases(60, |rng| {
        let wanted = some_state(&katran, rng);
        match katran.apply(&wanted) {
            Ok(_) => applied += 1,
            Err(_) => refused += 1,
        }
        assert_known(&katran, &heap, "apply");
        let _ = katran.mark_down(vip(rng.u8(1..9)), address(rng.u8(1..16)));
        assert_known(&katran, &heap, "a call");
    });
    assert!(applied > 20, "{applied} {refused}");
}

fn some_state(katran: &Katran, rng: &mut Rng) -> State {
    let mut state = State {
        balancer: None,
        ..katran.state()
    };
    let reals = |rng: &mut Rng| -> Vec<u8> { (1..16).filter(|_| rng.u32(0..4) == 0).collect() };
    state.vips.retain(|_| rng.u32(0..3) != 0);
    for number in 1..9 {
        let new = some_vip(number, &reals(rng));
        if rng.u32(0..3) == 0 && state.vips.iter().all(|there| there.vip != new.vip) {
            state.vips.push(new);
        }
    }
    let mut some = |count: u32| (1..count).filter(|_| rng.bool()).collect::<Vec<u32>>();
    let ids = some(12).into_iter();
    let (marks, routes) = (some(4), some(6));
    state.server_ids = ids
        .map(|id| ServerIdState::new(ServerId::new(id, address(id as u8))))
        .collect();
    state.marks = marks
        .into_iter()
        .map(|mark| MarkState::new(mark, address(mark as u8)))
        .collect();
    let route = |nth: u32| {
        let prefix = format!("10.{nth}.0.0/16").parse().unwrap();
        SourceRoute::new(prefix, address(nth as u8 + 1))
    };
    state.source_routes = routes.into_iter().map(route).collect();
    state.probe_matches.clear();
    if rng.bool() {
        let by = one_of(rng, &[ProbeMatch::Destination, ProbeMatch::Source]);
        let by = by((address(40), 80).into());
        let state_of = crate::document::ProbeMatchState::new(by, address(1));
        state.probe_matches.push(state_of);
    }
    state
}

/// A change that cannot be recorded for lack of room is refused before any of it is made; one that
/// cannot be refused is made.
#[test]
fn a_change_that_cannot_be_written_down_is_not_made() {
    let mut katran = loaded();
    katran.add_vip(vip(1), VipFlags::empty()).unwrap();
    katran.stats_mut().watch_misses(vip(1)).unwrap();
    let enough = (9..20).map(|power| 1 << power).find_map(|bytes| {
        let heap = Heap::new(bytes).limited(bytes);
        katran.keep(Box::new(heap.clone())).ok().map(|()| heap)
    });
    let heap = enough.unwrap();
    let (mut refused, mut ids_refused) = (0, 0);
    for mark in 1..13 {
        for address in (1..13).map(address) {
            let before = katran.state();
            if let Err(error) = katran.probes_mut().map_mark(u32::MAX - mark, address) {
                assert!(error.to_string().contains("record"), "{error}");
                assert_eq!(katran.state(), before);
                refused += 1;
            }
            assert_known(&katran, &heap, "marks");
        }
        let prefixes: Vec<_> = (0..4)
            .map(|nth| format!("2001:db8:{mark:x}:{nth}::/64").parse().unwrap())
            .collect();
        let before = katran.state();
        if let Err(error) = katran.source_routes_mut().add(&prefixes, address(1)) {
            assert!(error.to_string().contains("record"), "{error}");
            assert_eq!(katran.state(), before);
            refused += 1;
        }
        assert_known(&katran, &heap, "routes");
        let ids: Vec<_> = (0..4)
            .map(|nth| ServerId::new(u32::MAX - 4 * mark - nth, address(mark as u8)))
            .collect();
        let found = katran.maps.server_ids.len();
        if katran.server_ids_mut().add(&ids).is_err() {
            // Packets have not seen it either.
            assert_eq!(katran.maps.server_ids.len(), found);
            ids_refused += 1;
        }
        assert_known(&katran, &heap, "server ids");
    }
    assert!(ids_refused > 0);
    assert!(refused > 5, "{refused}");
    // It is made, recorded or not.
    katran.stats_mut().unwatch_misses();
    assert_eq!(katran.stats().watched_vip(), None);
    // With memory again, it is recorded.
    let heap = heap.limited(usize::MAX);
    katran.source_routes_mut().clear().unwrap();
    assert_known(&katran, &heap, "what has gone");
}

#[test]
fn seeds_and_keys_are_taken_over() {
    let (katran, heap) = kept();
    let Fixed {
        tick,
        possible_cpus,
        ..
    } = katran.fixed;
    let kept = read(&heap).kept;
    let restored = |cpus| Fixed::restored(&kept.drawn, &kept.config, tick, cpus);
    let again = restored(possible_cpus).ok().unwrap();
    assert_eq!(again.drawn(), katran.fixed.drawn());
    assert_eq!(again.hasher, katran.fixed.hasher);
    assert_eq!(again.vip_hash.shift(), katran.fixed.vip_hash.shift());
    assert!(restored(possible_cpus + 1).is_err());
    let mut short = kept.drawn.clone();
    short.flow_keys.pop();
    assert!(Fixed::restored(&short, &kept.config, tick, possible_cpus).is_err());
}

/// The fields of a balancer that are not kernel objects.
#[test]
fn another_balancer_takes_over_what_was_kept() {
    let (mut katran, heap) = kept();
    for (_, call) in CALLS {
        let _ = call(&mut katran);
    }
    let mut next = loaded();
    let found = heap.found();
    let (ledger, replayed) = Ledger::read(Box::new(found.clone())).unwrap();
    let small = next.take_kept(replayed.kept);
    next.go_on(ledger);
    assert_eq!(small, katran.small());
    assert_eq!(next.table.unsettled(), katran.table.unsettled());
    assert_eq!(next.kinds, katran.kinds);
    let state = |katran: &Katran| State {
        balancer: None,
        marks: Vec::new(),
        probe_matches: Vec::new(),
        probes: Vec::new(),
        ..katran.state()
    };
    assert_eq!(state(&next), state(&katran));
    // A grace period settles what was given back before.
    next.settle().unwrap();
    let taken = next.table.given_back();
    let mut settled = next.table.clone();
    settled.settle(taken);
    assert_eq!(next.table, settled);
    // Its own changes are recorded in the same place.
    next.server_ids_mut().remove(&[7]).unwrap();
    assert_eq!(read(&found).kept.server_ids, next.server_ids);
    assert_ne!(read(&heap).kept.server_ids, next.server_ids);
}

/// What a process leaves that is killed.
#[test]
fn a_pinned_balancer_leaves_its_ledger() {
    let directory = private_bpf_fs().unwrap().join("katran");
    let mut katran = builder().pin(&directory).load().unwrap();
    for (name, call) in CALLS {
        let _ = call(&mut katran);
        // It has no other one.
        assert!(katran.ledger.is_some(), "{name}");
    }
    let (state, table) = (katran.state(), katran.table.unsettled());
    drop(katran);
    let home = Home::open_or_ask(&directory, Tenant::Balancer, None).unwrap();
    let ground = home.set().ground().unwrap().unwrap();
    let (_, found) = Ledger::read(ground).unwrap();
    assert_eq!(found.under_way, None);
    assert_eq!(found.kept.state(), state);
    assert_eq!(found.kept.table.unsettled(), table);
    drop(home);
    crate::pins::remove(&directory).unwrap();
    assert!(!directory.exists());
}

/// Where frames to every possible VIP go: answers, and the chosen reals.
fn ways(katran: &Katran) -> Vec<String> {
    let vips = katran.vips().into_iter();
    let flows = vips.flat_map(|vip| {
        (1..20).map(move |client| {
            let to = (vip.address(), vip.port().max(1)).into();
            let from = match vip.address() {
                IpAddr::V4(_) => (Ipv4Addr::new(192, 0, 2, client), 4000).into(),
                IpAddr::V6(_) => (Ipv6Addr::from(u128::from(client)), 4000).into(),
            };
            match vip.protocol() {
                Protocol::Tcp => Flow::tcp(from, to),
                Protocol::Udp => Flow::udp(from, to),
            }
        })
    });
    flows
        .map(|flow| {
            format!(
                "{flow}: {:?}",
                katran.real_for_flow(&flow).unwrap().map(|of| of.real)
            )
        })
        .collect()
}

/// The kernel has all of a call's change, and the process ends before recording that: the next
/// owner undoes it whole.
#[test]
fn a_call_that_is_cut_off_at_its_end_is_undone_by_the_next_owner() {
    let directory = private_bpf_fs().unwrap().join("katran");
    // A balancer with a history of slots leads flows elsewhere than a fresh one.
    let all = FlowTracking::All;
    let with_probes = || builder().healthcheck_interface("lo").flow_tracking(all);
    let mut katran = with_probes().pin(&directory).load().unwrap();
    let mut undone = 0;
    for (nth, (name, call)) in CALLS.iter().enumerate() {
        let watched = katran.stats().watched_vip();
        let before = (katran.state(), ways(&katran));
        let lived = death::before_done(0, || call(&mut katran));
        if lived.is_none() {
            drop(katran);
            katran = builder().pin(&directory).adopt().unwrap();
            assert_eq!(katran.state(), before.0, "{name}");
            assert_eq!(ways(&katran), before.1, "{name}");
            assert_eq!(katran.stats().watched_vip(), watched, "{name}");
            undone += 1;
            // It can be made now.
            call(&mut katran).unwrap();
        }
        if nth % 20 != 0 && nth + 1 != CALLS.len() {
            continue;
        }
        let mut fresh = with_probes().features(katran.features()).load().unwrap();
        let _ = fresh.apply(&katran.state()).unwrap();
        assert_eq!(ways(&katran), ways(&fresh), "{name}");
    }
    assert!(undone > 30, "{undone}");
    katran.remove().unwrap();
}

/// A state that was being applied is undone, and the VIP that comes back has its watch again.
#[test]
fn a_watch_comes_back_with_its_vip() {
    let directory = private_bpf_fs().unwrap().join("katran");
    let mut katran = builder().pin(&directory).load().unwrap();
    let mut state = katran.state();
    state.vips = (1..4).map(|number| some_vip(number, &[number])).collect();
    let _ = katran.apply(&state).unwrap();
    let state = katran.state();
    let mut wanted = state.clone();
    wanted.vips = (3..6)
        .map(|number| some_vip(number, &[number, 9]))
        .collect();
    let mut cut_off = 0;
    for changes in 0.. {
        katran.stats_mut().watch_misses(vip(1)).unwrap();
        let lived = death::before_done(changes, || katran.apply(&wanted).map(drop));
        if lived.is_some() {
            break;
        }
        drop(katran);
        katran = builder().pin(&directory).adopt().unwrap();
        assert_eq!(katran.state(), state, "after {changes}");
        assert_eq!(
            katran.stats().watched_vip(),
            Some(vip(1)),
            "after {changes}"
        );
        cut_off += 1;
    }
    assert!(cut_off > 2, "{cut_off}");
    katran.remove().unwrap();
}
