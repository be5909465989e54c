//! The path of health checks besides wrapping marked probes: unmarked packets of their connections,
//! outer checksums, and made-up sources.

use std::net::SocketAddr;

use katran::Encapsulation;
use katran::Flow;
use katran::Protocol;
use katran::probes::ProbeSource;

use super::health_wire::MARK;
use super::health_wire::REAL4;
use super::health_wire::REAL6;
use super::health_wire::UNSPEC;
use super::health_wire::counters;
use super::health_wire::probes;
use super::health_wire::send;
use super::health_wire::settings;
use super::health_wire::wrapped;
use crate::common::GATEWAY;
use crate::common::builder;
use crate::common::frames::ACK;
use crate::common::frames::ETHERNET;
use crate::common::frames::Packet;
use crate::common::frames::RST;
use crate::common::frames::SYN;
use crate::common::frames::echo;
use crate::common::frames::frame;
use crate::common::frames::pseudo_sum;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::wire::ipip;

fn rst(flow: Flow) -> Vec<u8> {
    Packet::new(flow).flags(RST).frame()
}

#[test]
fn packets_without_a_mark_follow_their_connection() {
    let mut katran = load(settings());
    for (real, other) in [(REAL4, REAL6), (REAL6, REAL4)] {
        for flow in probes() {
            katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
            let passes = |frame: &[u8]| {
                assert_eq!(
                    send(&katran, frame, 0),
                    (UNSPEC, frame.to_vec(), 0),
                    "{flow}"
                );
            };
            // No probe has opened it.
            passes(&rst(flow));
            let (_, opened, _) = send(&katran, &syn(flow), MARK);
            assert_ne!(opened, syn(flow));
            if flow.protocol == Protocol::Udp {
                passes(&frame(flow));
                continue;
            }
            let before = counters(&katran);
            let ours = [GATEWAY, katran::MacAddr::new([2, 0, 0, 0, 0, 1])];
            for flags in [RST, RST | ACK, ACK, 0x11, SYN | ACK] {
                let late = Packet::new(flow).flags(flags).frame();
                let (action, out, _) = send(&katran, &late, 0);
                let expected = wrapped(&late, ip(real), ours, None);
                assert_eq!((action, &out), (UNSPEC, &expected), "{flags:#x}");
                // A packet with an unmapped mark comes from a socket.
                let other = MARK + 1;
                assert_eq!(send(&katran, &late, other), (UNSPEC, late, other));
            }
            let now = counters(&katran);
            assert_eq!(now.recalled - before.recalled, 5);
            assert_eq!(now.processed - before.processed, 5);
            assert_eq!(now.skipped - before.skipped, 5);
            // A connection that differs in any address or port is not ours.
            let port = |of: SocketAddr| SocketAddr::new(of.ip(), of.port() + 1);
            let (source, destination) = (port(flow.source), port(flow.destination));
            passes(&rst(Flow { source, ..flow }));
            passes(&rst(Flow {
                destination,
                ..flow
            }));
            // The mark gets another real, or is unmapped: the connection is still known.
            katran.probes_mut().map_mark(MARK, ip(other)).unwrap();
            send(&katran, &frame(flow), MARK);
            katran.probes_mut().unmap_mark(MARK).unwrap();
            let (_, out, _) = send(&katran, &rst(flow), 0);
            assert_eq!(out, wrapped(&rst(flow), ip(other), ours, None), "{flow}");
            // But not what its socket still sends with the unmapped mark.
            let last = Packet::new(flow).flags(ACK).frame();
            assert_eq!(send(&katran, &last, MARK), (UNSPEC, last, MARK));
            // Opened again without a mapped mark, it is no longer ours.
            let passes = |frame: &[u8]| {
                assert_eq!(
                    send(&katran, frame, 0),
                    (UNSPEC, frame.to_vec(), 0),
                    "{flow}"
                );
            };
            let opened = send(&katran, &syn(flow), MARK);
            assert_eq!(opened, (UNSPEC, syn(flow), MARK));
            passes(&rst(flow));
            passes(&syn(flow));
            passes(&frame(flow));
            passes(&rst(flow));
        }
    }
}

#[test]
fn late_packets_count_for_no_key_and_matches_go_first() {
    let mut katran = load(settings());
    let flow = probes()[0];
    let key = katran::Vip::tcp(flow.destination);
    katran.probes_mut().register(key).unwrap();
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    send(&katran, &syn(flow), MARK);
    send(&katran, &rst(flow), 0);
    assert_eq!(katran.probes().counter(key).unwrap(), 1);
    katran
        .probes_mut()
        .match_source(flow.source, ip(REAL6))
        .unwrap();
    let (_, out, _) = send(&katran, &rst(flow), 0);
    assert_eq!(out[12..14], [0x86, 0xdd]);
    assert_eq!(
        (counters(&katran).recalled, counters(&katran).src_matched),
        (1, 1)
    );
    assert_eq!(katran.probes().counter(key).unwrap(), 2);
}

