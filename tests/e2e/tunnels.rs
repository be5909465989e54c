//! Tunnels that end at a balancer: a balancer behind another, a balancer that is a backend, and
//! packets that leave again.

use std::net::IpAddr;

use katran::Builder;
use katran::DecapMode;
use katran::Encapsulation;
use katran::Features;
use katran::Katran;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpServer;
use katran_lab::require_root;

use crate::site;
use crate::site::PORT;

const KINDS: [Encapsulation; 2] = [Encapsulation::Ipip, Encapsulation::Gue];

/// Two balancers: the VIPs are routed to the first, whose tunnels lead to the second.
fn lab() -> Lab {
    require_root();
    let lab = Lab::new(LabConfig {
        balancers: 2,
        ..LabConfig::default()
    })
    .unwrap();
    lab.remove_balancer_route(1).unwrap();
    lab
}

/// The addresses of a balancer's host.
fn own(lab: &Lab, index: usize) -> [IpAddr; 2] {
    let balancer = &lab.balancers[index];
    [balancer.v4.into(), balancer.v6.into()]
}

fn balancer(
    lab: &Lab,
    index: usize,
    kind: Encapsulation,
    settings: fn(Builder) -> Builder,
) -> Katran {
    let (v4, v6) = (lab.balancers[index].v4, lab.balancers[index].v6);
    let (katran, _) = site::balancer(lab, index, XdpMode::Native, |builder| {
        let builder = builder.encapsulation(kind).source_v4(v4).source_v6(v6);
        settings(builder)
    });
    katran
}

fn unwrapping(builder: Builder) -> Builder {
    let features = Features::default() | Features::INLINE_DECAP;
    builder.features(features - Features::STRICT_DESTINATION)
}

/// Both families of the VIP and of the tunnel.
fn mixes(lab: &Lab, ends: [IpAddr; 2]) -> Vec<(Vip, IpAddr)> {
    let vips = [lab.vip4(), lab.vip6()].map(|address| Vip::tcp((address, PORT).into()));
    let ends = ends.into_iter();
    ends.flat_map(|end| vips.map(|vip| (vip, end))).collect()
}

#[test]
fn a_balancer_behind_a_balancer() {
    for kind in KINDS {
        let lab = lab();
        let mut first = balancer(&lab, 0, kind, |builder| builder);
        let mut second = balancer(&lab, 1, kind, unwrapping);
        let _decaps = site::decaps(&lab, XdpMode::Native);
        let _servers = lab.serve_tcp(PORT).unwrap();
        for end in own(&lab, 1) {
            second.decap_mut().add(end, DecapMode::Inline).unwrap();
        }
        for (vip, end) in mixes(&lab, own(&lab, 1)) {
            site::add_service(&mut first, vip, &[end]);
            site::add_service(&mut second, vip, &site::reals(&lab, vip.address()));
            let mut names = Vec::new();
            for _ in 0..32 {
                let mut client = site::connect(&lab.client, vip);
                let name = client.ask(&"x".repeat(30_000)).unwrap();
                let flow = site::flow_of(&client, vip);
                assert_eq!(site::expected(&lab, &second, flow), name);
                names.push(name);
            }
            names.sort();
            names.dedup();
            assert_eq!(names, ["backend0", "backend1"], "{kind} {vip} by {end}");
            first.remove_vip(vip).unwrap();
            second.remove_vip(vip).unwrap();
        }
        let decap = second.stats().decap().unwrap();
        assert_eq!(decap.remote_encap, decap.v4 + decap.v6);
        assert_eq!(decap.remote_encap, decap.xpop_v4 + decap.xpop_v6);
        let [v4, v6] = [decap.v4, decap.v6];
        assert!(v4 > 0 && v6 > 0 && decap.xpop_v4 > 0 && decap.xpop_v6 > 0);
        let totals = second.stats().totals().unwrap();
        assert_eq!(totals.drop.packets, 0);
        assert!(totals.tx.packets >= decap.remote_encap);
    }
}

#[test]
fn a_balancer_that_is_a_backend_of_another_one() {
    for kind in KINDS {
        for strict in [false, true] {
            let lab = lab();
            let mut first = balancer(&lab, 0, kind, |builder| builder);
            let second = balancer(
                &lab,
                1,
                kind,
                match strict {
                    false => unwrapping,
                    true => |builder: Builder| {
                        builder.features(Features::default() | Features::INLINE_DECAP)
                    },
                },
            );
            let host = &lab.balancers[1].host;
            let _server = TcpServer::start(host, PORT, "balancer1").unwrap();
            for address in [lab.vip4(), lab.vip6()] {
                site::add_to_lo(host, address);
            }
            for (vip, end) in mixes(&lab, own(&lab, 1)) {
                site::add_service(&mut first, vip, &[end]);
                let mut client = site::connect(&lab.client, vip);
                let answer = client.ask(&"x".repeat(30_000)).unwrap();
                assert_eq!(answer, "balancer1", "{kind} {vip} by {end}");
                first.remove_vip(vip).unwrap();
            }
            let decap = second.stats().decap().unwrap();
            assert_eq!(decap.remote_encap, 0);
            assert!(decap.v4 > 0 && decap.v6 > 0);
            assert_eq!(second.stats().totals().unwrap().drop.packets, 0);
        }
    }
}

/// Like a backend whose answers return through a tunnel; here the client's packets do, and the
/// router sends what the second balancer unwraps to the backend.
#[test]
fn egress_sends_the_inner_packet_on_its_way() {
    for kind in KINDS {
        let lab = lab();
        let mut first = balancer(&lab, 0, kind, |builder| builder);
        let mut second = balancer(&lab, 1, kind, unwrapping);
        let _servers = lab.serve_tcp(PORT).unwrap();
        let (balancer, backend) = (&lab.balancers[1], &lab.backends[1]);
        for (family, vip, via) in [
            ("-4", lab.vip4(), IpAddr::from(backend.v4)),
            ("-6", lab.vip6(), IpAddr::from(backend.v6)),
        ] {
            let out = &balancer.router_interface;
            let to = &backend.router_interface;
            let route = format!("{family} route add {vip} via {via} dev {to} table 77");
            lab.router.ip(&route).unwrap();
            let rule = format!("{family} rule add iif {out} table 77 priority 10");
            lab.router.ip(&rule).unwrap();
        }
        for end in own(&lab, 1) {
            second.decap_mut().add(end, DecapMode::Egress).unwrap();
        }
        for (vip, end) in mixes(&lab, own(&lab, 1)) {
            site::add_service(&mut first, vip, &[end]);
            let mut client = site::connect(&lab.client, vip);
            let answer = client.ask(&"x".repeat(30_000)).unwrap();
            assert_eq!(answer, "backend1", "{kind} {vip} by {end}");
            first.remove_vip(vip).unwrap();
        }
        let decap = second.stats().decap().unwrap();
        assert_eq!(decap.remote_encap, decap.egress_v4 + decap.egress_v6);
        assert!(decap.egress_v4 > 0 && decap.egress_v6 > 0);
        let totals = second.stats().totals().unwrap();
        assert_eq!(
            (totals.tx.packets, totals.drop.packets),
            (decap.remote_encap, 0)
        );
    }
}
