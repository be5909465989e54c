//! Packets for the host pass untouched, whatever they look like; those for a VIP's address are
//! treated as the standards say.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Builder;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::events::EventKind;
use katran::events::MonitorOptions;
use katran::flows::Reason;
use katran::flows::Simulation;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::SYN;
use crate::common::frames::extended;
use crate::common::frames::frame;
use crate::common::frames::icmp;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;
use crate::common::wire::ipip;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const TCP: u8 = 6;

fn balancer() -> Katran {
    balancer_with(builder())
}

fn balancer_with(builder: Builder) -> Katran {
    let mut katran = load(builder);
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, B, C]);
    }
    katran
}

/// The frame, with bytes changed.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn passed(katran: &Katran, frame: &[u8], reason: Reason) {
    let ran = katran.simulate(frame).unwrap();
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, reason));
    assert_eq!(ran.frame, frame);
}

/// Every frame to this destination that cannot be forwarded, with its drop reason.
fn unfit(to: &str) -> Vec<(DropReason, Vec<u8>)> {
    let v4 = ip(to).is_ipv4();
    let source = if v4 {
        "192.0.2.7:40001"
    } else {
        "[2001:db8:c::7]:40001"
    };
    let tcp = Flow::tcp(at(source), (ip(to), 443).into());
    let udp = Flow::udp(at(source), (ip(to), 53).into());
    let plain = frame(tcp);
    let header = if v4 { IPV4 } else { IPV6 };
    let cut = |frame: &[u8], behind: usize| frames::cut(frame, header + behind);
    let mut cases = vec![
        (DropReason::TransportTruncated, cut(&plain, 19)),
        (DropReason::TransportTruncated, cut(&plain, 0)),
        (DropReason::TransportTruncated, cut(&frame(udp), 7)),
        (
            DropReason::IcmpTruncated,
            cut(&frames::echo(ip(source_ip(source)), ip(to), b""), 7),
        ),
        (
            DropReason::QuoteTruncated,
            cut(&frames::unreachable(tcp, 8), 8 + header - 1),
        ),
        (DropReason::QuoteTruncated, frames::unreachable(udp, 7)),
        (DropReason::Length, plain[..plain.len() - 1].to_vec()),
    ];
    if v4 {
        let at = |at, bytes: &[u8]| with(plain.clone(), ETHERNET + at, bytes);
        cases.extend([
            (DropReason::Ipv4Options, at(0, &[0x46])),
            (DropReason::Ipv4Options, at(0, &[0x44])),
            (DropReason::Ipv4Fragment, at(6, &[0x20, 0])),
            (DropReason::Ipv4Fragment, at(6, &[0, 1])),
            (DropReason::Length, at(2, &[0xff, 0xff])),
            (DropReason::Length, at(2, &[0, 19])),
        ]);
    } else {
        let fragment = [TCP, 0, 0, 1, 0, 0, 0, 7];
        let behind = [FRAGMENT, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 0, 1, 0, 0, 0, 7];
        cases.extend([
            (
                DropReason::Ipv6Fragment,
                extended(&plain, FRAGMENT, &fragment),
            ),
            (
                DropReason::Ipv6Fragment,
                extended(&plain, HOP_BY_HOP, &behind),
            ),
            (
                DropReason::Length,
                with(plain.clone(), ETHERNET + 4, &[0xff, 0xff]),
            ),
        ]);
    }
    cases
}

fn source_ip(source: &str) -> &str {
    let (address, _) = source.rsplit_once(':').unwrap();
    address.trim_matches(['[', ']'])
}

