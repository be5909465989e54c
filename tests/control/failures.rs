//! Single system calls that fail in the middle of a change: the change fails whole, and is reported
//! and counted; library and kernel agree, and the next call works.

use std::thread;
use std::time::Duration;

use katran::Builder;
use katran::Error;
use katran::Family;
use katran::Features;
use katran::Flow;
use katran::HashFunction;
use katran::Katran;
use katran::NextHops;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::RealNumber;
use katran::Result;
use katran::State;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Simulation;
use katran::state::BalancerState;
use katran::state::VipState;
use katran_lab::eventually;
use katran_lab::is_thread_there;
use nix::errno::Errno;
use nix::libc;

use super::refusals::PREFIX;
use crate::common::GATEWAY;
use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

/// Flows that are in no table yet: a SYN of a recent flow would follow it.
fn new_clients(to: &str) -> Vec<Flow> {
    flows(Protocol::Tcp, to, 80).split_off(30)
}

/// A balancer with an exact and a prefix VIP and flows in its table.
fn balancer() -> Katran {
    balancer_with(all_in_table())
}

fn balancer_with(builder: Builder) -> Katran {
    let mut katran = load(builder);
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    serve(&mut katran, PREFIX, VipFlags::empty(), &[B]);
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 30) {
        katran.simulate(&syn(flow)).unwrap();
    }
    katran
}

/// The result for a frame. A slot that briefly named another real is unsettled, which makes no
/// difference to where a packet goes.
fn meets(katran: &Katran, frame: &[u8]) -> Simulation {
    let mut ran = katran.simulate(frame).unwrap();
    if let Reason::SettledSlot | Reason::Base = ran.reason {
        ran.reason = Reason::Ring;
    }
    ran
}

/// The configuration, and the results for packets of old and new flows.
fn observe(katran: &Katran) -> (State, Vec<Simulation>, Vec<u64>) {
    let known = flows(Protocol::Tcp, "203.0.113.1:443", 30);
    let to = ["203.0.113.1:443", "203.0.113.9:1", "[2001:db8:1::1]:80"];
    let new = to.into_iter().flat_map(|to| flows(Protocol::Tcp, to, 20));
    let known = known.into_iter().map(frame);
    let known = known.map(|frame| meets(katran, &frame));
    let simulations = known.chain(new.map(|flow| {
        let mut ran = meets(katran, &syn(flow));
        // The first SYN's entry counts for five seconds.
        if ran.reason == Reason::FlowTable {
            ran.reason = Reason::Ring;
        }
        ran
    }));
    let simulations = simulations.collect();
    let maps = katran.stats().library().unwrap().maps;
    // Only these: places of rings are given back later, and this function makes flows.
    let entries = maps
        .iter()
        .filter(|map| ["vips", "prefix_vips", "reals"].contains(&map.name))
        .map(|map| map.entries)
        .collect();
    (katran.state(), simulations, entries)
}

/// Checks that `change` fails while these commands do, leaves everything unchanged, and works
/// afterwards.
fn fails_whole(commands: &[u32], change: impl Fn(&mut Katran) -> Result<()> + Sync) {
    for builder in [all_in_table(), builder()] {
        fails_whole_with(builder, commands, &change);
    }
}

fn fails_whole_with(
    builder: Builder,
    commands: &[u32],
    change: impl Fn(&mut Katran) -> Result<()> + Sync,
) {
    let mut katran = balancer_with(builder.clone());
    observe(&katran);
    for errno in [Errno::ENOMEM, Errno::EPERM] {
        let before = observe(&katran);
        let failed = katran.stats().library().unwrap().failed_kernel_calls;
        let error = without_commands(commands, errno, || change(&mut katran)).unwrap_err();
        match (errno, &error) {
            (Errno::EPERM, Error::Privilege { .. }) => {}
            (Errno::ENOMEM, Error::InsufficientMemory { needed: 0, .. }) => {}
            _ => panic!("{errno}: {error}"),
        }
        assert!(observe(&katran) == before, "{errno}");
        let after = katran.stats().library().unwrap().failed_kernel_calls;
        assert!(after > failed, "{errno}");
    }
    let before = katran.state();
    change(&mut katran).unwrap();
    assert_ne!(katran.state(), before);
    // A new balancer with this state behaves the same.
    let mut fresh = load(builder);
    let _ = fresh.apply(&katran.state()).unwrap();
    let new = new_clients("203.0.113.9:1").into_iter();
    for flow in new.chain(new_clients("203.0.113.1:443")) {
        let ran = [&katran, &fresh].map(|katran| meets(katran, &syn(flow)));
        assert_eq!(ran[0], ran[1]);
    }
}

