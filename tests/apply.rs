//! The declarative state against the kernel: `apply` makes the balancer what a document says with
//! the fewest changes, `state` gives it back, and what is refused changes nothing.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod common;

use common::at;
use common::bpf;
use common::builder;
use common::flows;
use common::frames::frame;
use common::frames::syn;
use common::ip;
use common::load;
use common::serve;
use common::vip;
use katran::Changes;
use katran::Error;
use katran::Flow;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealFlags;
use katran::Reason;
use katran::State;
use katran::VipFlags;
use katran::VipState;
use katran_lab::require_root;

const DOCUMENT: &str = r#"
[balancer]
gateway_mac = "0a:00:00:00:00:fe"
encapsulation = "ipip"
source_v4 = "10.10.10.10"
max_frame = 1514
max_vips = 16
max_reals = 64
ring_size = 1009
flow_table_size = 10000
features = ["icmp-too-big", "local-delivery"]

[[vip]]
address = "203.0.113.1"
port = 443
protocol = "tcp"
flags = ["no-src-port"]
hash = "maglev"
reals = [ { address = "198.51.100.1", weight = 3 }, { address = "2001:db8:2::1", local = true } ]

[[vip]]
address = "2001:db8:1::"
prefix_length = 64
port = 0
protocol = "udp"
reals = [ { address = "198.51.100.1" }, { address = "198.51.100.2", weight = 0 } ]

[[vip]]
address = "203.0.113.2"
port = 80
protocol = "tcp"
"#;

fn document() -> State {
    State::from_toml(DOCUMENT).unwrap()
}

/// A balancer made from a state: its settings, then what it balances.
fn from_state(state: &State) -> Katran {
    require_root();
    let mut katran = state.builder().unwrap().load().unwrap();
    let _ = katran.apply(state).unwrap();
    katran
}

/// Where the flows of every VIP of the document go; SYNs, so that no entry decides.
fn routes(katran: &Katran) -> Vec<(Option<katran::Vip>, Option<std::net::IpAddr>, Vec<u8>)> {
    let tcp = ["203.0.113.1:443", "203.0.113.2:80", "203.0.113.3:80"];
    let tcp = tcp.into_iter().flat_map(|to| flows(Protocol::Tcp, to, 50));
    tcp.map(|flow| katran.simulate(&syn(flow)).unwrap())
        .map(|ran| (ran.vip, ran.real, ran.frame))
        .collect()
}

#[test]
fn a_document_becomes_a_balancer_and_a_document_again() {
    let mut first = from_state(&document());
    assert_eq!(first.vips().len(), 3);
    let one = vip("203.0.113.1:443/tcp");
    assert_eq!(first.vip_flags(one).unwrap(), VipFlags::NO_SRC_PORT);
    assert_eq!(first.hash_function(one).unwrap(), HashFunction::Maglev);
    let reals = first.reals(one).unwrap();
    assert_eq!(reals[0].get_weight(), 3);
    let local = RealFlags::LOCAL_REAL | RealFlags::IPV6;
    assert_eq!(reals[1].get_flags(), Some(local));

    let state = first.state();
    let text = state.to_toml().unwrap();
    let read = State::from_toml(&text).unwrap();
    let mut second = from_state(&read);
    assert_eq!(second.state(), state, "{text}");
    assert_eq!(second.state().to_toml().unwrap(), text);
    assert_eq!(routes(&second), routes(&first));
    for katran in [&mut first, &mut second] {
        for again in [document(), state.clone(), read.clone()] {
            let changes = katran.apply(&again).unwrap();
            assert!(changes.is_empty(), "{changes:?}");
        }
    }
}