#[test]
fn unfit_packets_are_dropped_only_for_vip_addresses() {
    let mut katran = balancer();
    serve(
        &mut katran,
        "192.0.2.128/25:80/tcp",
        VipFlags::empty(),
        &[A],
    );
    serve(
        &mut katran,
        "[2001:db8:f::/48]:0/udp",
        VipFlags::empty(),
        &[A],
    );
    let ours = [
        "203.0.113.1",
        "2001:db8:1::1",
        "192.0.2.200",
        "2001:db8:f::9",
    ];
    let others = [
        "203.0.113.2",
        "2001:db8:1::2",
        "192.0.2.100",
        "2001:db8:e::9",
    ];
    let mut dropped = 0;
    for to in ours {
        for (reason, frame) in unfit(to) {
            let ran = katran.simulate(&frame).unwrap();
            assert_eq!(ran.reason, Reason::Dropped(reason), "{to} {frame:02x?}");
            assert_eq!(ran.frame, frame);
            dropped += 1;
        }
    }
    let before = katran.stats().totals().unwrap();
    assert_eq!(before.drop.packets, dropped);
    let mut others_frames = 0;
    for to in others {
        for (_, frame) in unfit(to) {
            passed(&katran, &frame, Reason::NotAVip);
            others_frames += 1;
        }
    }
    let after = katran.stats().totals().unwrap();
    assert_eq!(after.drop, before.drop);
    assert_eq!(after.pass.packets, others_frames);

    // An address belongs to VIPs while any VIP has it.
    let second = serve(&mut katran, "203.0.113.1:53/udp", VipFlags::empty(), &[A]);
    for (removed, is_ours) in [(vip(VIP4), true), (second, false)] {
        katran.remove_vip(removed).unwrap();
        for (reason, frame) in unfit("203.0.113.1") {
            match is_ours {
                true => {
                    let ran = katran.simulate(&frame).unwrap();
                    assert_eq!(ran.reason, Reason::Dropped(reason));
                }
                false => passed(&katran, &frame, Reason::NotAVip),
            }
        }
    }
    for to in ["192.0.2.128/25:80/tcp", "[2001:db8:f::/48]:0/udp"] {
        katran.remove_vip(vip(to)).unwrap();
    }
    passed(&katran, &unfit("192.0.2.200")[0].1, Reason::NotAVip);
    passed(&katran, &unfit("2001:db8:f::9")[0].1, Reason::NotAVip);
}

#[test]
fn every_truncated_packet_for_a_vip_is_dropped_or_forwarded_whole() {
    let katran = balancer();
    for flow in [flow_v4(), flow_v6()] {
        let header = if flow.source.is_ipv4() { IPV4 } else { IPV6 };
        let whole = Packet::new(flow).payload(40).frame();
        for length in ETHERNET..whole.len() {
            // The IP header claims more than there is.
            let ran = katran.simulate(&whole[..length]).unwrap();
            assert_eq!(ran.verdict, Verdict::Drop, "{length}");
        }
        for behind in 0..=60 {
            let short = frames::cut(&whole, header + behind);
            let ran = katran.simulate(&short).unwrap();
            let expected = if behind < 20 {
                Verdict::Drop
            } else {
                Verdict::Tx
            };
            assert_eq!(ran.verdict, expected, "{behind}");
        }
    }
}

#[test]
fn echo_requests_to_others_or_with_group_addresses_are_passed() {
    let mut katran = balancer();
    // A VIP with every address.
    serve(&mut katran, "0.0.0.0/0:80/tcp", VipFlags::empty(), &[A]);
    let echo = |from: &str, to: &str| frames::echo(ip(from), ip(to), b"ping");
    for to in ["2001:db8:1::2", "ff02::1", "::1", "::"] {
        let reason = match to {
            "2001:db8:1::2" => Reason::NotAVip,
            _ => Reason::IcmpOther,
        };
        passed(&katran, &echo("fe80::1", to), reason);
    }
    for from in ["ff02::1", "::1", "::"] {
        passed(&katran, &echo(from, "2001:db8:1::1"), Reason::IcmpOther);
    }
    let nobody = [
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "127.0.0.1",
        "0.0.0.0",
    ];
    for address in nobody {
        passed(&katran, &echo("192.0.2.7", address), Reason::IcmpOther);
        passed(&katran, &echo(address, "203.0.113.1"), Reason::IcmpOther);
    }
    for address in [
        "223.255.255.254",
        "126.0.0.1",
        "128.0.0.1",
        "1.0.0.0",
        "240.0.0.1",
    ] {
        let ran = katran.simulate(&echo(address, "203.0.113.1")).unwrap();
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::IcmpEcho));
    }
    katran.remove_vip(vip("0.0.0.0/0:80/tcp")).unwrap();
    passed(&katran, &echo("192.0.2.7", "203.0.113.2"), Reason::NotAVip);
}

