//! Deliberate improvements on Katran that packets can show, with crafted frames through the loaded
//! program; `docs/compatibility.md` lists the differences. Those about changing VIPs and reals are
//! in `tests/control/differences.rs`, the decapsulator's in `tests/backend/decap.rs`, a feature's
//! beside that feature's tests.

use std::collections::BTreeSet;

use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::RealFlags;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::A6;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::flows;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::SYN;
use crate::common::frames::frame;
use crate::common::frames::sum;
use crate::common::frames::syn;
use crate::common::frames::unreachable;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;
use crate::common::wire::ipip;

#[test]
fn udp_without_a_checksum_is_forwarded_untouched() {
    let mut katran = load(builder());
    serve(
        &mut katran,
        "203.0.113.1:53/udp",
        VipFlags::empty(),
        &[A, A6],
    );
    serve(
        &mut katran,
        "[2001:db8:1::1]:53/udp",
        VipFlags::empty(),
        &[A, A6],
    );
    let mut reals = BTreeSet::new();
    for to in ["203.0.113.1:53", "[2001:db8:1::1]:53"] {
        for flow in flows(Protocol::Udp, to, 20) {
            let bytes = Packet::new(flow).without_checksum().frame();
            let ran = katran.simulate(&bytes).unwrap();
            let real = ran.real.unwrap();
            let source = flow.source;
            assert_eq!(
                ran.frame,
                ipip(&bytes, Some(source.ip()), source.port(), real)
            );
            assert!(ran.frame.ends_with(&bytes[ETHERNET..]));
            reals.insert((to, real));
        }
    }
    assert_eq!(reals.len(), 4, "all mixes of families");
}

#[test]
fn eight_quoted_bytes_are_enough() {
    let mut katran = load(all_in_table());
    for (text, flow) in [(VIP4, flow_v4()), (VIP6, flow_v6())] {
        serve(&mut katran, text, VipFlags::empty(), &[A, A6, B, C]);
        let real = katran.simulate(&frame(flow)).unwrap().real;
        let ran = katran.simulate(&unreachable(flow, 8)).unwrap();
        assert_eq!((ran.verdict, ran.real), (Verdict::Tx, real));
        assert_eq!(ran.reason, Reason::FlowTable);
        let ran = katran.simulate(&unreachable(flow, 7)).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::QuoteTruncated));
    }
}

#[test]
fn an_ipv6_packet_reaches_an_ipv4_real() {
    let mut katran = load(builder());
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let flow = flow_v6();
    let bytes = Packet::new(flow).payload(300).tos(0xb8).frame();
    let ran = katran.simulate(&bytes).unwrap();
    let source = flow.source;
    assert_eq!(
        ran.frame,
        ipip(&bytes, Some(source.ip()), source.port(), ip(A))
    );
    let outer = &ran.frame[ETHERNET..ETHERNET + IPV4];
    assert_eq!(ran.frame[12..14], [0x08, 0x00]);
    assert_eq!(outer[9], 41, "IPv6 in IPv4");
    let length = u16::from_be_bytes([outer[2], outer[3]]);
    assert_eq!(usize::from(length), bytes.len() - ETHERNET + IPV4);
    assert_eq!(sum(outer), 0xffff, "the header's checksum is right");
}

#[test]
fn icmp_of_the_other_family_is_passed_untouched() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let before = katran.stats().icmp().unwrap();
    for (flow, protocol, kinds) in [
        (flow_v4(), frames::ICMPV6, [128, 1, 2]),
        (flow_v6(), frames::ICMP, [8, 3, 3]),
    ] {
        for (kind, code) in kinds.into_iter().zip([0, 1, 4]) {
            let mut body = vec![kind, code, 0x12, 0x34, 0, 0, 0, 1];
            body.extend(Packet::new(frames::reverse(flow)).ip());
            let (source, destination) = (flow.source.ip(), flow.destination.ip());
            let bytes = frames::ethernet(&frames::packet(source, destination, protocol, 0, &body));
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!(ran.verdict, Verdict::Pass);
            assert_eq!(ran.reason, Reason::NotTransport);
            assert_eq!(ran.frame, bytes);
        }
    }
    assert_eq!(katran.stats().icmp().unwrap(), before);
    assert_eq!(katran.stats().totals().unwrap().pass.packets, 6);
}

