//! Attachments whose interfaces are removed, recreated, renamed or moved between network
//! namespaces: the library must report what is really there.

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

use crate::attach::program;
use crate::shared::Pins;
use crate::site;

/// A host and its router.
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) router: Host,
    pub(crate) router_mac: MacAddr,
}

impl Place {
    /// `number` distinguishes its router's address from other places' routers.
    pub(crate) fn new(number: u8) -> Self {
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
    pub(crate) fn link(&self, interface: &str, mac: [u8; 6]) {
        let (near, far) = (format!("{interface}x"), interface);
        veth(self.host.port(far).mac(mac), self.router.port(&near), 1600).unwrap();
    }
}

/// The interface (0: the default one) and source MAC address that the probes' program uses.
pub(crate) fn way_of_probes(katran: &Katran) -> (u32, MacAddr) {
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

pub(crate) fn egress_has_probes(host: &Host, interface: &str) -> bool {
    let filters = host.tool("tc", &format!("filter show dev {interface} egress"));
    filters.unwrap().contains("healthcheck")
}

#[test]
fn a_recreated_interface_is_attached_again() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = || host.ip("link add dev0 type veth peer name dev1").unwrap();
    let remove = || host.ip("link del dev0").unwrap();
    let index = || host.interface_index("dev0").unwrap();
    let mut decap = Decap::builder().load().unwrap();
    for hook in [site::first_choice(), TcHook::Clsact] {
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
    // In the other order, too.
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
fn probes_get_their_path_back_with_a_recreated_interface() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = || {
        host.ip("link add probe0 type veth peer name probe1")
            .unwrap()
    };
    for hook in [site::first_choice(), TcHook::Clsact] {
        make();
        let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).healthcheck_hook(hook);
        let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
        host.run(|| katran.probes_mut().attach()).unwrap();
        host.ip("link del probe0").unwrap();
        make();
        host.run(|| katran.probes_mut().attach()).unwrap();
        let index = host.interface_index("probe0").unwrap();
        assert_eq!(katran.probes().attachment().unwrap().index, index);
        assert_eq!(egress_has_probes(&host, "probe0"), hook == TcHook::Clsact);
        assert_eq!(way_of_probes(&katran).0, index);
        host.ip("link del probe0").unwrap();
    }
}

#[test]
fn lost_attachments_are_reported_and_restored_by_one_call() {
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
    assert_eq!(katran.probes().attachment().unwrap().state, Gone);
    assert_eq!(decap.tc_interfaces()[0].state, Gone);
    assert_eq!(root.interfaces()[0].state, Gone);
    // Without an interface, `reattach` is no failure and changes nothing.
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
    // From another namespace `reattach` must not pick the wrong interface.
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
    let probes = katran.probes().attachment().unwrap();
    assert_eq!(probes.state, Attached);
    assert_eq!(probes.index, host.interface_index("probe0").unwrap());
    assert_eq!(
        way_of_probes(&katran).0,
        host.interface_index("eth0").unwrap()
    );
    assert_eq!(decap.tc_interfaces()[0].state, Attached);
    assert_eq!(root.interfaces()[0].state, Attached);
    assert!(program(host, "probe0").is_some() && program(&place.router, "one0x").is_some());
    host.run(|| katran.reattach()).unwrap();
    assert_eq!(katran.interfaces().len(), 2);
    drop(katran);
    assert_eq!(program(host, "probe0"), None);
    assert!(!pins.list().iter().any(|pin| pin.starts_with("root_2_")));
    RootProgram::remove(pins.path()).unwrap();
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
    // Another interface takes the old name; nothing was ever attached to it.
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
    // From another namespace, by its old name.
    decap.detach("dev1").unwrap();
    assert!(
        host.tool("tc", "filter show dev new1 ingress")
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_old_name_means_the_lost_attachment() {
    require_root();
    let host = Host::new("host").unwrap();
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    let mut decap = Decap::builder().load().unwrap();
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    host.run(|| {
        katran.attach("dev0", XdpMode::Generic).unwrap();
        decap.attach_tc("dev1", TcHook::Clsact).unwrap();
    });
    host.ip("link set dev0 name new0").unwrap();
    host.ip("link set dev1 name new1").unwrap();
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    host.run(|| {
        katran.attach("dev0", XdpMode::Generic).unwrap();
        decap.attach("dev1", XdpMode::Generic).unwrap();
    });
    host.ip("link del dev0").unwrap();
    let filters = || host.tool("tc", "filter show dev new1 ingress").unwrap();
    host.run(|| {
        katran.detach("dev0").unwrap();
        decap.detach("dev1").unwrap();
    });
    assert!(program(&host, "new0").is_some() && filters().contains("decap_tc"));
    let left = host.run(|| katran.interfaces());
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].interface, "new0");
    assert_eq!(left[0].state, AttachmentState::Attached);
    assert!(decap.interfaces().is_empty() && decap.tc_interfaces().len() == 1);
    // Only this interface ever had the name.
    host.run(|| {
        katran.detach("dev0").unwrap();
        decap.detach("dev1").unwrap();
    });
    assert!(program(&host, "new0").is_none() && filters().is_empty());
}

#[test]
fn a_lost_attachment_is_restored_under_its_last_name() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = |name: &str, peer: &str| {
        host.ip(&format!("link add {name} type veth peer name {peer}"))
            .unwrap();
    };
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    let mut decap = Decap::builder().load().unwrap();
    make("dev0", "dev1");
    host.run(|| {
        katran.attach("dev0", XdpMode::Generic).unwrap();
        decap.attach_tc("dev1", TcHook::Auto).unwrap();
    });
    host.ip("link set dev0 name wan0").unwrap();
    host.ip("link set dev1 name wan1").unwrap();
    let names = |katran: &Katran, decap: &Decap| {
        let of_tc = decap.tc_interfaces().remove(0);
        let of_xdp = katran.interfaces().remove(0);
        assert_eq!(of_xdp.state, of_tc.state);
        (of_xdp.interface, of_tc.interface, of_xdp.state)
    };
    let expected = |state| ("wan0".to_owned(), "wan1".to_owned(), state);
    let renamed = host.run(|| names(&katran, &decap));
    assert_eq!(renamed, expected(AttachmentState::Attached));
    host.ip("link del wan0").unwrap();
    // A lost attachment keeps its interface's name, whatever the caller's namespace.
    for gone in [host.run(|| names(&katran, &decap)), names(&katran, &decap)] {
        assert_eq!(gone, expected(AttachmentState::Gone));
    }
    // Interfaces that have nothing to do with the balancer.
    make("dev0", "dev1");
    host.run(|| {
        katran.reattach().unwrap();
        decap.reattach().unwrap();
    });
    assert_eq!(program(&host, "dev0"), None);
    assert_eq!(
        names(&katran, &decap),
        expected(AttachmentState::Gone),
        "no interface has its name"
    );
    make("wan0", "wan1");
    host.run(|| {
        katran.reattach().unwrap();
        decap.reattach().unwrap();
    });
    assert!(program(&host, "wan0").is_some() && program(&host, "dev0").is_none());
    assert_eq!(katran.interfaces().len() + decap.tc_interfaces().len(), 2);
    assert_eq!(names(&katran, &decap), expected(AttachmentState::Attached));
}

