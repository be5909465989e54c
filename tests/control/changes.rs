//! Changes as transactions: at every limit one document can replace another, callbacks run when
//! everything is done, and after a failure half way library and kernel agree.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use katran::Builder;
use katran::DecapMode;
use katran::Error;
use katran::Features;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::RealNumber;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::VipFlags;
use katran::state::DecapState;
use katran::state::MarkState;
use katran::state::ProbeMatch;
use katran::state::ProbeMatchState;
use katran::state::ServerIdState;
use katran::state::VipState;
use nix::errno::Errno;
use nix::libc;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

const VIP: &str = "203.0.113.1:443/tcp";
const PREFIX_VIP: &str = "203.0.113.0/24:0/tcp";

/// A balancer with routing by prefixes and ids, and room for two of whatever has a limit.
fn small() -> Builder {
    builder()
        .features(Features::SOURCE_ROUTING | Features::INLINE_DECAP | Features::TCP_SERVER_ID)
        .source_v4("10.10.10.10".parse().unwrap())
        .max_source_routes(2)
        .max_server_ids(2)
        .max_decap(2)
}

fn state_of(vips: &[(&str, &[&str])]) -> State {
    let mut state = State::default();
    for (text, reals) in vips {
        let mut entry = VipState::new(vip(text));
        entry.flags = VipFlags::SRC_ROUTING;
        entry.reals = reals.iter().map(|real| Real::new(ip(real))).collect();
        state.vips.push(entry);
    }
    state
}

fn route(prefix: &str, real: &str) -> SourceRoute {
    SourceRoute::new(prefix.parse().unwrap(), ip(real))
}

fn id(id: u32, real: &str) -> ServerIdState {
    ServerIdState::new(ServerId::new(id, ip(real)))
}

/// Takes a balancer through all the states and back. Each must become the state it reports, and
/// behave as in a new balancer.
fn go_through(builder: impl Fn() -> Builder, states: &[State]) {
    let [mut katran, mut fresh] = [(), ()].map(|()| load(builder()));
    for (round, wanted) in (0..).zip(states.iter().chain(states.iter().rev())) {
        katran.apply(wanted).unwrap();
        assert!(katran.apply(wanted).unwrap().is_empty());
        fresh.apply(&State::default()).unwrap();
        fresh.apply(wanted).unwrap();
        assert_eq!(katran.state(), fresh.state());
        for map in ["source_routes_v4", "source_routes_v6"] {
            let keys = |katran: &Katran| -> Vec<Vec<u8>> {
                let map = katran.map_fd(map).unwrap();
                bpf::dump(map).into_keys().collect()
            };
            assert_eq!(keys(&katran), keys(&fresh));
        }
        // New clients each time: a SYN of a recent flow would follow its entry.
        let clients = flows(Protocol::Tcp, "203.0.113.1:443", 20 * (round + 1));
        for flow in clients.into_iter().skip(20 * usize::from(round)) {
            let ran = [&katran, &fresh].map(|katran| katran.simulate(&syn(flow)).unwrap());
            assert_eq!(ran[0].real, ran[1].real);
        }
    }
}

#[test]
fn source_routes_at_their_limit_are_replaced() {
    let with = |routes: &[(&str, &str)]| {
        let mut state = state_of(&[(VIP, &[A])]);
        let routes = routes.iter().map(|(prefix, real)| route(prefix, real));
        state.source_routes = routes.collect();
        state
    };
    let states = [
        with(&[("100.64.0.0/24", A), ("100.64.1.0/24", B)]),
        // One route changes its real, the other is replaced.
        with(&[("100.64.0.0/24", B), ("100.64.2.0/24", B)]),
        // Both are replaced.
        with(&[("100.64.3.0/24", C), ("100.64.4.0/24", A)]),
        // Routes of both families.
        with(&[
            ("100.64.0.0/16", C),
            ("100.65.0.0/16", A),
            ("2001:db8:a::/48", A),
            ("2001:db8:b::/48", B),
        ]),
        with(&[
            ("100.64.0.0/17", A),
            ("100.65.0.0/17", C),
            ("2001:db8:c::/48", B),
            ("2001:db8:d::/48", A),
        ]),
    ];
    go_through(small, &states);
}