const UPDATES: &[u32] = &[faults::MAP_UPDATE_ELEM];
const DELETES: &[u32] = &[faults::MAP_DELETE_ELEM];

#[test]
fn adding_a_vip_fails_whole() {
    fails_whole(UPDATES, |katran| {
        katran.add_vip(vip("[2001:db8:1::1]:80/tcp"), VipFlags::empty())
    });
    fails_whole(UPDATES, |katran| {
        katran.add_vip(vip("203.0.113.0/28:0/tcp"), VipFlags::empty())
    });
}

#[test]
fn removing_a_vip_fails_whole() {
    fails_whole(DELETES, |katran| katran.remove_vip(vip(PREFIX)));
    // An exact VIP is removed through memory shared with the kernel, without a call.
    let mut katran = balancer();
    without_commands(DELETES, Errno::EPERM, || katran.remove_vip(vip(VIP4))).unwrap();
    assert_eq!(katran.vips(), [vip(PREFIX)]);
    let to_vip = frame(flows(Protocol::Tcp, "203.0.113.1:443", 1)[0]);
    assert_ne!(katran.simulate(&to_vip).unwrap().vip, Some(vip(VIP4)));
}

#[test]
fn changing_reals_fails_whole() {
    let add = |address| RealChange::Add(Real::new(ip(address)));
    fails_whole(UPDATES, |katran| {
        katran.modify_reals(vip(VIP4), &[add(C), RealChange::Remove(ip(A))])
    });
    fails_whole(UPDATES, |katran| {
        katran.add_real(vip(PREFIX), Real::new(ip(C)).weight(0))
    });
}

/// Uses up the rings that memory is allocated for, except the spares that updates need: the next
/// VIP with a ring needs more.
fn use_up_rings(katran: &mut Katran) {
    for port in 2000..2007 {
        let other = vip(&format!("203.0.113.200:{port}/tcp"));
        katran.add_vip(other, VipFlags::empty()).unwrap();
        katran.add_real(other, Real::new(ip(A))).unwrap();
    }
    let rings = katran.stats().library().unwrap().maps;
    let rings = rings.iter().find(|map| map.name == "ring_chunk").unwrap();
    assert_eq!(rings.entries, 9, "two chunks of 8, minus 7 spare rings");
}

#[test]
fn a_ring_without_memory_fails_whole() {
    type Change = fn(&mut Katran) -> Result<()>;
    const EMPTY: &str = "203.0.113.1:80/tcp";
    const DRAINED: &str = "203.0.113.1:81/tcp";
    let changes: [Change; 3] = [
        |katran| katran.add_real(vip(EMPTY), Real::new(ip(A))),
        |katran| katran.add_real(vip(DRAINED), Real::new(ip(C)).weight(1)),
        |katran| {
            let new = vip("[2001:db8:1::1]:80/tcp");
            let mut state = katran.state();
            let mut entry = VipState::new(new);
            entry.reals = vec![Real::new(ip(A))];
            state.vips.push(entry);
            katran.apply(&state).map(drop)
        },
    ];
    for commands in [&[faults::MAP_CREATE], &[faults::MAP_UPDATE_BATCH]] {
        for change in changes {
            let mut katran = balancer();
            katran.add_vip(vip(EMPTY), VipFlags::empty()).unwrap();
            katran.add_vip(vip(DRAINED), VipFlags::empty()).unwrap();
            let drained = Real::new(ip(C)).weight(0);
            katran.add_real(vip(DRAINED), drained).unwrap();
            use_up_rings(&mut katran);
            // The first call fills the flow table, so that the second one finds it unchanged.
            observe(&katran);
            let before = observe(&katran);
            let error = without_commands(commands, Errno::ENOMEM, || change(&mut katran));
            assert!(
                matches!(error, Err(Error::InsufficientMemory { .. })),
                "{error:?}"
            );
            assert!(observe(&katran) == before);
            let counters = katran.stats().library().unwrap();
            assert_eq!(counters.failed_kernel_calls, 1);
            change(&mut katran).unwrap();
            assert!(observe(&katran) != before);
        }
    }
}

