//! What becomes of attachments as interfaces go, come again and are renamed, in one network namespace or
//! several, and as attaching fails half way: what is attached is what the library says, and next hops are
//! followed where something is attached and nowhere else.

use std::os::fd::AsRawFd;

use katran::Decap;
use katran::Error;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::RootProgram;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::require_root;
use katran_lab::veth;
use nix::errno::Errno;

use crate::attach::program;
use crate::faults;
use crate::faults::without_commands;
use crate::shared::Pins;
use crate::site;

/// A host and its router.
struct Place {
    host: Host,
    router: Host,
    router_mac: MacAddr,
}

impl Place {
    /// `number` tells its router's address from those of other places.
    fn new(number: u8) -> Self {
        require_root();
        let (host, router) = (Host::new("host").unwrap(), Host::new("router").unwrap());
        let mac = [2, 0, 0, 0, 0xaa, number];
        veth(host.port("eth0"), router.port("to0").mac(mac), 1600).unwrap();
        host.ip("addr add 10.0.0.2/24 dev eth0").unwrap();
        router.ip("addr add 10.0.0.1/24 dev to0").unwrap();
        host.ip("route add default via 10.0.0.1 dev eth0").unwrap();
        Self {
            host,
            router,
            router_mac: MacAddr::new(mac),
        }
    }

    /// Another link to the router.
    fn link(&self, interface: &str, mac: [u8; 6]) {
        let (near, far) = (format!("{interface}x"), interface);
        veth(self.host.port(far).mac(mac), self.router.port(&near), 1600).unwrap();
    }
}

/// A balancer that finds out its gateway.
fn seeker() -> Katran {
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    builder.healthcheck_interface("probe0").load().unwrap()
}

/// What the path of probes has been told: the interface that they leave by (0: their own), and its
/// Ethernet address.
fn way_of_probes(katran: &Katran) -> (u32, MacAddr) {
    let map = katran.map_fd(".data.settings").unwrap();
    let (key, mut settings) = (0_u32, [0_u8; 56]);
    // SAFETY: key and value are as long as those of the map.
    let found = unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            map.as_raw_fd(),
            std::ptr::from_ref(&key).cast(),
            settings.as_mut_ptr().cast(),
        )
    };
    assert_eq!(found, 0);
    let mac: [u8; 6] = settings[16..22].try_into().unwrap();
    let index = u32::from_ne_bytes(settings[24..28].try_into().unwrap());
    (index, MacAddr::new(mac))
}

fn egress_has_probes(host: &Host, interface: &str) -> bool {
    let filters = host.tool("tc", &format!("filter show dev {interface} egress"));
    filters.unwrap().contains("healthcheck")
}

/// Attaches in `place` and checks that it is its router that was found.
fn finds_the_router_of(katran: &mut Katran, place: &Place) {
    place
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(katran.gateway_mac(), place.router_mac);
    katran.detach("eth0").unwrap();
    assert!(katran.next_hops().is_empty());
}

#[test]
fn what_has_failed_or_was_undone_follows_no_next_hops() {
    let pins = Pins::new();
    let (here, there) = (Place::new(1), Place::new(2));
    // Health checks have their interface there, and not here.
    there.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let mut katran = seeker();
    let error = here
        .host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(
        katran.next_hops().is_empty(),
        "after a failed attach_shared"
    );
    finds_the_router_of(&mut katran, &there);

    let mut root = RootProgram::builder().load().unwrap();
    root.pin(pins.path()).unwrap();
    // The entry is put back, for health checks have no place here.
    let error = here
        .host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(katran.shared_entries().is_empty() && katran.next_hops().is_empty());
    finds_the_router_of(&mut katran, &there);
    let error = here.host.run(|| katran.attach_healthchecks()).unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(
        katran.next_hops().is_empty(),
        "after a failed attach_healthchecks"
    );
    finds_the_router_of(&mut katran, &there);
    let error = here
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    assert!(katran.next_hops().is_empty(), "after a failed attach");
    assert_eq!(program(&here.host, "eth0"), None);
    finds_the_router_of(&mut katran, &there);

    // What works and is undone.
    here.link("probe0", [2, 0, 0, 0, 0xbb, 2]);
    here.host
        .run(|| katran.attach_shared(pins.path(), 2))
        .unwrap();
    assert_eq!(katran.gateway_mac(), here.router_mac);
    katran.detach_shared(pins.path()).unwrap();
    assert!(katran.next_hops().is_empty(), "after detach_shared");
    finds_the_router_of(&mut katran, &there);
    here.host.run(|| katran.attach_healthchecks()).unwrap();
    assert_eq!(katran.gateway_mac(), here.router_mac);
    katran.detach_healthchecks();
    assert!(katran.next_hops().is_empty(), "after detach_healthchecks");
    finds_the_router_of(&mut katran, &there);
    here.host.run(|| katran.attach_healthchecks()).unwrap();
    katran.detach_all();
    assert!(katran.next_hops().is_empty(), "after detach_all");
    finds_the_router_of(&mut katran, &there);
}

