//! What a state has besides VIPs and reals: server ids, source routes, marks, tunnel ends. `apply`
//! and the single calls give the same result.

use std::collections::BTreeMap;

use katran::DecapMode;
use katran::Error;
use katran::HashFunction;
use katran::Katran;
use katran::Prefix;
use katran::Real;
use katran::RealFlags;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::VipFlags;
use katran::state::Changes;
use katran::state::DecapState;
use katran::state::ServerIdState;
use katran_lab::eventually;
use nix::errno::Errno;

use super::apply::from_state;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

/// Everything that a state can say besides VIPs.
pub(super) const WHOLE: &str = r#"
[balancer]
gateway_mac = "0a:00:00:00:00:fe"
max_vips = 16
max_reals = 64
ring_size = 1009
flow_table_size = 10000
max_source_routes = 4
max_decap = 2
max_server_ids = 4
source_v4 = "10.10.10.10"
features = ["source-routing", "inline-decap", "tcp-server-id"]

[[vip]]
address = "203.0.113.1"
port = 443
protocol = "udp"
flags = ["src-routing", "udp-flow-migration"]
reals = [ { address = "198.51.100.1" }, { address = "198.51.100.2", down = true } ]

[[server_id]]
id = 1
real = "198.51.100.1"

[[server_id]]
id = 2
real = "198.51.100.3"
valid = false

[[source_route]]
prefix = "100.64.0.0/10"
real = "198.51.100.4"

[[source_route]]
prefix = "2001:db8:c::/48"
real = "2001:db8:2::4"

[[decap]]
address = "192.0.2.200"
mode = "inline"

[[decap]]
address = "2001:db8:d::1"
mode = "egress"

[[mark]]
mark = 1000
real = "198.51.100.1"

[[probe]]
address = "203.0.113.1"
port = 443
protocol = "tcp"
"#;

fn kernel(katran: &Katran) -> Vec<BTreeMap<Vec<u8>, Vec<u8>>> {
    let maps = [
        "source_routes_v4",
        "source_routes_v6",
        "decap_destinations",
        "down_reals",
    ];
    let maps = maps.map(|map| bpf::dump(katran.map_fd(map).unwrap()));
    maps.into()
}

/// Waits until void entries are removed, and then the pairs that void them. The pair of the down
/// real stays.
fn until_swept(katran: &Katran) {
    eventually("void entries are removed", || {
        bpf::dump(katran.map_fd("down_reals").unwrap()).len() <= 1
    });
}