#[test]
fn echo_replies_have_right_checksums_whatever_they_carry() {
    let mut katran = load(builder());
    for prefix in ["203.0.113.0/24:80/tcp", "[2001:db8::/64]:80/tcp"] {
        serve(&mut katran, prefix, VipFlags::empty(), &[A]);
    }
    for (source, destination) in [
        ("192.0.2.7", "203.0.113.1"),
        ("2001:db8:c::7", "2001:db8::1"),
    ] {
        let (source, destination) = (ip(source), ip(destination));
        let header = if source.is_ipv4() { IPV4 } else { IPV6 };
        let mut checksums = BTreeSet::new();
        for word in 0..=u16::MAX {
            let bytes = frames::echo(source, destination, &word.to_be_bytes());
            checksums.insert([bytes[ETHERNET + header + 2], bytes[ETHERNET + header + 3]]);
            let ran = bpf::run(katran.program_fd(), &bytes);
            assert_eq!(ran.verdict, Verdict::Tx);
            let message = &ran.frame[ETHERNET + header..];
            let total = if source.is_ipv4() {
                sum(message)
            } else {
                frames::pseudo_sum(destination, source, frames::ICMPV6, message)
            };
            assert_eq!(total, 0xffff, "body {word:#06x}");
            assert_eq!(message[4..], bytes[ETHERNET + header + 4..]);
        }
        assert_eq!(checksums.len(), 0xffff, "every possible checksum but one");
    }
}

#[test]
fn vips_and_prefixes_of_both_families_are_matched_in_their_order() {
    let mut katran = load(builder());
    let order = [
        ("203.0.113.1:443/tcp", "198.51.100.1"),
        ("203.0.113.0/24:443/tcp", "198.51.100.2"),
        ("203.0.0.0/16:443/tcp", "198.51.100.3"),
        ("203.0.113.1:0/tcp", "198.51.100.4"),
        ("203.0.113.0/24:0/tcp", "198.51.100.5"),
        ("[2001:db8:1::1]:443/tcp", "198.51.100.6"),
        ("[2001:db8:1::/96]:443/tcp", "198.51.100.7"),
        ("[2001:db8::/33]:443/tcp", "198.51.100.8"),
        ("[2001:db8:1::1]:0/tcp", "198.51.100.9"),
        ("[2001:db8:1::/96]:0/tcp", "198.51.100.10"),
    ];
    for (text, real) in order {
        serve(&mut katran, text, VipFlags::empty(), &[real]);
    }
    let expectations = [
        ("203.0.113.1:443", Some(0)),
        ("203.0.113.2:443", Some(1)),
        ("203.0.5.5:443", Some(2)),
        ("203.0.113.1:80", Some(3)),
        ("203.0.113.2:80", Some(4)),
        ("203.0.5.5:80", None),
        ("203.1.5.5:443", None),
        ("[2001:db8:1::1]:443", Some(5)),
        ("[2001:db8:1::2]:443", Some(6)),
        ("[2001:db8:1:1::]:443", Some(7)),
        ("[2001:db8:1::1]:80", Some(8)),
        ("[2001:db8:1::2]:80", Some(9)),
        ("[2001:db8:1:1::]:80", None),
        ("[2001:db8:8000::1]:443", None),
    ];
    for (n, (to, expected)) in (1..).zip(expectations) {
        // New clients each time, so that all flows are new.
        for flow in flows(Protocol::Tcp, to, 3 * n).split_off(3 * usize::from(n - 1)) {
            let ran = katran.simulate(&frame(flow)).unwrap();
            let expected = expected.map(|index: usize| order[index]);
            assert_eq!(ran.vip, expected.map(|(text, _)| vip(text)), "{to}");
            assert_eq!(ran.real, expected.map(|(_, real)| ip(real)), "{to}");
        }
        let udp = flows(Protocol::Udp, to, 1)[0];
        assert_eq!(
            katran.simulate(&frame(udp)).unwrap().reason,
            Reason::NotAVip
        );
    }
}

#[test]
fn a_prefix_takes_all_its_ports_and_addresses_of_a_client_to_one_real() {
    let mut katran = load(builder());
    let reals = [A, B, C, "198.51.100.4", "198.51.100.5", "198.51.100.6"];
    let any = serve(
        &mut katran,
        "203.0.113.0/24:0/tcp",
        VipFlags::empty(),
        &reals,
    );
    // A new client port each time: a SYN of a recent flow would follow that flow.
    let reals_of = |katran: &Katran, client: &str| -> BTreeSet<_> {
        (1..200)
            .map(|port| {
                let to = (ip("203.0.113.9"), port).into();
                let flow = Flow::tcp(at(client), to);
                katran.simulate(&syn(flow)).unwrap().real.unwrap()
            })
            .collect()
    };
    assert_eq!(
        reals_of(&katran, "192.0.2.7:40001").len(),
        1,
        "the destination port counts as 0"
    );
    for (keeps, client) in [
        (VipFlags::SRC_DST_PORT, "192.0.2.7:40002"),
        (VipFlags::DPORT_HASH, "192.0.2.7:40003"),
    ] {
        katran.set_vip_flags(any, keeps).unwrap();
        assert_eq!(reals_of(&katran, client).len(), reals.len(), "{keeps}");
    }
}

