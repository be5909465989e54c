//! The path of health checks on single packets: the bytes of a wrapped probe, which packets are
//! probes, and the counters. The program runs as at the egress of `lo`.

use std::net::IpAddr;
use std::net::SocketAddr;

use katran::Builder;
use katran::Encapsulation;
use katran::Flow;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::Vip;
use katran::attachments::TcHook;
use katran::stats::HealthcheckCounters;
use katran_lab::Host;

use crate::common::GATEWAY;
use crate::common::at;
use crate::common::bpf::Buffer;
use crate::common::bpf::run_tc_with;
use crate::common::builder;
use crate::common::frames::ETHERNET;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::pseudo_sum;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;

/// From linux/pkt_cls.h.
pub(super) const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

pub(super) const MARK: u32 = 7;
pub(super) const REAL4: &str = "198.51.100.1";
pub(super) const REAL6: &str = "2001:db8:2::1";
const SOURCE4: &str = "10.0.0.2";
const SOURCE6: &str = "2001:db8:b::2";

pub(super) fn settings() -> Builder {
    let builder = builder().source_v4(SOURCE4.parse().unwrap());
    builder.source_v6(SOURCE6.parse().unwrap())
}

/// Probes of both families, TCP and UDP.
pub(super) fn probes() -> [Flow; 4] {
    let (v4, v6) = (at("203.0.113.1:443"), at("[2001:db8:1::1]:443"));
    let (from4, from6) = (at("10.0.0.2:40001"), at("[2001:db8:b::2]:40001"));
    [
        Flow::tcp(from4, v4),
        Flow::udp(from4, v4),
        Flow::tcp(from6, v6),
        Flow::udp(from6, v6),
    ]
}

/// A packet of a socket with this mark.
pub(super) fn send(katran: &Katran, frame: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
    let program = katran.probes().program_fd().unwrap();
    run_tc_with(program, frame, Buffer { mark, segment: 0 })
}

pub(super) fn counters(katran: &Katran) -> HealthcheckCounters {
    katran.probes().counters().unwrap()
}

/// What `frame` must become behind outer headers: id and flags 0, TTL 64, ToS 0, flow label 0.
/// `gue`: the source port, if tunnelled in GUE.
pub(super) fn wrapped(
    frame: &[u8],
    real: IpAddr,
    macs: [MacAddr; 2],
    port: Option<u16>,
) -> Vec<u8> {
    let inner = &frame[ETHERNET..];
    let mut body = Vec::new();
    let checked = inner[if inner[0] >> 4 == 4 { 9 } else { 6 }] != 17 || {
        let at = if inner[0] >> 4 == 4 { 26 } else { 46 };
        inner[at..at + 2] != [0, 0]
    };
    if let Some(port) = port {
        body.extend(port.to_be_bytes());
        body.extend(6080_u16.to_be_bytes());
        body.extend((inner.len() as u16 + 8).to_be_bytes());
        body.extend([0, 0]);
    }
    body.extend(inner);
    if port.is_some() && checked {
        let own = if real.is_ipv4() { SOURCE4 } else { SOURCE6 };
        let check = !pseudo_sum(ip(own), real, 17, &body);
        body[6..8].copy_from_slice(&check.to_be_bytes());
    }
    let protocol = match (port, inner[0] >> 4) {
        (Some(_), _) => 17,
        (None, 4) => 4,
        _ => 41,
    };
    let mut bytes = macs.map(|mac| mac.octets()).concat();
    match real {
        IpAddr::V4(real) => {
            bytes.extend([8, 0]);
            let mut header = vec![0x45, 0];
            header.extend((body.len() as u16 + 20).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 2]);
            header.extend(real.octets());
            let check = (!sum(&header)).to_be_bytes();
            header[10..12].copy_from_slice(&check);
            bytes.extend(header);
        }
        IpAddr::V6(real) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((body.len() as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(SOURCE6.parse::<std::net::Ipv6Addr>().unwrap().octets());
            bytes.extend(real.octets());
        }
    }
    bytes.extend(body);
    bytes
}

