//! The programs that a walk goes on in are found in an array that others with the right to it can empty:
//! then frames are dropped with a reason and counted, and nothing else suffers.

use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::frames::echo;
use crate::common::frames::frame;
use crate::common::load;
use crate::common::serve;

/// As in `enum program`.
const IDS: u32 = 0;
const SPECIAL: u32 = 2;
const RARE: u32 = 4;

fn dropped(katran: &Katran) -> u64 {
    let reasons = katran.stats().drop_reasons().unwrap();
    reasons.get(DropReason::ProgramMissing)
}

#[test]
fn a_frame_whose_program_is_missing_is_dropped_with_a_reason() {
    let plain = frame(Flow::udp(at("192.0.2.7:1"), at("203.0.113.1:80")));
    let special = frame(Flow::udp(at("192.0.2.7:1"), at("203.0.113.2:443")));
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let echo = echo(
        "192.0.2.7".parse().unwrap(),
        "203.0.113.1".parse().unwrap(),
        b"hi",
    );
    for (program, frame) in [
        (IDS, &special),
        (SPECIAL, &special),
        (RARE, &tagged),
        (RARE, &echo),
    ] {
        let features = Features::default();
        let mut katran = load(builder().features(features));
        let empty = VipFlags::empty();
        serve(&mut katran, "203.0.113.1:80/udp", empty, &["198.51.100.1"]);
        let quic = VipFlags::QUIC;
        serve(&mut katran, "203.0.113.2:443/udp", quic, &["198.51.100.1"]);
        assert_eq!(bpf::run(katran.program_fd(), frame).verdict, Verdict::Tx);
        let array = katran.map_fd("special_programs").unwrap();
        bpf::remove(array, &program.to_ne_bytes());
        assert_eq!(dropped(&katran), 0);
        assert_eq!(bpf::run(katran.program_fd(), frame).verdict, Verdict::Drop);
        assert_eq!(dropped(&katran), 1, "program {program}");
        let totals = katran.stats().totals().unwrap();
        assert_eq!((totals.tx.packets, totals.drop.packets), (1, 1));
        assert_eq!(totals.drop.bytes, frame.len() as u64);
        assert_eq!(bpf::run(katran.program_fd(), &plain).verdict, Verdict::Tx);
    }
}
