//! The example `simulate` with mutated captures: it must read what a straightforward reader of the
//! format (draft-ietf-opsawg-pcap) reads, say where a capture breaks off, and end. `KATRAN_SEED`
//! chooses the mutations; a failure prints it.

use std::fs;
use std::process::Command;

use fastrand::Rng;
use katran_lab::require_root;

use super::simulate::Scratch;
use super::simulate::read;
use crate::seed::seeded;

/// A configuration with the sample's VIPs.
const CONFIGURATION: &str = include_str!("../../examples/data/lb.toml");
const SAMPLE: &[u8] = include_bytes!("../../examples/data/sample.pcap");
/// Each case loads a balancer.
const CASES: usize = 5;
/// Refused before a load, so these cost little.
const HEADERS: usize = 40;
const HEADER: usize = 24;
const RECORD: usize = 16;
/// The reader's buffer: a longer packet ends the reading.
const LONGEST: usize = 8_000_000;

/// A capture as the format defines it, with numbers in one byte order.
struct Obvious {
    /// Timestamps, captured and original length, and frames.
    packets: Vec<([u32; 4], Vec<u8>)>,
    /// Bytes are left that are no whole packet.
    is_broken: bool,
}

/// `None`: not a capture of Ethernet frames.
fn obvious(bytes: &[u8]) -> Option<Obvious> {
    let word = |at: usize, big: bool| -> Option<u32> {
        let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if big {
            u32::from_be_bytes(word)
        } else {
            u32::from_le_bytes(word)
        })
    };
    let is_magic = |number| [0xa1b2_c3d4, 0xa1b2_3c4d].contains(&number);
    let big = is_magic(word(0, true)?);
    if !is_magic(word(0, big)?) || word(20, big)? != 1 {
        return None;
    }
    let (mut at, mut packets) = (HEADER, Vec::new());
    while at < bytes.len() {
        let numbers = [0, 4, 8, 12].map(|of| word(at + of, big));
        let frame = numbers[2].and_then(|length| {
            let start = at + RECORD;
            bytes.get(start..start.checked_add(length as usize)?)
        });
        let frame = frame.filter(|frame| frame.len() + RECORD <= LONGEST);
        let (Some(frame), [Some(a), Some(b), Some(c), Some(d)]) = (frame, numbers) else {
            break;
        };
        packets.push(([a, b, c, d], frame.to_vec()));
        at += RECORD + frame.len();
    }
    let is_broken = at < bytes.len();
    Some(Obvious { packets, is_broken })
}

/// The packets' offsets.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let of = obvious(bytes).unwrap();
    let lengths = of.packets.iter().map(|(_, frame)| RECORD + frame.len());
    lengths
        .scan(HEADER, |at, length| {
            let start = *at;
            *at += length;
            Some(start)
        })
        .collect()
}