#[test]
fn an_unchanged_prefix_never_disappears() {
    let mut katran = load(small());
    let with = |stays: &str, other: &str| {
        let mut state = state_of(&[(VIP, &[A])]);
        state.source_routes = vec![route("100.64.0.0/10", stays), route(other, C)];
        state
    };
    katran.apply(&with(A, "100.64.0.0/16")).unwrap();
    let map = katran.map_fd("source_routes_v4").unwrap();
    let map = map.try_clone_to_owned().unwrap();
    let key = [10, 0, 0, 0, 100, 64, 0, 0];
    let (map, done, looks) = (map.as_fd(), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(bpf::lookup(map, &key).is_some(), "missing");
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Until enough lookups have run in between.
        let mut applied = Ok(());
        for i in (0..=255).cycle().take(100_000) {
            let stays = if i % 2 == 0 { B } else { A };
            let wanted = with(stays, &format!("100.64.{i}.0/24"));
            applied = katran.apply(&wanted).map(drop);
            let enough = looks.load(Ordering::Relaxed) > 1000 && i > 60;
            if applied.is_err() || enough || watch.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        applied.unwrap();
    });
    assert!(looks.into_inner() > 1000);
}

#[test]
fn a_replacement_at_the_limit_that_fails_is_undone() {
    let with = |routes: [SourceRoute; 2]| {
        let mut state = state_of(&[(VIP, &[A])]);
        state.source_routes = routes.to_vec();
        state
    };
    for command in [faults::MAP_UPDATE_BATCH, faults::MAP_DELETE_BATCH] {
        let mut katran = load(small());
        let first = with([route("100.64.0.0/24", A), route("100.64.1.0/24", B)]);
        katran.apply(&first).unwrap();
        let kernel = |katran: &Katran| bpf::dump(katran.map_fd("source_routes_v4").unwrap());
        let before = (katran.state(), kernel(&katran));
        let second = with([route("100.64.1.0/24", A), route("100.64.2.0/24", B)]);
        let error = without_commands(&[command], Errno::ENOMEM, || katran.apply(&second));
        assert!(
            matches!(error, Err(Error::InsufficientMemory { .. })),
            "{error:?}"
        );
        assert_eq!((katran.state(), kernel(&katran)), before);
        katran.apply(&second).unwrap();
    }
}

#[test]
fn server_ids_at_their_limit_are_replaced() {
    let with = |ids: [ServerIdState; 2]| {
        let mut state = state_of(&[(VIP, &[A])]);
        state.server_ids = ids.to_vec();
        state
    };
    let states = [
        with([id(1, A), id(2, B)]),
        with([id(2, A), id(3, B)]),
        with([id(4, C), id(5, C)]),
    ];
    go_through(small, &states);
}

/// A name is removed only after its real has joined the VIP, and keeps its place until then.
#[test]
fn names_of_reals_that_join_a_vip_are_replaced_at_their_limit() {
    let with = |reals: &[&str], names: [u32; 2], real: &str| {
        let mut state = state_of(&[(VIP, reals)]);
        state.server_ids = names.map(|name| id(name, real)).to_vec();
        let routes = names.map(|name| route(&format!("100.64.{name}.0/24"), real));
        state.source_routes = routes.to_vec();
        state
    };
    let states = [with(&[A], [1, 2], B), with(&[A, B], [3, 4], A)];
    go_through(small, &states);
    // The reason for that order: the real's flows stay.
    let mut katran = load(small());
    katran.apply(&states[0]).unwrap();
    let number = katran.real_index(ip(B));
    katran.apply(&states[1]).unwrap();
    assert_eq!(katran.real_index(ip(B)), number);
}