#[test]
fn what_does_not_change_keeps_flows_counters_and_numbers() {
    let mut katran = from_state(&document());
    let one = vip("203.0.113.1:443/tcp");
    let flow = Flow::tcp(at("192.0.2.7:40001"), at("203.0.113.1:443"));
    let real = katran.simulate(&syn(flow)).unwrap().real;
    let before = katran.vip_counters(one).unwrap();
    let number = katran.real_index(ip("198.51.100.1"));
    let table = bpf::flow_entries(katran.flow_table_fd(0).unwrap());
    assert_eq!(table.len(), 1);

    let mut state = document();
    state.vips.retain(|entry| entry.vip.port() != 80);
    let mut new = VipState::new(vip("203.0.113.3:80/tcp"));
    new.reals = vec![Real::new(ip("198.51.100.9"))];
    state.vips.push(new);
    state.vips[1].reals[1] = Real::new(ip("198.51.100.2")).weight(4);
    state.balancer.as_mut().unwrap().gateway_mac = Some("0a:00:00:00:00:0f".parse().unwrap());
    let changes = katran.apply(&state).unwrap();

    let udp = vip("[2001:db8:1::/64]:0/udp");
    let third = vip("203.0.113.3:80/tcp");
    let mut expected = Changes::default();
    expected.vips_added = vec![third];
    expected.vips_removed = vec![vip("203.0.113.2:80/tcp")];
    expected.reals_added = vec![(third, ip("198.51.100.9"))];
    expected.reals_changed = vec![(udp, ip("198.51.100.2"))];
    expected.gateway_changed = true;
    assert_eq!(changes, expected);

    assert_eq!(katran.vip_counters(one).unwrap(), before);
    assert_eq!(katran.real_index(ip("198.51.100.1")), number);
    assert_eq!(bpf::flow_entries(katran.flow_table_fd(0).unwrap()), table);
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (real, Reason::FlowTable));
    assert_eq!(ran.frame[..6], [0x0a, 0, 0, 0, 0, 0x0f]);
    let old = Flow::tcp(flow.source, at("203.0.113.2:80"));
    assert_eq!(
        katran.simulate(&frame(old)).unwrap().reason,
        Reason::NotAVip
    );
}

#[test]
fn any_order_of_states_ends_in_the_last_one() {
    let mut katran = load(builder());
    let mut swapped = document();
    let reals = swapped.vips[0].reals.clone();
    swapped.vips[2].reals = reals;
    swapped.vips[0].reals.clear();
    swapped.vips[0].flags = VipFlags::SRC_DST_PORT;
    let states = [document(), swapped, State::default(), document()];
    for mut state in states {
        state.balancer = None;
        let _ = katran.apply(&state).unwrap();
        let mut fresh = load(builder());
        let _ = fresh.apply(&state).unwrap();
        assert_eq!(katran.state(), fresh.state());
        assert_eq!(routes(&katran), routes(&fresh));
    }
}

/// Applying this is refused, and neither state nor routes nor flow table move.
fn refused(katran: &mut Katran, state: &State) -> Error {
    let before = (katran.state(), routes(katran), katran.real_numbers());
    let table = bpf::flow_entries(katran.flow_table_fd(0).unwrap());
    let error = katran.apply(state).unwrap_err();
    assert_eq!(bpf::flow_entries(katran.flow_table_fd(0).unwrap()), table);
    let after = (katran.state(), routes(katran), katran.real_numbers());
    assert_eq!(after, before, "{error}");
    error
}

#[test]
fn settings_of_the_load_are_refused() {
    let mut katran = from_state(&document());
    let mut change = |name: &str, change: fn(&mut katran::BalancerState)| {
        let mut state = document();
        state.vips.remove(0);
        change(state.balancer.as_mut().unwrap());
        match refused(&mut katran, &state) {
            Error::LoadTimeSetting { setting, .. } => assert_eq!(setting, name),
            other => panic!("{other}"),
        }
    };
    change("ring_size", |balancer| balancer.ring_size = Some(65_537));
    change("max_vips", |balancer| balancer.max_vips = Some(17));
    change("max_frame", |balancer| balancer.max_frame = Some(9014));
    change("flow_table_size", |balancer| {
        balancer.flow_table_size = Some(1)
    });
    change("features", |balancer| {
        balancer.features = Some(katran::Features::empty())
    });
}

