//! Applying load-time settings: another set of programs and maps replaces the current one, and
//! knows all that it knew.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use katran::Encapsulation;
use katran::Error;
use katran::Features;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::NextHops;
use katran::Protocol;
use katran::Real;
use katran::ServerId;
use katran::State;
use katran::VipFlags;
use katran::flows::Simulation;
use katran::flows::Verdict;
use katran::state::BalancerState;
use katran_lab::allowed_cpus;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use katran_lab::stay_on;
use nix::errno::Errno;
use nix::libc;

use crate::adopted::answers;
use crate::adopted::fill;
use crate::adopted::rich;
use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::MAP_CREATE;
use crate::common::faults::MAP_UPDATE_ELEM;
use crate::common::faults::PROG_LOAD;
use crate::common::faults::PROG_TEST_RUN;
use crate::common::faults::judged;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::TO_VIP4;
use crate::common::fixtures::VIP4;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::pins::tree;
use crate::common::serve;
use crate::common::vip;

/// How a change affects flows.
#[derive(Clone, Copy, PartialEq)]
enum Flows {
    Stay,
    /// Flows without an entry may move.
    MayMove,
}

type Change = (&'static str, Flows, fn(&mut BalancerState));

const CHANGES: &[Change] = &[
    ("max_vips", Flows::Stay, |of| of.max_vips = Some(33)),
    ("max_reals", Flows::Stay, |of| of.max_reals = Some(200)),
    ("ring_size", Flows::MayMove, |of| of.ring_size = Some(2003)),
    ("hash_seed", Flows::MayMove, |of| of.hash_seed = Some(7)),
    ("flow_table_size", Flows::Stay, |of| {
        of.flow_table_size = Some(50_000);
    }),
    ("flow_table_size", Flows::Stay, |of| {
        of.flow_table_size = Some(3_000);
    }),
    ("flow_idle_timeout", Flows::Stay, |of| {
        of.flow_idle_timeout = Some(Duration::from_secs(60));
    }),
    ("udp_timeout", Flows::Stay, |of| {
        of.udp_timeout = Some(Duration::from_secs(77));
    }),
    ("forwarding_cpus", Flows::Stay, |of| {
        of.forwarding_cpus = Some(vec![0]);
        of.numa_nodes = None;
    }),
    ("flood_threshold", Flows::Stay, |of| {
        of.flood_threshold = Some(500)
    }),
    ("max_frame", Flows::Stay, |of| {
        of.max_frame = Some(9014.into())
    }),
    ("max_server_ids", Flows::Stay, |of| {
        of.max_server_ids = Some(300)
    }),
    ("max_source_routes", Flows::Stay, |of| {
        of.max_source_routes = Some(20);
    }),
    ("max_decap", Flows::Stay, |of| of.max_decap = Some(9)),
    ("global_flow_table_size", Flows::Stay, |of| {
        of.global_flow_table_size = Some(10);
    }),
    ("next_hops", Flows::Stay, |of| {
        of.next_hops = Some(NextHops::PerReal)
    }),
    ("healthcheck_max_packet", Flows::Stay, |of| {
        of.healthcheck_max_packet = Some(1000);
    }),
    ("allow_sources", Flows::Stay, |of| {
        of.allow_sources = Some(vec!["198.51.100.0/24".parse().unwrap()]);
    }),
    ("event_buffer", Flows::Stay, |of| {
        of.event_buffer = Some(8192)
    }),
];

fn directory() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap().join("katran")
}

fn changed(katran: &Katran, change: fn(&mut BalancerState)) -> State {
    let mut state = katran.state();
    change(state.balancer.as_mut().unwrap());
    state
}

/// All counters that do not advance by themselves.
fn counted(katran: &Katran) -> impl PartialEq + std::fmt::Debug + use<> {
    let of = katran.counters().unwrap();
    let cpus: Vec<_> = of.cpus.iter().map(|cpu| cpu.forwarded).collect();
    (of.totals, of.vips, of.reals, of.flow_table, of.probes, cpus)
}

