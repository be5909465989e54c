//! The recorded packets of `tests/vectors`, through the model alone: it must agree with Katran's
//! own program. (`tests/walk/vectors.rs` plays them through ours.)

use katran::flows::Verdict;

use crate::common::mirror;
use crate::pair::hex;
use crate::recording::RECORDINGS;
use crate::recording::Recording;

#[test]
fn the_model_says_what_was_recorded() {
    for recording in RECORDINGS {
        let recording = Recording::read(recording);
        let katran = recording.load();
        let mut model = mirror::of(&katran, katran.forwarding_cpus()[0]);
        for (index, packet) in recording.packets.iter().enumerate() {
            let what = format!("packet {index}, {}", packet.description);
            let said = model.walk(&packet.frame, 0);
            let verdict = format!("{:?}", said.end.verdict()).to_uppercase();
            assert_eq!(verdict, packet.verdict.to_string(), "{what}: {said:?}");
            match &packet.out {
                _ if packet.verdict == Verdict::Drop => {}
                Some(out) => assert_eq!(hex(&said.frame), hex(out), "{what}"),
                // The specification has this sent, but the recorded program did not: no bytes are
                // recorded.
                None if packet.verdict == Verdict::Tx => {
                    assert!(said.real.is_some(), "{what}");
                    assert!(said.frame.ends_with(&packet.frame[14..]), "{what}");
                }
                None => assert_eq!(hex(&said.frame), hex(&packet.frame), "{what}"),
            }
        }
    }
}