#[test]
fn an_update_needs_no_memory() {
    for builder in [all_in_table(), builder()] {
        let mut katran = balancer_with(builder.clone());
        use_up_rings(&mut katran);
        let commands = [faults::MAP_CREATE, faults::MAP_UPDATE_BATCH];
        without_commands(&commands, Errno::ENOMEM, || {
            let one = vip(VIP4);
            for weight in 1..100 {
                katran
                    .add_real(one, Real::new(ip(C)).weight(weight))
                    .unwrap();
                katran.remove_real(one, ip(A)).unwrap();
                katran.set_hash_function(one, HashFunction::Maglev).unwrap();
                katran.add_real(one, Real::new(ip(A))).unwrap();
                katran
                    .set_hash_function(one, HashFunction::MaglevV2)
                    .unwrap();
            }
        });
        let mut fresh = load(builder);
        let _ = fresh.apply(&katran.state()).unwrap();
        for flow in new_clients("203.0.113.1:443") {
            let ran = [&katran, &fresh].map(|katran| meets(katran, &syn(flow)));
            assert_eq!(ran[0], ran[1]);
        }
    }
}

#[test]
fn numbers_are_not_reused_before_a_grace_period() {
    let mut katran = load(builder().max_vips(1).max_reals(1));
    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let membarrier = libc::SYS_membarrier;
    let add = |katran: &mut Katran| katran.add_real(one, Real::new(ip(B)));
    // The thread that waits for grace periods is refused the call as well.
    without_call(membarrier, Errno::EINVAL, || {
        katran.remove_real(one, ip(A)).unwrap();
        let before = observe(&katran);
        for _ in 0..3 {
            let error = add(&mut katran);
            assert!(matches!(error, Err(Error::Kernel { .. })), "{error:?}");
            assert!(observe(&katran) == before);
            thread::sleep(Duration::from_millis(100));
        }
    });
    add(&mut katran).unwrap();
    assert_eq!(katran.reals(one).unwrap().len(), 1);
}

/// Waits until no thread waits for grace periods: one that began earlier could still make the call
/// that others are refused.
fn no_grace_thread() {
    eventually("no thread waits for packets", || {
        !is_thread_there("katran-grace")
    });
}

#[test]
fn outer_sources_are_not_overwritten_while_packets_read_them() {
    let mut katran = load(builder());
    let [first, second] = [ip("192.0.2.1"), ip("192.0.2.2")];
    no_grace_thread();
    // The thread that waits for grace periods is refused the call as well.
    without_call(libc::SYS_membarrier, Errno::EINVAL, || {
        katran.gateways_mut().set_source(first).unwrap();
        let error = katran.gateways_mut().set_source(second);
        assert!(matches!(error, Err(Error::Kernel { .. })), "{error:?}");
        assert_eq!(katran.gateways().source(Family::V4), Some(first));
        // The current value needs no write.
        katran.gateways_mut().set_source(first).unwrap();
    });
    katran.gateways_mut().set_source(second).unwrap();
    assert_eq!(katran.gateways().source(Family::V4), Some(second));
}