fn same_reals(before: &[Simulation], after: &[Simulation], change: &str) {
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.real, after.real, "{change}: {before:?} {after:?}");
    }
}

/// Each change in turn on the same balancer, so that each follows all the others; pinned and
/// unpinned.
#[test]
fn every_setting_can_change_and_nothing_else_does() {
    for (tracking, pinned) in [(FlowTracking::Changed, true), (FlowTracking::All, false)] {
        let directory = directory();
        let mut katran = match pinned {
            true => load(rich(tracking).pin(&directory)),
            false => load(rich(tracking)),
        };
        fill(&mut katran);
        for (name, flows, change) in CHANGES {
            answers(&katran);
            let wanted = changed(&katran, *change);
            let numbers = katran.real_numbers();
            let before = answers(&katran);
            let counted_before = counted(&katran);
            let changes = katran.apply(&wanted).unwrap();
            assert_eq!(changes.settings_changed, [*name]);
            let told = katran.state();
            let mut expected = wanted.clone();
            let settings = expected.balancer.as_mut().unwrap();
            let numa_nodes = &told.balancer.as_ref().unwrap().numa_nodes;
            settings.numa_nodes = settings.numa_nodes.take().or(numa_nodes.clone());
            assert_eq!(told, expected, "{name}");
            assert_eq!(katran.real_numbers(), numbers, "{name}");
            assert_eq!(counted(&katran), counted_before, "{name}");
            if *flows == Flows::Stay {
                same_reals(&before, &answers(&katran), name);
            }
            assert!(katran.apply(&wanted).unwrap().is_empty());
        }
        if pinned {
            let state = katran.state();
            drop(katran);
            let katran = builder().pin(&directory).adopt().unwrap();
            assert_eq!(katran.state(), state);
            katran.remove().unwrap();
            assert!(!directory.exists());
        }
    }
}

/// The document's other changes take effect with the replacement.
#[test]
fn a_state_that_needs_more_room_is_applied_at_once() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (added, removed) = (Arc::clone(&told), Arc::clone(&told));
    katran.on_real_added(move |real, _| added.lock().unwrap().push((real, true)));
    katran.on_real_removed(move |real, _| removed.lock().unwrap().push((real, false)));
    let mut wanted = changed(&katran, |of| of.max_vips = Some(40));
    let pattern = wanted.vips[0].clone();
    for octet in 1..=30 {
        let mut vip = pattern.clone();
        vip.vip = katran::Vip::tcp(([203, 0, 113, 100 + octet], 80).into());
        vip.reals = vec![Real::new(ip(A)), Real::new(ip("198.51.100.200"))];
        wanted.vips.push(vip);
    }
    wanted.vips[0].reals = vec![Real::new(ip(A))];
    wanted.balancer.as_mut().unwrap().features =
        Some(Features::default() | Features::SOURCE_ROUTING);
    let changes = katran.apply(&wanted).unwrap();
    assert_eq!(changes.settings_changed, ["max_vips", "features"]);
    assert_eq!(changes.vips_added.len(), 30);
    assert!(katran.apply(&wanted).unwrap().is_empty());
    assert_eq!(
        katran.features(),
        wanted.balancer.unwrap().features.unwrap()
    );
    let mut told = told.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, [(ip(B), false), (ip("198.51.100.200"), true)]);
    let last = flows(Protocol::Tcp, "203.0.113.130:80", 40);
    assert!(
        last.into_iter()
            .all(|flow| katran.simulate(&syn(flow)).unwrap().real.is_some())
    );
    // Changes of every kind still work.
    katran.remove_vip(vip(VIP4)).unwrap();
    serve(&mut katran, "203.0.113.250:1/tcp", VipFlags::empty(), &[B]);
}

