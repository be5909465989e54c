//! The packet walk's ICMP: echo requests answered, errors that follow their flow and are counted,
//! and the errors that frames above `max_frame` get.

use katran::Builder;
use katran::Error;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::A6;
use crate::common::fixtures::B;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::wire::ipip;

/// VIPs of both families, each with reals of both families.
fn balancer(builder: Builder) -> Katran {
    let mut katran = load(builder);
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, B, A6]);
    }
    katran
}

#[test]
fn echo_requests_to_addresses_of_vips_are_answered_in_place() {
    let mut katran = balancer(builder());
    for prefix in ["192.0.2.192/26:0/udp", "[2001:db8:f::/48]:80/tcp"] {
        serve(&mut katran, prefix, VipFlags::empty(), &[A]);
    }
    let pairs = [
        ("192.0.2.7", "203.0.113.1"),
        ("192.0.2.7", "192.0.2.200"),
        ("2001:db8:c::7", "2001:db8:1::1"),
        ("2001:db8:c::7", "2001:db8:f::f"),
    ];
    for (source, destination) in pairs {
        let (source, destination) = (ip(source), ip(destination));
        let v4 = source.is_ipv4();
        let request = frames::echo(source, destination, b"ping of 29 bytes, an odd body");
        let ran = katran.simulate(&request).unwrap();
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::IcmpEcho));

        let kind = if v4 { 0 } else { 129 };
        let body = &request[ETHERNET + if v4 { IPV4 } else { IPV6 } + 8..];
        let mut reply = frames::icmp(destination, source, kind, 0, [0x77, 0x77, 0, 1], body);
        reply[..6].copy_from_slice(&frames::ROUTER_MAC);
        reply[6..12].copy_from_slice(&frames::OWN_MAC);
        reply[ETHERNET + if v4 { 8 } else { 7 }] = 64;
        if v4 {
            reply[ETHERNET + 10..ETHERNET + 12].fill(0);
            let check = (!sum(&reply[ETHERNET..ETHERNET + IPV4])).to_be_bytes();
            reply[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&check);
        }
        assert_eq!(ran.frame, reply);
    }
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!((icmp.echo_v4, icmp.echo_v6), (2, 2));
    let cpus = katran.stats().cpus().unwrap();
    assert!(cpus.iter().all(|cpu| cpu.forwarded == 0), "{cpus:?}");
}

#[test]
fn path_mtu_messages_are_counted_for_any_address_and_follow_their_flow() {
    let katran = balancer(all_in_table());
    let stranger = |flow: Flow| {
        let port = 9;
        Flow::tcp(flow.source, (flow.destination.ip(), port).into())
    };
    for flow in [flow_v4(), flow_v6()] {
        let real = katran.simulate(&frame(flow)).unwrap().real;
        for (mtu, small) in [(1279, true), (1280, false), (1400, false), (0, true)] {
            let before = katran.stats().icmp().unwrap();
            let bytes = frames::too_big(flow, mtu);
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!((ran.real, ran.reason), (real, Reason::FlowTable));
            let source = flow.source;
            let outer = ipip(&bytes, Some(source.ip()), source.port(), real.unwrap());
            assert_eq!(ran.frame, outer);
            let passed = katran
                .simulate(&frames::too_big(stranger(flow), mtu))
                .unwrap();
            assert_eq!(passed.verdict, Verdict::Pass);

            let mut expected = before;
            let (all, below) = if flow.source.is_ipv4() {
                (&mut expected.ptb_v4, &mut expected.ptb_v4_small)
            } else {
                (&mut expected.ptb_v6, &mut expected.ptb_v6_small)
            };
            *all += 2;
            *below += if small { 2 } else { 0 };
            assert_eq!(katran.stats().icmp().unwrap(), expected);
        }
        // Cut before the quoted header is read; other codes do not count.
        let cut = if flow.source.is_ipv4() { IPV4 } else { IPV6 } + ETHERNET + 8;
        let ran = katran
            .simulate(&frames::cut(&frames::too_big(flow, 1000), cut - ETHERNET))
            .unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::QuoteTruncated));
        katran.simulate(&frames::unreachable(flow, 8)).unwrap();
    }
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!((icmp.ptb_v4, icmp.ptb_v4_small), (9, 5));
    assert_eq!((icmp.ptb_v6, icmp.ptb_v6_small), (9, 5));
}

