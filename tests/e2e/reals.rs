//! Reals that come and go under traffic: draining, removing the last one, removing one that another
//! service uses, reused numbers.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use katran::Builder;
use katran::Flow;
use katran::FlowTracking;
use katran::Real;
use katran::Vip;
use katran::XdpMode;
use katran::flows::Choice;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::UdpClient;
use katran_lab::stay_on;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

fn all_remembered(builder: Builder) -> Builder {
    builder.flow_tracking(FlowTracking::All)
}

#[test]
fn a_drained_real_keeps_its_connections_and_gets_no_new_ones() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, all_remembered);
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.add_service(vip, &reals);
        let mut old = site.connect_to(vip, "backend0");
        let before = site.katran.stats().flow_table().unwrap();

        let drained = Real::new(reals[0]).weight(0);
        site.katran.add_real(vip, drained).unwrap();
        assert_eq!(site.katran.reals(vip).unwrap()[0].get_weight(), 0);
        for name in site.new_connections(vip, 20) {
            assert_eq!(name, "backend1");
            assert_eq!(old.ask("still").unwrap(), "backend0", "{}", site.report());
        }
        let answer = old.ask("fill 300000").unwrap();
        assert_eq!(answer.len(), "backend0 ".len() + 300_000);
        assert_eq!(old.ask(&"x".repeat(300_000)).unwrap(), "backend0");
        assert_eq!(site.expected(site::flow_of(&old, vip)), "backend0");
        let after = site.katran.stats().flow_table().unwrap();
        // More if the machine was so busy that a SYN was retransmitted.
        assert!(after.miss_syn - before.miss_syn >= 20);
        assert!(after.packets - before.packets > 300);

        site.katran.add_real(vip, Real::new(reals[0])).unwrap();
        site.connect_to(vip, "backend0");
        site.connect_to(vip, "backend1");
        assert_eq!(old.ask("still").unwrap(), "backend0");
    }
}

/// Earlier connections have no entries, so it does not matter on which CPU they arrive.
#[test]
fn a_drained_real_keeps_its_connections_with_only_changed_flows_remembered() {
    // Longer than a busy machine takes from the drain to the old connections' next packets.
    let idle = Duration::from_secs(6);
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .flow_tracking(FlowTracking::Changed)
            .flow_idle_timeout(idle)
    });
    let cpu = site::stay_on_one_cpu();
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, site.lab.vip4());
    site.add_service(vip, &reals);
    let is_settled = |site: &Site| site.katran.stats().slots(vip).unwrap().unsettled == 0;
    site.katran.flows_mut().purge(vip).unwrap();
    assert!(is_settled(&site));
    let mut connections: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = site::connect(&site.lab.client, vip);
            let name = connection.ask("who").unwrap();
            (connection, name)
        })
        .collect();
    let flow = site::flow_of(&connections[0].0, vip);
    let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!(answer.choice, Choice::SettledSlot);
    let counted = site.katran.stats().flow_table().unwrap();
    assert_eq!((counted.packets, counted.misses), (0, 0));

    assert_eq!(site.katran.drained(vip, reals[0]).unwrap(), None);
    let drained = Real::new(reals[0]).weight(0);
    site.katran.add_real(vip, drained).unwrap();
    let slots = site.katran.stats().slots(vip).unwrap();
    assert!(slots.unsettled > 0 && slots.settled > 0);
    assert_eq!(site.new_connections(vip, 20), ["backend1"; 20]);
    for cpu in site::cpus() {
        stay_on(cpu as usize);
        for (connection, name) in &mut connections {
            assert_eq!(connection.ask("still").unwrap(), *name, "{}", site.report());
        }
    }
    stay_on(cpu as usize);
    assert!(site.katran.stats().flow_table().unwrap().by_base > 0);
    let on_drained = connections.iter().find(|(_, name)| name == "backend0");
    let flow = site::flow_of(&on_drained.unwrap().0, vip);
    let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!((answer.real, answer.choice), (Some(reals[0]), Choice::Base));

    // A connection sent something a moment ago.
    assert!(site.katran.drained(vip, reals[0]).unwrap().unwrap() < idle);

    // Once they end, packets soon no longer need the history.
    drop(connections);
    site::eventually("all slots are settled again", || is_settled(&site));
    assert_eq!(site.katran.drained(vip, reals[0]).unwrap(), Some(idle));
    assert_eq!(site.katran.drained(vip, reals[1]).unwrap(), None);
    let before = site.katran.stats().flow_table().unwrap();
    assert_eq!(site.new_connections(vip, 5), ["backend1"; 5]);
    let after = site.katran.stats().flow_table().unwrap();
    assert_eq!(after.packets, before.packets);
    assert!(after.settled > before.settled);
}

