//! Changing the features of a running balancer, under traffic: no packet is lost, no flow moves.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use katran::DecapMode;
use katran::Encapsulation;
use katran::Error;
use katran::Features;
use katran::FlowTracking;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::RootProgram;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::events::MonitorOptions;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::UdpClient;
use katran_lab::private_bpf_fs;
use katran_lab::stay_on;

use crate::segment::Arrival;
use crate::segment::Segment;
use crate::site;
use crate::site::PORT;
use crate::site::Site;
use crate::vlan;

/// Every feature alone, and several together.
fn sets() -> Vec<Features> {
    let default = Features::default();
    vec![
        default | Features::SOURCE_ROUTING,
        default | Features::INLINE_DECAP | Features::GLOBAL_FLOW_TABLE,
        Features::empty(),
        default | Features::TCP_SERVER_ID | Features::INTROSPECTION,
        Features::all().difference(Features::FLOW_DEBUG),
        default,
    ]
}

/// Gives the balancer these features, by a call or by applying a state.
pub(crate) type Reload = fn(&mut Katran, Features);

fn by_call(katran: &mut Katran, features: Features) {
    katran.reload(features).unwrap();
}

fn by_state(katran: &mut Katran, features: Features) {
    let mut state = katran.state();
    state.balancer.as_mut().unwrap().features = Some(features);
    let changes = katran.apply(&state).unwrap();
    assert_eq!(changes.settings_changed, ["features"]);
}

#[test]
fn nothing_is_lost_and_nothing_moves() {
    site::stay_on_one_cpu();
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let site = Site::with(LabConfig::default(), mode, |builder| builder);
        check(site, &sets(), by_call);
    }
}

#[test]
fn nothing_is_lost_and_nothing_moves_with_all_flows_remembered() {
    site::stay_on_one_cpu();
    let site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.flow_tracking(FlowTracking::All)
    });
    check(site, &sets(), by_call);
}

/// Two sets of features, for balancers that differ in other ways.
fn two_sets() -> [Features; 2] {
    [
        Features::all().difference(Features::FLOW_DEBUG),
        Features::default(),
    ]
}

#[test]
fn nothing_is_lost_and_nothing_moves_over_gue() {
    site::stay_on_one_cpu();
    let site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .encapsulation(Encapsulation::Gue)
            .flow_tracking(FlowTracking::All)
            .source_v4("198.18.0.10".parse().unwrap())
            .source_v6("2001:db8:ffff::10".parse().unwrap())
    });
    check(site, &two_sets(), by_state);
}

#[test]
fn nothing_is_lost_and_nothing_moves_on_links_with_tags() {
    site::stay_on_one_cpu();
    let site = Site::new(LabConfig::default());
    vlan::tag_link(&site, &[(0x8100, 100)]);
    check(site, &two_sets(), by_call);
}

#[test]
fn nothing_is_lost_and_nothing_moves_with_next_hops_of_reals_and_a_monitor() {
    site::stay_on_one_cpu();
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .gateway(Gateway::Auto)
            .next_hops(NextHops::PerReal)
            .features(Features::INLINE_DECAP | Features::INTROSPECTION)
    });
    let end = "10.9.9.9".parse().unwrap();
    site.katran.decap_mut().add(end, DecapMode::Inline).unwrap();
    let monitor = site.katran.events().to_list(MonitorOptions::new(), 1);
    let features = site.katran.features();
    let more = features | Features::TCP_SERVER_ID | Features::SOURCE_ROUTING;
    check(site, &[more, features], by_state);
    assert_eq!(monitor.unwrap().stop().failure, None);
}

#[test]
fn nothing_is_lost_and_nothing_moves_in_an_entry_of_a_root_program() {
    site::stay_on_one_cpu();
    let mut site = Site::new(LabConfig::default());
    let path = private_bpf_fs().unwrap().join("reload");
    site.share(&path);
    check(site, &two_sets(), by_call);
    RootProgram::remove(&path).unwrap();
}