#[test]
fn reals_at_their_limit_are_replaced_whatever_names_them() {
    let full = || small().max_reals(2);
    let with = |reals: &[&str], ids: &[ServerIdState], routes: &[SourceRoute]| {
        let mut state = state_of(&[(VIP, reals)]);
        state.server_ids = ids.to_vec();
        state.source_routes = routes.to_vec();
        state
    };
    let states = [
        with(&[A, B], &[], &[]),
        // The numbers move from the VIP to ids, and on to routes.
        with(&[], &[id(1, C), id(2, "198.51.100.4")], &[]),
        with(
            &[],
            &[],
            &[route("100.64.0.0/24", A), route("100.64.1.0/24", B)],
        ),
        // The same names with other reals.
        with(
            &[],
            &[],
            &[
                route("100.64.0.0/24", C),
                route("100.64.1.0/24", "198.51.100.4"),
            ],
        ),
        with(&[A], &[id(1, B)], &[]),
        with(&[B], &[id(1, C)], &[route("100.64.0.0/24", C)]),
        with(&[A], &[id(1, B)], &[route("100.64.0.0/24", B)]),
        with(&[C], &[], &[route("100.64.0.0/24", A)]),
    ];
    go_through(full, &states);
}

#[test]
fn tunnel_ends_at_their_limit_are_replaced() {
    let with = |ends: [(&str, DecapMode); 2]| {
        let mut state = state_of(&[(VIP, &[A])]);
        let ends = ends.map(|(end, mode)| DecapState::new(ip(end), mode));
        state.decap = ends.to_vec();
        state
    };
    use DecapMode::Egress;
    use DecapMode::Inline;
    let states = [
        with([("192.0.2.1", Inline), ("192.0.2.2", Egress)]),
        with([("192.0.2.2", Inline), ("192.0.2.3", Egress)]),
        with([("192.0.2.4", Inline), ("2001:db8:d::1", Egress)]),
    ];
    go_through(small, &states);
}

#[test]
fn probes_at_their_limits_are_replaced() {
    let full = || small().max_vips(2).max_reals(2);
    let with = |first: u16, reals: [&str; 2]| {
        let mut state = state_of(&[(VIP, &[A])]);
        for (i, real) in reals.into_iter().enumerate() {
            let number = first + i as u16;
            let address = (IpAddr::from([192, 0, 2, 9]), number).into();
            state.marks.push(MarkState::new(number.into(), ip(real)));
            for by in [
                ProbeMatch::Destination(address),
                ProbeMatch::Source(address),
            ] {
                let matched = ProbeMatchState::new(by, ip(real));
                state.probe_matches.push(matched);
            }
            let probe = vip(&format!("203.0.113.9:{number}/tcp"));
            state.probes.push(probe);
        }
        state
    };
    let states = [with(1, [A, B]), with(2, [B, C]), with(7, [C, A])];
    go_through(full, &states);
}

#[test]
fn vips_at_their_limit_are_replaced() {
    let full = || small().max_vips(2).max_reals(2);
    let states = [
        state_of(&[(VIP, &[A]), (PREFIX_VIP, &[B])]),
        state_of(&[(PREFIX_VIP, &[A]), ("203.0.112.0/20:0/tcp", &[B])]),
        state_of(&[
            ("203.0.113.0/25:443/tcp", &[B]),
            ("[2001:db8:1::]:1/tcp", &[C]),
        ]),
    ];
    go_through(full, &states);
}

