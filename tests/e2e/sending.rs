//! Frames that a driver drops after the program has returned, as the link's other end takes none,
//! and the mode chosen there.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::NotNative;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran::stats::InterfaceCounters;
use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::require_root;
use katran_lab::veth;

use crate::diagnose::finds;
use crate::site::small;

const FRAMES: u64 = 50;
const VIP: &str = "203.0.113.1:9";

/// A balancer's host, and a client that is also its router; `takes`: whether the client's end
/// accepts frames from XDP.
fn hosts(takes: bool) -> (Host, Host, Katran) {
    require_root();
    let (host, client) = (Host::new("balancer").unwrap(), Host::new("client").unwrap());
    let mut far = client.port("eth0").mac([2, 0, 0, 0, 0, 1]);
    if takes {
        far = far.takes_xdp_tx();
    }
    let near = host.port("eth0").mac([2, 0, 0, 0, 0, 2]);
    veth(near, far, 1600).unwrap();
    client.ip("addr add 192.0.2.1/24 dev eth0").unwrap();
    client
        .ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0")
        .unwrap();
    client.ip("route add 203.0.113.1/32 via 192.0.2.2").unwrap();
    let mut katran = small("02:00:00:00:00:01".parse().unwrap()).load().unwrap();
    let vip = Vip::udp(VIP.parse().unwrap());
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    let real = Real::new("198.51.100.1".parse().unwrap());
    katran.add_real(vip, real).unwrap();
    (host, client, katran)
}

/// Sends frames to the VIP, and waits until the program has counted this many in all.
fn send(client: &Host, katran: &Katran, so_far: u64) {
    let socket = client.run(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    for _ in 0..FRAMES {
        socket.send_to(b"frame", VIP).unwrap();
        thread::sleep(Duration::from_micros(200));
    }
    eventually("the program has taken all frames", || {
        katran.stats().totals().unwrap().tx.packets == so_far
    });
}

fn counters(host: &Host, katran: &Katran) -> InterfaceCounters {
    let mut all = host.run(|| katran.stats().interfaces());
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The diagnosis says that the interface sent all its frames.
fn sends_all(found: &Diagnosis) {
    let message = "failed to send none";
    finds(found, Severity::Ok, Subject::Sending, message, "");
}

#[test]
fn frames_lost_by_the_driver_are_not_reported_as_sent() {
    let (host, client, mut katran) = hosts(false);
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    let first = counters(&host, &katran);
    assert_eq!((first.interface.as_str(), first.unsent), ("eth0", 0));
    assert_eq!(first.index, host.interface_index("eth0").unwrap());
    send(&client, &katran, FRAMES);
    eventually("the driver has counted them", || {
        counters(&host, &katran).unsent == FRAMES
    });
    let snapshot = host.run(|| katran.counters().unwrap());
    let metrics = snapshot.metrics();
    let unsent = metrics
        .iter()
        .find(|metric| metric.name == "interface_unsent_frames");
    let samples = &unsent.unwrap().samples;
    assert_eq!(samples.len(), 1);
    assert_eq!(
        (&*samples[0].labels, samples[0].value),
        (&["eth0".to_owned()][..], FRAMES)
    );
    // From this namespace none are reported.
    assert_eq!(katran.stats().interfaces(), []);

    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Problem,
        Subject::Sending,
        "eth0, has no XDP program: what is sent natively is lost",
        "attach in auto or generic mode",
    );
    let told = format!("has failed to send {FRAMES} frames");
    finds(
        &found,
        Severity::Problem,
        Subject::Sending,
        &told,
        "see above",
    );

    // Attached again, it counts from 0, in the mode in which frames arrive.
    katran.detach("eth0").unwrap();
    let attached = host.run(|| katran.attach("eth0", XdpMode::Auto).unwrap());
    assert_eq!(attached.mode, XdpMode::Generic);
    assert_eq!(attached.not_native, Some(NotNative::OtherEnd));
    assert_eq!(katran.interfaces(), [attached]);
    send(&client, &katran, 2 * FRAMES);
    let now = counters(&host, &katran);
    // Also counts the host's neighbour discovery.
    assert!(now.sent >= FRAMES && now.unsent == 0, "{now:?}");
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    sends_all(&found);
    finds(
        &found,
        Severity::Warning,
        Subject::Mode,
        "had no XDP program",
        "passes everything",
    );
}

#[test]
fn gro_alone_does_not_make_the_other_end_accept_frames() {
    let (host, client, mut katran) = hosts(false);
    client.tool("ethtool", "-K eth0 gro on").unwrap();
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Note,
        Subject::Sending,
        "auto mode is generic mode here",
        "in native mode",
    );
    let attached = host.run(|| katran.attach("eth0", XdpMode::Auto).unwrap());
    assert_eq!(attached.mode, XdpMode::Generic);
    katran.detach("eth0").unwrap();
    let attached = host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    assert_eq!(
        (attached.mode, attached.not_native),
        (XdpMode::Native, None)
    );
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Problem,
        Subject::Sending,
        "waits there until other traffic wakes it",
        "generic",
    );
}

#[test]
fn auto_mode_is_native_if_the_other_end_accepts_frames() {
    let (host, client, mut katran) = hosts(true);
    let attached = host.run(|| katran.attach("eth0", XdpMode::Auto).unwrap());
    assert_eq!(
        (attached.mode, attached.not_native),
        (XdpMode::Native, None)
    );
    send(&client, &katran, FRAMES);
    eventually("the other end has taken them", || {
        counters(&host, &katran).sent >= FRAMES
    });
    assert_eq!(counters(&host, &katran).unsent, 0);
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    sends_all(&found);
}