#[test]
fn features_are_chosen_at_load() {
    let flow = flow_v4();
    let long = Packet::new(flow).payload(1500).frame();
    for on in [true, false] {
        let features = if on {
            Features::default()
        } else {
            Features::empty()
        };
        let mut katran = load(builder().features(features));
        let vip = vip(VIP4);
        katran.add_vip(vip, VipFlags::LOCAL_VIP).unwrap();
        let real = Real::new(ip(A)).flags(RealFlags::LOCAL_REAL);
        katran.add_real(vip, real).unwrap();

        let too_big = katran.simulate(&long).unwrap();
        let local = katran.simulate(&frame(flow)).unwrap();
        if on {
            assert_eq!(
                (too_big.verdict, too_big.reason),
                (Verdict::Tx, Reason::TooBig)
            );
            assert_eq!(local.verdict, Verdict::Pass);
            assert_eq!(local.frame, frame(flow));
        } else {
            assert_eq!(too_big.reason, Reason::Dropped(DropReason::TooBig));
            assert_eq!(local.verdict, Verdict::Tx);
        }
        assert_eq!(local.real, Some(ip(A)));
    }
}

#[test]
fn each_frame_counts_once() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    let mut fragment = frame(flow);
    fragment[ETHERNET + 6] |= 0x20;
    let other = Flow::tcp(flow.source, at("203.0.113.2:443"));
    let mut bytes = [0u64; 3];
    for (frame, verdict) in [
        (syn(flow), Verdict::Tx),
        (frame(flow), Verdict::Tx),
        (unreachable(flow, 20), Verdict::Tx),
        (
            frames::echo(ip("192.0.2.7"), ip("203.0.113.1"), b"!"),
            Verdict::Tx,
        ),
        (Packet::new(flow).payload(1500).frame(), Verdict::Tx),
        (frame(other), Verdict::Pass),
        (
            frames::ethernet(&frames::packet(
                ip("192.0.2.7"),
                ip("203.0.113.1"),
                4,
                0,
                &Packet::new(flow).ip(),
            )),
            Verdict::Pass,
        ),
        (fragment, Verdict::Drop),
    ] {
        assert_eq!(katran.simulate(&frame).unwrap().verdict, verdict);
        bytes[verdict as usize] += frame.len() as u64;
    }
    let totals = katran.stats().totals().unwrap();
    let counted = [totals.tx, totals.pass, totals.drop];
    assert_eq!(counted.map(|count| count.packets), [5, 2, 1]);
    assert_eq!(
        counted.map(|count| count.bytes),
        bytes,
        "the frames' original lengths"
    );
    assert_eq!(totals.total.packets, 8);
    assert_eq!(totals.total.bytes, bytes.iter().sum::<u64>());
}

#[test]
fn an_error_about_a_syn_finds_its_flow() {
    let mut katran = load(all_in_table());
    for (text, flow) in [(VIP4, flow_v4()), (VIP6, flow_v6())] {
        let vip = serve(&mut katran, text, VipFlags::empty(), &[A]);
        assert_eq!(katran.simulate(&syn(flow)).unwrap().real, Some(ip(A)));
        // From here on the ring leads elsewhere.
        let drained = RealChange::Add(Real::new(ip(A)).weight(0));
        let other = RealChange::Add(Real::new(ip(B)));
        katran.modify_reals(vip, &[drained, other]).unwrap();
        let misses = katran.stats().flow_table().unwrap().misses;
        for flags in [SYN, SYN | frames::ACK, frames::RST] {
            let quoted = Packet::new(frames::reverse(flow)).flags(flags).ip();
            let bytes = frames::icmp_about(flow, quoted, 20);
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!((ran.real, ran.reason), (Some(ip(A)), Reason::FlowTable));
            let outer = ipip(&bytes, Some(flow.source.ip()), flow.source.port(), ip(A));
            assert_eq!(ran.frame, outer, "the whole ICMP packet travels");
        }
        assert_eq!(katran.stats().flow_table().unwrap().misses, misses);
    }
}

#[test]
fn an_error_about_a_tunnelled_packet_is_passed_untouched() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    for flow in [flow_v4(), flow_v6()] {
        for (protocol, inner) in [(4, flow_v4()), (41, flow_v6())] {
            let (vip, client) = (flow.destination.ip(), flow.source.ip());
            let inner = Packet::new(inner).ip();
            let quoted = frames::packet(vip, client, protocol, 0, &inner);
            let bytes = frames::icmp_about(flow, quoted, 28);
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!(ran.verdict, Verdict::Pass);
            assert_eq!(ran.reason, Reason::NotTransport);
            assert_eq!(ran.frame, bytes);
        }
    }
}
