//! The array of programs that a walk continues in can be emptied by other privileged processes:
//! then frames are dropped with a reason and counted, and nothing else suffers.

use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::ServerId;
use katran::VipFlags;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::frames::Packet;
use crate::common::frames::echo;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

/// As in `enum program`.
const IDS: u32 = 0;
const SEND: u32 = 1;
const SPECIAL: u32 = 2;
const RARE: u32 = 4;
const QUIC: u32 = 6;

fn dropped(katran: &Katran) -> u64 {
    let reasons = katran.stats().drop_reasons().unwrap();
    reasons.get(DropReason::ProgramMissing)
}

#[test]
fn a_frame_whose_program_is_missing_is_dropped_with_a_reason() {
    let plain = frame(Flow::udp(at("192.0.2.7:1"), at("203.0.113.1:80")));
    let quic = frame(Flow::udp(at("192.0.2.7:1"), at("203.0.113.2:443")));
    let special = frame(Flow::udp(at("192.0.2.7:1"), at("203.0.113.3:443")));
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
        (QUIC, &quic),
        (SPECIAL, &quic),
        (RARE, &tagged),
        (RARE, &echo),
    ] {
        let features = Features::default() | Features::UDP_STABLE_ROUTING;
        let mut katran = load(builder().features(features));
        let empty = VipFlags::empty();
        serve(&mut katran, "203.0.113.1:80/udp", empty, &["198.51.100.1"]);
        for (vip, flag) in [
            ("203.0.113.2:443/udp", VipFlags::QUIC),
            ("203.0.113.3:443/udp", VipFlags::UDP_STABLE_ROUTING),
        ] {
            serve(&mut katran, vip, flag, &["198.51.100.1"]);
        }
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

/// Whatever the flow table says: nothing yet, the id's real, or another one.
#[test]
fn one_program_handles_a_datagrams_connection_id() {
    let [ring, named] = ["198.51.100.1", "198.51.100.2"];
    let mut katran = load(builder());
    for vip in ["203.0.113.2:443/udp", "[2001:db8:1::2]:443/udp"] {
        serve(&mut katran, vip, VipFlags::QUIC, &[ring]);
    }
    katran
        .server_ids_mut()
        .add(&[ServerId::new(7, ip(named)), ServerId::new(8, ip(ring))])
        .unwrap();
    let array = katran.map_fd("special_programs").unwrap();
    for program in [IDS, SEND, SPECIAL] {
        bpf::remove(array, &program.to_ne_bytes());
    }
    for (from, to) in [
        ("192.0.2.7:1", "203.0.113.2:443"),
        ("[2001:db8:9::1]:1", "[2001:db8:1::2]:443"),
    ] {
        let flow = Flow::udp(at(from), at(to));
        let send = |payload: &[u8]| {
            let frame = Packet::new(flow).data(payload).frame();
            let ran = bpf::run(katran.program_fd(), &frame);
            (ran.verdict, ran.frame.get(30..34).map(<[u8]>::to_vec))
        };
        // A short header, and an id of version 2 with the server id.
        let by_id = |id| [0x43, 0x80, 0, 0, id, 5, 6, 7, 8];
        let before = katran.stats().quic().unwrap();
        let at = |last| (Verdict::Tx, Some(vec![198, 51, 100, last]));
        assert_eq!(send(&by_id(7)), at(2), "{flow}");
        assert_eq!(send(&by_id(7)), at(2), "{flow}");
        assert_eq!(send(&by_id(8)), at(1), "{flow}");
        assert_eq!(send(&by_id(8)), at(1), "{flow}");
        let after = katran.stats().quic().unwrap();
        assert_eq!(after.cid_routed - before.cid_routed, 4);
        assert_eq!(after.dst_not_found_in_lru - before.dst_not_found_in_lru, 1);
        assert_eq!(after.dst_mismatch_in_lru - before.dst_mismatch_in_lru, 1);
        assert_eq!(after.dst_match_in_lru - before.dst_match_in_lru, 2);
        assert_eq!(dropped(&katran), u64::from(to.starts_with('[')));
        // Without an id it needs another program.
        assert_eq!(send(&[]).0, Verdict::Drop, "{flow}");
    }
}