#[test]
fn an_embedder_who_attaches_by_other_means_has_next_hops_followed_until_it_says_so() {
    let (here, there, nowhere) = (Place::new(1), Place::new(2), Place::new(3));
    nowhere.host.ip("route del default").unwrap();
    there.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    let mut katran = seeker();
    here.host.run(|| katran.follow_next_hops()).unwrap();
    assert_eq!(katran.gateway_mac(), here.router_mac);
    there.host.run(|| katran.follow_next_hops()).unwrap();
    assert_eq!(katran.gateway_mac(), there.router_mac);
    // One that fails leaves that before.
    let error = nowhere.host.run(|| katran.follow_next_hops()).unwrap_err();
    assert!(matches!(error, Error::NoNextHop { .. }), "{error}");
    site::eventually("the router is found again", || {
        katran.next_hops().iter().any(|hop| hop.answers)
    });
    assert_eq!(katran.gateway_mac(), there.router_mac);
    // Attachments are reasons beside it.
    there.host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.detach("eth0").unwrap();
    });
    assert!(!katran.next_hops().is_empty());
    there
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    katran.stop_following_next_hops();
    assert!(!katran.next_hops().is_empty());
    katran.detach("eth0").unwrap();
    assert!(katran.next_hops().is_empty());
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
    assert_eq!(katran.gateway_mac(), here.router_mac);
    // From elsewhere it cannot be told which one is meant.
    let error = katran.detach("eth0").unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    here.host.run(|| katran.detach("eth0")).unwrap();
    assert_eq!(program(&here.host, "eth0"), None);
    assert!(program(&there.host, "eth0").is_some());
    site::eventually("the other router is found", || {
        katran.gateway_mac() == there.router_mac
    });
    // It is the only one that is left.
    katran.detach("eth0").unwrap();
    assert_eq!(program(&there.host, "eth0"), None);
    assert!(katran.next_hops().is_empty());
}

#[test]
fn an_interface_that_is_made_again_is_attached_again() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = || host.ip("link add dev0 type veth peer name dev1").unwrap();
    let remove = || host.ip("link del dev0").unwrap();
    let index = || host.interface_index("dev0").unwrap();
    let mut decap = Decap::builder().load().unwrap();
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        make();
        host.run(|| decap.attach_tc("dev0", hook)).unwrap();
        remove();
        make();
        let attached = host.run(|| decap.attach_tc("dev0", hook)).unwrap();
        assert_eq!(attached.index, index());
        assert_eq!(decap.tc_interfaces(), [attached]);
        let filters = || host.tool("tc", "filter show dev dev0 ingress").unwrap();
        assert_eq!(filters().contains("decap_tc"), hook == TcHook::Clsact);
        let twice = host.run(|| decap.attach_tc("dev0", hook)).unwrap_err();
        assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
        decap.detach("dev0").unwrap();
        assert!(filters().is_empty() && decap.tc_interfaces().is_empty());
        remove();
    }
    // By the other way, too.
    make();
    host.run(|| decap.attach_tc("dev0", TcHook::Auto)).unwrap();
    remove();
    make();
    host.run(|| decap.attach("dev0", XdpMode::Generic)).unwrap();
    assert!(decap.tc_interfaces().is_empty() && decap.interfaces().len() == 1);
    remove();
    make();
    host.run(|| decap.attach_tc("dev0", TcHook::Auto)).unwrap();
    assert!(decap.tc_interfaces().len() == 1 && decap.interfaces().is_empty());
}

#[test]
fn probes_have_a_path_again_when_its_interface_is_made_again() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = || {
        host.ip("link add probe0 type veth peer name probe1")
            .unwrap()
    };
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        make();
        let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).healthcheck_hook(hook);
        let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
        host.run(|| katran.attach_healthchecks()).unwrap();
        host.ip("link del probe0").unwrap();
        make();
        host.run(|| katran.attach_healthchecks()).unwrap();
        let index = host.interface_index("probe0").unwrap();
        assert_eq!(katran.healthcheck_attachment().unwrap().index, index);
        assert_eq!(egress_has_probes(&host, "probe0"), hook == TcHook::Clsact);
        assert_eq!(way_of_probes(&katran).0, index);
        host.ip("link del probe0").unwrap();
    }
}

