//! Adopting a pinned balancer: the next handle knows all that the previous one knew, counters and
//! flows continue, and every kind of change works.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::FlowTracking;
use katran::HashFunction;
use katran::Katran;
use katran::NextHops;
use katran::Protocol;
use katran::Real;
use katran::ServerId;
use katran::Start;
use katran::VipFlags;
use katran::flows::Simulation;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::A6;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::pins;
use crate::common::serve;
use crate::common::vip;

const UDP: &str = "203.0.113.1:53/udp";
const PREFIX: &str = "203.0.114.0/24:443/tcp";

fn directory() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap().join("katran")
}

pub(crate) fn rich(tracking: FlowTracking) -> Builder {
    let features = Features::SOURCE_ROUTING | Features::INLINE_DECAP | Features::GLOBAL_FLOW_TABLE;
    builder()
        .flow_tracking(tracking)
        .features(Features::default() | features | Features::TCP_SERVER_ID)
        .healthcheck_interface("lo")
        .source_v4("192.0.2.1".parse().unwrap())
}

/// Adds some of everything.
pub(crate) fn fill(katran: &mut Katran) {
    let tcp = serve(katran, VIP4, VipFlags::empty(), &[A, B, C]);
    serve(katran, VIP6, VipFlags::empty(), &[A6]);
    let udp = serve(katran, UDP, VipFlags::UDP_STABLE_ROUTING, &[A, B]);
    serve(katran, PREFIX, VipFlags::SRC_ROUTING, &[B]);
    katran.add_real(tcp, Real::new(ip(A)).weight(7)).unwrap();
    katran
        .set_hash_function(udp, HashFunction::MaglevV2)
        .unwrap();
    let ids = (1..100).map(|id| ServerId::new(id, ip([A, B][id as usize % 2])));
    katran
        .server_ids_mut()
        .add(&ids.collect::<Vec<_>>())
        .unwrap();
    katran.server_ids_mut().invalidate(&[7]).unwrap();
    let prefix = "192.0.2.0/24".parse().unwrap();
    katran.source_routes_mut().add(&[prefix], ip(C)).unwrap();
    katran
        .decap_mut()
        .add(ip("10.0.0.9"), katran::DecapMode::Inline)
        .unwrap();
    katran.probes_mut().map_mark(9, ip(A)).unwrap();
    katran.probes_mut().register(tcp).unwrap();
    // A number that was given back, and a down real whose flows have yet to move.
    katran.add_real(tcp, Real::new(ip("198.51.100.9"))).unwrap();
    katran.remove_real(tcp, ip("198.51.100.9")).unwrap();
    katran.mark_down(tcp, ip(B)).unwrap();
}

fn known() -> Vec<Vec<u8>> {
    let known = flows(Protocol::Tcp, "203.0.113.1:443", 60);
    known.into_iter().map(frame).collect()
}

pub(crate) fn answers(katran: &Katran) -> Vec<Simulation> {
    let to = ["203.0.113.1:443", "203.0.114.9:443", "[2001:db8:1::1]:443"];
    let new = to.into_iter().flat_map(|to| flows(Protocol::Tcp, to, 40));
    let udp = flows(Protocol::Udp, "203.0.113.1:53", 40)
        .into_iter()
        .map(frame);
    let frames = known().into_iter().chain(new.map(syn)).chain(udp);
    frames
        .map(|frame| katran.simulate(&frame).unwrap())
        .collect()
}

