//! The consequences of an attach or a detach, even one that fails half way: whose next hops are
//! followed, and which interface probes leave by.

use std::fs;

use katran::Error;
use katran::Family;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::RootProgram;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::veth;
use nix::errno::Errno;

use crate::attach::program;
use crate::attachments::Place;
use crate::attachments::egress_has_probes;
use crate::attachments::way_of_probes;
use crate::faults;
use crate::faults::without_commands;
use crate::shared::Pins;
use crate::site;

/// A balancer that discovers its gateway.
fn seeker() -> Katran {
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    builder.healthcheck_interface("probe0").load().unwrap()
}

/// Attaches in `place` and checks that the library found its router.
fn finds_the_router_of(katran: &mut Katran, place: &Place) {
    place
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), place.router_mac);
    katran.detach("eth0").unwrap();
    assert!(katran.gateways().next_hops().is_empty());
}

#[test]
fn failed_and_undone_attachments_follow_no_next_hops() {
    let pins = Pins::new();
    let (here, there) = (Place::new(1), Place::new(2));
    // The interface for health checks exists there, and not here.
    there.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let mut katran = seeker();
    let error = here
        .host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(
        katran.gateways().next_hops().is_empty(),
        "after a failed attach_shared"
    );
    finds_the_router_of(&mut katran, &there);

    let mut root = RootProgram::builder().load().unwrap();
    root.pin(pins.path()).unwrap();
    // The library undoes the entry, as the interface for health checks does not exist here.
    let error = here
        .host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(katran.shared_entries().is_empty() && katran.gateways().next_hops().is_empty());
    finds_the_router_of(&mut katran, &there);
    let error = here.host.run(|| katran.probes_mut().attach()).unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(
        katran.gateways().next_hops().is_empty(),
        "after probes failed to attach"
    );
    finds_the_router_of(&mut katran, &there);
    let error = here
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(
        katran.gateways().next_hops().is_empty(),
        "after a failed attach"
    );
    assert_eq!(program(&here.host, "eth0"), None);
    finds_the_router_of(&mut katran, &there);

    // One that succeeds, and is undone.
    here.link("probe0", [2, 0, 0, 0, 0xbb, 2]);
    here.host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), here.router_mac);
    katran.detach_shared(pins.path()).unwrap();
    assert!(
        katran.gateways().next_hops().is_empty(),
        "after detach_shared"
    );
    finds_the_router_of(&mut katran, &there);
    here.host.run(|| katran.probes_mut().attach()).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), here.router_mac);
    katran.probes_mut().detach();
    assert!(
        katran.gateways().next_hops().is_empty(),
        "after probes were detached"
    );
    finds_the_router_of(&mut katran, &there);
    here.host.run(|| katran.probes_mut().attach()).unwrap();
    katran.detach_all();
    assert!(katran.gateways().next_hops().is_empty(), "after detach_all");
    finds_the_router_of(&mut katran, &there);
}

#[test]
fn an_embedder_can_start_and_stop_following() {
    let (here, there, nowhere) = (Place::new(1), Place::new(2), Place::new(3));
    nowhere.host.ip("route del default").unwrap();
    there.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let mut katran = seeker();
    here.host.run(|| katran.gateways_mut().follow()).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), here.router_mac);
    there.host.run(|| katran.gateways_mut().follow()).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), there.router_mac);
    // A failing call keeps the old namespace.
    let error = nowhere
        .host
        .run(|| katran.gateways_mut().follow())
        .unwrap_err();
    assert!(matches!(error, Error::NoNextHop { .. }), "{error}");
    site::eventually("the router is found again", || {
        katran.gateways().next_hops().iter().any(|hop| hop.answers)
    });
    assert_eq!(katran.gateways().mac(Family::V4), there.router_mac);
    // Attachments keep following alive, too.
    there.host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.detach("eth0").unwrap();
    });
    assert!(!katran.gateways().next_hops().is_empty());
    there
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    katran.gateways_mut().stop_following();
    assert!(!katran.gateways().next_hops().is_empty());
    katran.detach("eth0").unwrap();
    assert!(katran.gateways().next_hops().is_empty());
    here.link("probe0", [2, 0, 0, 0, 0xbb, 2]);
    finds_the_router_of(&mut katran, &here);
}