#[test]
fn a_state_that_does_not_fit_is_refused_whole() {
    let mut katran = from_state(&document());
    let mut vips = document();
    for i in 0..16 {
        vips.vips
            .push(VipState::new(vip(&format!("203.0.113.77:{}/tcp", i + 1))));
    }
    vips.vips.remove(0);
    let error = refused(&mut katran, &vips);
    assert!(
        matches!(error, Error::Exhausted { limit: 16, .. }),
        "{error}"
    );

    let mut reals = document();
    reals.vips[2].reals = (0..70u8)
        .map(|i| Real::new([192, 0, 2, i].into()))
        .collect();
    reals.vips.remove(0);
    let error = refused(&mut katran, &reals);
    assert!(
        matches!(error, Error::Exhausted { limit: 64, .. }),
        "{error}"
    );

    let mut twice = document();
    twice.vips.push(twice.vips[0].clone());
    assert!(matches!(
        refused(&mut katran, &twice),
        Error::Document { .. }
    ));
    let mut later = document();
    later.vips[2].flags = VipFlags::SRC_ROUTING;
    assert!(matches!(
        refused(&mut katran, &later),
        Error::Unsupported { .. }
    ));
    let mut bad = document();
    bad.vips.remove(0);
    bad.vips[0].reals.push(Real::new(ip("224.0.0.1")));
    assert!(matches!(
        refused(&mut katran, &bad),
        Error::InvalidAddress { .. }
    ));
    let mut gateway = document();
    gateway.vips.remove(0);
    gateway.balancer.as_mut().unwrap().gateway_mac = Some("01:00:00:00:00:00".parse().unwrap());
    assert!(matches!(
        refused(&mut katran, &gateway),
        Error::InvalidConfig { .. }
    ));
}

#[test]
fn a_full_balancer_can_be_replaced_by_another_full_one() {
    let mut katran = load(builder().max_vips(3).max_reals(3));
    let of = |octet: u8| {
        let mut state = State::default();
        for i in 0..3 {
            let mut entry = VipState::new(vip(&format!("203.0.{octet}.{i}:80/tcp")));
            entry.reals = vec![Real::new([198, 51, octet, i + 1].into())];
            state.vips.push(entry);
        }
        state
    };
    for octet in [1, 2, 3, 1] {
        let changes = katran.apply(&of(octet)).unwrap();
        assert_eq!(
            (changes.vips_added.len(), changes.reals_added.len()),
            (3, 3)
        );
        for i in 0..3 {
            let to = (std::net::IpAddr::from([203, 0, octet, i]), 80).into();
            let ran = katran
                .simulate(&frame(Flow::tcp(at("192.0.2.7:1"), to)))
                .unwrap();
            assert_eq!(ran.real, Some([198, 51, octet, i + 1].into()));
        }
    }
}

#[test]
fn calls_and_states_are_one_thing() {
    let mut katran = load(builder());
    let one = serve(
        &mut katran,
        "203.0.113.1:443/tcp",
        VipFlags::NO_SRC_PORT,
        &["198.51.100.1"],
    );
    katran.set_hash_function(one, HashFunction::Maglev).unwrap();
    katran
        .set_real_flags(ip("198.51.100.1"), RealFlags::LOCAL_REAL)
        .unwrap();
    katran
        .set_gateway_mac("0a:00:00:00:00:0f".parse().unwrap())
        .unwrap();
    let state = katran.state();
    let mut other = from_state(&state);
    assert_eq!(other.state(), state);
    other.remove_real(one, ip("198.51.100.1")).unwrap();
    let changes = other.apply(&state).unwrap();
    assert_eq!(changes.reals_added, [(one, ip("198.51.100.1"))]);
    assert_eq!(other.state(), state);
}
