//! TCP and UDP through the tunnel: all mixes of families, both modes, large transfers, local
//! delivery, ping.

use std::collections::BTreeSet;

use katran::Katran;
use katran::Real;
use katran::RealFlags;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpServer;
use katran_lab::UdpClient;
use katran_lab::require_root;

use crate::world::Family;
use crate::world::PORT;
use crate::world::Setup;
use crate::world::World;
use crate::world::socket;

const CONNECTIONS: usize = 24;

/// Connections and datagrams to every VIP, each with large transfers both ways.
fn serves_everything(setup: Setup) {
    let world = World::new(setup);
    let katran = &world.katrans[0];
    for vip in [world.vip4(), world.vip6()] {
        let mut names = BTreeSet::new();
        for _ in 0..CONNECTIONS {
            let mut client = world.connect(vip);
            let name = client.ask("who").unwrap();
            let answer = client.ask("fill 200000").unwrap();
            assert_eq!(answer.len(), name.len() + 1 + 200_000);
            // Full-size segments from the client go through the tunnel.
            let long = "x".repeat(60_000);
            assert_eq!(
                client.ask(&long).unwrap(),
                name,
                "one connection, one backend"
            );
            names.insert(name);
        }
        assert!(names.len() > 1, "{vip}: all connections on {names:?}");
        assert!(katran.vip_counters(vip).unwrap().forwarded.packets > 60 * CONNECTIONS as u64);
    }
    for vip in [world.vips()[2], world.vips()[3]] {
        let mut names = BTreeSet::new();
        for _ in 0..CONNECTIONS {
            let client = UdpClient::connect(&world.lab.client, socket(vip)).unwrap();
            let name = client.ask(b"who").unwrap();
            assert_eq!(client.ask(&[b'x'; 1400]).unwrap(), name);
            names.insert(name);
        }
        assert!(names.len() > 1, "{vip}: all datagrams to {names:?}");
        let forwarded = katran.vip_counters(vip).unwrap().forwarded;
        assert_eq!(forwarded.packets, 2 * CONNECTIONS as u64, "{vip}");
    }
    let drops = katran.totals().unwrap().drop;
    assert_eq!(drops.packets, 0, "{:?}", katran.drop_reasons().unwrap());
    let stripped: u64 = world
        .decaps
        .iter()
        .map(|decap| decap.counters().unwrap())
        .map(|counters| counters.ipip_v4 + counters.ipip_v6)
        .sum();
    let forwarded: u64 = world
        .vips()
        .iter()
        .map(|vip| katran.vip_counters(*vip).unwrap().forwarded.packets)
        .sum();
    assert_eq!(stripped, forwarded, "every encapsulated packet arrived");
}

#[test]
fn native_mode_same_families() {
    serves_everything(Setup::default());
}

#[test]
fn native_mode_crossed_families() {
    serves_everything(Setup {
        reals: [Family::V6, Family::V4],
        ..Setup::default()
    });
}

#[test]
fn generic_mode_same_families() {
    serves_everything(Setup {
        mode: XdpMode::Generic,
        ..Setup::default()
    });
}

#[test]
fn generic_mode_crossed_families() {
    serves_everything(Setup {
        mode: XdpMode::Generic,
        reals: [Family::V6, Family::V4],
        ..Setup::default()
    });
}

#[test]
fn frags_program_serves_too() {
    serves_everything(Setup {
        configure: |builder| builder.frags(true),
        ..Setup::default()
    });
}

#[test]
fn ping_is_answered_by_the_balancer() {
    let world = World::new(Setup::default());
    for vip in [world.lab.vip4(), world.lab.vip6()] {
        let answer = world
            .lab
            .client
            .tool("ping", &format!("-c 3 -i 0.2 -W 2 -s 1000 {vip}"))
            .unwrap();
        assert!(answer.contains(" 3 received, 0% packet loss"), "{answer}");
    }
    let icmp = world.katrans[0].icmp_counters().unwrap();
    assert_eq!((icmp.echo_v4, icmp.echo_v6), (3, 3));
}

#[test]
fn gateway_mac_can_change_under_traffic() {
    let mut world = World::new(Setup::default());
    let vip = world.vip4();
    let client = UdpClient::connect(&world.lab.client, socket(world.vips()[2])).unwrap();
    client.ask(b"who").unwrap();
    client
        .set_patience(std::time::Duration::from_millis(300))
        .unwrap();
    let right = world.katrans[0].gateway_mac();
    let nobody = "02:00:00:00:be:ef".parse().unwrap();
    world.katrans[0].set_gateway_mac(nobody).unwrap();
    assert!(
        client.ask(b"who").is_err(),
        "frames to nobody were answered"
    );
    world.katrans[0].set_gateway_mac(right).unwrap();
    client
        .set_patience(std::time::Duration::from_secs(5))
        .unwrap();
    client.ask(b"who").unwrap();
    world.ask_once(vip);
}

#[test]
fn local_delivery_serves_from_the_balancer_itself() {
    require_root();
    let lab = Lab::new(LabConfig {
        backends: 0,
        ..LabConfig::default()
    })
    .unwrap();
    let balancer = &lab.balancers[0];
    let vips = [lab.vip4(), lab.vip6()];
    for vip in vips {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let address = format!("addr add {vip}/{length} dev lo nodad");
        let address = address.replace(if vip.is_ipv4() { " nodad" } else { "\0" }, "");
        balancer.host.ip(&address).unwrap();
    }
    let _server = TcpServer::start(&balancer.host, PORT, "the balancer itself").unwrap();
    let mut katran = Katran::builder()
        .gateway_mac(balancer.gateway_mac.into())
        .flow_table_size(1000)
        .load()
        .unwrap();
    for vip in vips {
        let vip = katran::Vip::tcp((vip, PORT).into());
        let here = if vip.address().is_ipv4() {
            balancer.v4.into()
        } else {
            balancer.v6.into()
        };
        katran.add_vip(vip, VipFlags::LOCAL_VIP).unwrap();
        let real = Real::new(here).flags(RealFlags::LOCAL_REAL);
        katran.add_real(vip, real).unwrap();
    }
    let attach = || katran.attach(&balancer.interface, XdpMode::Native);
    balancer.host.run(attach).unwrap();
    for vip in vips {
        let vip = katran::Vip::tcp((vip, PORT).into());
        let mut client = katran_lab::TcpClient::connect(&lab.client, socket(vip)).unwrap();
        assert_eq!(client.ask("who").unwrap(), "the balancer itself");
        assert!(katran.vip_counters(vip).unwrap().forwarded.packets >= 3);
    }
    assert_eq!(
        katran.totals().unwrap().tx.packets,
        0,
        "nothing is encapsulated"
    );
}