#[test]
fn a_state_without_room_is_refused_with_the_limit() {
    let mut katran = load(rich(FlowTracking::Changed));
    fill(&mut katran);
    let before = (katran.state(), katran.counters().unwrap().totals);
    let mut refuses = |change: fn(&mut BalancerState)| {
        let wanted = changed(&katran, change);
        let error = katran.apply(&wanted).unwrap_err();
        assert_eq!((katran.state(), katran.counters().unwrap().totals), before);
        error
    };
    for change in [
        (|of| of.max_vips = Some(2)) as fn(&mut BalancerState),
        |of| of.max_reals = Some(2),
    ] {
        let error = refuses(change);
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(error.to_string().contains("first"), "{error}");
    }
    for change in [
        (|of| of.max_server_ids = Some(98)) as fn(&mut BalancerState),
        |of| of.flow_table_size = Some(1 << 36),
    ] {
        let error = refuses(change);
        let is_told = matches!(
            error,
            Error::Exhausted { .. }
                | Error::InsufficientMemory { .. }
                | Error::InvalidConfig { .. }
        );
        assert!(is_told, "{error}");
    }
    // An IPv6 real, but no IPv6 source address for its outer header.
    let error = refuses(|of| of.encapsulation = Some(Encapsulation::Gue));
    assert!(error.to_string().contains("source_v6"), "{error}");
    let error = refuses(|of| of.ring_size = Some(10));
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
}

