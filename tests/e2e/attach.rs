//! Attaching and detaching: foreign programs stay, ours goes with its handle.

use katran::Decap;
use katran::Error;
use katran::Katran;
use katran::MacAddr;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::require_root;
use katran_lab::veth;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// The mode and id of an interface's XDP program, as `ip` shows them.
pub(crate) fn program(host: &Host, interface: &str) -> Option<(XdpMode, u32)> {
    let link = host.ip(&format!("-d link show dev {interface}")).unwrap();
    let mode = if link.contains(" xdpgeneric ") {
        XdpMode::Generic
    } else if link.contains(" xdp ") {
        XdpMode::Native
    } else {
        assert!(!link.contains("prog/xdp"), "{link}");
        return None;
    };
    let (_, id) = link.split_once("prog/xdp id ").unwrap();
    let id = id.split_whitespace().next().unwrap();
    Some((mode, id.parse().unwrap()))
}

/// Two linked hosts, the first with a bridge, whose driver has no native XDP.
fn hosts() -> (Host, Host) {
    require_root();
    let (a, b) = (Host::new("a").unwrap(), Host::new("b").unwrap());
    veth(a.port("eth0"), b.port("eth0").takes_xdp_tx(), 1500).unwrap();
    a.ip("link add bridge0 type bridge").unwrap();
    a.ip("link set bridge0 up").unwrap();
    (a, b)
}

fn load() -> Katran {
    site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap()
}

#[test]
fn modes_are_as_requested_and_detach_and_drop_remove_programs() {
    let (host, _peer) = hosts();
    let mut katran = load();
    let mut decap = Decap::builder().load().unwrap();
    assert_eq!(program(&host, "eth0"), None);
    for (asked, in_force) in [
        (XdpMode::Native, XdpMode::Native),
        (XdpMode::Generic, XdpMode::Generic),
        (XdpMode::Auto, XdpMode::Native),
    ] {
        let attachment = host.run(|| katran.attach("eth0", asked).unwrap());
        assert_eq!(attachment.mode, in_force);
        assert_eq!(attachment.interface, "eth0");
        assert_eq!(attachment.index, host.interface_index("eth0").unwrap());
        assert_eq!(katran.interfaces(), [attachment]);
        let (mode, _) = program(&host, "eth0").unwrap();
        assert_eq!(mode, in_force);
        // From any namespace: the kernel knows the interface.
        katran.detach("eth0").unwrap();
        assert_eq!(program(&host, "eth0"), None);
        assert!(matches!(katran.detach("eth0"), Err(Error::NotFound { .. })));

        let attachment = host.run(|| decap.attach("eth0", asked).unwrap());
        assert_eq!(attachment.mode, in_force);
        assert_eq!(program(&host, "eth0").unwrap().0, in_force);
        decap.detach("eth0").unwrap();
        assert!(matches!(decap.detach("eth0"), Err(Error::NotFound { .. })));
        assert_eq!(program(&host, "eth0"), None);
    }
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    host.run(|| katran.attach("lo", XdpMode::Generic).unwrap());
    assert_eq!(katran.interfaces().len(), 2);
    katran.detach_all();
    assert_eq!(katran.interfaces(), []);
    assert_eq!((program(&host, "eth0"), program(&host, "lo")), (None, None));

    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    host.run(|| decap.attach("lo", XdpMode::Generic).unwrap());
    assert!(program(&host, "eth0").is_some() && program(&host, "lo").is_some());
    drop((katran, decap));
    assert_eq!((program(&host, "eth0"), program(&host, "lo")), (None, None));
}