#[test]
fn a_moved_interface_keeps_or_reports_its_attachments() {
    require_root();
    let (host, other) = (Host::new("host").unwrap(), Host::new("other").unwrap());
    let mut decap = Decap::builder().load().unwrap();
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    host.run(|| {
        decap.attach("dev0", XdpMode::Generic).unwrap();
        decap.attach_tc("dev1", TcHook::Clsact).unwrap();
    });
    for name in ["dev0", "dev1"] {
        let to = other.namespace_path();
        host.ip(&format!("link set {name} netns {}", to.display()))
            .unwrap();
    }
    let by_xdp = decap.interfaces()[0].state == AttachmentState::Attached;
    assert_eq!(program(&other, "dev0").is_some(), by_xdp);
    assert_eq!(decap.tc_interfaces()[0].state, AttachmentState::Gone);
    assert!(
        other
            .tool("tc", "filter show dev dev1 ingress")
            .unwrap()
            .is_empty()
    );
    // No interface to put them back on.
    host.run(|| decap.reattach()).unwrap();
    decap.detach("dev0").unwrap();
    assert_eq!(program(&other, "dev0"), None);
    decap.detach("dev1").unwrap();
    other
        .run(|| decap.attach_tc("dev1", TcHook::Clsact))
        .unwrap();
    other
        .run(|| decap.attach("dev0", XdpMode::Generic))
        .unwrap();
}

