//! The library against the kernel: VIPs and reals added and removed, full tables, refused calls
//! that change nothing, reused numbers, callbacks.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;

use katran::Builder;
use katran::Error;
use katran::Flow;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::RealFlags;
use katran::RealNumber;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Simulation;
use katran::stats::DropReason;
use katran::stats::MapUse;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::TO_VIP4;
use crate::common::fixtures::VIP4;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

const D6: &str = "2001:db8:2::4";

fn add(address: &str) -> RealChange {
    RealChange::Add(Real::new(ip(address)))
}

/// The configuration, and the results for packets. Its VIPs bypass the flow table, so that asking
/// changes nothing.
fn observe(katran: &Katran) -> (State, Vec<Simulation>, Vec<(IpAddr, RealNumber)>) {
    let to = ["203.0.113.1:443", "203.0.113.2:443", "[2001:db8:1::1]:443"];
    let frames = to.into_iter().flat_map(|to| flows(Protocol::Tcp, to, 30));
    let simulations = frames
        .map(|flow| katran.simulate(&syn(flow)).unwrap())
        .collect();
    (katran.state(), simulations, katran.real_numbers())
}

fn map_use(katran: &Katran, name: &str) -> MapUse {
    let maps = katran.stats().library().unwrap().maps;
    maps.into_iter().find(|map| map.name == name).unwrap()
}