#[test]
fn next_hops_move_on_to_the_next_namespace_with_the_last_attachment_of_the_first() {
    let (here, there) = (Place::new(1), Place::new(2));
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    here.host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    // An interface of the same name, and most likely the same index.
    there
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(katran.interfaces().len(), 2);
    assert!(program(&here.host, "eth0").is_some() && program(&there.host, "eth0").is_some());
    for place in [&here, &there] {
        let twice = place
            .host
            .run(|| katran.attach("eth0", XdpMode::Generic))
            .unwrap_err();
        assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    }
    assert_eq!(katran.gateways().mac(Family::V4), here.router_mac);
    // From another namespace the name is ambiguous.
    let error = katran.detach("eth0").unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    here.host.run(|| katran.detach("eth0")).unwrap();
    assert_eq!(program(&here.host, "eth0"), None);
    assert!(program(&there.host, "eth0").is_some());
    site::eventually("the other router is found", || {
        katran.gateways().mac(Family::V4) == there.router_mac
    });
    // Only this one is left.
    katran.detach("eth0").unwrap();
    assert_eq!(program(&there.host, "eth0"), None);
    assert!(katran.gateways().next_hops().is_empty());
}

#[test]
fn each_balancer_discovers_its_own_next_hops() {
    let (here, there) = (Place::new(1), Place::new(2));
    let [mut first, mut second, mut third] = [(); 3].map(|()| {
        let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
        builder.gateway(Gateway::Auto).load().unwrap()
    });
    here.host
        .run(|| first.attach("eth0", XdpMode::Generic))
        .unwrap();
    there
        .host
        .run(|| second.attach("eth0", XdpMode::Generic))
        .unwrap();
    // With the second still there: one stops following, the other continues.
    there.host.run(|| third.gateways_mut().follow()).unwrap();
    let routers = [&first, &second, &third].map(|of| of.gateways().mac(Family::V4));
    let [here, there] = [here.router_mac, there.router_mac];
    assert_eq!(routers, [here, there, there]);
    second.detach("eth0").unwrap();
    assert!(second.gateways().next_hops().is_empty());
    assert!(third.gateways().next_hops().iter().any(|hop| hop.answers));
}

#[test]
fn probes_leave_by_the_first_existing_interface() {
    let place = Place::new(1);
    let macs = [[2, 0, 0, 0, 0xcc, 1], [2, 0, 0, 0, 0xcc, 2]];
    place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
    let host = &place.host;
    let index = |name: &str| host.interface_index(name).unwrap();
    for (name, mac) in ["one0", "two0"].into_iter().zip(macs) {
        place.link(name, mac);
        host.run(|| katran.attach(name, XdpMode::Generic)).unwrap();
    }
    assert_eq!(
        way_of_probes(&katran),
        (index("one0"), MacAddr::new(macs[0]))
    );
    katran.detach("one0").unwrap();
    assert_eq!(
        way_of_probes(&katran),
        (index("two0"), MacAddr::new(macs[1]))
    );
    host.run(|| katran.attach("one0", XdpMode::Generic))
        .unwrap();
    assert_eq!(way_of_probes(&katran).0, index("two0"));
    // The first interface vanishes: the next call finds the other.
    host.ip("link del two0").unwrap();
    host.run(|| katran.probes_mut().attach()).unwrap();
    assert_eq!(
        way_of_probes(&katran),
        (index("one0"), MacAddr::new(macs[0]))
    );
    // In another namespace an unrelated interface may have the same index.
    let other = Place::new(2);
    katran.detach("one0").unwrap();
    host.run(|| katran.probes_mut().attach()).unwrap();
    other
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(
        way_of_probes(&katran),
        (index("probe0"), MacAddr::new([2, 0, 0, 0, 0xbb, 1]))
    );
}

#[test]
fn detaching_restores_nothing() {
    let place = Place::new(1);
    place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    place.link("two0", [2, 0, 0, 0, 0xbb, 2]);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
    let host = &place.host;
    host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.attach("two0", XdpMode::Generic).unwrap();
        katran.probes_mut().detach();
        katran.detach("eth0").unwrap();
    });
    assert!(katran.probes().attachment().is_none());
    assert_eq!(way_of_probes(&katran).0, 0);
}