#[test]
fn the_hop_of_a_removed_real_stays_while_packets_are_under_way() {
    let mut katran = load(
        builder()
            .next_hops(NextHops::PerReal)
            .max_vips(3)
            .max_reals(3),
    );
    katran.gateways_mut().follow().unwrap();
    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let [a, b] = [A, B].map(|real| katran.real_index(ip(real)).unwrap());
    let hop_of = |katran: &Katran, real: RealNumber| {
        let hops = bpf::lookup(katran.map_fd(".data.hops").unwrap(), &[0; 4]).unwrap();
        let first = usize::from(real.get() as u16) * 8;
        hops[first..first + 6].to_vec()
    };
    let known = GATEWAY.octets().to_vec();
    no_grace_thread();
    // No grace period can be seen to end.
    without_call(libc::SYS_membarrier, Errno::EINVAL, || {
        katran.remove_real(one, ip(A)).unwrap();
        katran.remove_real(one, ip(B)).unwrap();
        assert!(katran.gateways().next_hops().is_empty());
        katran.add_real(one, Real::new(ip(C))).unwrap();
        let hops = [a, b].map(|real| hop_of(&katran, real));
        assert_eq!(hops, [known.clone(), known]);
    });
    // Other reals get the numbers; cleaning up after the first owners does not clear the new hops.
    let others = ["198.51.100.7", "198.51.100.8"].map(ip);
    for other in others {
        katran.add_real(one, Real::new(other)).unwrap();
    }
    let numbers = others.map(|other| katran.real_index(other).unwrap());
    assert!(numbers.contains(&a) && numbers.contains(&b));
    let cleared = |katran: &mut Katran, vip: &str| {
        katran.add_vip(self::vip(vip), VipFlags::empty()).unwrap();
        [a, b].map(|real| hop_of(katran, real) == [0; 6])
    };
    assert_eq!(cleared(&mut katran, PREFIX), [false, false]);
    // Without another owner they are cleared soon.
    for other in others {
        katran.remove_real(one, other).unwrap();
    }
    eventually("both are cleared", || {
        let both = cleared(&mut katran, "203.0.113.77:1/tcp");
        katran.remove_vip(vip("203.0.113.77:1/tcp")).unwrap();
        both == [true, true]
    });
}

#[test]
fn numbers_are_reused_at_once_after_a_grace_period() {
    let mut katran = load(builder().max_vips(1).max_reals(1));
    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    katran.remove_real(one, ip(A)).unwrap();
    without_membarrier(&mut katran, |katran| katran.add_real(one, Real::new(ip(B))));
    katran.remove_vip(one).unwrap();
    without_membarrier(&mut katran, |katran| {
        katran.add_vip(vip(PREFIX), VipFlags::empty())
    });
    katran.add_real(vip(PREFIX), Real::new(ip(C))).unwrap();
}

/// Retries until a grace period has passed since the removal. The call itself cannot wait for one
/// here, and a refused call changes nothing.
fn without_membarrier(
    katran: &mut Katran,
    call: impl Fn(&mut Katran) -> katran::Result<()> + Sync,
) {
    eventually("packets have let go", || {
        without_call(libc::SYS_membarrier, Errno::EINVAL, || call(katran)).is_ok()
    });
}

/// Another state: a VIP is removed, one changes, and more are added than there is memory for rings.
fn other_state() -> State {
    let mut state = State::default();
    for i in 0..12 {
        let mut entry = VipState::new(vip(&format!("[2001:db8:1::1]:{}/tcp", 80 + i)));
        entry.reals = vec![Real::new(ip(A)), Real::new(ip(C)).weight(i + 1)];
        state.vips.push(entry);
    }
    let mut entry = VipState::new(vip(VIP4));
    entry.flags = VipFlags::NO_SRC_PORT;
    entry.reals = vec![Real::new(ip(B)).weight(2)];
    state.vips.push(entry);
    state
}

#[test]
fn a_state_that_fails_in_the_middle_is_undone() {
    let mut keeps = other_state();
    // Before the first new VIP, an existing one changes its flags and its ring.
    let one = keeps.vips.last_mut().unwrap();
    one.reals = vec![Real::new(ip(A)).weight(3), Real::new(ip(B))];
    let mut prefix = VipState::new(vip(PREFIX));
    prefix.reals = vec![Real::new(ip(B))];
    keeps.vips.push(prefix);
    // Settings that the balancer was loaded without are unset again, too.
    let mut settings = BalancerState::default();
    settings.source_v4 = Some("192.0.2.1".parse().unwrap());
    settings.source_v6 = Some("2001:db8::1".parse().unwrap());
    settings.gateway_mac_v6 = Some("02:00:00:00:00:06".parse().unwrap());
    keeps.balancer = Some(settings);
    // No memory for the rings of twelve more VIPs, or those rings cannot be entered.
    for commands in [&[faults::MAP_CREATE], UPDATES] {
        let mut katran = balancer();
        let before = observe(&katran);
        let error = without_commands(commands, Errno::ENOMEM, || {
            katran.apply(&keeps).unwrap_err()
        });
        assert!(matches!(error, Error::InsufficientMemory { .. }), "{error}");
        assert!(observe(&katran) == before, "{commands:?}");
        let changes = katran.apply(&keeps).unwrap();
        assert_eq!(changes.vips_added.len(), 12);
        assert_eq!(
            changes.settings_changed,
            ["gateway_mac_v6", "source_v4", "source_v6"]
        );
        assert!(katran.apply(&keeps).unwrap().is_empty());
    }
}

