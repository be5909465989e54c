//! Changes of several steps: rolled back, out of room in the middle, and cut off by a panic.

use super::*;

/// During a change of several steps the state before it is known until it has ended, however long
/// it is.
#[test]
fn a_change_of_many_steps_can_be_gone_back_from() {
    mutate::cases(40, |rng| {
        let mut kept = small();
        let (mut heap, mut ledger) = begun(&kept);
        for _ in 0..rng.usize(0..3) {
            for _ in 0..rng.usize(0..40) {
                let intent = intent(&kept, rng);
                change(&mut ledger, &mut kept, &intent, some_end(rng)).unwrap();
            }
            let before = kept.state();
            let _steps = ledger.begin(|| Ok(kept.view())).unwrap();
            for _ in 0..rng.usize(0..80) {
                let intent = intent(&kept, rng);
                change(&mut ledger, &mut kept, &intent, some_end(rng)).unwrap();
                if rng.u32(0..30) == 0 {
                    let found = read(&heap.found()).unwrap().1;
                    assert_eq!(found.before.as_ref().map(|of| &of.state), Some(&before));
                    assert_same(&found.kept, &kept);
                }
            }
            heap = heap.found();
            let (mut next, found) = read(&heap).unwrap();
            assert_eq!(found.before.as_ref().map(|of| &of.state), Some(&before));
            match rng.bool() {
                true => next.end(|| Ok(kept.view())),
                // It ends in the middle again.
                false => {
                    let again = read(&heap.found()).unwrap().1;
                    assert_eq!(again.before, found.before);
                    next.end(|| Ok(kept.view()));
                }
            }
            let ended = read(&heap.found()).unwrap().1;
            assert!(ended.before.is_none());
            assert_same(&ended.kept, &kept);
            ledger = next;
        }
    });
}

/// Neither the rollback of a change of several steps nor a snapshot can be written: the next owner
/// goes back, until there is room for one.
#[test]
fn a_way_back_that_is_not_written_down_is_gone_by_the_next_owner() {
    let mut kept = small();
    let (heap, mut ledger) = begun(&kept);
    let mark = |mark, real: Option<IpAddr>| Intent {
        edit: None,
        changes: vec![Change::Mark(mark, real)],
    };
    let real = Some(Ipv4Addr::new(198, 51, 100, 1).into());
    let before = kept.state();
    let steps = ledger.begin(|| Ok(kept.view())).unwrap();
    change(&mut ledger, &mut kept, &mark(1, real), End::Done).unwrap();
    heap.refuse_after(0);
    // A record that would fit behind a gap is not written either.
    assert!(!ledger.is_going_back());
    ledger.go_back();
    assert!(ledger.is_going_back());
    ledger.fall_behind();
    ledger
        .intend(mark(1, None), || Ok(kept.view()))
        .unwrap_err();
    let after_one = kept.clone();
    kept.finish(mark(1, None)).unwrap();
    let large: Vec<_> = (0..2000).map(|nth| mark(nth, real)).collect();
    let mut larger = kept.clone();
    for intent in &large {
        larger.finish(intent.clone()).unwrap();
    }
    ledger.end(|| Ok(larger.view()));
    drop(steps);
    let assert_open = || {
        let found = read(&heap.found()).unwrap().1;
        assert_eq!(found.before.as_ref().map(|of| &of.state), Some(&before));
        assert_same(&found.kept, &after_one);
    };
    assert_open();
    ledger
        .intend(mark(3, real), || Ok(larger.view()))
        .unwrap_err();
    ledger.begin(|| Ok(larger.view())).unwrap_err();
    assert_open();
    heap.refuse_after(usize::MAX);
    change(&mut ledger, &mut larger, &mark(3, real), End::Done).unwrap();
    let found = read(&heap.found()).unwrap().1;
    assert!(found.before.is_none());
    assert_same(&found.kept, &larger);
}

/// A panic within a change of many steps, whatever comes after it.
#[test]
fn a_change_of_many_steps_that_a_panic_has_cut_off_is_over() {
    for (is_open, next_is_many) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut kept = small();
        let (heap, mut ledger) = begun(&kept);
        let steps = ledger.begin(|| Ok(kept.view())).unwrap();
        change(&mut ledger, &mut kept, &mark(1), End::Done).unwrap();
        if is_open {
            ledger.intend(mark(2), || Ok(kept.view())).unwrap();
        }
        drop(steps);
        let steps = next_is_many.then(|| ledger.begin(|| Ok(kept.view())).unwrap());
        let before = kept.state();
        change(&mut ledger, &mut kept, &mark(3), End::Done).unwrap();
        let found = read(&heap.found()).unwrap().1;
        assert_same(&found.kept, &kept);
        assert_eq!(found.under_way, None);
        assert_eq!(
            found.before.map(|of| of.state),
            steps.is_some().then_some(before)
        );
    }
}