fn mac_at(frame: &[u8], at: usize) -> MacAddr {
    MacAddr::new(frame[at..at + 6].try_into().unwrap())
}

/// Checks one probe byte for byte; its Ethernet source must be `source`, or unchanged.
fn check(katran: &Katran, flow: Flow, real: &str, gue: bool, source: Option<MacAddr>) -> u32 {
    let frame = Packet::new(flow).tos(0x2e).payload(333).frame();
    let (action, out, mark) = send(katran, &frame, MARK);
    assert_eq!(mark, 0, "the mark is cleared");
    let outer = if real.contains(':') { 40 } else { 20 };
    let port = u16::from_be_bytes([out[ETHERNET + outer], out[ETHERNET + outer + 1]]);
    if gue {
        assert_ne!(port & (1 << 10), 0, "bit 10 of {port:#x}");
    }
    let macs = [GATEWAY, source.unwrap_or(mac_at(&frame, 6))];
    let expected = wrapped(&frame, ip(real), macs, gue.then_some(port));
    assert_eq!(out, expected, "{flow} to {real}");
    action
}

#[test]
fn a_probe_is_wrapped_as_specified() {
    for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
        let gue = encapsulation == Encapsulation::Gue;
        // For embedders who attach the program themselves: packets leave where they were sent.
        let mut katran = load(settings().encapsulation(encapsulation));
        let mut ports = std::collections::BTreeSet::new();
        for real in [REAL4, REAL6] {
            katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
            for flow in probes() {
                assert_eq!(check(&katran, flow, real, gue, None), UNSPEC);
                let (_, out, _) = send(&katran, &frame(flow), MARK);
                let outer = if real == REAL6 { 40 } else { 20 };
                ports.insert(out[ETHERNET + outer..][..2].to_vec());
            }
        }
        assert!(!gue || ports.len() > 1, "the same port for all");
        let now = counters(&katran);
        assert_eq!((now.processed, now.dropped, now.skipped), (16, 0, 0));
    }
}

#[test]
fn a_probe_has_the_address_of_the_interface_it_leaves_by() {
    let host = Host::new("balancer").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 address 02:00:00:00:00:11").unwrap();
    host.ip("link set eth0 up").unwrap();
    let mut katran = load(settings().healthcheck_interface("eth0"));
    host.run(|| katran.probes_mut().attach().unwrap());
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let own = Some(MacAddr::new([2, 0, 0, 0, 0, 0x11]));
    for flow in probes() {
        // The program sees them as sent on `lo`.
        assert_eq!(check(&katran, flow, REAL4, false, own), REDIRECT);
    }
    // Detached, and attached by other means: packets leave where they were sent.
    katran.probes_mut().detach();
    assert_eq!(check(&katran, probes()[0], REAL4, false, None), UNSPEC);
}

#[test]
fn other_packets_are_left_unchanged() {
    let mut katran = load(settings());
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 46]].concat();
    let mut skipped = 0;
    let mut skips = |frame: &[u8], mark: u32| {
        assert_eq!(send(&katran, frame, mark), (UNSPEC, frame.to_vec(), mark));
        skipped += 1;
        assert_eq!(counters(&katran).skipped, skipped);
    };
    for flow in probes() {
        skips(&frame(flow), 0);
        skips(&frame(flow), MARK + 1);
    }
    skips(&arp, MARK);
    assert_eq!(counters(&katran).processed, 0);
}

#[test]
fn unsendable_probes_are_dropped_and_counted() {
    // A discovered gateway is unknown until something is attached.
    let mut katran = load(settings().gateway(Gateway::Auto));
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let key = Vip::tcp(at("203.0.113.1:443"));
    katran.probes_mut().register(key).unwrap();
    let (action, _, _) = send(&katran, &frame(probes()[0]), MARK);
    assert_eq!(action, SHOT);
    let now = counters(&katran);
    assert_eq!((now.dropped, now.processed, now.too_big), (1, 0, 0));
    assert_eq!(katran.probes().counter(key).unwrap(), 0);
    // Once it is known, probes go there.
    katran.gateways_mut().set_mac(GATEWAY).unwrap();
    assert_eq!(check(&katran, probes()[0], REAL4, false, None), UNSPEC);
    assert_eq!(katran.probes().counter(key).unwrap(), 1);
}

