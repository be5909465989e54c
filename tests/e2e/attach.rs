//! Attaching and detaching: modes, foreign programs, what is left behind.

use katran::Decap;
use katran::Error;
use katran::Katran;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::require_root;
use katran_lab::veth;

fn load() -> Katran {
    Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .flow_table_size(1000)
        .load()
        .unwrap()
}

/// A host with two interfaces that have native XDP, `one` and `two`.
fn hosts() -> [Host; 2] {
    require_root();
    let hosts = [Host::new("here").unwrap(), Host::new("there").unwrap()];
    for name in ["one", "two"] {
        veth(hosts[0].port(name), hosts[1].port(name), 1500).unwrap();
    }
    hosts
}

fn shown(host: &Host, interface: &str) -> String {
    host.ip(&format!("-details link show dev {interface}"))
        .unwrap()
}

#[test]
fn detach_and_drop_leave_nothing() {
    let [host, _other] = &hosts();
    let mut katran = load();
    let modes = [(XdpMode::Native, "xdp"), (XdpMode::Generic, "xdpgeneric")];
    for (mode, word) in modes {
        let attachment = host.run(|| katran.attach("one", mode)).unwrap();
        assert_eq!(attachment.mode, mode);
        assert!(shown(host, "one").contains(&format!(" {word} ")));
        assert_eq!(katran.interfaces(), [attachment]);
        katran.detach("one").unwrap();
        assert!(!shown(host, "one").contains(" xdp"));
        assert!(matches!(katran.detach("one"), Err(Error::NotFound { .. })));
    }
    for name in ["one", "two"] {
        let attachment = host.run(|| katran.attach(name, XdpMode::Auto)).unwrap();
        assert_eq!(attachment.mode, XdpMode::Native, "auto prefers native");
    }
    drop(katran);
    for name in ["one", "two"] {
        assert!(!shown(host, name).contains(" xdp"));
    }
}

#[test]
fn a_foreign_program_stays() {
    let [host, _other] = &hosts();
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut foreign = Decap::builder().load().unwrap();
        host.run(|| foreign.attach("one", mode)).unwrap();
        let before = shown(host, "one");
        let mut katran = load();
        for wanted in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            let error = host.run(|| katran.attach("one", wanted)).unwrap_err();
            let Error::ForeignProgram {
                program_name,
                program_id,
                ..
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!(program_name, "decap");
            assert!(before.contains(&format!("id {program_id} ")), "{before}");
        }
        assert_eq!(shown(host, "one"), before);
        foreign.detach("one").unwrap();
        host.run(|| katran.attach("one", mode)).unwrap();
    }
}

#[test]
fn what_cannot_be_attached_says_why() {
    let [host, _other] = &hosts();
    let mut katran = load();
    let error = host
        .run(|| katran.attach("none", XdpMode::Auto))
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchInterface { .. }), "{error}");
    let error = host
        .run(|| katran.attach("one", XdpMode::Offload))
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    host.run(|| katran.attach("one", XdpMode::Auto)).unwrap();
    let error = host
        .run(|| katran.attach("one", XdpMode::Auto))
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");

    // The loopback interface's driver has no native XDP.
    let error = host
        .run(|| katran.attach("lo", XdpMode::Native))
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let attachment = host.run(|| katran.attach("lo", XdpMode::Auto)).unwrap();
    assert_eq!(attachment.mode, XdpMode::Generic, "auto falls back");
}

#[test]
fn native_mode_refuses_a_page_that_is_too_small() {
    require_root();
    let hosts = [Host::new("here").unwrap(), Host::new("there").unwrap()];
    veth(hosts[0].port("one"), hosts[1].port("one"), 9000).unwrap();
    let mut katran = load();
    let error = hosts[0]
        .run(|| katran.attach("one", XdpMode::Native))
        .unwrap_err();
    assert!(error.to_string().contains("MTU"), "{error}");
    let attachment = hosts[0]
        .run(|| katran.attach("one", XdpMode::Auto))
        .unwrap();
    assert_eq!(attachment.mode, XdpMode::Generic);
}