#[test]
fn ids_routes_marks_and_tunnel_ends_are_part_of_the_state() {
    let document = State::from_toml(WHOLE).unwrap();
    let mut katran = from_state(&document);
    let vip = document.vips[0].vip;
    assert_eq!(katran.server_ids().list().len(), 2);
    assert_eq!(katran.server_ids().invalid(), [2]);
    assert_eq!(katran.source_routes().count(), 2);
    assert_eq!(katran.decap().list().len(), 2);
    assert!(katran.is_down(vip, ip("198.51.100.2")).unwrap());
    assert!(katran.apply(&document).unwrap().is_empty());
    let text = katran.state().to_toml().unwrap();
    let other = from_state(&State::from_toml(&text).unwrap());
    assert_eq!(other.state(), katran.state());

    // Each name leads elsewhere, some are gone, some new; the id's real joins the VIP and keeps its
    // number.
    let number = katran.real_index(ip("198.51.100.3"));
    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let mut next = document.clone();
    next.vips[0].reals.push(Real::new(ip("198.51.100.3")));
    next.vips[0].down = vec![ip("198.51.100.1")];
    next.server_ids = vec![
        ServerIdState::new(ServerId::new(1, ip("198.51.100.5"))),
        ServerIdState::new(ServerId::new(7, ip("198.51.100.1"))),
    ];
    next.source_routes[0] = SourceRoute::new(prefix("100.64.0.0/10"), ip("198.51.100.6"));
    next.source_routes[1] = SourceRoute::new(prefix("10.0.0.0/8"), ip("198.51.100.6"));
    next.decap[0].mode = DecapMode::Egress;
    next.decap[1] = DecapState::new(ip("192.0.2.201"), DecapMode::Inline);
    let changes = katran.apply(&next).unwrap();
    let mut expected = Changes::default();
    expected.reals_added = vec![(vip, ip("198.51.100.3"))];
    expected.health_changed = vec![(vip, ip("198.51.100.1")), (vip, ip("198.51.100.2"))];
    expected.server_ids_added = vec![7];
    expected.server_ids_removed = vec![2];
    expected.server_ids_changed = vec![1];
    expected.source_routes_added = vec![prefix("10.0.0.0/8")];
    expected.source_routes_removed = vec![prefix("2001:db8:c::/48")];
    expected.source_routes_changed = vec![prefix("100.64.0.0/10")];
    expected.decap_added = vec![ip("192.0.2.201")];
    expected.decap_removed = vec![ip("2001:db8:d::1")];
    expected.decap_changed = vec![ip("192.0.2.200")];
    assert_eq!(changes, expected);
    assert_eq!(katran.real_index(ip("198.51.100.3")), number);
    assert!(katran.apply(&next).unwrap().is_empty());
    let fresh = from_state(&next);
    assert_eq!(katran.state(), fresh.state());
    let back = katran.apply(&document).unwrap();
    assert_eq!(
        back.to_string(),
        "1 real removed, 2 reals' health changed, 1 server id added, 1 server id removed, 1 server id \
         changed, 1 source route added, 1 source route removed, 1 source route changed, 1 decap \
         address added, 1 decap address removed, 1 decap address changed"
    );

    // Too many of each: nothing changes.
    until_swept(&katran);
    let in_kernel = kernel(&katran);
    let mut full = |change: fn(&mut State)| {
        let mut state = State::from_toml(WHOLE).unwrap();
        state.vips.clear();
        change(&mut state);
        let before = katran.state();
        let error = katran.apply(&state).unwrap_err();
        assert!(matches!(error, Error::Exhausted { .. }), "{error}");
        assert_eq!(katran.state(), before);
        assert_eq!(kernel(&katran), in_kernel);
    };
    full(|state| {
        let ids = (10..15).map(|id| ServerIdState::new(ServerId::new(id, ip("198.51.100.1"))));
        state.server_ids = ids.collect();
    });
    full(|state| {
        let routes = (0..5u8).map(|i| Prefix::new([10, i, 0, 0].into(), 16).unwrap());
        let routes = routes.map(|prefix| SourceRoute::new(prefix, ip("198.51.100.1")));
        state.source_routes = routes.collect();
    });
    full(|state| {
        let ends = (0..3u8).map(|i| DecapState::new([192, 0, 2, i].into(), DecapMode::Inline));
        state.decap = ends.collect();
    });
    let failed = faults::without_commands(&[faults::MAP_UPDATE_BATCH], Errno::ENOMEM, || {
        katran.apply(&next)
    });
    assert!(
        matches!(failed, Err(Error::InsufficientMemory { .. })),
        "{failed:?}"
    );
    assert_eq!(katran.state(), fresh_of(&document));
    until_swept(&katran);
    assert_eq!(kernel(&katran), in_kernel);
    let _ = katran.apply(&next).unwrap();
    assert_eq!(katran.state(), fresh.state());
}

/// The state of a new balancer with this document.
fn fresh_of(document: &State) -> State {
    from_state(document).state()
}

#[test]
fn calls_and_states_are_equivalent() {
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
        .gateways_mut()
        .set_mac("0a:00:00:00:00:0f".parse().unwrap())
        .unwrap();
    let state = katran.state();
    let mut other = from_state(&state);
    assert_eq!(other.state(), state);
    other.remove_real(one, ip("198.51.100.1")).unwrap();
    let changes = other.apply(&state).unwrap();
    assert_eq!(changes.reals_added, [(one, ip("198.51.100.1"))]);
    assert_eq!(other.state(), state);
}
