//! Minimises a failing case: fewer frames, then shorter and simpler ones (delta debugging: Zeller
//! and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 28, 2002).

use crate::pair::Step;

/// The shortest frame that a test run accepts.
const SHORTEST: usize = 14;

/// A part of `steps` that still fails, with frames as small as possible.
pub(crate) fn shrink(mut steps: Vec<Step>, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    steps = without_pieces(steps, 1, &mut fails);
    for i in 0..steps.len() {
        let Step::Frame(mut frame) = steps[i].clone() else {
            continue;
        };
        let mut others = steps.clone();
        let mut fails_with = |frame: &[u8]| {
            others[i] = Step::Frame(frame.to_vec());
            frame.len() >= SHORTEST && fails(&others)
        };
        frame = without_pieces(frame, SHORTEST, &mut fails_with);
        for at in 0..frame.len() {
            let old = frame[at];
            if old != 0 {
                frame[at] = 0;
                if !fails_with(&frame) {
                    frame[at] = old;
                }
            }
        }
        steps[i] = Step::Frame(frame);
    }
    steps
}

/// Leaves out pieces, long ones first, while the rest still fails.
fn without_pieces<T: Clone>(
    mut all: Vec<T>,
    fewest: usize,
    fails: &mut impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut piece = all.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < all.len() {
            let end = (at + piece).min(all.len());
            let rest: Vec<T> = [&all[..at], &all[end..]].concat();
            if rest.len() >= fewest && fails(&rest) {
                all = rest;
            } else {
                at = end;
            }
        }
        piece /= 2;
    }
    all
}

#[test]
fn a_failing_case_becomes_small() {
    // Fails on a frame with two bytes 7, after one with a byte 9.
    let fails = |steps: &[Step]| {
        let frames: Vec<&Vec<u8>> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Frame(frame) => Some(frame),
                Step::Wait(_) | Step::Change(_) | Step::Until(_) => None,
            })
            .collect();
        let nine = frames.iter().position(|frame| frame.contains(&9));
        let sevens = |frame: &&Vec<u8>| frame.iter().filter(|byte| **byte == 7).count() > 1;
        nine.is_some_and(|nine| frames[nine + 1..].iter().any(sevens))
    };
    let mut frames: Vec<Vec<u8>> = (0..100).map(|i| vec![100 + i; 60]).collect();
    frames[20][33] = 9;
    frames[70][5] = 7;
    frames[70][50] = 7;
    let mut steps: Vec<Step> = frames.into_iter().map(Step::Frame).collect();
    steps.insert(50, Step::Wait(1000));
    assert!(fails(&steps));
    let small = shrink(steps, fails);
    assert!(fails(&small));
    let [Step::Frame(nine), Step::Frame(sevens)] = &small[..] else {
        panic!("{small:?}");
    };
    assert_eq!([nine.len(), sevens.len()], [SHORTEST; 2]);
    assert_eq!(sevens.iter().filter(|byte| **byte == 0).count(), 12);
}