#[test]
fn what_is_gone_says_so_and_is_put_back_by_one_call() {
    let pins = Pins::new();
    let place = Place::new(1);
    let host = &place.host;
    let link = || {
        place.link("one0", [2, 0, 0, 0, 0xcc, 1]);
        place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    };
    link();
    let make_root = || {
        let mut root = RootProgram::builder().load().unwrap();
        host.run(|| root.attach("one0", XdpMode::Generic)).unwrap();
        root.pin(pins.path()).unwrap();
    };
    make_root();
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
    let (mut decap, mut root) = (
        Decap::builder().load().unwrap(),
        RootProgram::builder().load().unwrap(),
    );
    host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.attach("probe0", XdpMode::Generic).unwrap();
        katran.attach_shared(pins.path(), 2).unwrap();
        decap.attach_tc("one0", TcHook::Clsact).unwrap();
        root.attach("one0x", XdpMode::Generic).unwrap_err();
    });
    place
        .router
        .run(|| root.attach("one0x", XdpMode::Generic))
        .unwrap();
    host.ip("link del one0").unwrap();
    host.ip("link del probe0").unwrap();
    RootProgram::remove(pins.path()).unwrap();
    use AttachmentState::*;
    let of_katran = |katran: &Katran| -> Vec<_> {
        let attachments = katran.interfaces().into_iter();
        attachments.map(|of| (of.interface, of.state)).collect()
    };
    let names = |first, second| [("eth0".to_owned(), first), ("probe0".to_owned(), second)];
    assert_eq!(of_katran(&katran), names(Attached, Gone));
    assert_eq!(katran.healthcheck_attachment().unwrap().state, Gone);
    assert_eq!(decap.tc_interfaces()[0].state, Gone);
    assert_eq!(root.interfaces()[0].state, Gone);
    // There is nothing to attach to: that is no failure, and changes nothing. What is there goes on.
    host.run(|| {
        katran.reattach().unwrap();
        decap.reattach().unwrap();
        katran.detach("eth0").unwrap();
        katran.attach("eth0", XdpMode::Generic).unwrap();
    });
    let gone_first = |state| [("probe0".to_owned(), state), ("eth0".to_owned(), Attached)];
    assert_eq!(of_katran(&katran), gone_first(Gone));
    assert_eq!(decap.tc_interfaces()[0].state, Gone);

    link();
    make_root();
    assert_eq!(katran.shared_entries()[0].state, Gone);
    // From another namespace nothing is put back by mistake.
    katran.reattach().unwrap();
    assert_eq!(of_katran(&katran), gone_first(Gone));
    assert_eq!(katran.shared_entries()[0].state, Gone);
    host.run(|| {
        katran.reattach().unwrap();
        decap.reattach().unwrap();
    });
    place.router.run(|| root.reattach()).unwrap();
    assert_eq!(of_katran(&katran)[1], ("probe0".to_owned(), Attached));
    assert_eq!(katran.shared_entries()[0].state, Attached);
    assert!(pins.list().iter().any(|pin| pin.starts_with("root_2_")));
    let probes = katran.healthcheck_attachment().unwrap();
    assert_eq!(probes.state, Attached);
    assert_eq!(probes.index, host.interface_index("probe0").unwrap());
    assert_eq!(
        way_of_probes(&katran).0,
        host.interface_index("eth0").unwrap()
    );
    assert_eq!(decap.tc_interfaces()[0].state, Attached);
    assert_eq!(root.interfaces()[0].state, Attached);
    assert!(program(host, "probe0").is_some() && program(&place.router, "one0x").is_some());
    // Once more there is nothing to do.
    host.run(|| katran.reattach()).unwrap();
    assert_eq!(katran.interfaces().len(), 2);
    drop(katran);
    assert_eq!(program(host, "probe0"), None);
    assert!(!pins.list().iter().any(|pin| pin.starts_with("root_2_")));
    RootProgram::remove(pins.path()).unwrap();
}

#[test]
fn probes_leave_by_the_first_interface_that_is_there() {
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
    // The first one goes by itself: the next call finds the next.
    host.ip("link del two0").unwrap();
    host.run(|| katran.attach_healthchecks()).unwrap();
    assert_eq!(
        way_of_probes(&katran),
        (index("one0"), MacAddr::new(macs[0]))
    );
    // In another namespace there may be an interface of any index.
    let other = Place::new(2);
    katran.detach("one0").unwrap();
    host.run(|| katran.attach_healthchecks()).unwrap();
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
fn detaching_brings_nothing_back_that_was_detached() {
    let place = Place::new(1);
    place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
    place.link("two0", [2, 0, 0, 0, 0xbb, 2]);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
    let host = &place.host;
    host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.attach("two0", XdpMode::Generic).unwrap();
        katran.detach_healthchecks();
        katran.detach("eth0").unwrap();
    });
    assert!(katran.healthcheck_attachment().is_none());
    assert_eq!(way_of_probes(&katran).0, 0);
}

