//! Balancers behind one ECMP route agree on every flow without knowing of each other, so any of
//! them may leave or join at any time.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use katran::Flow;
use katran::FlowTracking;
use katran::HashFunction;
use katran::Katran;
use katran::MacAddr;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::require_root;

use crate::site;
use crate::site::PORT;

const CONNECTIONS: usize = 60;

fn vips(lab: &Lab) -> [Vip; 2] {
    [lab.vip4(), lab.vip6()].map(|address| Vip::tcp((address, PORT).into()))
}

/// A balancer with both VIPs; `turned` adds everything in reverse order.
fn join(lab: &Lab, index: usize, turned: bool, tracking: FlowTracking) -> Katran {
    let (mut katran, _) = site::balancer(lab, index, XdpMode::Native, |builder| {
        builder.flow_tracking(tracking)
    });
    let mut vips = vips(lab);
    if turned {
        vips.reverse();
    }
    for vip in vips {
        let mut reals = site::reals(lab, vip.address());
        if turned {
            reals.reverse();
        }
        site::add_service(&mut katran, vip, &reals);
    }
    katran
}

/// VIP packets that a balancer has forwarded.
fn forwarded(lab: &Lab, katran: &Katran) -> [u64; 2] {
    vips(lab).map(|vip| katran.stats().vip(vip).unwrap().forwarded.packets)
}

fn assert_all_continue(connections: &mut [(TcpClient, String)], when: &str) {
    for (number, (client, name)) in connections.iter_mut().enumerate() {
        let answer = client.ask("still");
        assert_eq!(&answer.unwrap(), name, "connection {number}, {when}");
    }
}

#[test]
fn connections_survive_a_balancer_that_leaves_and_comes_back() {
    connections_survive(FlowTracking::Changed);
}

#[test]
fn connections_survive_with_all_flows_remembered_though_the_other_has_no_entries() {
    connections_survive(FlowTracking::All);
}

fn connections_survive(tracking: FlowTracking) {
    require_root();
    let lab = Lab::new(LabConfig {
        balancers: 2,
        backends: 3,
        ..LabConfig::default()
    })
    .unwrap();
    let decaps = site::decaps(&lab, XdpMode::Native);
    let servers = lab.serve_tcp(PORT).unwrap();
    let first = join(&lab, 0, false, tracking);
    let second = join(&lab, 1, true, tracking);
    let mut connections = Vec::new();
    for vip in vips(&lab) {
        for _ in 0..CONNECTIONS {
            let mut client = site::connect(&lab.client, vip);
            let name = client.ask("who").unwrap();
            let flow = site::flow_of(&client, vip);
            assert_eq!(site::expected(&lab, &first, flow), name);
            assert_eq!(site::expected(&lab, &second, flow), name);
            connections.push((client, name));
        }
    }
    for backend in &lab.backends {
        assert!(
            connections
                .iter()
                .any(|(_, name)| name == backend.host.name())
        );
    }
    assert_all_continue(&mut connections, "with both");
    for katran in [&first, &second] {
        let [v4, v6] = forwarded(&lab, katran);
        assert!(v4 > 0 && v6 > 0, "each balancer gets packets of both VIPs");
    }

    lab.remove_balancer_route(0).unwrap();
    drop(first);
    // Connections it has never seen: if it remembers only changed flows, that is all of them.
    let misses = |katran: &Katran| {
        let counters = katran.stats().flow_table().unwrap();
        match tracking {
            FlowTracking::Changed => {
                assert_eq!((counters.packets, counters.misses), (0, 0));
                counters.settled
            }
            _ => counters.miss_non_syn,
        }
    };
    let before = misses(&second);
    assert_all_continue(&mut connections, "without the first");
    assert!(misses(&second) > before, "it did not know these flows");

    let first = join(&lab, 0, true, tracking);
    lab.add_balancer_route(0).unwrap();
    assert_all_continue(&mut connections, "with the first again");
    assert!(misses(&first) > 0, "it did not know these flows");
    assert_eq!(first.stats().flow_table().unwrap().miss_syn, 0);

    lab.remove_balancer_route(1).unwrap();
    let before = forwarded(&lab, &second);
    assert_all_continue(&mut connections, "without the second");
    assert_eq!(forwarded(&lab, &second), before);

    let accepted: u64 = servers.iter().map(|server| server.accepted()).sum();
    assert_eq!(
        accepted,
        2 * CONNECTIONS as u64,
        "no connection was made again"
    );
    for katran in [&first, &second] {
        assert_eq!(katran.stats().totals().unwrap().drop.packets, 0);
    }
    assert!(
        decaps
            .iter()
            .all(|decap| decap.counters().unwrap().ipip_v6 > 0)
    );
}

