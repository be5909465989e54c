//! VLAN-tagged frames: walked as if untagged, and sent with the same tags.

use std::time::Duration;

use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::Counters;
use katran::stats::DropReason;

use crate::common;
use crate::common::at;
use crate::common::frames::Packet;
use crate::common::serve;
use crate::recording::RECORDINGS;
use crate::recording::Recording;
use crate::recording::hex;

/// Tags as in a frame: IEEE 802.1Q, 802.1ad with 802.1Q inside, and 802.1Q twice.
const TAGS: [&[u8]; 3] = [
    &[0x81, 0x00, 0x20, 0x64],
    &[0x88, 0xa8, 0x0f, 0xff, 0x81, 0x00, 0xe0, 0x07],
    &[0x81, 0x00, 0x00, 0x00, 0x81, 0x00, 0x00, 0x01],
];

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// The counters without frame lengths and single CPUs.
fn comparable(mut counters: Counters) -> Counters {
    let totals = &mut counters.totals;
    for count in [
        &mut totals.total,
        &mut totals.tx,
        &mut totals.pass,
        &mut totals.drop,
    ] {
        count.bytes = 0;
    }
    counters.cpus.clear();
    counters.library.maps.clear();
    // How often a number was reused while packets might still have it depends on timing.
    counters.library.waits_for_packets = 0;
    counters.flow_entries_age = Duration::ZERO;
    counters
}

#[test]
fn recorded_packets_with_tags_become_recorded_packets_with_tags() {
    for recording in RECORDINGS {
        let recording = Recording::read(recording);
        let plain = recording.load();
        recording.check_packets(&plain);
        let other = recording.load();
        for tags in TAGS {
            let katran = recording.load();
            let (mut arrived, mut sent) = (0, 0);
            for packet in &recording.packets {
                let frame = tagged(&packet.frame, tags);
                let is_ip = matches!(packet.frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
                let ran = katran.simulate(&frame).unwrap();
                let what = format!("{}: {}", packet.description, ran.reason);
                assert_eq!(ran.verdict, packet.verdict, "{what}");
                if ran.verdict != Verdict::Drop {
                    // No bytes are recorded of frames that the recorded program passed and this one
                    // sends.
                    let sent_plain = || other.simulate(&packet.frame).unwrap().frame;
                    let out = packet.out.clone().unwrap_or_else(sent_plain);
                    assert_eq!(hex(&ran.frame), hex(&tagged(&out, tags)), "{what}");
                    sent += usize::from(is_ip);
                }
                arrived += frame.len() as u64;
            }
            assert!(sent > 0);
            let [with, without] = [&katran, &plain].map(|katran| katran.counters().unwrap());
            assert_eq!(with.totals.total.bytes, arrived);
            assert_eq!(comparable(with), comparable(without));
        }
    }
}

fn small() -> Katran {
    let mut katran = common::load(common::builder());
    serve(
        &mut katran,
        "203.0.113.1:80/tcp",
        VipFlags::empty(),
        &["198.51.100.1"],
    );
    katran
}

fn frame() -> Vec<u8> {
    let flow = Flow::tcp(at("192.0.2.7:1234"), at("203.0.113.1:80"));
    Packet::new(flow).frame()
}

#[test]
fn tagged_frames_without_ip_are_passed_untouched() {
    let katran = small();
    let three = [TAGS[1], TAGS[0]].concat();
    let mut arp = frame();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    for frame in [
        tagged(&frame(), &three),
        tagged(&arp, TAGS[0]),
        tagged(&arp, TAGS[1]),
    ] {
        let ran = katran.simulate(&frame).unwrap();
        assert_eq!(ran.verdict, Verdict::Pass);
        assert_eq!(ran.reason, Reason::NotIp);
        assert_eq!(hex(&ran.frame), hex(&frame));
    }
    assert_eq!(katran.stats().flow_table().unwrap().packets, 0);
}

#[test]
fn a_tag_that_is_cut_short_is_dropped_and_counted() {
    let katran = small();
    for (tags, kept) in [(TAGS[0], 16), (TAGS[1], 18), (TAGS[1], 20)] {
        let frame = &tagged(&frame(), tags)[..kept];
        let ran = katran.simulate(frame).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::FrameTruncated));
    }
    let totals = katran.stats().totals().unwrap();
    assert_eq!((totals.drop.packets, totals.drop.bytes), (3, 16 + 18 + 20));
}

#[test]
fn the_longest_frame_is_measured_without_its_tags() {
    let katran = small();
    let flow = Flow::tcp(at("192.0.2.7:1234"), at("203.0.113.1:80"));
    let longest = Packet::new(flow).payload(1500 - 40).frame();
    assert_eq!(longest.len(), 1514);
    for tags in TAGS {
        let ran = katran.simulate(&tagged(&longest, tags)).unwrap();
        assert_eq!(ran.verdict, Verdict::Tx);
        assert_eq!(ran.real, Some(common::ip("198.51.100.1")));
    }
    let too_long = Packet::new(flow).payload(1500 - 39).frame();
    let plain = katran.simulate(&too_long).unwrap();
    assert_eq!(plain.reason, Reason::TooBig);
    for tags in TAGS {
        let ran = katran.simulate(&tagged(&too_long, tags)).unwrap();
        assert_eq!(ran.reason, Reason::TooBig);
        assert_eq!(hex(&ran.frame), hex(&tagged(&plain.frame, tags)));
    }
}