#[test]
fn a_foreign_program_stays() {
    let (host, _peer) = hosts();
    let mut katran = load();
    let mut decap = Decap::builder().load().unwrap();
    for foreign_mode in [XdpMode::Native, XdpMode::Generic] {
        let mut foreign = Decap::builder().load().unwrap();
        host.run(|| foreign.attach("eth0", foreign_mode).unwrap());
        let (mode, id) = program(&host, "eth0").unwrap();
        assert_eq!(mode, foreign_mode);
        for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            for refused in [
                host.run(|| katran.attach("eth0", mode)),
                host.run(|| decap.attach("eth0", mode)),
            ] {
                match refused {
                    Err(Error::ForeignProgram {
                        interface,
                        program_id,
                        program_name,
                    }) => {
                        assert_eq!(interface, "eth0");
                        assert_eq!(program_id, id);
                        assert_eq!(program_name, "decap");
                    }
                    other => panic!("{mode}: {other:?}"),
                }
            }
        }
        assert_eq!(katran.interfaces(), []);
        assert_eq!(program(&host, "eth0"), Some((foreign_mode, id)));
        drop(foreign);
    }
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    // To this balancer, another balancer's program is foreign too.
    let mut second = load();
    let refused = host.run(|| second.attach("eth0", XdpMode::Auto));
    assert!(matches!(refused, Err(Error::ForeignProgram { .. })));
    let before = program(&host, "eth0");
    for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
        let refused = host.run(|| katran.attach("eth0", mode));
        assert!(
            matches!(refused, Err(Error::AlreadyExists { .. })),
            "{mode}"
        );
    }
    drop(second);
    assert_eq!(program(&host, "eth0"), before);
    assert_eq!(katran.interfaces().len(), 1);
}

#[test]
fn unsuitable_interfaces_are_refused_with_the_reason() {
    let (host, _peer) = hosts();
    let mut katran = load();
    for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
        match host.run(|| katran.attach("eth7", mode)) {
            Err(Error::NoSuchInterface { interface }) => assert_eq!(interface, "eth7"),
            other => panic!("{mode}: {other:?}"),
        }
    }
    let refused = host.run(|| katran.attach("bridge0", XdpMode::Native));
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    assert_eq!(program(&host, "bridge0"), None);
    let refused = host.run(|| katran.attach("eth0", XdpMode::Offload));
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );

    let attachment = host.run(|| katran.attach("bridge0", XdpMode::Auto).unwrap());
    assert_eq!(attachment.mode, XdpMode::Generic);
    assert_eq!(program(&host, "bridge0").unwrap().0, XdpMode::Generic);
    drop(katran);
    assert_eq!(program(&host, "bridge0"), None);
}

#[test]
fn native_mode_needs_frames_that_fit_a_page() {
    require_root();
    let (host, peer) = (Host::new("a").unwrap(), Host::new("b").unwrap());
    veth(host.port("eth0"), peer.port("eth0"), 9000).unwrap();
    let mut katran = load();
    let refused = host.run(|| katran.attach("eth0", XdpMode::Native));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("MTU") && error.contains("eth0"), "{error}");
    assert_eq!(program(&host, "eth0"), None);
    let attachment = host.run(|| katran.attach("eth0", XdpMode::Auto).unwrap());
    assert_eq!(attachment.mode, XdpMode::Generic);
    drop(katran);

    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .frags(true)
        .load()
        .unwrap();
    let attachment = host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    assert_eq!(attachment.mode, XdpMode::Native);
}

#[test]
fn traffic_stops_on_detach_and_resumes_after_attach() {
    let mut site = Site::new(LabConfig::default());
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    let host = &site.lab.balancers[0].host;
    for mode in [XdpMode::Generic, XdpMode::Native] {
        let mut connection = site::connect(&site.lab.client, vip);
        let name = connection.ask("who").unwrap();
        site.katran.detach("eth0").unwrap();
        let before = site.katran.stats().totals().unwrap();
        site::ask_in_vain(&mut connection);
        assert_eq!(site.katran.stats().totals().unwrap(), before);

        let katran = &mut site.katran;
        host.run(|| katran.attach("eth0", mode).unwrap());
        assert_eq!(connection.ask("back").unwrap(), name);
        assert!(site.katran.stats().totals().unwrap().tx.packets > before.tx.packets);
    }
}