/// A watch is no part of a state and ends with its VIP: undoing the removal restores it.
#[test]
fn a_watch_survives_an_undone_state() {
    // The real goes with the VIP, and its counters restart; or it stays.
    for other_reals in [&[B][..], &[A, B]] {
        let features = Features::default() | Features::SOURCE_ROUTING;
        let mut katran = load(all_in_table().features(features));
        let watched = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
        let other = "203.0.113.2:443/tcp";
        serve(&mut katran, other, VipFlags::empty(), other_reals);
        katran.stats_mut().watch_misses(watched).unwrap();
        let clients = flows(Protocol::Tcp, "203.0.113.1:443", 4);
        let misses = |katran: &Katran| katran.stats().real(ip(A)).unwrap().misses;
        for flow in &clients[..3] {
            katran.simulate(&frame(*flow)).unwrap();
        }
        assert_eq!(misses(&katran), 3);
        // Loading other programs is the last step.
        let mut wanted = katran.state();
        wanted.vips.retain(|state| state.vip != watched);
        wanted.balancer.as_mut().unwrap().features = Some(Features::default());
        let before = katran.state();
        without_commands(&[faults::PROG_LOAD], Errno::ENOMEM, || {
            katran.apply(&wanted).unwrap_err()
        });
        assert_eq!(katran.state(), before);
        assert_eq!(katran.stats().watched_vip(), Some(watched));
        let counted = misses(&katran);
        assert_eq!(counted, if other_reals.contains(&A) { 3 } else { 0 });
        katran.simulate(&frame(clients[3])).unwrap();
        assert_eq!(misses(&katran), counted + 1);
    }
}

#[test]
fn a_state_that_cannot_be_undone_leaves_library_and_kernel_agreeing() {
    let wanted = other_state();
    for commands in [
        UPDATES,
        DELETES,
        &[faults::MAP_CREATE],
        &[faults::MAP_UPDATE_BATCH],
    ] {
        let mut katran = balancer();
        let error = without_commands(commands, Errno::ENOMEM, || {
            katran.apply(&wanted).unwrap_err()
        });
        assert!(matches!(error, Error::InsufficientMemory { .. }), "{error}");
        // Whichever state it is now, packets see what the library reports.
        let mut fresh = load(all_in_table());
        let _ = fresh.apply(&katran.state()).unwrap();
        for to in ["203.0.113.1:443", "203.0.113.9:1", "[2001:db8:1::1]:80"] {
            for flow in new_clients(to) {
                let ran = [&katran, &fresh].map(|katran| meets(katran, &syn(flow)));
                assert_eq!(ran[0], ran[1], "{commands:?}");
            }
        }
        let _ = katran.apply(&wanted).unwrap();
        assert!(katran.apply(&wanted).unwrap().is_empty());
    }
}

#[test]
fn failed_queries_are_counted_and_can_be_repeated() {
    let katran = balancer();
    let flow = flows(Protocol::Tcp, "203.0.113.1:443", 1)[0];
    let commands = [
        faults::MAP_LOOKUP_ELEM,
        faults::MAP_LOOKUP_BATCH,
        faults::PROG_TEST_RUN,
    ];
    let errors = without_commands(&commands, Errno::ENOMEM, || {
        [
            katran.stats().totals().err(),
            katran.stats().vip(vip(VIP4)).err(),
            katran.stats().real(ip(A)).err(),
            katran.real_for_flow(&flow).err(),
            katran.simulate(&frame(flow)).err(),
        ]
    });
    for error in &errors {
        assert!(
            matches!(error, Some(Error::InsufficientMemory { .. })),
            "{error:?}"
        );
    }
    let counters = katran.stats().library().unwrap();
    assert_eq!(counters.failed_kernel_calls, errors.len() as u64);
    assert!(katran.simulate(&frame(flow)).unwrap().real.is_some());
    assert!(bpf::flow_entries(katran.flows().table_fd(0).unwrap()).len() >= 30);
}