/// Damages one packet or its header.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let starts = starts(SAMPLE);
    let start = starts[rng.usize(0..starts.len())].min(bytes.len().saturating_sub(RECORD));
    let numbers = [
        0,
        1,
        13,
        14,
        15,
        100,
        3520,
        3521,
        0xffff,
        7_999_984,
        7_999_985,
        0x7fff_ffff,
        u32::MAX,
    ];
    let number = match rng.u32(0..3) {
        0 => rng.u32(..),
        1 => rng.u32(0..200),
        _ => numbers[rng.usize(0..numbers.len())],
    };
    match rng.u32(0..6) {
        0 => bytes.truncate(rng.usize(start..bytes.len().max(start + 1))),
        // A length or a timestamp.
        1 | 2 => {
            let at = start + 4 * rng.usize(0..4);
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&number.to_le_bytes());
            }
        }
        3 => {
            let at = rng.usize(start..bytes.len().max(start + 1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        // An empty or a very large packet.
        4 => {
            let length = [0, 13, 14, 3520, 3521, 70_000, 300_000][rng.usize(0..7)];
            let mut packet = [1, 2, length, length].map(u32::to_le_bytes).concat();
            packet.resize(RECORD + length as usize, 0x45);
            bytes.splice(start..start, packet);
        }
        _ => {
            let rest = rng.usize(1..40);
            bytes.extend((0..rest).map(|_| rng.u8(..)));
        }
    }
}

/// The other byte order, with nanoseconds.
fn turned(bytes: &[u8]) -> Vec<u8> {
    let of = obvious(bytes).unwrap();
    let mut turned = 0xa1b2_3c4d_u32.to_be_bytes().to_vec();
    turned.extend([
        0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 1,
    ]);
    for (numbers, frame) in of.packets {
        turned.extend(numbers.map(u32::to_be_bytes).concat());
        turned.extend(frame);
    }
    turned
}

/// Runs the example on a capture; returns whether it succeeded, and its output.
fn run(scratch: &Scratch, bytes: &[u8]) -> (bool, String) {
    let small = "[balancer]\nmax_vips = 16\nmax_reals = 64\nring_size = 1009\n";
    let configuration = CONFIGURATION.replace("[balancer]\n", small);
    fs::write(scratch.path("lb.toml"), configuration).unwrap();
    fs::write(scratch.path("in.pcap"), bytes).unwrap();
    let mut command = Command::new("timeout");
    let example = super::program::example("simulate");
    command.arg("60").arg(example.get_program());
    command
        .current_dir(scratch.path(""))
        .env_remove("RUST_LOG")
        .env_remove("RUST_BACKTRACE");
    command.args(["--config", "lb.toml", "--read", "in.pcap"]);
    command.args(["--write", "out.pcap", "--json", "report.jsonl"]);
    let ran = command.output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    let code = ran.status.code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    (code == Some(0), said)
}

#[test]
fn mutated_captures_are_read_like_the_reference() {
    require_root();
    let (_seed, mut rng) = seeded();
    let scratch = Scratch::new("mutated");
    for case in 0..CASES {
        let mut bytes = SAMPLE.to_vec();
        for _ in 0..rng.u32(u32::from(case > 0)..4) {
            mutate(&mut rng, &mut bytes);
        }
        if case % 3 == 0 && obvious(&bytes).is_some_and(|of| !of.is_broken) {
            bytes = turned(&bytes);
        }
        let of = obvious(&bytes).unwrap();
        let (ok, said) = run(&scratch, &bytes);
        let report = scratch.report();
        let (last, lines) = report.split_last().unwrap();
        assert!(last["counters"].is_object());
        assert_eq!(lines.len(), of.packets.len(), "{said}");
        let errors = lines.iter().filter(|line| line["verdict"] == "ERROR");
        assert_eq!(ok, !of.is_broken && errors.count() == 0, "{said}");
        assert_eq!(said.contains("ends within a frame"), of.is_broken, "{said}");
        let (_, written) = read(&scratch.path("out.pcap"));
        assert_eq!(written.len(), lines.len());
        for (index, (numbers, frame)) in of.packets.iter().enumerate() {
            let (line, written) = (&lines[index], &written[index]);
            assert_eq!(line["index"], index);
            assert_eq!(line["truncated"] == true, numbers[2] < numbers[3], "{line}");
            assert_eq!((written.ts_sec, written.ts_frac), (numbers[0], numbers[1]));
            assert_eq!(line["length"], written.data.len());
            if line["verdict"] != "TX" {
                assert_eq!(written.data, &frame[..], "{line}");
            }
            // Without multi-buffer support, longer frames do not reach the program.
            assert_eq!(line["verdict"] == "ERROR", frame.len() > 3520, "{line}");
        }
    }
}

/// Anything but a capture of Ethernet frames is refused before anything is loaded or written.
#[test]
fn mutated_headers_are_refused_with_a_reason() {
    let (_seed, mut rng) = seeded();
    let scratch = Scratch::new("headers");
    let mut refused = 0;
    while refused < HEADERS {
        let mut bytes = SAMPLE.to_vec();
        match rng.u32(0..4) {
            0 => bytes.truncate(rng.usize(0..HEADER)),
            1 => bytes[rng.usize(0..4)] ^= 1 << rng.u32(0..8),
            2 => bytes[20 + rng.usize(0..4)] ^= 1 << rng.u32(0..8),
            _ => bytes[..4].copy_from_slice(&[[0x0a, 0x0d, 0x0d, 0x0a], [0; 4]][rng.usize(0..2)]),
        }
        if obvious(&bytes).is_some() {
            continue;
        }
        refused += 1;
        let (ok, said) = run(&scratch, &bytes);
        assert!(!ok && said.contains("in.pcap"), "{said}");
        assert!(
            said.contains("not a pcap file") || said.contains("not Ethernet"),
            "{said}"
        );
        assert!(!scratch.path("out.pcap").exists());
    }
}
