//! A root program that another process adopts: its count of passed packets, its attachments, and
//! what vanished meanwhile.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::net::SocketAddrV6;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use katran::Error;
use katran::RootProgram;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran_lab::Host;
use nix::libc;

use crate::faults;
use crate::objects;
use crate::shared::Pins;
use crate::shared::ROOT;
use crate::site;

fn host() -> Host {
    let host = Host::new("host").unwrap();
    make(&host);
    host
}

fn make(host: &Host) {
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth1 up").unwrap();
}

fn has_xdp(host: &Host) -> bool {
    host.ip("link show dev eth0").unwrap().contains("xdp")
}

/// Sends a frame from the other end, if it has its link-local address by now.
fn send(host: &Host) {
    let index = host.interface_index("eth1").unwrap();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SocketAddrV6::new(all_nodes, 9, 0, index);
    let socket = host.run(|| UdpSocket::bind("[::]:0").unwrap());
    let _ = socket.send_to(b"frame", to);
}

/// The ids of the link and of its program.
fn link(pins: &Pins) -> (u32, u32) {
    let names = pins.list().into_iter();
    let names: Vec<_> = names.filter(|name| name.contains("_xdp_")).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    objects::link(objects::open(&pins.path().with_file_name(&names[0])).as_fd())
}

#[test]
fn the_next_handle_adopts_it() {
    let pins = Pins::new();
    let host = host();
    let missing = RootProgram::adopt(pins.path()).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    let mut root = RootProgram::builder().entries(5).load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
    root.pin(pins.path()).unwrap();
    assert_eq!(pins.brief(), ROOT);
    site::eventually("frames are passed", || {
        send(&host);
        root.passed().unwrap() > 0
    });
    let counted = root.passed().unwrap();
    let (attachments, before) = (root.interfaces(), link(&pins));
    drop(root);
    assert!(has_xdp(&host));
    // Several handles may adopt it; all see the same.
    let adopted = [(); 2].map(|()| RootProgram::adopt(pins.path()).unwrap());
    for root in adopted {
        assert_eq!(root.entries().count(), 5);
        assert_eq!(host.run(|| root.interfaces()), attachments);
        assert!(root.passed().unwrap() >= counted);
    }
    assert_eq!(
        (link(&pins), pins.brief().as_slice()),
        (before, &ROOT.map(str::to_owned)[..])
    );

    // An interface that was removed and recreated, in the mode asked for.
    host.ip("link del eth0").unwrap();
    let mut root = RootProgram::adopt(pins.path()).unwrap();
    assert_eq!(root.interfaces()[0].state, AttachmentState::Gone);
    host.run(|| root.reattach().unwrap());
    assert_eq!(root.interfaces()[0].state, AttachmentState::Gone);
    make(&host);
    host.run(|| root.reattach().unwrap());
    let again = host.run(|| root.interfaces());
    assert_eq!(again.len(), 1);
    assert_eq!(
        (again[0].state, again[0].mode),
        (AttachmentState::Attached, XdpMode::Generic)
    );
    assert_eq!(link(&pins).1, before.1, "the program that was pinned");
    drop(root);
    assert!(has_xdp(&host));
    RootProgram::remove(pins.path()).unwrap();
    assert!(
        !has_xdp(&host) && pins.list().is_empty(),
        "{:?}",
        pins.list()
    );
}

/// One process attaches while another adopts: the first gets its attachment, or an error.
#[test]
fn an_attachment_that_is_being_made_is_left_to_its_maker() {
    let pins = Pins::new();
    let host = host();
    let mut root = RootProgram::builder().load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
    root.pin(pins.path()).unwrap();
    let path = |name: &str| pins.path().with_file_name(name);
    let name = pins.list().pop().unwrap();
    assert!(name.contains("_xdp_"), "{name}");
    let (made, meanwhile) = (path(&name), path(&format!("{name}%new")));
    // For a moment, as during an attach: until the other waits for it.
    fs::rename(&made, &meanwhile).unwrap();
    let mut waits = 0;
    let finish = || {
        waits += 1;
        if waits == 1 {
            fs::rename(&meanwhile, &made).unwrap();
        }
        None
    };
    let adopt = || RootProgram::adopt(pins.path()).unwrap();
    let adopted = faults::judged(libc::SYS_clock_nanosleep, None, finish, adopt);
    assert!(waits > 0, "it has not waited");
    let attachments = host.run(|| adopted.interfaces());
    assert_eq!(attachments, host.run(|| root.interfaces()));
    assert_eq!(attachments[0].state, AttachmentState::Attached);
    // For longer: the attaching process finds that the other took it for dead.
    fs::rename(&made, &meanwhile).unwrap();
    let adopted = RootProgram::adopt(pins.path()).unwrap();
    assert!(adopted.interfaces().is_empty() && !has_xdp(&host));
    let late = fs::rename(&meanwhile, &made).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotFound);
    // A killed process moved a link aside; the next one ends it.
    drop(adopted);
    host.run(|| root.reattach().unwrap());
    fs::rename(&made, path(&format!("{name}%end%new"))).unwrap();
    drop(RootProgram::adopt(pins.path()).unwrap());
    assert!(!has_xdp(&host));
    assert_eq!(pins.list().len(), 3, "{:?}", pins.list());
    RootProgram::remove(pins.path()).unwrap();
}

#[test]
fn half_made_pins_are_reported_and_removed() {
    let pins = Pins::new();
    let host = host();
    let load = || {
        let mut root = RootProgram::builder().load().unwrap();
        host.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
        root
    };
    // A refusal leaves nothing pinned, and the root where it is.
    let mut root = load();
    let fails = || {
        faults::without_commands(&[6], nix::errno::Errno::ENOSPC, || {
            root.pin(pins.path()).unwrap_err()
        })
    };
    let error = { fails }();
    assert!(error.to_string().contains("pin"), "{error}");
    assert!(pins.list().is_empty() && has_xdp(&host));
    root.pin(pins.path()).unwrap();
    drop(root);
    // A process was killed after pinning the array, or the attachment.
    let names = pins.list();
    let attachment = pins.path().with_file_name(&names[3]);
    let meanwhile = pins.path().with_file_name(format!("{}%new", names[3]));
    fs::rename(&attachment, &meanwhile).unwrap();
    let root = RootProgram::adopt(pins.path()).unwrap();
    assert!(root.interfaces().is_empty() && !has_xdp(&host));
    assert_eq!(pins.list().len(), 3);
    drop(root);
    fs::remove_file(pins.path().with_file_name("root_program")).unwrap();
    let error = RootProgram::adopt(pins.path()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("remove it"), "{error}");
    RootProgram::remove(pins.path()).unwrap();
    assert!(pins.list().is_empty(), "{:?}", pins.list());
    // Foreign pins of such names stay.
    let mut root = load();
    root.pin(pins.path()).unwrap();
    drop(root);
    let map = objects::array();
    for name in ["root_program", "root_passed"] {
        let path = pins.path().with_file_name(name);
        fs::remove_file(&path).unwrap();
        objects::pin(map.as_fd(), &path);
    }
    RootProgram::remove(pins.path()).unwrap();
    assert_eq!(pins.list(), ["root_passed", "root_program"]);
    assert!(!has_xdp(&host));
}