#[test]
fn an_interface_that_was_renamed_is_still_ours() {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    let mut decap = Decap::builder().load().unwrap();
    host.run(|| katran.attach("dev0", XdpMode::Generic))
        .unwrap();
    host.run(|| decap.attach_tc("dev1", TcHook::Clsact))
        .unwrap();
    host.ip("link set dev0 name new0").unwrap();
    host.ip("link set dev1 name new1").unwrap();
    for name in ["new0", "new1"] {
        assert!(host.run(|| katran.diagnose(name)).is_ok());
    }
    let (now, of_tc) = host.run(|| (katran.interfaces(), decap.tc_interfaces()));
    assert_eq!((&*now[0].interface, &*of_tc[0].interface), ("new0", "new1"));
    let twice = host
        .run(|| katran.attach("new0", XdpMode::Generic))
        .unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    let twice = host
        .run(|| decap.attach_tc("new1", TcHook::Clsact))
        .unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    // Another one has the old name now, which was never attached to.
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    let diagnosis = host.run(|| katran.diagnose("dev0")).unwrap().to_string();
    assert!(!diagnosis.contains("is gone"), "{diagnosis}");
    host.run(|| katran.attach("dev0", XdpMode::Generic))
        .unwrap();
    let (_, old) = program(&host, "new0").unwrap();
    assert_eq!(program(&host, "dev0"), Some((XdpMode::Generic, old)));
    katran
        .reload(katran::Features::all().difference(katran::Features::FLOW_DEBUG))
        .unwrap();
    let (_, new) = program(&host, "new0").unwrap();
    assert_ne!(new, old);
    host.run(|| katran.detach("dev0")).unwrap();
    assert_eq!(program(&host, "dev0"), None);
    assert!(program(&host, "new0").is_some(), "the index decides");
    host.run(|| katran.detach("new0")).unwrap();
    assert_eq!(program(&host, "new0"), None);
    // From elsewhere by the name that it had.
    decap.detach("dev1").unwrap();
    assert!(
        host.tool("tc", "filter show dev new1 ingress")
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_interface_without_ethernet_headers_is_refused_with_the_reason() {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("tuntap add dev tun7 mode tun").unwrap();
    host.ip("tuntap add dev tap7 mode tap").unwrap();
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let mut katran = builder.healthcheck_interface("tun7").load().unwrap();
    let mut decap = Decap::builder().load().unwrap();
    let mut root = RootProgram::builder().load().unwrap();
    let refusals = host.run(|| {
        [
            katran.attach("tun7", XdpMode::Auto).map(drop),
            katran.attach_healthchecks(),
            decap.attach("tun7", XdpMode::Generic).map(drop),
            decap.attach_tc("tun7", TcHook::Auto).map(drop),
            root.attach("tun7", XdpMode::Auto).map(drop),
        ]
    });
    for refused in refusals {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("tun7") && text.contains("no Ethernet header"),
            "{text}"
        );
        assert!(text.contains("below a tunnel"), "{text}");
    }
    assert_eq!(program(&host, "tun7"), None);
    host.run(|| decap.attach("tap7", XdpMode::Generic)).unwrap();
    host.run(|| decap.attach("lo", XdpMode::Generic)).unwrap();
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
    // Health checks are there already; the link of XDP is refused.
    host.run(|| katran.attach_healthchecks()).unwrap();
    let way = way_of_probes(&katran);
    assert_eq!(way.0, host.interface_index("probe0").unwrap());
    let refuse = |katran: &mut Katran, interface: &str| {
        let attach = || host.run(|| katran.attach(interface, XdpMode::Generic));
        without_commands(&[faults::LINK_CREATE], Errno::ENOMEM, attach).unwrap_err()
    };
    let error = refuse(&mut katran, "eth0");
    assert!(matches!(error, Error::Kernel { .. }), "{error}");
    assert_eq!(way_of_probes(&katran), way);
    assert!(katran.interfaces().is_empty() && egress_has_probes(host, "probe0"));
    assert!(!katran.next_hops().is_empty(), "health checks need them");
    // Probes cannot leave by `lo`, so it has no place for the balancer either.
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
    // One that is gone is still told of after a failure.
    host.ip("link del eth0").unwrap();
    veth(host.port("eth0"), place.router.port("to0"), 1600).unwrap();
    refuse(&mut katran, "eth0");
    assert_eq!(katran.interfaces().len(), 1);
    katran.detach_healthchecks();
    assert!(!egress_has_probes(host, "probe0") && katran.next_hops().is_empty());
}