#[test]
fn vips_are_added_and_removed() {
    let mut katran = load(builder());
    let texts = [VIP4, "203.0.113.0/24:0/udp", "[2001:db8:1::1]:0/tcp"];
    let flags = [
        VipFlags::NO_SRC_PORT,
        VipFlags::empty(),
        VipFlags::LRU_BYPASS,
    ];
    for (text, flags) in texts.into_iter().zip(flags) {
        katran.add_vip(vip(text), flags).unwrap();
        let error = katran.add_vip(vip(text), VipFlags::empty()).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let mut expected: Vec<Vip> = texts.into_iter().map(vip).collect();
    expected.sort();
    assert_eq!(katran.vips(), expected);
    for (text, flags) in texts.into_iter().zip(flags) {
        assert_eq!(katran.vip_flags(vip(text)).unwrap(), flags);
        assert!(katran.reals(vip(text)).unwrap().is_empty());
        katran.remove_vip(vip(text)).unwrap();
        katran.add_vip(vip(text), flags).unwrap();
        katran.remove_vip(vip(text)).unwrap();
    }
    assert!(katran.vips().is_empty());
    let gone = vip(VIP4);
    let errors = [
        katran.remove_vip(gone).unwrap_err(),
        katran.vip_flags(gone).unwrap_err(),
        katran.set_vip_flags(gone, VipFlags::empty()).unwrap_err(),
        katran.hash_function(gone).unwrap_err(),
        katran
            .set_hash_function(gone, HashFunction::Maglev)
            .unwrap_err(),
        katran.reals(gone).unwrap_err(),
        katran.add_real(gone, Real::new(ip(A))).unwrap_err(),
        katran.remove_real(gone, ip(A)).unwrap_err(),
        katran.stats().vip(gone).unwrap_err(),
        katran.stats_mut().watch_misses(gone).unwrap_err(),
        katran
            .set_real_flags(ip(A), RealFlags::LOCAL_REAL)
            .unwrap_err(),
        katran.stats().real(ip(A)).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}

#[test]
fn every_vip_there_is_room_for_has_a_ring() {
    const VIPS: u32 = 150;
    let mut katran = load(builder().max_vips(VIPS).max_reals(VIPS));
    let address = |i: u32| -> IpAddr { (0xcb00_0000 + i).to_be_bytes().into() };
    let real = |i: u32| -> IpAddr { (0x0a00_0000 + i).to_be_bytes().into() };
    let add = |katran: &mut Katran, i| -> Result<(), Error> {
        let vip = Vip::tcp((address(i), 443).into());
        katran.add_vip(vip, VipFlags::empty())?;
        katran.add_real(vip, Real::new(real(i)))
    };
    let rings = map_use(&katran, "ring_chunk");
    assert_eq!(rings.entries, 0);
    assert!(rings.capacity >= u64::from(VIPS));
    let empty = katran.stats().memory_in_use().unwrap();
    let mut memory = Vec::new();
    for i in 0..VIPS {
        add(&mut katran, i).unwrap();
        if (i + 1) % 25 == 0 {
            assert_eq!(map_use(&katran, "ring_chunk").entries, u64::from(i + 1));
            memory.push(katran.stats().memory_in_use().unwrap() - empty);
        }
    }
    // Rings are allocated eight at a time, with page rounding; the load allocates the first eight.
    let last = memory[memory.len() - 1] as f64;
    for (steps, bytes) in (1..).zip(&memory) {
        let share = *bytes as f64 / last;
        let expected = f64::from(steps) / memory.len() as f64;
        assert!((share - expected).abs() < 0.08, "{memory:?}");
    }
    let error = add(&mut katran, VIPS).unwrap_err();
    assert!(
        matches!(error, Error::Exhausted { limit, what } if limit == u64::from(VIPS) && what.contains("max_vips")),
        "{error}"
    );
    // With all of them in use, rings can still be switched, repeatedly.
    for i in 0..VIPS {
        let vip = Vip::tcp((address(i), 443).into());
        katran
            .add_real(vip, Real::new(real(i)).weight(i + 2))
            .unwrap();
        katran.set_hash_function(vip, HashFunction::Maglev).unwrap();
        let flow = Flow::tcp(at("192.0.2.7:40001"), (address(i), 443).into());
        assert_eq!(katran.simulate(&frame(flow)).unwrap().real, Some(real(i)));
    }
    for i in 0..VIPS {
        katran
            .remove_vip(Vip::tcp((address(i), 443).into()))
            .unwrap();
    }
    assert_eq!(map_use(&katran, "reals").entries, 0);
    assert_eq!(map_use(&katran, "vips").entries, 0);
    for i in 0..VIPS {
        add(&mut katran, VIPS + i).unwrap();
    }
}

#[test]
fn full_tables_refuse_and_stay_unchanged() {
    let mut katran = load(builder().max_vips(2).max_reals(3));
    let one = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    let two = serve(
        &mut katran,
        "203.0.113.2:443/tcp",
        VipFlags::LRU_BYPASS,
        &[B],
    );
    let before = observe(&katran);
    let error = katran.add_vip(vip("[2001:db8:1::1]:443/tcp"), VipFlags::empty());
    assert!(
        matches!(error, Err(Error::Exhausted { limit: 2, .. })),
        "{error:?}"
    );
    // The first of the two would fit.
    let error = katran.modify_reals(two, &[add(C), add(D6)]);
    assert!(
        matches!(error, Err(Error::Exhausted { limit: 3, what }) if what.contains("max_reals")),
        "{error:?}"
    );
    assert_eq!(observe(&katran), before);
    assert_eq!(katran.real_index(ip(C)), None);

    katran.add_real(two, Real::new(ip(C))).unwrap();
    // Another VIP's real needs no room; and a batch cannot use the room that it frees.
    katran.add_real(two, Real::new(ip(A))).unwrap();
    let full = observe(&katran);
    let change = [RealChange::Remove(ip(C)), add(D6)];
    let error = katran.modify_reals(two, &change);
    assert!(matches!(error, Err(Error::Exhausted { .. })), "{error:?}");
    assert_eq!(observe(&katran), full);
    for change in change {
        katran.modify_reals(two, &[change]).unwrap();
    }
    katran.remove_vip(one).unwrap();
    assert_eq!(katran.real_numbers().len(), 3);
}

#[test]
fn batches_are_all_or_nothing() {
    let mut katran = load(builder());
    let one = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    let before = observe(&katran);
    let missing = katran.modify_reals(one, &[add(C), RealChange::Remove(ip(D6))]);
    assert!(
        matches!(missing, Err(Error::NotFound { .. })),
        "{missing:?}"
    );
    let invalid = katran.modify_reals(one, &[RealChange::Remove(ip(A)), add("224.0.0.1")]);
    assert!(
        matches!(invalid, Err(Error::InvalidAddress { .. })),
        "{invalid:?}"
    );
    assert_eq!(observe(&katran), before);
    // In order: the last change for an address counts.
    let changes = [
        add(C),
        RealChange::Remove(ip(C)),
        RealChange::Add(Real::new(ip(B)).weight(7)),
        RealChange::Add(Real::new(ip(D6)).weight(2)),
        RealChange::Remove(ip(A)),
    ];
    katran.modify_reals(one, &changes).unwrap();
    let reals = katran.reals(one).unwrap();
    let reals: Vec<(IpAddr, u32)> = reals
        .into_iter()
        .map(|real| (real.address(), real.get_weight()))
        .collect();
    assert_eq!(reals, [(ip(B), 7), (ip(D6), 2)]);
    katran.modify_reals(one, &[]).unwrap();
}

#[test]
fn invalid_addresses_are_refused_and_counted() {
    let mut katran = load(builder());
    let one = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A]);
    let before = observe(&katran);
    let mut refused = 0;
    for bad in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
    ] {
        let error = katran.add_real(one, Real::new(ip(bad))).unwrap_err();
        assert!(matches!(error, Error::InvalidAddress { address, .. } if address == ip(bad)));
        refused += 1;
        if bad != "fe80::1" {
            let vip = Vip::tcp((ip(bad), 443).into());
            let error = katran.add_vip(vip, VipFlags::empty()).unwrap_err();
            assert!(matches!(error, Error::InvalidAddress { address, .. } if address == ip(bad)));
            refused += 1;
        }
    }
    let mut state = katran.state();
    state.vips[0].reals.push(Real::new(ip("224.0.0.2")));
    let error = katran.apply(&state).unwrap_err();
    assert!(matches!(error, Error::InvalidAddress { .. }), "{error}");
    let library = katran.stats().library().unwrap();
    assert_eq!(library.rejected_addresses, refused + 1);
    assert_eq!(library.failed_kernel_calls, 0);
    assert_eq!(observe(&katran), before);
    // An IPv4-mapped address is the IPv4 address.
    katran
        .add_real(one, Real::new(ip("::ffff:198.51.100.1")).weight(5))
        .unwrap();
    assert_eq!(katran.reals(one).unwrap().len(), 1);
    assert_eq!(
        katran.real_index(ip("::ffff:198.51.100.1")),
        katran.real_index(ip(A))
    );
}

