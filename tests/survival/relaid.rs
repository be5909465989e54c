//! A balancer of another layout, whose adoption is killed anywhere: the next owner, of this version
//! or of the other one, finds all of it.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::common::layout::COUNTERS;
use crate::common::layout::FLOWS;
use crate::common::layout::PROBES;
use crate::common::layout::STATE;
use crate::common::layout::words;
use crate::common::layout::write;
use crate::ending::Done;
use crate::everywhere::Found;
use crate::everywhere::Place;
use crate::everywhere::SIGKILL;
use crate::owner::Known;
use crate::owner::Owner;
use crate::owner::Said;
use crate::owner::Task;

/// The parts with another layout; unless counters are among them, none may go back.
const KINDS: [&[usize]; 3] = [&[], &[STATE, PROBES], &[FLOWS, COUNTERS]];

/// Who adopts it after a killed process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Same,
    /// The other version, for which the two layouts are swapped.
    Other,
}

impl Place {
    /// Adopts it with another layout, killed after `last` calls and stores; with 0 it is not, and
    /// this returns what was done.
    fn relay(
        &self,
        known: &mut Option<Found>,
        parts: &[usize],
        last: u64,
        next: Next,
    ) -> Option<Done> {
        let what = format!("{parts:?} after {last}, {next:?}");
        eprintln!("{what}");
        let mut owner = Owner::start(&self.host, &self.job(0, Task::Count));
        let owned = owner.owns();
        if let Some(known) = known {
            match parts.contains(&COUNTERS) {
                true => drop(known.known.assert_found(&owned.text, &what)),
                false => known.assert_found(&owned, &what),
            }
            assert_eq!(owned.pins, known.begun.pins, "{what}: pins");
        }
        let begun = owner.begins();
        assert!(owner.ended().success());
        known.replace(Found {
            known: Known::new(&begun),
            begun,
        });

        let task = Task::Relaid {
            parts: parts.to_vec(),
            last,
        };
        let mut owner = Owner::start(&self.host, &self.job(0, task));
        let mut done = None;
        while let Some(said) = owner.next() {
            if let Said::Made { done: all, .. } = said {
                done = Some(all);
            }
        }
        let status = owner.ended();
        match done {
            Some(_) => assert!(status.success(), "{what}: {status}"),
            None => assert_eq!(status.signal(), Some(SIGKILL), "{what}: {status}"),
        }
        if next == Next::Other {
            self.exchange_layouts();
        }
        done
    }

    /// Swaps the layouts of the two sets.
    fn exchange_layouts(&self) {
        let [set, next_set] = ["set", "next_set"].map(|of| self.directory.join(of));
        // It may have ended, or not begun.
        if fs::exists(next_set.join("contents")).unwrap() {
            let [own, its] = [&set, &next_set].map(|of| words(of));
            write(&set, &its);
            write(&next_set, &own);
        }
    }
}

fn killed(mut kill: impl FnMut(&Place, &mut Option<Found>, &[usize])) {
    for parts in KINDS {
        let place = Place::new(false);
        let mut known = None;
        kill(&place, &mut known, parts);
        let mut owner = Owner::start(&place.host, &place.job(0, Task::Begin));
        known
            .unwrap()
            .known
            .assert_found(&owner.owns().text, "the end");
        owner.begins();
        assert!(owner.ended().success());
        katran::remove(&place.directory).unwrap();
        assert!(!place.directory.exists());
    }
}

#[test]
fn an_adoption_of_another_layout_killed_anywhere_loses_nothing() {
    killed(|place, known, parts| {
        let done = place.relay(known, parts, 0, Next::Same).unwrap().all();
        assert!(done > 50, "{done}");
        // The switch and the commit are among the last ones.
        for (before, next) in [
            (2, Next::Same),
            (9, Next::Other),
            (30, Next::Same),
            (60, Next::Other),
        ] {
            let last = done.saturating_sub(before).max(1);
            assert_eq!(place.relay(known, parts, last, next), None);
        }
    });
}

#[test]
#[ignore = "an hour: make soak"]
fn an_adoption_of_another_layout_killed_everywhere_loses_nothing() {
    killed(|place, known, parts| {
        let done = place.relay(known, parts, 0, Next::Same).unwrap();
        for last in 1..=done.all() + 1 {
            let next = [Next::Same, Next::Other][last as usize % 2];
            assert_eq!(place.relay(known, parts, last, next), None);
        }
        eprintln!(
            "{parts:?}: killed after each of {} calls and {} stores",
            done.calls, done.stores
        );
    });
}

/// A change that the other version was making when it was killed is undone whole, or complete.
#[test]
fn another_versions_interrupted_change_is_whole_or_undone() {
    let place = Place::new(false);
    for parts in [&[][..], &[STATE]] {
        for last in [40, 90] {
            let mut known = None;
            assert_eq!(place.run(&mut known, "apply others", 7, last), None);
            let task = Task::Relaid {
                parts: parts.to_vec(),
                last: 0,
            };
            let mut owner = Owner::start(&place.host, &place.job(0, task));
            let what = format!("{parts:?} after {last}");
            known.unwrap().assert_found(&owner.owns(), &what);
            while owner.next().is_some() {}
            assert!(owner.ended().success());
        }
    }
    katran::remove(&place.directory).unwrap();
}