/// Whatever the kernel refuses, nothing changes, and the next attempt works.
#[test]
fn one_that_fails_changes_nothing() {
    let directory = directory();
    let mut katran = load(rich(FlowTracking::Changed).pin(&directory));
    fill(&mut katran);
    answers(&katran);
    let before = (katran.state(), tree(&directory));
    let answered = answers(&katran);
    let wanted = changed(&katran, |of| {
        of.max_vips = Some(40);
        of.max_reals = Some(100);
    });
    type Fails<'a> = &'a dyn Fn(&mut Katran) -> katran::Result<()>;
    let apply = |katran: &mut Katran| katran.apply(&wanted).map(drop);
    let fails: [(&str, Fails<'_>); 5] = [
        ("maps", &|katran| {
            without_commands(&[MAP_CREATE], Errno::ENOMEM, || apply(katran))
        }),
        ("programs", &|katran| {
            without_commands(&[PROG_LOAD], Errno::EPERM, || apply(katran))
        }),
        ("pins", &|katran| {
            without_commands(&[OBJ_PIN], Errno::ENOSPC, || apply(katran))
        }),
        ("the exchange", &|katran| {
            without_call(libc::SYS_renameat2, Errno::EIO, || apply(katran))
        }),
        ("elements", &|katran| {
            without_commands(&[MAP_UPDATE_ELEM], Errno::ENOMEM, || apply(katran))
        }),
    ];
    for (what, fails) in fails {
        let error = fails(&mut katran).unwrap_err();
        assert_eq!(katran.state(), before.0, "{what}: {error}");
        assert_eq!(tree(&directory), before.1, "{what}: {error}");
        same_reals(&answered, &answers(&katran), what);
    }
    let counted_before = counted(&katran);
    apply(&mut katran).unwrap();
    assert_eq!(counted(&katran), counted_before);
    assert_eq!(katran.state(), wanted);
    assert_eq!(tree(&directory), before.1);
    drop(katran);
    let katran = builder().pin(&directory).adopt().unwrap();
    assert_eq!(katran.state(), wanted);
    katran.remove().unwrap();
}

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

#[test]
fn flow_table_type_and_tracking_can_change() {
    let mut katran = load(rich(FlowTracking::All));
    fill(&mut katran);
    let kinds = [FlowTableKind::KernelLru, FlowTableKind::SetAssociative];
    for kind in kinds {
        for tracking in [FlowTracking::Changed, FlowTracking::All] {
            let mut wanted = katran.state();
            let settings = wanted.balancer.as_mut().unwrap();
            settings.flow_table = Some(kind);
            settings.flow_tracking = Some(tracking);
            let before = answers(&katran);
            let counted_before = counted(&katran);
            katran.apply(&wanted).unwrap();
            assert_eq!(katran.state(), wanted);
            assert_eq!(counted(&katran), counted_before);
            // The rings are the same, and no real was removed.
            same_reals(&before, &answers(&katran), "tracking");
        }
    }
}

/// With server ids, tables must know all connections, but older ones stay on their slots' bases,
/// even if a ring changes at the same time; without them, only packets in unsettled slots look at
/// the tables.
#[test]
fn histories_stay_while_server_ids_are_toggled() {
    let ids = Features::default() | Features::TCP_SERVER_ID;
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let unsettled = |katran: &Katran| katran.stats().slots(vip).unwrap().unsettled;
    let begins = |katran: &Katran, ports: u16| {
        let flows = flows(Protocol::Tcp, TO_VIP4, 40).into_iter();
        let flows = flows.map(|mut flow| {
            flow.source.set_port(flow.source.port() + ports);
            let real = katran.simulate(&syn(flow)).unwrap().real;
            (flow, real)
        });
        flows.collect::<Vec<_>>()
    };
    let mut known = begins(&katran, 0);
    // Connections on this real have no entry.
    katran.add_real(vip, Real::new(ip(A)).weight(0)).unwrap();
    known.extend(begins(&katran, 1000));
    assert!(known.iter().any(|(_, real)| *real == Some(ip(A))));
    assert_ne!(unsettled(&katran), 0);
    let switches = [
        (ids, B, 0, A, 1),
        (Features::default(), A, 2, B, 1),
        (ids, A, 0, B, 2),
        (ids, A, 1, B, 1),
        (Features::default(), A, 0, B, 1),
    ];
    for (nth, (features, one, its, other, others)) in switches.into_iter().enumerate() {
        let mut wanted = katran.state();
        let settings = wanted.balancer.as_mut().unwrap();
        settings.features = Some(features);
        // By replacement twice, and once by a reload.
        if nth != 2 {
            settings.max_vips = settings.max_vips.map(|most| most + 1);
        }
        wanted.vips[0].reals = vec![
            Real::new(ip(one)).weight(its),
            Real::new(ip(other)).weight(others),
        ];
        katran.apply(&wanted).unwrap();
        assert_ne!(unsettled(&katran), 0, "{nth}");
        for (flow, real) in &known {
            assert_eq!(katran.real_for_flow(flow).unwrap().unwrap().real, *real);
            let now = katran.simulate(&frame(*flow)).unwrap();
            assert_eq!(now.real, *real, "{nth}: {now:?}");
        }
        known.extend(begins(&katran, 2000 + 1000 * nth as u16));
    }
}

/// Void entries are removed only once the old tables can add no more.
#[test]
fn late_copied_flows_restore_no_void_entry() {
    // `simulate` uses this CPU's flow table.
    stay_on(allowed_cpus()[0]);
    let mut katran = load(all_in_table());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    // Known, so its entries would count.
    let named = ServerId::new(1, ip(A));
    katran.server_ids_mut().add(&[named]).unwrap();
    let flows = flows(Protocol::Tcp, TO_VIP4, 100);
    let frames: Vec<_> = flows.into_iter().map(syn).collect();
    for frame in &frames {
        assert_eq!(bpf::run(katran.program_fd(), frame).verdict, Verdict::Tx);
    }
    let mut wanted = changed(&katran, |of| {
        of.flow_table_size = Some(50_000);
        of.max_reals = Some(200);
    });
    wanted.vips[0].reals = vec![Real::new(ip(B))];
    // Stretches the time between the switch and the last copied entries: the counters are carried
    // over in it.
    let slowly = || {
        std::thread::sleep(Duration::from_millis(500));
        None
    };
    judged(libc::SYS_bpf, Some(PROG_TEST_RUN), slowly, || {
        let _ = katran.apply(&wanted).unwrap();
    });
    eventually("void entries are removed", || {
        let maps = katran.stats().library().unwrap().maps;
        let void = maps.into_iter().find(|of| of.name == "down_reals");
        void.unwrap().entries == 0
    });
    for frame in &frames {
        assert_eq!(katran.simulate(frame).unwrap().real, Some(ip(B)));
    }
}