#[test]
fn invalid_flags_are_refused() {
    let mut katran = load(builder());
    let (udp, tcp) = (vip("203.0.113.1:443/udp"), vip("203.0.113.1:443/tcp"));
    let error = katran.add_vip(tcp, VipFlags::QUIC).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    katran.add_vip(udp, VipFlags::all()).unwrap();
    katran.set_vip_flags(udp, VipFlags::LRU_BYPASS).unwrap();
    let unknown = VipFlags::from_bits_retain(1 << 30);
    assert!(katran.set_vip_flags(udp, unknown).is_err());
    assert!(katran.add_vip(tcp, unknown).is_err());
    assert_eq!(katran.vip_flags(udp).unwrap(), VipFlags::LRU_BYPASS);
    assert_eq!(katran.vips(), [udp]);
}

#[test]
fn a_real_lives_as_long_as_a_vip_names_it() {
    let mut katran = load(builder());
    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let two = serve(
        &mut katran,
        "203.0.113.2:443/tcp",
        VipFlags::empty(),
        &[B, C],
    );
    let number = katran.real_index(ip(B)).unwrap();
    assert!(number.get() > 0, "0 is never used");
    let flow = Flow::tcp(at("192.0.2.7:40001"), at("203.0.113.2:443"));
    katran.simulate(&frame(flow)).unwrap();
    let forwarded = katran.stats().real(ip(B)).unwrap();
    // Adding it again changes its weight.
    katran.add_real(one, Real::new(ip(B)).weight(9)).unwrap();
    katran.remove_real(one, ip(B)).unwrap();
    assert_eq!(katran.real_index(ip(B)), Some(number));
    assert_eq!(katran.stats().real(ip(B)).unwrap(), forwarded);
    assert!(matches!(
        katran.remove_real(one, ip(B)),
        Err(Error::NotFound { .. })
    ));
    katran.remove_vip(two).unwrap();
    assert_eq!(katran.real_index(ip(B)), None);
    assert_eq!(katran.real_index(ip(C)), None);
    let numbers: Vec<IpAddr> = katran
        .real_numbers()
        .into_iter()
        .map(|(real, _)| real)
        .collect();
    assert_eq!(numbers, [ip(A)]);
}