#[test]
fn the_next_handle_knows_what_the_former_one_knew() {
    for tracking in [FlowTracking::All, FlowTracking::Changed] {
        let directory = directory();
        let missing = builder().pin(&directory).adopt().unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
        let (mut katran, start) = rich(tracking).pin(&directory).adopt_or_load().unwrap();
        assert_eq!(start, Start::Loaded);
        fill(&mut katran);
        answers(&katran);
        let before = (katran.state(), katran.real_numbers(), answers(&katran));
        let counted = katran.counters().unwrap();
        let busy = builder().pin(&directory).adopt().unwrap_err();
        assert!(matches!(busy, Error::Busy { .. }), "{busy}");
        drop(katran);

        // The pinned settings count, not the call's.
        let (mut katran, start) = builder()
            .max_vips(3)
            .pin(&directory)
            .adopt_or_load()
            .unwrap();
        assert!(matches!(start, Start::Adopted { .. }), "{start:?}");
        assert_eq!(katran.state(), before.0);
        assert_eq!(katran.real_numbers(), before.1);
        let after = katran.counters().unwrap();
        assert_eq!(after.totals, counted.totals);
        assert!(after.totals.total.packets > 0);
        for (after, before) in answers(&katran).iter().zip(&before.2) {
            assert_eq!((after.real, after.reason), (before.real, before.reason));
        }

        // Adopted twice, with changes of every kind in between.
        let tcp = vip(VIP4);
        katran.mark_up(tcp, ip(B)).unwrap();
        katran
            .add_real(tcp, Real::new(ip("198.51.100.10")))
            .unwrap();
        katran.remove_real(tcp, ip(C)).unwrap();
        katran.remove_vip(vip(UDP)).unwrap();
        serve(&mut katran, "203.0.113.77:1/tcp", VipFlags::empty(), &[C]);
        katran.server_ids_mut().remove(&[1, 2, 3]).unwrap();
        katran
            .server_ids_mut()
            .add(&[ServerId::new(5000, ip(A))])
            .unwrap();
        katran
            .reload(Features::default() | Features::SOURCE_ROUTING | Features::INLINE_DECAP)
            .unwrap();
        let state = katran.state();
        drop(katran);
        let katran = builder().pin(&directory).adopt().unwrap();
        assert_eq!(katran.state(), state);
        // A new balancer with this state behaves the same.
        let mut fresh = load(state.builder().unwrap());
        let _ = fresh.apply(&state).unwrap();
        for flow in flows(Protocol::Tcp, "203.0.113.77:1", 40) {
            let ran = [&katran, &fresh].map(|katran| katran.simulate(&syn(flow)).unwrap().real);
            assert!(ran[0] == ran[1] && ran[0].is_some());
        }
        katran.remove().unwrap();
        assert!(!directory.exists());
    }
}

#[test]
fn next_hops_of_reals_are_kept() {
    let directory = directory();
    let katran = load(builder().next_hops(NextHops::PerReal).pin(&directory));
    let state = katran.state();
    drop(katran);
    let katran = builder().pin(&directory).adopt().unwrap();
    assert_eq!(katran.state(), state);
    katran.remove().unwrap();
}

#[test]
fn pinned_programs_are_kept_if_they_are_current() {
    let directory = directory();
    let builder = || builder().pin(&directory);
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let id = |katran: &Katran| pins::program_id(katran.program_fd());
    let loaded = id(&katran);
    drop(katran);
    let katran = builder().adopt().unwrap();
    assert_eq!(id(&katran), loaded);
    drop(katran);
    // Another version, or another build, leaves no such file: what the programs were loaded with is
    // then unknown.
    fs::remove_file(directory.join("set/programs/constants")).unwrap();
    let mut katran = builder().adopt().unwrap();
    let renewed = id(&katran);
    assert_ne!(renewed, loaded);
    pins::eventually_gone(loaded);
    katran
        .reload(Features::default() | Features::SOURCE_ROUTING)
        .unwrap();
    let reloaded = id(&katran);
    assert_ne!(reloaded, renewed);
    drop(katran);
    let katran = builder().adopt().unwrap();
    assert_eq!(id(&katran), reloaded);
    let frame = syn(flows(Protocol::Tcp, "203.0.113.1:443", 1)[0]);
    assert_eq!(katran.simulate(&frame).unwrap().real, Some(ip(A)));
    katran.remove().unwrap();
    assert!(!directory.exists());
}