/// The slots were counted before; the thread that settles them looks again in half a minute.
#[test]
fn slots_that_a_purge_settles_are_counted_at_once() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.flow_tracking(FlowTracking::Changed)
    });
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, site.lab.vip4());
    site.add_service(vip, &reals);
    site.katran.flows_mut().purge(vip).unwrap();
    let slots = |site: &Site| site.katran.stats().slots(vip).unwrap();
    let all = slots(&site).settled;
    assert!(slots(&site).unsettled == 0 && slots(&site).oldest.is_none());
    let drained = Real::new(reals[0]).weight(0);
    site.katran.add_real(vip, drained).unwrap();
    let changed = slots(&site);
    assert_eq!(changed.settled + changed.unsettled, all);
    assert!(changed.unsettled > all / 3);
    thread::sleep(Duration::from_secs(1));
    let later = slots(&site);
    assert_eq!(
        (later.settled, later.unsettled),
        (changed.settled, changed.unsettled)
    );
    // Ages have steps of half a minute; the time since the count is added.
    let oldest = [changed, later].map(|slots| slots.oldest.unwrap());
    assert!(
        oldest[0] < oldest[1] && oldest[1] < Duration::from_secs(120),
        "{oldest:?}"
    );
    assert_eq!(
        site.katran.counters().unwrap().slots[&vip.to_string()].unsettled,
        later.unsettled
    );
    site.katran.flows_mut().purge_real(vip, reals[0]).unwrap();
    let purged = slots(&site);
    assert_eq!((purged.settled, purged.unsettled), (all, 0));
}

#[test]
fn without_its_last_real_a_vip_drops_established_flows_too() {
    let mut site = Site::new(LabConfig::default());
    site::arrive_on_one_cpu(&site.lab);
    let _servers = (
        site.lab.serve_tcp(PORT).unwrap(),
        site.lab.serve_udp(PORT).unwrap(),
    );
    let address = site.lab.vip4();
    let (tcp, udp) = (
        Vip::tcp((address, PORT).into()),
        Vip::udp((address, PORT).into()),
    );
    let real = site::reals(&site.lab, address)[0];
    // The real remains: another VIP has it.
    let other = Vip::tcp((site.lab.vip6(), PORT).into());
    for vip in [tcp, udp, other] {
        site.add_service(vip, &[real]);
    }
    let mut connection = site::connect(&site.lab.client, tcp);
    let socket = site::udp(&site.lab.client, udp);
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    assert_eq!(socket.ask(b"who").unwrap(), "backend0");
    let empty = |site: &Site| site.katran.stats().ring_drops().unwrap().empty;
    let sent = |site: &Site| site.katran.stats().vip(tcp).unwrap().forwarded.packets;
    assert_eq!(empty(&site), 0);

    site.katran.remove_real(tcp, real).unwrap();
    site.katran.remove_real(udp, real).unwrap();
    // The acknowledgement of the last answer may still have been on its way at the removal.
    let before = sent(&site);
    site::ask_in_vain(&mut connection);
    assert_eq!(sent(&site), before);
    let of_connection = empty(&site);
    assert!(of_connection > 0);
    site::ask_udp_in_vain(&socket);
    assert!(empty(&site) > of_connection);
    // A new flow, none of which is remembered.
    let before = empty(&site);
    site::ask_udp_in_vain(&site::udp(&site.lab.client, udp));
    assert!(empty(&site) > before);
    assert_eq!(site.katran.stats().ring_drops().unwrap().unknown_real, 0);
    let mut elsewhere = site::connect(&site.lab.client, other);
    assert_eq!(elsewhere.ask("who").unwrap(), "backend0");

    // The connection retransmits, and continues.
    site.add_real_again(tcp, real);
    site.add_real_again(udp, real);
    assert!(connection.ask("back").unwrap().starts_with("backend0"));
    assert_eq!(socket.ask(b"who").unwrap(), "backend0");
    assert_eq!(site.new_connections(tcp, 3), ["backend0"; 3]);
}

#[test]
fn a_removed_real_loses_its_flows_while_another_vip_has_it() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, all_remembered);
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let address = site.lab.vip4();
    let reals = site::reals(&site.lab, address);
    let vip = Vip::tcp((address, PORT).into());
    let other = Vip::tcp((site.lab.vip6(), PORT).into());
    site.add_service(vip, &reals);
    site.add_service(other, &reals);
    let mut old = site.connect_to(vip, "backend0");
    let mut elsewhere = site.connect_to(other, "backend0");
    let number = site.katran.real_index(reals[0]).unwrap();

    site.katran.remove_real(vip, reals[0]).unwrap();
    assert_eq!(site.katran.real_index(reals[0]), Some(number));
    // The other real does not know the connection, and resets it.
    let misses = site.katran.stats().flow_table().unwrap().miss_non_syn;
    assert!(old.ask("anybody").is_err());
    assert!(site.katran.stats().flow_table().unwrap().miss_non_syn > misses);
    assert_eq!(site.new_connections(vip, 10), ["backend1"; 10]);
    // The other VIP still has it.
    assert_eq!(
        elsewhere.ask("still").unwrap(),
        "backend0",
        "{}",
        site.report()
    );

    // No VIP uses it any more.
    site.katran.remove_real(other, reals[0]).unwrap();
    assert_eq!(site.katran.real_index(reals[0]), None);
    assert!(elsewhere.ask("anybody").is_err());
    assert_eq!(site.new_connections(other, 10), ["backend1"; 10]);
}