#[test]
fn flags_of_a_real_are_the_same_for_all_vips() {
    let mut katran = load(builder());
    let one = serve(&mut katran, VIP4, VipFlags::LOCAL_VIP, &[A, D6]);
    let two = serve(&mut katran, "203.0.113.2:443/tcp", VipFlags::empty(), &[A]);
    let flags = RealFlags::LOCAL_REAL | RealFlags::from_bits_retain(0b1010_0000);
    katran.set_real_flags(ip(A), flags).unwrap();
    for vip in [one, two] {
        assert_eq!(katran.reals(vip).unwrap()[0].get_flags(), Some(flags));
    }
    // Changing a weight keeps the flags; the family's bit is the library's.
    katran.add_real(two, Real::new(ip(A)).weight(3)).unwrap();
    assert_eq!(katran.reals(one).unwrap()[0].get_flags(), Some(flags));
    katran.set_real_flags(ip(D6), RealFlags::empty()).unwrap();
    assert_eq!(
        katran.reals(one).unwrap()[1].get_flags(),
        Some(RealFlags::IPV6)
    );
    let drained = RealChange::Add(Real::new(ip(A)).weight(0));
    katran.modify_reals(one, &[drained]).unwrap();
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!(
        (ran.real, &ran.frame[12..14]),
        (Some(ip(D6)), &[0x86, 0xdd][..])
    );
}

#[test]
fn reused_numbers_start_afresh() {
    for (builder, reason) in [
        (all_in_table(), Reason::Ring),
        (builder(), Reason::SettledSlot),
    ] {
        let mut katran = load(builder.max_vips(2).max_reals(2).ring_size(13));
        for round in 0..40u8 {
            let text = format!("203.0.113.{round}:443/tcp");
            let reals = [1, 2].map(|i| format!("198.51.{}.{i}", 100 + round));
            let vip = serve(
                &mut katran,
                &text,
                VipFlags::empty(),
                &[&reals[0], &reals[1]],
            );
            assert_eq!(katran.stats().vip(vip).unwrap(), Default::default());
            let to = format!("203.0.113.{round}:443");
            for flow in flows(Protocol::Tcp, &to, 20) {
                let ran = katran.simulate(&frame(flow)).unwrap();
                assert_eq!(ran.reason, reason);
                assert!(reals.contains(&ran.real.unwrap().to_string()));
            }
            let stats = katran.stats().reals(&reals.map(|real| ip(&real))).unwrap();
            let packets: u64 = stats.iter().map(|real| real.forwarded.packets).sum();
            assert_eq!(packets, 20, "from zero");
            katran.remove_vip(vip).unwrap();
        }
    }
}