/// A fully settled ring still records the places where its history was. By now they belong to
/// another VIP's ring.
#[test]
fn a_settled_history_takes_no_ring() {
    let directory = directory();
    let mut katran = load(builder().pin(&directory));
    let first = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    katran.add_real(first, Real::new(ip(C))).unwrap();
    assert_ne!(katran.stats().slots(first).unwrap().unsettled, 0);
    let _ = katran.flows_mut().purge(first).unwrap();
    let others: Vec<_> = (2..12)
        .map(|port| {
            serve(
                &mut katran,
                &format!("203.0.113.9:{port}/tcp"),
                VipFlags::empty(),
                &[A, C],
            )
        })
        .collect();
    drop(katran);
    let mut katran = builder().pin(&directory).adopt().unwrap();
    let rings = |katran: &Katran| {
        for vip in others.iter().chain([&first]) {
            let slots = katran.stats().slots(*vip).unwrap();
            assert_eq!(
                (slots.settled, slots.unsettled),
                (crate::common::RING_SIZE, 0),
                "{vip}"
            );
            let to = format!("{}:{}", vip.address(), vip.port());
            for flow in flows(Protocol::Tcp, &to, 40) {
                assert!(
                    katran.simulate(&syn(flow)).unwrap().real.is_some(),
                    "{flow}"
                );
            }
        }
    };
    rings(&katran);
    // Free places are reused.
    let more = serve(
        &mut katran,
        "203.0.113.9:99/tcp",
        VipFlags::empty(),
        &[A, B],
    );
    katran.remove_real(more, ip(B)).unwrap();
    rings(&katran);
    katran.remove().unwrap();
}

/// Pairs that void a removed VIP's flows, left by a process that ended before it could remove them.
#[test]
fn void_flows_of_a_vip_that_is_gone_are_forgotten() {
    let directory = directory();
    drop(load(builder().pin(&directory)));
    let map = pins::open(&directory.join("set/maps/down_reals"));
    // Keys: the VIP's number, and its reals.
    for real in 1..4_u32 {
        let key = [9_u32, real].map(u32::to_ne_bytes).concat();
        bpf::update(map.as_fd(), &key, &1_u32.to_ne_bytes());
    }
    assert_eq!(bpf::dump(map.as_fd()).len(), 3);
    let katran = builder().pin(&directory).adopt().unwrap();
    eventually("nothing is void", || bpf::dump(map.as_fd()).is_empty());
    katran.remove().unwrap();
}

/// A replacement was interrupted by a process of another version with other counters: the counters
/// of the same form are carried over, and nothing of that set remains, as no owner could ever carry
/// it over.
#[test]
fn counters_of_another_form_are_not_kept() {
    /// The size of `struct real_counters`.
    const VALUE: u32 = 24;
    let directory = directory();
    let mut katran = load(builder().pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let [(_, number)] = katran.real_numbers()[..] else {
        panic!("there is one real");
    };
    drop(katran);
    let maps = directory.join("next_set/maps");
    fs::create_dir_all(&maps).unwrap();
    let contents = pins::open(&directory.join("set/contents"));
    pins::pin(contents.as_fd(), &directory.join("next_set/contents"));
    let kind = libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY;
    let of_others = crate::pins::map((kind, 4, VALUE + 8, 4, 0), c"vip_counters");
    pins::pin(of_others.as_fd(), &maps.join("vip_counters"));
    let alike = crate::pins::map((kind, 4, VALUE, 8, 0), c"real_counters");
    let cpus = bpf::count_on_all_cpus(alike.as_fd(), number.get(), 7);
    pins::pin(alike.as_fd(), &maps.join("real_counters"));

    let katran = builder().pin(&directory).adopt().unwrap();
    let counted = katran.stats().real(ip(A)).unwrap();
    assert_eq!(counted.forwarded.packets, 7 * cpus);
    assert!(!directory.join("next_set").exists());
    katran.remove().unwrap();
}

/// The previous owner has not removed the VIP's entries yet: they must not count for the VIP that
/// is added again.
#[test]
fn entries_of_a_vip_that_was_removed_do_not_come_back() {
    let directory = directory();
    // A single free number, so that it is reused; and a table that takes a while to walk.
    let settings = all_in_table().max_vips(2).flow_table_size(4_000_000);
    let mut katran = load(settings.pin(&directory));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A6]);
    katran
        .server_ids_mut()
        .add(&[ServerId::new(1, ip(A))])
        .unwrap();
    answers(&katran);
    katran.remove_vip(of).unwrap();
    drop(katran);
    let mut katran = builder().pin(&directory).adopt().unwrap();
    serve(&mut katran, VIP4, VipFlags::empty(), &[B]);
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 40) {
        let ran = katran.simulate(&syn(flow)).unwrap();
        assert_eq!(ran.real, Some(ip(B)), "{ran:?}");
    }
    katran.remove().unwrap();
}