#[test]
fn the_segments_length_counts() {
    let mut katran = load(settings().healthcheck_max_packet(200));
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let program = katran.probes().program_fd().unwrap();
    for (flow, headers) in probes().into_iter().zip([54, 42, 74, 62]) {
        let large = Packet::new(flow).payload(1000).frame();
        let too_big = |segment| {
            let before = counters(&katran);
            let buffer = Buffer {
                mark: MARK,
                segment,
            };
            let (action, _, _) = run_tc_with(program, &large, buffer);
            let now = counters(&katran);
            let longer = now.too_big - before.too_big == 1;
            assert!(!longer || (action == SHOT && now.dropped == before.dropped + 1));
            longer
        };
        assert!(too_big(0), "{flow}: one packet");
        assert!(!too_big(200 - headers), "{flow}");
        assert!(too_big(201 - headers), "{flow}");
    }
}

#[test]
fn each_registered_key_counts_its_own_probes() {
    let mut katran = load(settings());
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let keys: Vec<Vip> = probes()
        .iter()
        .map(|flow| match flow.protocol {
            katran::Protocol::Tcp => Vip::tcp(flow.destination),
            katran::Protocol::Udp => Vip::udp(flow.destination),
        })
        .collect();
    for key in &keys {
        katran.probes_mut().register(*key).unwrap();
    }
    for (times, flow) in (1..).zip(probes()) {
        for _ in 0..times {
            send(&katran, &frame(flow), MARK);
        }
        // Another port is another key; a packet that is no probe counts for none.
        let other = SocketAddr::new(flow.destination.ip(), 444);
        let other = Flow {
            destination: other,
            ..flow
        };
        send(&katran, &frame(other), MARK);
        // Nor does one that the kernel sends for the closed connection.
        send(&katran, &frame(flow), 0);
    }
    let counts = keys
        .iter()
        .map(|key| katran.probes().counter(*key).unwrap());
    assert_eq!(counts.collect::<Vec<_>>(), [1, 2, 3, 4]);
}

/// The real that a packet is wrapped for; `None`: not wrapped.
fn real_of(katran: &Katran, flow: Flow) -> Option<IpAddr> {
    let (_, out, _) = send(katran, &frame(flow), 0);
    if out == frame(flow) {
        return None;
    }
    Some(match out[12] {
        8 => IpAddr::from(<[u8; 4]>::try_from(&out[30..34]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&out[38..54]).unwrap()),
    })
}

#[test]
fn exact_ports_go_before_any_port_in_both_families() {
    let [tcp4, udp4, tcp6, udp6] = probes();
    let (any, exact, other) = (ip(REAL4), ip(REAL6), ip("198.51.100.9"));
    let any_port = |of: SocketAddr| SocketAddr::new(of.ip(), 0);
    for (flow, another) in [(tcp4, tcp6), (udp4, udp6), (tcp6, tcp4), (udp6, udp4)] {
        let mut katran = load(settings());
        let elsewhere = Flow {
            source: SocketAddr::new(flow.source.ip(), 40002),
            destination: SocketAddr::new(flow.destination.ip(), 444),
            ..flow
        };
        let found = |katran: &Katran| [flow, elsewhere, another].map(|flow| real_of(katran, flow));
        katran
            .probes_mut()
            .match_source(flow.source, exact)
            .unwrap();
        assert_eq!(found(&katran), [Some(exact), None, None]);
        katran
            .probes_mut()
            .match_source(any_port(flow.source), any)
            .unwrap();
        assert_eq!(found(&katran), [Some(exact), Some(any), None]);
        assert_eq!(counters(&katran).src_matched, 3);
        katran
            .probes_mut()
            .match_destination(flow.destination, other)
            .unwrap();
        assert_eq!(found(&katran), [Some(other), Some(any), None]);
        let any_destination = any_port(flow.destination);
        katran
            .probes_mut()
            .match_destination(any_destination, exact)
            .unwrap();
        assert_eq!(found(&katran), [Some(other), Some(exact), None]);
        assert_eq!(counters(&katran).dst_matched, 3);
        katran.probes_mut().unmatch_source(flow.source).unwrap();
        katran
            .probes_mut()
            .unmatch_source(any_port(flow.source))
            .unwrap();
        katran
            .probes_mut()
            .unmatch_destination(flow.destination)
            .unwrap();
        katran
            .probes_mut()
            .unmatch_destination(any_destination)
            .unwrap();
        assert_eq!(found(&katran), [None, None, None]);
    }
}