/// Services with clients, which a change of features must not affect.
pub(crate) fn check(mut site: Site, sets: &[Features], reload: Reload) {
    let tracking = site.katran.state().balancer.unwrap().flow_tracking;
    let servers = (
        site.lab.serve_tcp(PORT).unwrap(),
        site.lab.serve_udp(PORT).unwrap(),
    );
    let tcp = Vip::tcp((site.lab.vip4(), PORT).into());
    let udp = Vip::udp((site.lab.vip6(), PORT).into());
    // A VIP whose packets continue in a second program.
    let quic = Vip::udp((site.lab.vip4(), PORT).into());
    for vip in [tcp, udp] {
        site.add_service(vip, &site::reals(&site.lab, vip.address()));
    }
    site.katran.add_vip(quic, VipFlags::QUIC).unwrap();
    for real in site::reals(&site.lab, quic.address()) {
        site.katran.add_real(quic, katran::Real::new(real)).unwrap();
    }
    let ends = site.katran.decap().list();
    // Lost datagrams are not retransmitted, so their next hops must be known.
    site::eventually("all next hops are known", || {
        let hops = site.katran.gateways().next_hops();
        hops.iter().all(|hop| hop.mac.is_some())
    });
    for vip in [udp, quic] {
        site::udp(&site.lab.client, vip).ask(b"who").unwrap();
    }
    let mut connections: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = site::connect(&site.lab.client, tcp);
            let name = connection.ask("who").unwrap();
            (connection, name)
        })
        .collect();
    let sockets: Vec<UdpClient> = [udp, quic]
        .into_iter()
        .map(|vip| site::udp(&site.lab.client, vip))
        .collect();
    // Answers to ARP and the like arrive on any CPU, and now and then a client's packet is
    // processed along with one. So each CPU's table learns the flows.
    for cpu in site::cpus().into_iter().rev() {
        stay_on(cpu as usize);
        for (connection, name) in &mut connections {
            assert_eq!(connection.ask("who").unwrap(), *name);
        }
        for socket in &sockets {
            socket.ask(b"who").unwrap();
        }
    }
    // After a change of weights only the flow table or the slots' history knows where these belong.
    let first = site::reals(&site.lab, tcp.address())[0];
    site.katran
        .add_real(tcp, katran::Real::new(first).weight(0))
        .unwrap();
    let before = site.katran.counters().unwrap();
    let known = (connections.len() + sockets.len()) * site::cpus().len();
    assert!(before.flow_table.misses + before.flow_table.settled >= known as u64);

    let stop = AtomicBool::new(false);
    let answers = [0; 2].map(AtomicU64::new);
    let answered = || {
        let answers = answers.each_ref();
        answers.map(|answers| answers.load(Ordering::Relaxed))
    };
    thread::scope(|scope| {
        for (socket, answers) in sockets.iter().zip(&answers) {
            let stop = &stop;
            scope.spawn(move || {
                let name = socket.ask(b"who").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // A lost datagram is not retransmitted: there would be no answer.
                    assert_eq!(socket.ask(b"who").unwrap(), name);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        for features in sets {
            let seen = answered();
            reload(&mut site.katran, *features);
            assert_eq!(site.katran.features(), *features);
            site::eventually("packets of both flow on", || {
                let mut both = answered().into_iter().zip(seen);
                both.all(|(now, seen)| now > seen + 50)
            });
            for (connection, name) in &mut connections {
                assert_eq!(connection.ask("who").unwrap(), *name);
            }
        }
    });
    let after = site.katran.counters().unwrap();
    assert_eq!(after.totals.drop.packets, before.totals.drop.packets);
    // Connections on a base have no flow entries: each misses once, when server ids are enabled.
    let has_ids = sets.iter().any(|set| set.contains(Features::TCP_SERVER_ID));
    let unknown = match tracking {
        Some(FlowTracking::All) => 0,
        _ => connections.len() * usize::from(has_ids),
    };
    let misses = after.flow_table.misses - before.flow_table.misses;
    assert_eq!(misses, unknown as u64);
    let of_bases = after.flow_table.by_base - before.flow_table.by_base;
    assert_eq!(of_bases > 0, tracking != Some(FlowTracking::All));
    let answers: u64 = answered().iter().sum();
    let forwarded = after.totals.tx.packets - before.totals.tx.packets;
    assert!(forwarded >= answers);
    // VIP and real counters continue, too: each packet counts for a VIP and for a real.
    let packets = |katran: &Katran| {
        let of_vips =
            [tcp, udp, quic].map(|vip| katran.stats().vip(vip).unwrap().forwarded.packets);
        let reals = katran.real_numbers();
        let of_reals = reals
            .into_iter()
            .map(|(real, _)| katran.stats().real(real).unwrap().forwarded.packets);
        (of_vips, of_reals.sum::<u64>())
    };
    let [of_tcp, of_udp, of_quic] = packets(&site.katran).0;
    assert!(of_udp + of_quic >= answers + 2 && of_udp > 50 && of_quic > 50);
    assert!(of_tcp >= 8 * (1 + sets.len() as u64));
    site::eventually("all packets are counted for both", || {
        let (of_vips, of_reals) = packets(&site.katran);
        of_vips.iter().sum::<u64>() == of_reals
    });
    assert_eq!(site.katran.decap().list(), ends);
    // Simulations run the new program, too.
    let flow = "192.0.2.9:1234".parse().unwrap();
    let ran = site
        .katran
        .simulate(&crate::frame::syn(flow, site::service(tcp)));
    assert_eq!(ran.unwrap().vip, Some(tcp));
    drop(servers);
}

#[test]
fn reals_on_the_same_segment_and_behind_other_interfaces_stay_reachable() {
    for (arrival, mode, interface) in [
        (Arrival::Segment, NextHops::PerReal, "eth1"),
        (Arrival::OwnLink, NextHops::Redirect, "eth0"),
    ] {
        let mut network = Segment::new(arrival, |builder| {
            builder.gateway(Gateway::Auto).next_hops(mode)
        });
        let host = &network.lab.balancers[0].host;
        let attach = |katran: &mut Katran| katran.attach(interface, XdpMode::Native);
        host.run(|| attach(&mut network.katran).unwrap());
        let vips = network.serve();
        network.check(&vips);
        for features in two_sets() {
            network.katran.reload(features).unwrap();
            network.check(&vips);
        }
    }
}

#[test]
fn features_in_use_cannot_be_disabled() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.features(Features::SOURCE_ROUTING | Features::INLINE_DECAP)
    });
    let katran = &mut site.katran;
    let (route, end) = ("192.0.2.0/24".parse().unwrap(), "10.9.9.9".parse().unwrap());
    let real = "198.51.100.1".parse().unwrap();
    katran.source_routes_mut().add(&[route], real).unwrap();
    katran
        .decap_mut()
        .add(end, katran::DecapMode::Inline)
        .unwrap();
    let both = katran.features();
    for less in [Features::SOURCE_ROUTING, Features::INLINE_DECAP] {
        let error = katran.reload(less).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(error.to_string().contains("remove them first"), "{error}");
        assert_eq!(katran.features(), both);
    }
    assert!(katran.reload(both | Features::FLOW_DEBUG).is_err());
    katran.source_routes_mut().clear().unwrap();
    katran.decap_mut().remove(end).unwrap();
    katran.reload(Features::default()).unwrap();
    // Without the feature the call fails; enabled again, the table is empty.
    assert!(matches!(
        katran.source_routes_mut().add(&[route], real),
        Err(Error::Unsupported { .. })
    ));
    katran.reload(both).unwrap();
    assert_eq!(katran.source_routes().count(), 0);
    katran.source_routes_mut().add(&[route], real).unwrap();
    // A feature that stays keeps its table's entries.
    katran.reload(both | Features::GLOBAL_FLOW_TABLE).unwrap();
    assert_eq!(katran.source_routes().count(), 1);
}

