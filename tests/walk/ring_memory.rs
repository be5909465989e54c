//! Rings take kernel memory in proportion to the VIPs in use, and give it back.

use katran::Katran;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::VipState;
use katran_lab::require_root;

const RING_SIZE: u64 = 65_537;
/// Rings allocated together.
const CHUNK: u64 = 8;
/// Spare rings for updates, beyond one per VIP.
const SPARE: u64 = 7;

fn vip(index: u16) -> Vip {
    Vip::tcp(([203, 0, 113, 1], 1000 + index).into())
}

fn load() -> Katran {
    require_root();
    Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .flow_table_size(1000)
        .load()
        .unwrap()
}

fn real() -> Real {
    Real::new("198.51.100.1".parse().unwrap())
}

/// The memory that the kernel accounts beyond the empty balancer's, which has one chunk.
fn ring_bytes(katran: &Katran, empty: u64) -> u64 {
    katran.stats().memory_in_use().unwrap() - empty
}

#[test]
fn rings_grow_and_shrink_with_the_vips() {
    let mut katran = load();
    let empty = katran.stats().memory_in_use().unwrap();
    for count in 1..=60 {
        katran.add_vip(vip(count), VipFlags::empty()).unwrap();
        katran.add_real(vip(count), real()).unwrap();
        let rings = (u64::from(count) + SPARE).next_multiple_of(CHUNK) - CHUNK;
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
    assert!(left <= CHUNK * RING_SIZE * 21 / 10, "{left} bytes left");

    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    katran.add_real(vip(0), real()).unwrap();
    let frame = syn_to(1000);
    let ran = katran.simulate(&frame).unwrap();
    assert_eq!(ran.real, Some(real().address()), "{}", ran.reason);
}

#[test]
fn a_slot_takes_at_most_four_bytes_while_all_vips_change() {
    const VIPS: u16 = 512;
    let mut katran = load();
    let one_chunk = CHUNK * RING_SIZE * 2;
    let without_rings = katran.stats().memory_in_use().unwrap() - one_chunk;
    let mut state = State::default();
    for index in 0..VIPS {
        let mut entry = VipState::new(vip(index));
        entry.reals = vec![real()];
        state.vips.push(entry);
    }
    let _ = katran.apply(&state).unwrap();
    let per_slot = |katran: &Katran| {
        let bytes = katran.stats().memory_in_use().unwrap() - without_rings;
        bytes as f64 / (f64::from(VIPS) * RING_SIZE as f64)
    };
    let at_rest = per_slot(&katran);
    assert!((2.0..2.1).contains(&at_rest), "{at_rest} bytes a slot");
    // Updates without pause, of one VIP and of all; a ring with one real is built quickly.
    let mut most = at_rest;
    for turn in 0..2 * VIPS {
        let changing = if turn < VIPS {
            vip(0)
        } else {
            vip(turn - VIPS)
        };
        let weight = u32::from(turn % 7) + 2;
        katran.add_real(changing, real().weight(weight)).unwrap();
        most = most.max(per_slot(&katran));
    }
    println!("bytes a slot: {at_rest:.3} at rest, {most:.3} while all VIPs change");
    assert!(
        (at_rest..4.0).contains(&most),
        "{most} bytes a slot, {at_rest} at rest"
    );
    let _ = katran.apply(&State::default()).unwrap();
    let left = katran.stats().memory_in_use().unwrap() - without_rings;
    // Spare rings for rapid updates stay for some seconds.
    let bound = (SPARE + 64 + CHUNK).next_multiple_of(CHUNK) * RING_SIZE * 2;
    assert!(left < bound, "{left} bytes left, {bound} allowed");
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