/// The callbacks' calls, in order.
type Told = Arc<Mutex<Vec<(&'static str, IpAddr, RealNumber)>>>;

#[test]
fn callbacks_report_added_and_removed_reals() {
    let mut katran = load(builder());
    let told = Told::default();
    let note = |what| {
        let told = Arc::clone(&told);
        move |address, number| told.lock().unwrap().push((what, address, number))
    };
    let first = katran.on_real_added(note("added"));
    let removed = katran.on_real_removed(note("removed"));
    let take = || std::mem::take(&mut *told.lock().unwrap());

    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let number = |katran: &Katran, address| katran.real_index(ip(address)).unwrap();
    let (a, b) = (number(&katran, A), number(&katran, B));
    assert_eq!(take(), [("added", ip(A), a), ("added", ip(B), b)]);
    let two = serve(&mut katran, "203.0.113.2:443/tcp", VipFlags::empty(), &[B]);
    katran.add_real(one, Real::new(ip(A)).weight(3)).unwrap();
    katran.remove_real(one, ip(B)).unwrap();
    assert!(
        katran
            .modify_reals(one, &[add(C), RealChange::Remove(ip(D6))])
            .is_err()
    );
    assert_eq!(take(), [], "calls for reals that stay, or were refused");
    katran.remove_vip(two).unwrap();
    assert_eq!(take(), [("removed", ip(B), b)]);

    let second = katran.on_real_added(note("added too"));
    assert!(katran.remove_callback(first));
    assert!(!katran.remove_callback(first));
    katran
        .modify_reals(one, &[add(C), RealChange::Remove(ip(A))])
        .unwrap();
    let c = number(&katran, C);
    assert_eq!(take(), [("added too", ip(C), c), ("removed", ip(A), a)]);
    assert!(katran.remove_callback(second) && katran.remove_callback(removed));
    katran.remove_vip(one).unwrap();
    assert_eq!(take(), []);
}

#[test]
fn a_removed_vip_leaves_nothing_on_the_wire() {
    let mut katran = load(builder());
    let one = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    katran.simulate(&frame(flow)).unwrap();
    katran.remove_vip(one).unwrap();
    assert_eq!(
        katran.simulate(&frame(flow)).unwrap().reason,
        Reason::NotAVip
    );
    assert_eq!(katran.real_for_flow(&flow).unwrap(), None);
    katran.add_vip(one, VipFlags::empty()).unwrap();
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
}

#[test]
fn a_question_about_two_families_is_refused() {
    let katran = load(builder());
    let flow = Flow::tcp(at("192.0.2.7:1"), at("[2001:db8::1]:1"));
    let error = katran.real_for_flow(&flow).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidConfig {
                setting: "flow",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn maps_are_known_by_their_names() {
    let katran = load(builder());
    let estimate = builder().memory_estimate().unwrap();
    for map in estimate.maps() {
        let known = match map.name {
            "flows" => katran.flows().table_fd(0).is_some(),
            "ring_chunk" => katran.map_fd("rings").is_some(),
            // Constants, and a map that only the follower of next hops writes.
            "rodata" | ".data.ports" => true,
            name => katran.map_fd(name).is_some(),
        };
        assert!(known, "{}", map.name);
    }
    assert!(katran.map_fd("nonsense").is_none());
    assert!(katran.flows().table_fd(100_000).is_none());
}

#[test]
fn sizes_out_of_range_are_refused_before_anything_is_made() {
    katran_lab::require_root();
    type Change = fn(Builder) -> Builder;
    let cases: [(&str, Change); 9] = [
        ("max_vips", |builder| builder.max_vips(0)),
        ("max_vips", |builder| builder.max_vips(65_536)),
        ("max_reals", |builder| builder.max_reals(65_536)),
        ("ring_size", |builder| builder.ring_size(65_536)),
        ("ring_size", |builder| builder.ring_size(2)),
        ("flow_table_size", |builder| builder.flow_table_size(0)),
        ("max_frame", |builder| builder.max_frame(589)),
        ("forwarding_cpus", |builder| {
            builder.forwarding_cpus([100_000])
        }),
        ("flood_threshold", |builder| builder.flood_threshold(0)),
    ];
    for (expected, change) in cases {
        let error = change(builder()).load().unwrap_err();
        assert!(
            matches!(&error, Error::InvalidConfig { setting, .. } if *setting == expected),
            "{error}"
        );
    }
    let error = Katran::builder().load().unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidConfig {
                setting: "gateway_mac",
                ..
            }
        ),
        "{error}"
    );
}
