//! Errors in frames: cut, padded, wrong length fields, no checksums, flipped bits.

use fastrand::Rng;
use katran_model::bytes::put_u16;
use katran_model::bytes::u16_at;

/// Headers are within this; bytes beyond it are all alike.
const HEADERS: usize = 150;
const ETHERNET: usize = 14;

/// Makes one error.
pub(crate) fn once(rng: &mut Rng, frame: &mut Vec<u8>) {
    let length = frame.len();
    // Offsets of the IP header, behind tags or tunnels.
    let ip = [14, 14, 14, 14, 18, 22, 34, 42, 54, 62][rng.usize(0..10)];
    match rng.u32(0..16) {
        0 | 1 => {
            let cut = rng.usize(ETHERNET..=length);
            frame.truncate(cut);
        }
        2 => {
            let padded = length + rng.usize(1..64);
            frame.resize(padded, rng.u8(..));
        }
        3 | 4 => {
            let at = rng.usize(0..length.min(HEADERS));
            frame[at] ^= 1 << rng.u32(0..8);
        }
        5 => {
            let at = rng.usize(0..length.min(HEADERS));
            frame[at] = [0, 1, 0x7f, 0x80, 0xff, rng.u8(..)][rng.usize(0..6)];
        }
        // IPv4: the total length; IPv6: the payload length.
        6 | 7 => {
            let at = ip + [2, 4][rng.usize(0..2)];
            lie(rng, frame, at);
        }
        // Version and header length.
        8 => set(frame, ip, |_| {
            [0x44, 0x46, 0x4f, 0x40, 0x55, 0x60, 0x05][rng.usize(0..7)]
        }),
        // The protocol.
        9 => {
            let protocol = [0, 1, 4, 6, 17, 41, 43, 44, 58, 60, 255][rng.usize(0..11)];
            set(frame, ip + [9, 6][rng.usize(0..2)], |_| protocol);
        }
        // Time to live.
        10 => set(frame, ip + [8, 7][rng.usize(0..2)], |_| rng.u8(0..3)),
        // Fragment flags and offset.
        11 => set(frame, ip + 6 + rng.usize(0..2), |_| rng.u8(..)),
        // TCP's header length; UDP's length; either's checksum.
        12 => set(frame, ip + [20, 40][rng.usize(0..2)] + 12, |old| {
            old & 0xf | rng.u8(0..16) << 4
        }),
        13 => {
            let at = ip + [20, 40][rng.usize(0..2)] + 4;
            lie(rng, frame, at);
        }
        14 => {
            let at = ip + [10, 26, 36, 46, 56, 22, 42][rng.usize(0..7)];
            if at + 2 <= length {
                put_u16(frame, at, [0, 0xffff][rng.usize(0..2)]);
            }
        }
        // Duplicates or removes a piece.
        _ => {
            let from = rng.usize(ETHERNET.min(length)..=length);
            let to = rng.usize(from..=length.min(from + 40));
            match rng.bool() {
                true => frame.splice(from..to, []).for_each(drop),
                false => {
                    let piece = frame[from..to].to_vec();
                    frame.splice(from..from, piece);
                }
            }
        }
    }
}

fn set(frame: &mut [u8], at: usize, to: impl FnOnce(u8) -> u8) {
    if let Some(byte) = frame.get_mut(at) {
        *byte = to(*byte);
    }
}

/// Makes a length field wrong.
fn lie(rng: &mut Rng, frame: &mut [u8], at: usize) {
    if at + 2 > frame.len() {
        return;
    }
    let truth = u16_at(frame, at);
    let lie = match rng.u32(0..6) {
        0 => truth.wrapping_add(1),
        1 => truth.wrapping_sub(1),
        2 => 0,
        3 => 0xffff,
        4 => truth.wrapping_sub(rng.u16(0..60)),
        _ => rng.u16(..),
    };
    put_u16(frame, at, lie);
}