#[test]
fn an_echo_reply_of_zeros_has_a_checksum_that_verifies() {
    let katran = balancer();
    let reply = |body: &[u8], rest: [u8; 4]| {
        let request = icmp(ip("192.0.2.7"), ip("203.0.113.1"), 8, 0, rest, body);
        // Ethernet padding is not part of the message.
        let padded = [request, vec![0xee; 9]].concat();
        let ran = katran.simulate(&padded).unwrap();
        assert_eq!(ran.reason, Reason::IcmpEcho);
        let message = ran.frame[ETHERNET + IPV4..ran.frame.len() - 9].to_vec();
        assert_eq!(sum(&message), 0xffff, "{rest:?} {body:?}");
        u16::from_be_bytes([message[2], message[3]])
    };
    for length in [0, 1, 3, 7, 8, 9, 30, 1472] {
        assert_eq!(reply(&vec![0; length], [0; 4]), 0xffff, "{length}");
    }
    // Other messages may have this sum, too: the reply keeps their bytes.
    assert_eq!(reply(&[], [0xff, 0xff, 0, 0]), 0);
    assert_eq!(reply(&[0xff, 0xff], [0; 4]), 0);
    let mut body = [0; 1472];
    body[1470..].fill(0xff);
    assert_eq!(reply(&body, [0; 4]), 0);
    assert_ne!(reply(&[1], [0; 4]), 0xffff);
}

/// ICMP errors of every kind about a flow, sent by a router on the way.
fn errors(flow: Flow) -> Vec<Vec<u8>> {
    let quoted = Packet::new(frames::reverse(flow)).ip();
    let (kinds, router) = match flow.source.is_ipv4() {
        true => (
            [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0)].to_vec(),
            "198.18.0.1",
        ),
        false => (
            [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)].to_vec(),
            "2001:db8:9::1",
        ),
    };
    let error = |(kind, code)| {
        icmp(
            ip(router),
            flow.destination.ip(),
            kind,
            code,
            [0, 0, 5, 0],
            &quoted,
        )
    };
    kinds.into_iter().map(error).collect()
}

/// Checks that an ICMP error was sent to the real, whole.
fn reaches_its_real(ran: &Simulation, error: &[u8], flow: Flow) {
    let source = flow.source;
    let outer = ipip(error, Some(source.ip()), source.port(), ran.real.unwrap());
    assert_eq!((ran.verdict, &ran.frame), (Verdict::Tx, &outer));
}

#[test]
fn icmp_errors_of_every_kind_reach_the_real_of_the_flow() {
    for (builder, reason) in [
        (all_in_table(), Reason::FlowTable),
        (builder(), Reason::SettledSlot),
    ] {
        let katran = balancer_with(builder);
        for flow in [flow_v4(), flow_v6()] {
            let real = katran.simulate(&frame(flow)).unwrap().real;
            for error in errors(flow) {
                let ran = katran.simulate(&error).unwrap();
                assert_eq!((ran.real, ran.reason), (real, reason));
                reaches_its_real(&ran, &error, flow);
                // The attached program does the same.
                let ran = bpf::run(katran.program_fd(), &error);
                assert_eq!(ran.verdict, Verdict::Tx);
            }
        }
    }
}

