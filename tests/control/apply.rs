//! The declarative state against the kernel: `apply` makes the balancer what a document says with
//! the fewest changes, `state` returns it, and a refused document changes nothing.

use katran::DecapMode;
use katran::Error;
use katran::Flow;
use katran::FlowTracking;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealFlags;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::VipFlags;
use katran::flows::Reason;
use katran::state::Changes;
use katran::state::DecapState;
use katran::state::ServerIdState;
use katran::state::VipState;
use katran_lab::require_root;

use super::apply_names::WHOLE;
use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::vip;

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

pub(super) fn document() -> State {
    State::from_toml(DOCUMENT).unwrap()
}

/// A balancer made from a state: its settings, then its VIPs.
pub(super) fn from_state(state: &State) -> Katran {
    require_root();
    let mut katran = state.builder().unwrap().load().unwrap();
    let _ = katran.apply(state).unwrap();
    katran
}

/// Purges the flow tables and returns where each VIP's flows then go.
pub(super) fn routes(
    katran: &mut Katran,
) -> Vec<(Option<katran::Vip>, Option<std::net::IpAddr>, Vec<u8>)> {
    for vip in katran.vips() {
        katran.flows_mut().purge(vip).unwrap();
    }
    let tcp = ["203.0.113.1:443", "203.0.113.2:80", "203.0.113.3:80"];
    let tcp = tcp.into_iter().flat_map(|to| flows(Protocol::Tcp, to, 50));
    tcp.map(|flow| katran.simulate(&syn(flow)).unwrap())
        .map(|ran| (ran.vip, ran.real, ran.frame))
        .collect()
}

#[test]
fn a_document_survives_the_round_trip_through_a_balancer() {
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
    assert_eq!(routes(&mut second), routes(&mut first));
    for katran in [&mut first, &mut second] {
        for again in [document(), state.clone(), read.clone()] {
            let changes = katran.apply(&again).unwrap();
            assert!(changes.is_empty(), "{changes:?}");
        }
    }
}

#[test]
fn unchanged_parts_keep_flows_counters_and_numbers() {
    let mut state = document();
    state.balancer.as_mut().unwrap().flow_tracking = Some(FlowTracking::All);
    let mut katran = from_state(&state);
    let one = vip("203.0.113.1:443/tcp");
    let flow = Flow::tcp(at("192.0.2.7:40001"), at("203.0.113.1:443"));
    let real = katran.simulate(&syn(flow)).unwrap().real;
    let before = katran.stats().vip(one).unwrap();
    let number = katran.real_index(ip("198.51.100.1"));
    let table = bpf::flow_entries(katran.flows().table_fd(0).unwrap());
    assert_eq!(table.len(), 1);

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
    expected.settings_changed = vec!["gateway_mac"];
    assert_eq!(changes, expected);

    assert_eq!(katran.stats().vip(one).unwrap(), before);
    assert_eq!(katran.real_index(ip("198.51.100.1")), number);
    assert_eq!(
        bpf::flow_entries(katran.flows().table_fd(0).unwrap()),
        table
    );
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
        assert_eq!(routes(&mut katran), routes(&mut fresh));
    }
}

/// Checks that the state is refused, and that state, routes and flow table stay the same.
fn refused(katran: &mut Katran, state: &State) -> Error {
    let before = (katran.state(), routes(katran), katran.real_numbers());
    let table = bpf::flow_entries(katran.flows().table_fd(0).unwrap());
    let error = katran.apply(state).unwrap_err();
    assert_eq!(
        bpf::flow_entries(katran.flows().table_fd(0).unwrap()),
        table
    );
    let after = (katran.state(), routes(katran), katran.real_numbers());
    assert_eq!(after, before, "{error}");
    error
}

#[test]
fn a_document_without_a_table_size_has_that_of_its_tracking() {
    for (tracking, size) in [("all", 8_000_000), ("changed", 4_000_000)] {
        let head = format!("flow_tracking = \"{tracking}\"\nforwarding_cpus = [0]");
        let text = DOCUMENT.replace("flow_table_size = 10000", &head);
        let state = State::from_toml(&text).unwrap();
        let mut katran = from_state(&state);
        let told = katran.state();
        assert_eq!(told.balancer.as_ref().unwrap().flow_table_size, Some(size));
        // A document without a size, and one with the same size, both change nothing.
        assert!(katran.apply(&state).unwrap().is_empty());
        assert!(katran.apply(&told).unwrap().is_empty());
        katran.reload(katran::Features::default()).unwrap();
        let told = katran.state();
        assert_eq!(told.balancer.unwrap().flow_table_size, Some(size));
    }
}

#[test]
fn features_are_enabled_first_and_disabled_last() {
    let whole = State::from_toml(WHOLE).unwrap();
    let mut bare = whole.clone();
    let settings = bare.balancer.as_mut().unwrap();
    settings.features = Some(katran::Features::GLOBAL_FLOW_TABLE);
    bare.source_routes.clear();
    bare.decap.clear();
    let mut katran = from_state(&bare);
    let changes = katran.apply(&whole).unwrap();
    assert_eq!(changes.settings_changed, ["features"]);
    assert!(
        changes.to_string().contains("1 setting changed (features)"),
        "{changes}"
    );
    assert_eq!(
        Some(katran.features()),
        whole.balancer.as_ref().unwrap().features
    );
    assert_eq!(katran.source_routes().count(), 2);
    assert!(katran.apply(&whole).unwrap().is_empty());
    // And back to the earlier state.
    katran.apply(&bare).unwrap();
    assert_eq!(katran.features(), katran::Features::GLOBAL_FLOW_TABLE);
    assert!(katran.apply(&bare).unwrap().is_empty());

    // A document that uses a feature it disables changes nothing.
    let mut wrong = whole.clone();
    wrong.balancer.as_mut().unwrap().features = Some(katran::Features::INLINE_DECAP);
    let error = refused(&mut katran, &wrong);
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    katran.apply(&whole).unwrap();
    let error = refused(&mut katran, &wrong);
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    wrong.balancer.as_mut().unwrap().features = Some(katran::Features::FLOW_DEBUG);
    let error = refused(&mut katran, &wrong);
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(katran.source_routes().count(), 2);
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
    let mut quic = document();
    quic.vips[2].flags = VipFlags::QUIC;
    assert!(matches!(
        refused(&mut katran, &quic),
        Error::InvalidConfig { .. }
    ));
    // A feature that the balancer was loaded without.
    let mut routes = document();
    routes.vips.remove(0);
    let prefix = "100.64.0.0/10".parse().unwrap();
    routes.source_routes = vec![SourceRoute::new(prefix, ip("198.51.100.7"))];
    let error = refused(&mut katran, &routes);
    assert!(error.to_string().contains("source-routing"), "{error}");
    let mut ends = document();
    ends.vips.remove(0);
    ends.decap = vec![DecapState::new(ip("192.0.2.200"), DecapMode::Inline)];
    let error = refused(&mut katran, &ends);
    assert!(error.to_string().contains("inline-decap"), "{error}");
    let mut ids = document();
    ids.vips.remove(0);
    ids.server_ids = vec![ServerIdState::new(ServerId::new(0, ip("198.51.100.7")))];
    assert!(matches!(
        refused(&mut katran, &ids),
        Error::InvalidConfig { .. }
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