/// A probe to a neighbour's MAC address passes the hook twice: the second time it is neither a
/// probe nor counted.
#[test]
fn wrapped_probes_are_neither_wrapped_nor_counted_again() {
    for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
        let gue = encapsulation == Encapsulation::Gue;
        let settings = settings().encapsulation(encapsulation);
        let mut katran = load(settings.next_hops(NextHops::PerReal));
        for (real, source) in [(REAL4, SOURCE4), (REAL6, SOURCE6)] {
            katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
            // Both would wrap it a second time.
            katran
                .probes_mut()
                .match_source((ip(source), 0).into(), ip(real))
                .unwrap();
            katran
                .probes_mut()
                .match_destination((ip(real), 0).into(), ip(real))
                .unwrap();
            for flow in probes() {
                let before = counters(&katran);
                let macs = [GATEWAY; 2];
                let again = wrapped(&frame(flow), ip(real), macs, gue.then_some(0x1400));
                assert_eq!(send(&katran, &again, 0), (UNSPEC, again.clone(), 0));
                assert_eq!(counters(&katran), before, "{flow} to {real}");
                // Foreign tunnels are still matched; in GUE these are all without our bit.
                let mut others = again.clone();
                let at = ETHERNET + if real == REAL4 { 20 } else { 40 };
                match (gue, real == REAL4) {
                    (true, _) => others[at] = 0x10,
                    (false, true) => others[ETHERNET + 9] = 17,
                    (false, false) => others[ETHERNET + 6] = 17,
                }
                assert_ne!(send(&katran, &others, 0).1, others, "{flow} to {real}");
                let now = counters(&katran);
                assert_eq!(now.processed, before.processed + 1);
            }
        }
    }
}

#[test]
fn empty_maps_are_not_looked_up() {
    let mut katran = load(settings());
    let vip = Vip::tcp(at("203.0.113.1:443"));
    assert!(katran.probes_mut().unmap_mark(1).is_err());
    assert!(
        katran
            .probes_mut()
            .unmatch_source(at("10.0.0.2:0"))
            .is_err()
    );
    assert!(
        katran
            .probes_mut()
            .unmatch_destination(at("10.0.0.2:0"))
            .is_err()
    );
    assert!(katran.probes_mut().unregister(vip).is_err());
    assert!(katran.probes().program_fd().is_none(), "nothing is loaded");
}

#[test]
fn an_interface_without_ethernet_is_refused() {
    let host = Host::new("balancer").unwrap();
    host.ip("tuntap add dev tunnel mode tun").unwrap();
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        let settings = settings().healthcheck_interface("tunnel");
        let mut katran = load(settings.healthcheck_hook(hook));
        let error = host.run(|| katran.probes_mut().attach().unwrap_err());
        assert!(
            matches!(error, katran::Error::Unsupported { .. }),
            "{error}"
        );
        let mut decap = katran::Decap::builder().load().unwrap();
        let error = host.run(|| decap.attach_tc("tunnel", hook).unwrap_err());
        assert!(error.to_string().contains("no Ethernet header"), "{error}");
    }
    assert!(
        !host
            .tool("tc", "qdisc show dev tunnel")
            .unwrap()
            .contains("clsact")
    );
}