#[test]
fn a_flow_of_a_removed_real_does_not_go_to_the_next_owner_of_its_number() {
    let config = LabConfig {
        backends: 3,
        ..LabConfig::default()
    };
    let mut site = Site::with(config, XdpMode::Native, |builder| {
        all_remembered(builder).max_reals(2)
    });
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_udp(PORT).unwrap();
    let address = site.lab.vip4();
    let reals = site::reals(&site.lab, address);
    let vip = Vip::udp((address, PORT).into());
    site.add_service(vip, &reals[..2]);
    let drained = Real::new(reals[1]).weight(0);
    site.katran.add_real(vip, drained).unwrap();
    let clients: Vec<UdpClient> = (0..40).map(|_| site::udp(&site.lab.client, vip)).collect();
    for client in &clients {
        assert_eq!(client.ask(b"who").unwrap(), "backend0");
        assert_eq!(client.ask(b"still").unwrap(), "backend0");
    }
    let number = site.katran.real_index(reals[0]).unwrap();
    let before = site.katran.stats().flow_table().unwrap();
    assert_eq!(before.misses, 40);

    site.katran.remove_real(vip, reals[0]).unwrap();
    site.katran.add_real(vip, Real::new(reals[2])).unwrap();
    site.katran.add_real(vip, Real::new(reals[1])).unwrap();
    assert_eq!(site.katran.real_index(reals[2]), Some(number));
    let mut names = Vec::new();
    for client in &clients {
        let flow = Flow::udp(client.local_addr().unwrap(), site::service(vip));
        let by_ring = site.expected(flow);
        let name = client.ask(b"who").unwrap();
        assert_eq!(name, by_ring);
        assert_eq!(client.ask(b"still").unwrap(), name);
        names.push(name);
    }
    for name in ["backend1", "backend2"] {
        assert!(names.iter().any(|other| other == name), "{names:?}");
    }
    // Each flow is new once, and then remembered again.
    let after = site.katran.stats().flow_table().unwrap();
    assert_eq!(after.misses - before.misses, 40, "{}", site.report());
    assert_eq!(after.packets - before.packets, 80);
}

#[test]
fn clients_of_a_removed_real_move_and_all_others_stay() {
    let config = LabConfig {
        backends: 4,
        ..LabConfig::default()
    };
    let mut site = Site::with(config, XdpMode::Native, all_remembered);
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_udp(PORT).unwrap();
    let address = site.lab.vip4();
    let reals = site::reals(&site.lab, address);
    let vip = Vip::udp((address, PORT).into());
    site.add_service(vip, &reals);
    let clients: Vec<(UdpClient, String)> = (0..80)
        .map(|_| site::udp(&site.lab.client, vip))
        .map(|client| {
            let name = client.ask(b"who").unwrap();
            (client, name)
        })
        .collect();
    let of_gone = |name: &String| name == "backend0";
    let moving = clients.iter().filter(|(_, name)| of_gone(name)).count();
    assert!((1..80).contains(&moving));

    site.katran.remove_real(vip, reals[0]).unwrap();
    let before = site.katran.stats().flow_table().unwrap().misses;
    for (client, name) in &clients {
        let now = client.ask(b"who").unwrap();
        assert!(!of_gone(&now));
        assert!(of_gone(name) || now == *name, "{name} was left for {now}");
    }
    let after = site.katran.stats().flow_table().unwrap().misses;
    assert_eq!(after - before, moving as u64, "{}", site.report());
}

#[test]
fn consecutive_client_ports_are_balanced_by_weight() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, all_remembered);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let address = site.lab.vip4();
    let reals = site::reals(&site.lab, address);
    let vip = Vip::tcp((address, PORT).into());
    site.add_service(vip, &reals);
    let heavy = Real::new(reals[0]).weight(3);
    site.katran.add_real(vip, heavy).unwrap();
    let local = |port| SocketAddr::new("192.0.2.2".parse().unwrap(), port);
    for port in 20_000..20_200 {
        let flow = Flow::tcp(local(port), site::service(vip));
        let by_ring = site.expected(flow);
        let mut client =
            TcpClient::connect_from(&site.lab.client, local(port), site::service(vip)).unwrap();
        assert_eq!(client.ask("who").unwrap(), by_ring);
    }
    let accepted: Vec<u64> = servers.iter().map(|server| server.accepted()).collect();
    assert_eq!(accepted.iter().sum::<u64>(), 200);
    // Three quarters of 200, give or take five standard deviations.
    assert!((120..=180).contains(&accepted[0]), "{accepted:?}");
    assert!(site.katran.stats().flow_table().unwrap().miss_syn >= 200);
}

impl Site {
    fn add_real_again(&mut self, vip: Vip, real: std::net::IpAddr) {
        self.katran.add_real(vip, Real::new(real)).unwrap();
    }
}