#[test]
fn an_attach_that_fails_half_way_changes_nothing() {
    let place = Place::new(1);
    place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let builder = builder
        .gateway(Gateway::Auto)
        .healthcheck_hook(TcHook::Clsact);
    let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
    let host = &place.host;
    // Health checks are attached already; the XDP link is refused.
    host.run(|| katran.probes_mut().attach()).unwrap();
    let way = way_of_probes(&katran);
    assert_eq!(way.0, host.interface_index("probe0").unwrap());
    let refuse = |katran: &mut Katran, interface: &str| {
        let attach = || host.run(|| katran.attach(interface, XdpMode::Generic));
        without_commands(&[faults::LINK_CREATE], Errno::ENOMEM, attach).unwrap_err()
    };
    let error = refuse(&mut katran, "eth0");
    assert!(matches!(error, Error::InsufficientMemory { .. }), "{error}");
    assert_eq!(way_of_probes(&katran), way);
    assert!(katran.interfaces().is_empty() && egress_has_probes(host, "probe0"));
    assert!(
        !katran.gateways().next_hops().is_empty(),
        "health checks need them"
    );
    // Probes cannot leave by `lo`, so the balancer cannot attach there either.
    let error = host
        .run(|| katran.attach("lo", XdpMode::Generic))
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(way_of_probes(&katran), way);
    assert!(katran.interfaces().is_empty() && program(host, "lo").is_none());
    host.run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(
        way_of_probes(&katran).0,
        host.interface_index("eth0").unwrap()
    );
    // A lost attachment is still reported after the failure.
    host.ip("link del eth0").unwrap();
    veth(host.port("eth0"), place.router.port("to0"), 1600).unwrap();
    refuse(&mut katran, "eth0");
    assert_eq!(katran.interfaces().len(), 1);
    katran.probes_mut().detach();
    assert!(!egress_has_probes(host, "probe0") && katran.gateways().next_hops().is_empty());
}

/// The netlink sockets of processes in a network namespace, as their multicast groups.
pub(crate) fn netlink_sockets(host: &Host) -> Vec<u32> {
    let text = host.run(|| fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    // sk Eth Pid Groups Rmem ...: the kernel's own sockets have no Pid.
    let sockets = text.lines().skip(1).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (
            words[2].to_owned(),
            u32::from_str_radix(words[3], 16).unwrap(),
        )
    });
    let sockets = sockets.filter(|(pid, _)| pid != "0");
    sockets.map(|(_, groups)| groups).collect()
}

#[test]
fn any_thread_discovers_a_gateway_while_nothing_is_held() {
    let place = Place::new(1);
    let given = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let mut katran = site::small(given).load().unwrap();
    let attach = || katran.attach("eth0", XdpMode::Generic);
    place.host.run(attach).unwrap();
    site::eventually("nothing is held", || {
        netlink_sockets(&place.host).is_empty()
    });
    // This thread is elsewhere, and so is one that has nothing to do with the test's host.
    katran.gateways_mut().set(Gateway::Auto).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), place.router_mac);
    katran.gateways_mut().set_mac(given).unwrap();
    let elsewhere = Place::new(2);
    let change = || katran.gateways_mut().set(Gateway::Auto);
    elsewhere.host.run(change).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), place.router_mac);
    katran.gateways_mut().set_mac(given).unwrap();
    site::eventually("nothing is held again", || {
        netlink_sockets(&place.host).is_empty()
    });
    // A namespace that is gone has nothing to discover.
    drop(place);
    site::eventually("the namespace is gone", || {
        katran.interfaces()[0].state == AttachmentState::Gone
    });
    katran.gateways_mut().set(Gateway::Auto).unwrap();
    assert!(katran.gateways().next_hops().is_empty());
}

#[test]
fn a_namespace_without_discoveries_is_not_held() {
    let (here, there) = (Place::new(1), Place::new(2));
    let given = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let mut katran = site::small(given).load().unwrap();
    let attach = |katran: &mut Katran, place: &Place| {
        let attach = || katran.attach("eth0", XdpMode::Generic);
        place.host.run(attach).unwrap();
    };
    attach(&mut katran, &here);
    let has_none = |place: &Place| netlink_sockets(&place.host).is_empty();
    // Sockets opened for a single query are closed.
    site::eventually("nothing is held here", || has_none(&here));
    here.host
        .run(|| katran.gateways_mut().set(Gateway::Auto))
        .unwrap();
    attach(&mut katran, &there);
    // Only the followed namespace has sockets for notices.
    let listen = |place: &Place| {
        let sockets = netlink_sockets(&place.host);
        sockets.iter().filter(|groups| **groups != 0).count()
    };
    assert_eq!((listen(&here), listen(&there)), (1, 0));
    here.host.run(|| katran.detach("eth0")).unwrap();
    // A child that another test has just forked may hold them for a moment.
    site::eventually("nothing is held here", || has_none(&here));
    assert_eq!(listen(&there), 1);
    site::eventually("the other router is found", || {
        katran.gateways().mac(Family::V4) == there.router_mac
    });
    katran.gateways_mut().set_mac(given).unwrap();
    site::eventually("nothing is held there", || has_none(&there));
    // The namespace goes with its last process, and its interfaces with it.
    drop(there);
    site::eventually("the namespace is gone", || {
        katran.interfaces()[0].state == AttachmentState::Gone
    });
}