/// For packets of all kinds; 0 where the packet's sum is unknown.
#[test]
fn the_outer_checksum_of_gue_is_right() {
    let mut katran = load(settings().encapsulation(Encapsulation::Gue));
    for (real, own, header) in [(REAL4, "10.0.0.2", 20), (REAL6, "2001:db8:b::2", 40)] {
        katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
        let check = |frame: &[u8], summed: bool| {
            let (_, out, _) = send(&katran, frame, MARK);
            let udp = &out[ETHERNET + header..];
            match summed {
                true => assert_eq!(pseudo_sum(ip(own), ip(real), 17, udp), 0xffff),
                false => assert_eq!(udp[6..8], [0, 0]),
            }
        };
        for flow in probes() {
            for bytes in [0, 1, 2, 333, 1200] {
                check(&Packet::new(flow).payload(bytes).frame(), true);
            }
            check(&syn(flow), true);
            check(&Packet::new(flow).options(&[1, 1, 4, 2]).frame(), true);
            let (from, to) = (flow.source.ip(), flow.destination.ip());
            check(&echo(from, to, b"are you there?"), true);
            if flow.protocol == Protocol::Udp {
                check(&Packet::new(flow).without_checksum().frame(), false);
            }
            // A fragment, or an unknown transport.
            let v4 = from.is_ipv4();
            let mut odd = frame(flow);
            match v4 {
                true => odd[ETHERNET + 6] = 0x20,
                false => odd[ETHERNET + 6] = 60,
            }
            check(&odd, false);
            let mut odd = frame(flow);
            odd[ETHERNET + if v4 { 9 } else { 6 }] = 132;
            check(&odd, false);
        }
    }
}

#[test]
fn made_up_sources_are_those_of_clients_packets() {
    // Needs no source address of the host.
    let mut katran = load(builder().healthcheck_source(ProbeSource::MadeUp));
    for real in [REAL4, REAL6] {
        katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
        for flow in probes() {
            for port in [1, 2, 0x000a, 40001, 65535] {
                let source = SocketAddr::new(flow.source.ip(), port);
                let frame = frame(Flow { source, ..flow });
                let (_, out, _) = send(&katran, &frame, MARK);
                let expected = ipip(&frame, Some(source.ip()), port, ip(real));
                assert_eq!(out[12..], expected[12..], "{flow} from {port} to {real}");
            }
        }
    }
    // GUE needs a source address, and uses it.
    let gue = builder()
        .encapsulation(Encapsulation::Gue)
        .healthcheck_source(ProbeSource::MadeUp);
    let mut without = load(gue.clone());
    let error = without.probes_mut().map_mark(MARK, ip(REAL4)).unwrap_err();
    assert!(error.to_string().contains("source_v4"), "{error}");
    let mut katran = load(gue.source_v4("10.0.0.2".parse().unwrap()));
    katran.probes_mut().map_mark(MARK, ip(REAL4)).unwrap();
    let (_, out, _) = send(&katran, &frame(probes()[0]), MARK);
    assert_eq!(out[ETHERNET + 12..ETHERNET + 16], [10, 0, 0, 2]);
}

#[test]
fn wrapped_probes_with_made_up_sources_are_not_wrapped_again() {
    let settings = builder().healthcheck_source(ProbeSource::MadeUp);
    let mut katran = load(settings.next_hops(katran::NextHops::PerReal));
    for real in [REAL4, REAL6] {
        katran.probes_mut().map_mark(MARK, ip(real)).unwrap();
        let to = (ip(real), 0).into();
        katran.probes_mut().match_destination(to, ip(real)).unwrap();
        for flow in probes() {
            let again = ipip(
                &frame(flow),
                Some(flow.source.ip()),
                flow.source.port(),
                ip(real),
            );
            let before = counters(&katran);
            assert_eq!(send(&katran, &again, 0), (UNSPEC, again.clone(), 0));
            assert_eq!(counters(&katran), before);
            // From another prefix it is not ours, and matched.
            let mut others = again.clone();
            others[ETHERNET + if real == REAL4 { 13 } else { 9 }] ^= 1;
            assert_ne!(send(&katran, &others, 0).1, others);
        }
    }
}