/// xorshift64 (Marsaglia, 2003): the same flows in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn source(&mut self, like: IpAddr) -> SocketAddr {
        let address = match like {
            IpAddr::V4(_) => Ipv4Addr::from_bits(self.next() as u32).into(),
            IpAddr::V6(_) => {
                Ipv6Addr::from_bits(u128::from(self.next()) << 64 | u128::from(self.next())).into()
            }
        };
        SocketAddr::new(address, self.next() as u16)
    }
}

#[test]
fn balancers_with_the_same_services_agree_on_every_flow() {
    require_root();
    // No two balancers number their reals and VIPs alike, and one has a history.
    let load = |tracking| {
        site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
            .flow_tracking(tracking)
            .ring_size(65_537)
            .load()
            .unwrap()
    };
    let vips: Vec<Vip> = ["203.0.113.1:80", "[2001:db8:1::1]:80", "203.0.113.2:0"]
        .map(|address| Vip::udp(address.parse().unwrap()))
        .into();
    let reals: Vec<Real> = (1..=20u32)
        .map(|n| {
            let address: IpAddr = match n % 3 {
                0 => format!("2001:db8:2::{n:x}").parse().unwrap(),
                _ => format!("198.51.100.{n}").parse().unwrap(),
            };
            Real::new(address).weight(n % 4)
        })
        .collect();
    for (function, tracking) in [
        (HashFunction::Maglev, FlowTracking::Changed),
        (HashFunction::MaglevV2, FlowTracking::Changed),
        (HashFunction::MaglevV2, FlowTracking::All),
    ] {
        let mut katrans = [(); 3].map(|()| load(tracking));
        for (number, katran) in katrans.iter_mut().enumerate() {
            let (mut vips, mut reals) = (vips.clone(), reals.clone());
            vips.rotate_left(number);
            reals.rotate_left(7 * number);
            for vip in vips {
                katran.add_vip(vip, VipFlags::empty()).unwrap();
                katran.set_hash_function(vip, function).unwrap();
                let gone = Real::new("198.51.100.200".parse().unwrap());
                if number == 2 {
                    katran.add_real(vip, gone).unwrap();
                }
                // One batch would number them in address order, so this takes several.
                for batch in reals.chunks(7) {
                    let changes: Vec<_> = batch.iter().copied().map(RealChange::Add).collect();
                    katran.modify_reals(vip, &changes).unwrap();
                }
                if number == 2 {
                    katran.remove_real(vip, gone.address()).unwrap();
                }
                // Changed slots remember their base, which differs between the balancers.
                let _ = katran.flows_mut().purge(vip).unwrap();
            }
        }
        let numbers = katrans.each_ref().map(Katran::real_numbers);
        assert_ne!(numbers[0], numbers[1]);
        assert_ne!(numbers[1], numbers[2]);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for vip in &vips {
            let mut used = std::collections::BTreeSet::new();
            for _ in 0..1_000 {
                let port = if vip.port() == 0 { 4_433 } else { vip.port() };
                let flow = Flow::udp(
                    random.source(vip.address()),
                    SocketAddr::new(vip.address(), port),
                );
                let answers = katrans
                    .each_ref()
                    .map(|katran| katran.real_for_flow(&flow).unwrap().unwrap());
                assert_eq!(answers[0], answers[1], "{flow}");
                assert_eq!(answers[0], answers[2], "{flow}");
                used.insert(answers[0].real.unwrap());
            }
            let with_weight = reals.iter().filter(|real| real.get_weight() > 0);
            assert_eq!(used.len(), with_weight.count());
        }
    }
}
