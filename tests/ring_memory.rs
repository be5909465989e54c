//! Rings take kernel memory in proportion to the VIPs in use, and give it back.

#![allow(clippy::unwrap_used)]

use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran_lab::require_root;

const RING_SIZE: u64 = 65_537;
/// Rings that are allocated together, and the reserve of one such chunk.
const CHUNK: u64 = 8;

fn vip(index: u16) -> Vip {
    Vip::tcp(([203, 0, 113, 1], 1000 + index).into())
}

fn ring_bytes(katran: &Katran, empty: u64) -> u64 {
    katran.memory_in_use().unwrap() - empty
}

#[test]
fn rings_grow_and_shrink_with_the_vips() {
    require_root();
    let mut katran = Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .flow_table_size(1000)
        .load()
        .unwrap();
    let empty = katran.memory_in_use().unwrap();
    let real = Real::new("198.51.100.1".parse().unwrap());
    for count in 1..=60 {
        katran.add_vip(vip(count), VipFlags::empty()).unwrap();
        katran.add_real(vip(count), real).unwrap();
        let rings = u64::from(count).next_multiple_of(CHUNK) - CHUNK;
        let bytes = ring_bytes(&katran, empty);
        let due = rings * RING_SIZE * 2;
        assert!(
            bytes >= due && bytes <= due + due / 50 + 4096,
            "{count} VIPs: {bytes} bytes, {due} expected"
        );
    }
    for count in 1..=60 {
        katran.remove_vip(vip(count)).unwrap();
    }
    let left = ring_bytes(&katran, empty);
    assert!(left <= 2 * CHUNK * RING_SIZE * 2, "{left} bytes left");

    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    katran.add_real(vip(0), real).unwrap();
    let frame = syn_to(1000);
    let ran = katran.simulate(&frame).unwrap();
    assert_eq!(ran.real, Some(real.address()), "{}", ran.reason);
}

/// A SYN from 192.0.2.1 to 203.0.113.1.
fn syn_to(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend([192, 0, 2, 1, 203, 0, 113, 1, 0x9c, 0x40]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    frame
}
