//! Whether packets may be fragmented between the balancer and the reals: DF and identification of
//! outer IPv4 headers.

use std::collections::BTreeSet;

use katran::Builder;
use katran::Encapsulation;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::state::OuterDontFragment;

use crate::common::at;
use crate::common::builder;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::Packet;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::wire::ipip;

const A: &str = "198.51.100.1";
const A6: &str = "2001:db8:2::1";
const DONT_FRAGMENT: u16 = 0x4000;

fn settings(encapsulation: Encapsulation) -> Builder {
    builder()
        .encapsulation(encapsulation)
        .source_v4("198.18.0.10".parse().unwrap())
        .source_v6("2001:db8:ffff::10".parse().unwrap())
}

/// Services on port 4 have IPv4 reals, those on port 6 IPv6 ones.
fn balancer(builder: Builder) -> Katran {
    let mut katran = load(builder);
    for (port, real) in [(4, A), (6, A6)] {
        for address in ["203.0.113.1", "[2001:db8:1::1]"] {
            let vip = format!("{address}:{port}/tcp");
            serve(&mut katran, &vip, VipFlags::empty(), &[real]);
        }
    }
    katran
}

fn flow_v4(port: u16) -> Flow {
    Flow::tcp(at("192.0.2.7:40001"), (ip("203.0.113.1"), port).into())
}

fn flow_v6(port: u16) -> Flow {
    let client = at("[2001:db8:c::7]:40001");
    Flow::tcp(client, (ip("2001:db8:1::1"), port).into())
}

/// An IPv4 packet with this identification, with or without DF.
fn frame(port: u16, identification: u16, fragment: u16) -> Vec<u8> {
    let mut frame = Packet::new(flow_v4(port)).frame();
    let header = &mut frame[ETHERNET..ETHERNET + IPV4];
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[10..12].fill(0);
    let check = (!sum(header)).to_be_bytes();
    header[10..12].copy_from_slice(&check);
    frame
}

/// Identification and fragment field of the outer header; checks its checksum.
fn sent(katran: &Katran, frame: &[u8]) -> (u16, u16) {
    let out = katran.simulate(frame).unwrap().frame;
    let outer = &out[ETHERNET..ETHERNET + IPV4];
    assert_eq!(sum(outer), 0xffff);
    let word = |at| u16::from_be_bytes([outer[at], outer[at + 1]]);
    (word(4), word(6))
}

#[test]
fn the_dont_fragment_bit_is_inherited_only_if_set() {
    for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
        let katran = balancer(settings(encapsulation));
        for fragment in [0, DONT_FRAGMENT] {
            assert_eq!(sent(&katran, &frame(4, 7, fragment)), (0, 0));
        }
        let of_v6 = Packet::new(flow_v6(4)).frame();
        assert_eq!(sent(&katran, &of_v6), (0, 0));

        let inherit = settings(encapsulation).outer_dont_fragment(OuterDontFragment::Inherit);
        let katran = balancer(inherit);
        assert_eq!(sent(&katran, &frame(4, 7, DONT_FRAGMENT)).1, DONT_FRAGMENT);
        assert_eq!(sent(&katran, &frame(4, 7, 0)).1, 0);
        // Routers do not fragment IPv6.
        assert_eq!(sent(&katran, &of_v6).1, DONT_FRAGMENT);
    }
}

#[test]
fn fragmentable_packets_have_distinct_identifications() {
    for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
        let inherit = settings(encapsulation).outer_dont_fragment(OuterDontFragment::Inherit);
        let katran = balancer(inherit);
        let seen: BTreeSet<_> = (0..300).map(|_| sent(&katran, &frame(4, 0, 0)).0).collect();
        assert_eq!(seen.len(), 300);
    }
}

#[test]
fn outer_ipv6_headers_do_not_change() {
    let inherit = builder().outer_dont_fragment(OuterDontFragment::Inherit);
    let katran = balancer(inherit);
    for fragment in [0, DONT_FRAGMENT] {
        let frame = frame(6, 7, fragment);
        let out = katran.simulate(&frame).unwrap().frame;
        assert_eq!(out, ipip(&frame, Some(ip("192.0.2.7")), 40_001, ip(A6)));
    }
}