#[test]
fn a_packet_too_big_message_has_a_32_bit_mtu() {
    let katran = balancer(builder());
    let flow = flow_v6();
    let quoted = Packet::new(frames::reverse(flow)).ip();
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let bytes = frames::icmp(source, destination, 2, 0, [0, 1, 0, 0], &quoted);
    katran.simulate(&bytes).unwrap();
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!((icmp.ptb_v6, icmp.ptb_v6_small), (1, 0));
}

#[test]
fn max_frame_is_the_longest_that_is_forwarded() {
    let mut katran = load(builder().max_frame(1200));
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A]);
    }
    for (flow, headers) in [(flow_v4(), IPV4 + 20), (flow_v6(), IPV6 + 20)] {
        let of_length = |length: usize| {
            Packet::new(flow)
                .payload(length - ETHERNET - headers)
                .frame()
        };
        let fits = katran.simulate(&of_length(1200)).unwrap();
        assert_eq!(
            (fits.verdict, fits.reason),
            (Verdict::Tx, Reason::SettledSlot)
        );
        let too_big = katran.simulate(&of_length(1201)).unwrap();
        assert_eq!(too_big.reason, Reason::TooBig);
        assert!(too_big.vip.is_some() && too_big.real.is_none());
        // The announced MTU is that of a frame that fits; an IPv6 link has at least 1,280.
        let (header, expected) = match flow.source.is_ipv4() {
            true => (IPV4, 1200_u32 - 14),
            false => (IPV6, 1280),
        };
        let mtu = &too_big.frame[ETHERNET + header + 4..][..4];
        assert_eq!(mtu, expected.to_be_bytes());
    }
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (1, 1));
    assert_eq!(katran.stats().flow_table().unwrap().settled, 2);
}

/// RFC 1122, 3.2.2, and RFC 4443, 2.4: otherwise one frame with a forged source would reach a whole
/// group.
#[test]
fn groups_and_icmp_errors_get_no_too_big_message() {
    let mut katran = load(builder().max_frame(600));
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A]);
    }
    let sources = [
        "224.0.0.1:9",
        "239.1.2.3:9",
        "255.255.255.255:9",
        "127.0.0.1:9",
        "0.0.0.0:9",
        "[ff02::1]:9",
        "[::1]:9",
        "[::]:9",
    ];
    let mut frames: Vec<_> = sources
        .into_iter()
        .map(|source| {
            let source = at(source);
            let (v4, v6) = (flow_v4(), flow_v6());
            let to = if source.is_ipv4() { v4 } else { v6 };
            let flow = Flow::tcp(source, to.destination);
            Packet::new(flow).payload(700).frame()
        })
        .collect();
    for flow in [flow_v4(), flow_v6()] {
        let quoted = Packet::new(frames::reverse(flow)).payload(700).ip();
        let (source, destination) = (flow.source.ip(), flow.destination.ip());
        let kind = if source.is_ipv4() { 3 } else { 1 };
        frames.push(frames::icmp(source, destination, kind, 1, [0; 4], &quoted));
    }
    for frame in &frames {
        let ran = katran.simulate(frame).unwrap();
        let reason = Reason::Dropped(DropReason::TooBig);
        assert_eq!(
            (ran.verdict, ran.reason),
            (Verdict::Drop, reason),
            "{frame:02x?}"
        );
        assert_eq!(&ran.frame, frame);
    }
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (0, 0));
}

#[test]
fn frames_in_several_buffers() {
    let mut katran = load(builder().frags(true).max_frame(9014));
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, A6]);
    }
    for flow in [flow_v4(), flow_v6()] {
        let bytes = Packet::new(flow).payload(8000).frame();
        let ran = katran.simulate(&bytes).unwrap();
        let (source, real) = (flow.source, ran.real.unwrap());
        assert_eq!(
            ran.frame,
            ipip(&bytes, Some(source.ip()), source.port(), real)
        );
        let too_big = katran
            .simulate(&Packet::new(flow).payload(9000).frame())
            .unwrap();
        assert_eq!(
            (too_big.verdict, too_big.reason),
            (Verdict::Tx, Reason::TooBig)
        );
        let message = if flow.source.is_ipv4() {
            IPV4 + 8 + 84
        } else {
            IPV6 + 8 + 248
        };
        assert_eq!(too_big.frame.len(), ETHERNET + message);
    }
    let single = load(builder());
    let error = single.simulate(&[0; 4000]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}
