//! For tests of readers of foreign bytes or text: many cases from one seed, and faults for an
//! input. `KATRAN_SEED` sets the seed; a failing test prints it.

use std::env;
use std::thread;

use fastrand::Rng;

/// Numbers that readers often get wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    3,
    4,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Prints how to repeat a failure.
struct Case {
    seed: u64,
    number: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("KATRAN_SEED={} (case {})", self.seed, self.number);
        }
    }
}

/// Runs `test` so many times, each time with other random numbers.
pub(crate) fn cases(count: u64, mut test: impl FnMut(&mut Rng)) {
    let given = env::var("KATRAN_SEED").ok();
    let given = given.map(|text| text.replace('_', "").parse().unwrap());
    let seed: u64 = given.unwrap_or_else(|| fastrand::u64(..));
    let mut all = Rng::with_seed(seed);
    for number in 0..count {
        let mut rng = all.fork();
        let _case = Case { seed, number };
        test(&mut rng);
    }
}

/// One of these.
pub(crate) fn one_of<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())].clone()
}

/// Puts one fault into bytes: cut off, longer, a flipped bit or number, a piece twice or missing.
pub(crate) fn bytes(rng: &mut Rng, of: &mut Vec<u8>) {
    let length = of.len();
    let at = rng.usize(0..length.max(1));
    match rng.u32(0..8) {
        0 => of.truncate(at),
        1 => {
            let more = rng.usize(1..64);
            of.resize(length + more, rng.u8(..));
        }
        2 if length > 0 => of[at] ^= 1 << rng.u32(0..8),
        // A number of 1, 2, 4 or 8 bytes, at an aligned place.
        3..=5 => {
            let size = 1 << rng.u32(0..4);
            let at = at / size * size;
            let number = match rng.bool() {
                true => one_of(rng, &NUMBERS),
                false => rng.u64(..),
            };
            if let Some(place) = of.get_mut(at..at + size) {
                place.copy_from_slice(&number.to_le_bytes()[..size]);
            }
        }
        6 => {
            let to = rng.usize(at..=length.min(at + 40));
            of.drain(at.min(to)..to);
        }
        _ => {
            let to = rng.usize(at..=length.min(at + 40));
            let piece = of[at.min(to)..to].to_vec();
            of.splice(at.min(to)..at.min(to), piece);
        }
    }
}

/// Puts one fault into a text of lines: one of [`bytes`], or a number that is huge, negative or
/// missing, a name that is not UTF-8, a line twice, missing, elsewhere or without an end.
pub(crate) fn text(rng: &mut Rng, of: &mut Vec<u8>) {
    match rng.u32(0..8) {
        0 | 1 => bytes(rng, of),
        2..=4 => {
            let numbers = runs(of, u8::is_ascii_digit);
            if numbers.is_empty() {
                return;
            }
            let number = one_of(rng, &numbers);
            let other: &[u8] = match rng.u32(0..8) {
                0 => b"",
                1 => b"18446744073709551615",
                2 => b"18446744073709551616",
                3 => b"99999999999999999999999999999999999999",
                4 => b"-1",
                5 => b"4294967296",
                6 => b"0",
                _ => b"0x1f",
            };
            of.splice(number, other.iter().copied());
        }
        5 => {
            let names = runs(of, u8::is_ascii_alphabetic);
            if names.is_empty() {
                return;
            }
            let name = one_of(rng, &names);
            let other = one_of(rng, &[&b"\xff\xfe"[..], b"\xc3", b"\0", b"\xc2\xa0", b""]);
            of.splice(name, other.iter().copied());
        }
        _ => {
            let mut lines: Vec<Vec<u8>> = of.split(|byte| *byte == b'\n').map(Vec::from).collect();
            let (from, to) = (rng.usize(0..lines.len()), rng.usize(0..lines.len()));
            match rng.u32(0..4) {
                0 => drop(lines.remove(from)),
                1 => lines.insert(to, lines[from].clone()),
                2 => lines.swap(from, to),
                _ => lines[from].push(one_of(rng, b"\r :")),
            }
            *of = lines.join(&b'\n');
        }
    }
}

/// The runs of such bytes.
fn runs(of: &[u8], is_one: impl Fn(&u8) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut start = None;
    for (at, byte) in of.iter().chain([&b'\n']).enumerate() {
        match (is_one(byte), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                runs.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    runs
}