/// The callbacks' calls, in order.
type Told = Arc<Mutex<Vec<(&'static str, IpAddr, RealNumber)>>>;

fn listen(katran: &mut Katran) -> Told {
    let told = Told::default();
    let note = |what| {
        let told = Arc::clone(&told);
        move |address, number| told.lock().unwrap().push((what, address, number))
    };
    katran.on_real_added(note("added"));
    katran.on_real_removed(note("removed"));
    told
}

fn take(told: &Told) -> Vec<(&'static str, IpAddr)> {
    let told = std::mem::take(&mut *told.lock().unwrap());
    told.into_iter().map(|(what, of, _)| (what, of)).collect()
}

#[test]
fn a_callback_that_panics_is_reported_and_not_called_again() {
    let mut katran = load(small());
    let calls = Arc::new(Mutex::new(0));
    let count = |text: &'static str| {
        let calls = Arc::clone(&calls);
        move |_, _| {
            *calls.lock().unwrap() += 1;
            panic!("{text}");
        }
    };
    let added = katran.on_real_added(count("a callback that panics, added"));
    katran.on_real_removed(count("a callback that panics, removed"));
    let told = listen(&mut katran);
    // Everything that can name a real.
    serve(&mut katran, VIP, VipFlags::SRC_ROUTING, &[A]);
    katran
        .source_routes_mut()
        .add(&["100.64.0.0/24".parse().unwrap()], ip(B))
        .unwrap();
    katran
        .server_ids_mut()
        .add(&[ServerId::new(1, ip(C))])
        .unwrap();
    assert_eq!(*calls.lock().unwrap(), 1);
    let all = [("added", ip(A)), ("added", ip(B)), ("added", ip(C))];
    assert_eq!(take(&told), all);
    let counters = katran.stats().library().unwrap();
    assert_eq!(counters.panicked_callbacks, 1);
    assert!(!katran.remove_callback(added), "it is gone");
    // Library and kernel agree.
    let mut fresh = load(small());
    fresh.apply(&katran.state()).unwrap();
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 20) {
        let ran = [&katran, &fresh].map(|katran| katran.simulate(&syn(flow)).unwrap());
        assert_eq!(ran[0], ran[1]);
    }
    katran.server_ids_mut().remove(&[1]).unwrap();
    katran.source_routes_mut().clear().unwrap();
    katran.remove_vip(vip(VIP)).unwrap();
    assert!(katran.real_numbers().is_empty());
    assert_eq!(*calls.lock().unwrap(), 2);
    let all = [("removed", ip(C)), ("removed", ip(B)), ("removed", ip(A))];
    assert_eq!(take(&told), all);
    assert_eq!(katran.stats().library().unwrap().panicked_callbacks, 2);
}

#[test]
fn callbacks_run_after_the_whole_state_is_applied() {
    let mut katran = load(small());
    // The first mark makes the map.
    katran.probes_mut().map_mark(1, ip(A)).unwrap();
    let marks = katran.map_fd("marks").unwrap();
    let marks = marks.try_clone_to_owned().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = {
        let seen = Arc::clone(&seen);
        move |_, _| {
            let key = 2u32.to_ne_bytes();
            let there = bpf::dump(marks.as_fd()).contains_key(&key[..]);
            seen.lock().unwrap().push(there);
        }
    };
    katran.on_real_added(note);
    let mut state = state_of(&[(VIP, &[A, B])]);
    state.source_routes = vec![route("100.64.0.0/24", C)];
    // Setting marks is the last step.
    state.marks = vec![MarkState::new(1, ip(A)), MarkState::new(2, ip(B))];
    katran.apply(&state).unwrap();
    assert_eq!(*seen.lock().unwrap(), [true; 3]);
}

#[test]
fn callbacks_do_not_run_for_a_state_that_was_undone() {
    let mut katran = load(small());
    serve(&mut katran, VIP, VipFlags::empty(), &[A]);
    katran.probes_mut().map_mark(1, ip(A)).unwrap();
    let before = katran.state();
    let told = listen(&mut katran);
    // Reals are added, then the mark cannot be removed.
    let mut wanted = before.clone();
    wanted.vips[0].reals.push(Real::new(ip(B)));
    wanted.server_ids = vec![id(1, C)];
    wanted.marks.clear();
    let deletes = [faults::MAP_DELETE_ELEM];
    let error = without_commands(&deletes, Errno::EPERM, || katran.apply(&wanted));
    assert!(matches!(error, Err(Error::Privilege { .. })), "{error:?}");
    assert_eq!(katran.state(), before);
    assert_eq!(take(&told), []);
    katran.apply(&wanted).unwrap();
    assert_eq!(take(&told), [("added", ip(C)), ("added", ip(B))]);
}

#[test]
fn callbacks_report_what_could_not_be_undone() {
    let mut katran = load(small());
    serve(&mut katran, VIP, VipFlags::empty(), &[A, B]);
    let told = listen(&mut katran);
    // A real is removed, a VIP cannot be added, and the real cannot be added back.
    let wanted = state_of(&[(VIP, &[B]), ("203.0.113.2:443/tcp", &[B])]);
    let updates = [faults::MAP_UPDATE_ELEM];
    let error = without_commands(&updates, Errno::ENOMEM, || katran.apply(&wanted));
    assert!(
        matches!(error, Err(Error::InsufficientMemory { .. })),
        "{error:?}"
    );
    assert_eq!(katran.real_index(ip(A)), None);
    assert_eq!(take(&told), [("removed", ip(A))]);
    katran.apply(&wanted).unwrap();
    assert_eq!(take(&told), []);
}