#[test]
fn a_moved_interface_is_reported_in_its_old_namespace() {
    use AttachmentState::*;

    require_root();
    let (host, other) = (Host::new("host").unwrap(), Host::new("other").unwrap());
    let move_to = |from: &Host, to: &Host, name: &str| {
        let to = to.namespace_path();
        from.ip(&format!("link set {name} netns {}", to.display()))
            .unwrap();
    };
    let mut decap = Decap::builder().load().unwrap();
    host.ip("link add dev0 type veth peer name dev1").unwrap();
    host.run(|| {
        decap.attach("dev0", XdpMode::Generic).unwrap();
        decap.attach_tc("dev1", site::first_choice()).unwrap();
    });
    let states = |decap: &Decap| {
        let of_xdp = decap.interfaces()[0].state;
        (of_xdp, decap.tc_interfaces()[0].state)
    };
    let index = host.interface_index("dev0").unwrap();
    for name in ["dev0", "dev1"] {
        move_to(&host, &other, name);
    }
    assert_eq!(host.run(|| states(&decap)), (Moved, Moved));
    assert!(program(&other, "dev0").is_some());
    // In its new namespace, the program blocks others as any foreign program does.
    let there = other.run(|| decap.attach("dev0", XdpMode::Generic));
    let error = there.unwrap_err();
    assert!(matches!(error, Error::ForeignProgram { .. }), "{error}");
    // A new interface with the same index is not mistaken for it.
    host.ip(&format!(
        "link add dev7 index {index} type veth peer name dev8"
    ))
    .unwrap();
    assert_eq!(host.run(|| decap.interfaces().remove(0).state), Moved);
    assert_eq!(
        host.run(|| decap.interfaces().remove(0).interface),
        "dev0",
        "nor is its name"
    );
    let none = host.run(|| decap.detach("dev7")).unwrap_err();
    assert!(matches!(none, Error::NotFound { .. }), "{none}");
    host.ip("link del dev7").unwrap();
    // The old interface still exists, so a new one with its name does not replace it.
    host.ip("link add dev0 type veth peer name dev9").unwrap();
    host.run(|| decap.reattach()).unwrap();
    assert_eq!(program(&host, "dev0"), None);
    host.run(|| decap.attach("dev0", XdpMode::Generic)).unwrap();
    let both = host.run(|| decap.interfaces());
    assert_eq!((both[0].state, both[1].state), (Moved, Attached));
    host.run(|| decap.detach("dev0")).unwrap();
    assert!(program(&host, "dev0").is_none() && program(&other, "dev0").is_some());
    host.ip("link del dev0").unwrap();
    for name in ["dev0", "dev1"] {
        move_to(&other, &host, name);
    }
    assert_eq!(host.run(|| states(&decap)), (Attached, Attached));
    move_to(&host, &other, "dev0");
    host.run(|| decap.detach("dev0")).unwrap();
    assert_eq!(program(&other, "dev0"), None);
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
            katran.probes_mut().attach(),
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