#[test]
fn icmp_errors_make_no_entry_count_no_miss_and_raise_no_event() {
    let mut katran = load(all_in_table().features(Features::default() | Features::INTROSPECTION));
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, B, C]);
    }
    katran.stats_mut().watch_misses(vip(VIP4)).unwrap();
    let options = MonitorOptions::new().events([EventKind::TcpNonSynMiss]);
    let monitor = katran.events().to_list(options, 10).unwrap();
    let before = katran.stats().flow_table().unwrap();
    let mut errors_sent = 0;
    for flow in [flow_v4(), flow_v6()] {
        for error in errors(flow) {
            let ran = katran.simulate(&error).unwrap();
            assert_eq!(ran.reason, Reason::Ring, "there is still no entry");
            reaches_its_real(&ran, &error, flow);
            errors_sent += 1;
        }
    }
    let mut expected = before;
    expected.packets += errors_sent;
    assert_eq!(katran.stats().flow_table().unwrap(), expected);
    for real in [A, B, C] {
        assert_eq!(katran.stats().real(ip(real)).unwrap().misses, 0);
    }
    // A packet of the flow itself does all of that.
    for flow in [flow_v4(), flow_v6()] {
        assert_eq!(katran.simulate(&frame(flow)).unwrap().reason, Reason::Ring);
    }
    let began = Instant::now();
    let mut events = Vec::new();
    while events.len() < 2 && began.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(10));
        events.extend(monitor.take());
    }
    assert_eq!(events.len(), 2);
    assert_eq!(
        katran.stats().flow_table().unwrap().misses,
        before.misses + 2
    );
}

#[test]
fn icmp_errors_do_not_keep_an_entry_alive() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let mut katran = load(all_in_table().udp_timeout(TIMEOUT));
    serve(
        &mut katran,
        "203.0.113.1:53/udp",
        VipFlags::empty(),
        &[A, B, C],
    );
    let flow = Flow::udp(at("192.0.2.7:40001"), at("203.0.113.1:53"));
    let reason = |frame: &[u8]| katran.simulate(frame).unwrap().reason;
    let begun = Instant::now();
    assert_eq!(reason(&frame(flow)), Reason::Ring);
    let made = Instant::now();
    let error = frames::unreachable(flow, 8);
    while made.elapsed() < TIMEOUT + Duration::from_millis(100) {
        let now = reason(&error);
        assert!(now == Reason::FlowTable || begun.elapsed() > TIMEOUT - Duration::from_millis(50));
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(reason(&error), Reason::Ring);
    assert_eq!(reason(&frame(flow)), Reason::Ring);
    assert_eq!(reason(&frame(flow)), Reason::FlowTable);
}

#[test]
fn an_error_to_another_host_about_our_flow_is_passed() {
    let mut katran = balancer();
    serve(&mut katran, "203.0.113.9:443/tcp", VipFlags::empty(), &[A]);
    serve(
        &mut katran,
        "[2001:db8:1::9]:443/tcp",
        VipFlags::empty(),
        &[A],
    );
    for (flow, victims) in [
        (flow_v4(), ["198.51.100.1", "203.0.113.9"]),
        (flow_v6(), ["2001:db8:2::1", "2001:db8:1::9"]),
    ] {
        let quoted = Packet::new(frames::reverse(flow)).ip();
        let (kind, code) = if flow.source.is_ipv4() {
            (3, 1)
        } else {
            (1, 3)
        };
        for victim in victims {
            let error = icmp(flow.source.ip(), ip(victim), kind, code, [0; 4], &quoted);
            passed(&katran, &error, Reason::IcmpOther);
        }
    }
}

/// Extension headers: the first one's number, and the bytes of all, ending with `then`.
fn extensions(numbers: &[u8], then: u8) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (i, _) in numbers.iter().enumerate() {
        let next = numbers.get(i + 1).copied().unwrap_or(then);
        // Of eight, sixteen, ... bytes.
        bytes.extend([next, i as u8, 0, 0]);
        bytes.resize(bytes.len() + 4 + 8 * i, 0);
    }
    (numbers[0], bytes)
}