#[test]
fn features_that_lead_flows_cannot_be_disabled() {
    let both = Features::GLOBAL_FLOW_TABLE | Features::UDP_STABLE_ROUTING;
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.features(both)
    });
    let katran = &mut site.katran;
    let vip = Vip::udp((site.lab.vip4(), PORT).into());
    let flags = VipFlags::GLOBAL_LRU | VipFlags::UDP_STABLE_ROUTING;
    let real = site::reals(&site.lab, vip.address())[0];
    katran.add_vip(vip, flags).unwrap();
    katran.add_real(vip, katran::Real::new(real)).unwrap();
    let client = "192.0.2.7:1234".parse().unwrap();
    let flow = katran::Flow::udp(client, site::service(vip));
    // A feature that is off keeps nothing.
    katran.reload(Features::empty()).unwrap();
    katran.reload(both).unwrap();
    katran.global_flows_mut().set(0, &flow, real).unwrap();
    katran
        .server_ids_mut()
        .add(&[ServerId::new(77, real)])
        .unwrap();
    for (less, part) in [
        (Features::UDP_STABLE_ROUTING, "global flows: remove them"),
        (Features::GLOBAL_FLOW_TABLE, "server ids: remove them"),
    ] {
        let in_use = |error: Error| {
            assert!(matches!(error, Error::InUse { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        in_use(katran.reload(less).unwrap_err());
        // The state is refused as a whole.
        let mut wanted = katran.state();
        wanted.balancer.as_mut().unwrap().features = Some(less);
        in_use(katran.apply(&wanted).unwrap_err());
        assert_eq!(katran.features(), both);
        assert_eq!(katran.global_flows().get(0, &flow).unwrap(), Some(real));
    }
    // A state that also removes the flags is accepted.
    let mut wanted = katran.state();
    wanted.balancer.as_mut().unwrap().features = Some(Features::UDP_STABLE_ROUTING);
    wanted.vips[0].flags = VipFlags::UDP_STABLE_ROUTING;
    let changes = katran.apply(&wanted).unwrap();
    assert_eq!(changes.settings_changed, ["features"]);
    assert_eq!(katran.vip_flags(vip).unwrap(), wanted.vips[0].flags);
    katran.server_ids_mut().remove(&[77]).unwrap();
    katran.reload(Features::empty()).unwrap();
}
