//! An `apply` whose ledger is full and cannot grow, at any moment: it leaves the state before.

use super::calls::address;
use super::calls::some_vip;
use super::*;
use crate::document::VipState;
use crate::types::Vip;

fn filled() -> Katran {
    let mut katran = loaded();
    let mut state = State {
        balancer: None,
        ..katran.state()
    };
    state.vips = (1..5)
        .map(|number| some_vip(number, &[1, 2, number + 4]))
        .collect();
    state.server_ids = [(5, 1), (20, 2)]
        .map(|(id, real)| ServerIdState::new(ServerId::new(id, address(real))))
        .into();
    state.source_routes = vec![route(1, 1)];
    state.marks = vec![MarkState::new(2, address(7))];
    katran.apply(&state).unwrap();
    katran
}

/// Mostly different: many steps, and many back.
fn another() -> State {
    let ids = 1..9;
    State {
        vips: (3..7)
            .map(|number| some_vip(number, &[number, number + 1, 9]))
            .collect(),
        server_ids: ids
            .map(|id| ServerIdState::new(ServerId::new(id, address(id as u8 + 2))))
            .collect(),
        source_routes: (0..4).map(|nth| route(nth, nth + 3)).collect(),
        marks: (1..4)
            .map(|mark| MarkState::new(mark, address(mark as u8 + 1)))
            .collect(),
        ..State::default()
    }
}

fn route(nth: u8, real: u8) -> SourceRoute {
    let prefix = format!("10.{nth}.0.0/16").parse().unwrap();
    SourceRoute::new(prefix, address(real))
}

#[derive(PartialEq)]
enum End {
    Applied,
    /// Nothing of it was made.
    Refused,
    /// Some of it was made, and undone.
    Undone,
}

/// Applies `wanted` with a ledger of so many bytes, which refuses to grow after so many steps. The
/// next owner must know the result that `apply` reports.
fn apply(katran: &mut Katran, wanted: &State, bytes: usize, steps: usize) -> End {
    let what = format!("{bytes} bytes, {steps} steps");
    let heap = keep(katran, Heap::new(bytes));
    heap.refuse_after(steps);
    let (before, table) = (katran.state(), katran.table.clone());
    let Err(error) = katran.apply(wanted) else {
        assert_known(katran, &heap, &what);
        return End::Applied;
    };
    assert!(error.to_string().contains("record"), "{what}: {error}");
    assert_eq!(katran.state(), before, "{what}");
    assert_known(katran, &heap, &what);
    // With memory again it continues.
    heap.refuse_after(usize::MAX);
    let end = match katran.table == table {
        true => End::Refused,
        false => End::Undone,
    };
    katran.probes_mut().map_mark(99, address(1)).unwrap();
    assert_known(katran, &heap, &what);
    katran.probes_mut().unmap_mark(99).unwrap();
    end
}

#[test]
fn an_apply_that_cannot_be_written_down_leaves_the_state_before() {
    let (mut katran, wanted) = (filled(), another());
    let before = katran.state();
    let (mut refused, mut undone, mut grown) = (0, 0, 0);
    // Full at each place in turn.
    for bytes in (2200..14_000).step_by(200) {
        for steps in 0.. {
            match apply(&mut katran, &wanted, bytes, steps) {
                End::Refused => refused += 1,
                End::Undone => undone += 1,
                End::Applied => {
                    grown += usize::from(steps > 0);
                    break;
                }
            }
        }
        katran.ledger = None;
        katran.apply(&before).unwrap();
    }
    let counts = format!("{refused} refused, {undone} undone, {grown} grown");
    assert!(refused > 2 && undone > 20 && grown > 10, "{counts}");
}

/// Killed while making or undoing a change that cannot be recorded whole: the next owner undoes it.
#[test]
fn a_way_back_that_is_cut_off_leads_to_the_state_before() {
    let (mut katran, wanted) = (filled(), another());
    let before = katran.state();
    let undone =
        (2200..14_000)
            .step_by(100)
            .filter(|bytes| match apply(&mut katran, &wanted, *bytes, 0) {
                End::Undone => true,
                End::Refused => false,
                End::Applied => {
                    katran.ledger = None;
                    katran.apply(&before).unwrap();
                    false
                }
            });
    let undone: Vec<usize> = undone.collect();
    for bytes in [
        undone[0],
        undone[undone.len() / 2],
        undone[undone.len() - 1],
    ] {
        let (mut stores, mut on_the_way) = (0, 0);
        loop {
            let heap = keep(&mut katran, Heap::new(bytes));
            heap.refuse_after(0);
            let lived = death::after(stores, || katran.apply(&wanted).is_err());
            let found = read(&heap);
            on_the_way += usize::from(found.before.is_some());
            let back = found
                .before
                .map_or_else(|| found.kept.state(), |of| of.state);
            assert_eq!(back, before, "{bytes} bytes, {stores} stores");
            katran.ledger = None;
            assert!(!katran.is_undoing());
            katran.apply(&before).unwrap();
            match lived {
                None => stores += 1 + stores / 16,
                Some(refused) => {
                    assert!(refused);
                    break;
                }
            }
        }
        assert!(on_the_way > 5, "{bytes}: {on_the_way}");
    }
}

/// So are the rings that were made for it.
#[test]
fn an_apply_that_is_refused_gives_the_rings_back() {
    let mut katran = builder().max_vips(4096).max_reals(4096).load().unwrap();
    let heap = keep(&mut katran, Heap::new(1 << 13));
    heap.refuse_after(0);
    // A snapshot is due, and there is no room for one.
    let mut ledger = katran.ledger.take().unwrap();
    for mark in 1..1000 {
        katran.probes_mut().map_mark(mark, address(1)).unwrap();
    }
    ledger.fall_behind();
    katran.ledger = Some(ledger);
    let vips = (1..1000).map(|port| VipState {
        vip: Vip::tcp((Ipv4Addr::new(203, 0, 113, 1), port).into()),
        ..some_vip(1, &[1])
    });
    let wanted = State {
        balancer: None,
        vips: vips.collect(),
        ..katran.state()
    };
    let (table, chunks) = (katran.table.clone(), katran.maps.rings.chunks().0);
    let error = katran.apply(&wanted).unwrap_err();
    assert!(error.to_string().contains("record"), "{error}");
    // Before its first step.
    assert_eq!(katran.table, table);
    assert!(!katran.maps.rings.has_surplus());
    assert!(katran.maps.rings.chunks().0 < chunks + 8);
}
