//! The cost of the most expensive packets that anyone can send.

use katran::Encapsulation;
use katran::Flow;
use katran::Vip;
use katran::VipFlags;
use katran_yardstick::Yardstick;

use crate::builder;
use crate::common::frames::Packet;
use crate::common::ip;
use crate::load;
use crate::quiet;
use crate::real;
use crate::vip;

/// A frame's preamble, checksum and gap on the wire.
const AROUND: usize = 24;
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 42;
const TIMES: u32 = 100_000;

/// GUE's outer checksum must sum all bytes of a datagram whose length differs from its packet's.
/// Such packets cost more, but a link full of them hardly does: short packets are more numerous.
#[test]
fn a_datagram_that_lies_about_its_length_fills_a_link_as_cheaply_as_short_ones() {
    let _quiet = quiet();
    let mut katran = load(builder().encapsulation(Encapsulation::Gue));
    katran.gateways_mut().set_source(ip("10.0.0.2")).unwrap();
    let vip = Vip::udp((vip(0).address(), 443).into());
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    katran.add_real(vip, real(0)).unwrap();
    let to = (vip.address(), vip.port()).into();
    let flow = Flow::udp("100.64.0.0:1024".parse().unwrap(), to);
    let frame = |size: usize| Packet::new(flow).payload(size - HEADERS).frame();
    let lying = |size: usize| {
        let mut frame = frame(size);
        let length = u16::from_be_bytes([frame[38], frame[39]]) - 4;
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        frame
    };
    let cost = |name: &str, frame: Vec<u8>| {
        let yardstick = Yardstick::new(&frame, 1).unwrap();
        let cost = |_| {
            let ran = yardstick.run(katran.program_fd(), TIMES).unwrap();
            assert_eq!(ran.action, 3, "{name}: not sent");
            ran.nanoseconds
        };
        let cost = (0..5).map(cost).fold(f64::INFINITY, f64::min);
        let each = cost / (frame.len() + AROUND) as f64;
        println!(
            "{name}, {} bytes: {cost:.1} ns, {each:.2} ns a byte",
            frame.len()
        );
        each
    };
    let short = cost("right", frame(80));
    cost("right", frame(1472));
    for size in [128, 1472] {
        let each = cost("lying", lying(size));
        assert!(each < 2.5 * short, "{size}: {each} {short}");
    }
}