#[test]
fn extension_headers_are_walked_to_the_vip() {
    let katran = balancer_with(all_in_table());
    let flow = flow_v6();
    let real = katran.simulate(&frame(flow)).unwrap().real;
    let whole = [
        &[HOP_BY_HOP][..],
        &[DESTINATION],
        &[ROUTING],
        &[HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION],
        &[DESTINATION; 4],
    ];
    for numbers in whole {
        let (first, headers) = extensions(numbers, TCP);
        let bytes = extended(&frame(flow), first, &headers);
        let ran = katran.simulate(&bytes).unwrap();
        assert_eq!((ran.real, ran.reason), (real, Reason::FlowTable));
        let source = flow.source;
        let outer = ipip(&bytes, Some(source.ip()), source.port(), real.unwrap());
        assert_eq!(ran.frame, outer);
        // An error about the flow may have them, too, and so may an echo request.
        let (_, headers) = extensions(numbers, frames::ICMPV6);
        let error = extended(&frames::unreachable(flow, 8), first, &headers);
        assert_eq!(katran.simulate(&error).unwrap().real, real);
        let (from, to) = (flow.source.ip(), flow.destination.ip());
        let echo = extended(&frames::echo(from, to, b"hi"), first, &headers);
        assert_eq!(katran.simulate(&echo).unwrap().reason, Reason::IcmpEcho);
        let echo = extended(
            &frames::echo(from, ip("2001:db8:1::2"), b"hi"),
            first,
            &headers,
        );
        passed(&katran, &echo, Reason::NotAVip);
    }
    // The longest possible.
    let mut headers = vec![0; 2048];
    headers[..2].copy_from_slice(&[TCP, 255]);
    let mut katran = load(all_in_table().max_frame(3000));
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let bytes = extended(&frame(flow), DESTINATION, &headers);
    assert_eq!(katran.simulate(&bytes).unwrap().verdict, Verdict::Tx);
}

#[test]
fn unparsable_extension_headers_are_dropped_for_vips_only() {
    let katran = balancer();
    let dropped = Reason::Dropped(DropReason::ExtensionHeaders);
    let other = Flow::tcp(flow_v6().source, at("[2001:db8:1::2]:443"));
    let (first, five) = extensions(&[DESTINATION; 5], TCP);
    let cases = [
        (first, five),
        // With segments left, the final destination is another one.
        (ROUTING, vec![TCP, 0, 4, 1, 0, 0, 0, 0]),
        // Longer than the packet.
        (DESTINATION, vec![TCP, 255, 1, 4, 0, 0, 0, 0]),
    ];
    for (first, headers) in &cases {
        for (flow, is_ours) in [(flow_v6(), true), (other, false)] {
            let bytes = extended(&frame(flow), *first, headers);
            match is_ours {
                true => assert_eq!(katran.simulate(&bytes).unwrap().reason, dropped),
                false => passed(&katran, &bytes, Reason::NotAVip),
            }
        }
    }
    // Cut short within the header.
    let bytes = extended(&frame(flow_v6()), HOP_BY_HOP, &[TCP, 0, 1, 4, 0, 0, 0, 0]);
    for behind in 0..8 {
        let ran = katran
            .simulate(&frames::cut(&bytes, IPV6 + behind))
            .unwrap();
        assert_eq!(ran.reason, dropped, "{behind}");
    }
    let ran = katran
        .simulate(&frames::cut(&bytes, IPV6 + 8 + 19))
        .unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::TransportTruncated));
    // Others may know what follows.
    let (first, headers) = extensions(&[HOP_BY_HOP], 132);
    passed(
        &katran,
        &extended(&frame(flow_v6()), first, &headers),
        Reason::NotTransport,
    );
}

#[test]
fn multicast_frames_pass() {
    let katran = balancer();
    for flow in [flow_v4(), flow_v6()] {
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let bytes = with(Packet::new(flow).flags(SYN).frame(), 0, &group);
            passed(&katran, &bytes, Reason::OtherStation);
            let ran = bpf::run(katran.program_fd().as_fd(), &bytes);
            assert_eq!((ran.verdict, ran.frame), (Verdict::Pass, bytes));
        }
        // While nothing is attached, every MAC address is accepted.
        let bytes = with(frame(flow), 0, &[2, 9, 9, 9, 9, 9]);
        assert_eq!(katran.simulate(&bytes).unwrap().verdict, Verdict::Tx);
    }
}