#[test]
fn numbers_of_failed_names_are_reused_after_a_grace_period() {
    let fail = |katran: &mut Katran| {
        let routes = ["100.64.0.0/24".parse().unwrap()];
        let batch = [faults::MAP_UPDATE_BATCH];
        let failed = without_commands(&batch, Errno::ENOMEM, || {
            katran.source_routes_mut().add(&routes, ip(A))
        });
        assert!(
            matches!(failed, Err(Error::InsufficientMemory { .. })),
            "{failed:?}"
        );
        assert!(katran.real_numbers().is_empty());
    };
    // Packets may have seen the first number lead to A: it is the last one to be reused.
    let mut katran = load(small().max_reals(2));
    let mut other = load(small().max_reals(2));
    fail(&mut katran);
    let number = |katran: &mut Katran| {
        let one = serve(katran, VIP, VipFlags::empty(), &[B]);
        let number = katran.real_index(ip(B)).unwrap();
        katran.remove_vip(one).unwrap();
        number
    };
    assert_ne!(number(&mut katran), number(&mut other));
    // The only number is reused after a grace period, which is refused here.
    let mut katran = load(small().max_reals(1));
    katran.add_vip(vip(VIP), VipFlags::empty()).unwrap();
    let add = [RealChange::Add(Real::new(ip(B)))];
    without_call(libc::SYS_membarrier, Errno::EINVAL, || {
        fail(&mut katran);
        let added = katran.modify_reals(vip(VIP), &add);
        assert!(matches!(added, Err(Error::Kernel { .. })), "{added:?}");
    });
    katran.modify_reals(vip(VIP), &add).unwrap();
    // With a new generation: no entry of a flow that saw the first one matches.
    let flow = flows(Protocol::Tcp, "203.0.113.1:443", 1)[0];
    katran.simulate(&syn(flow)).unwrap();
    let ids: BTreeMap<_, _> = bpf::dump(katran.map_fd(".data.reals").unwrap());
    let reals = &ids[&0u32.to_ne_bytes()[..]];
    let id = &reals[24 + 16..24 + 20];
    assert_eq!(u32::from_ne_bytes(id.try_into().unwrap()) >> 16, 2);
}

#[test]
fn a_watch_that_cannot_begin_leaves_the_former_one() {
    let mut katran = load(all_in_table());
    let one = serve(&mut katran, VIP, VipFlags::empty(), &[A]);
    let two = serve(&mut katran, "203.0.113.2:443/tcp", VipFlags::empty(), &[A]);
    katran.stats_mut().watch_misses(one).unwrap();
    let flow = |port: u16| {
        let mut flow = flows(Protocol::Tcp, "203.0.113.1:443", 1)[0];
        flow.source.set_port(port);
        flow
    };
    katran.simulate(&frame(flow(1))).unwrap();
    let reads = [faults::MAP_LOOKUP_ELEM, faults::MAP_LOOKUP_BATCH];
    let failed = without_commands(&reads, Errno::ENOMEM, || {
        katran.stats_mut().watch_misses(two)
    });
    assert!(
        matches!(failed, Err(Error::InsufficientMemory { .. })),
        "{failed:?}"
    );
    assert_eq!(katran.stats().watched_vip(), Some(one));
    katran.simulate(&frame(flow(2))).unwrap();
    assert_eq!(katran.stats().real(ip(A)).unwrap().misses, 2);
}

#[test]
fn a_probes_number_is_reused_after_a_grace_period() {
    let mut katran = load(small().max_vips(1));
    let [one, two] = [1, 2].map(|port| vip(&format!("203.0.113.9:{port}/tcp")));
    katran.probes_mut().register(one).unwrap();
    // A probe under way may still count under the only number.
    without_call(libc::SYS_membarrier, Errno::EINVAL, || {
        katran.probes_mut().unregister(one).unwrap();
        let registered = katran.probes_mut().register(two);
        assert!(matches!(registered, Err(Error::Kernel { .. })));
        assert!(katran.probes().list().is_empty());
    });
    katran.probes_mut().register(two).unwrap();
    assert_eq!(katran.probes().list(), [two]);
}
