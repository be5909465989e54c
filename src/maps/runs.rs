//! How to read elements of a per-CPU array with few calls: distant elements one by one, close ones
//! in batches. A batch never reads more unwanted elements than another call would cost.

use std::ops::RangeInclusive;

/// Unwanted bytes worth reading to save a call.
const WORTH_A_CALL: usize = 4096;

/// The longest batch in bytes, unless one element is longer: the memory of a call.
const LONGEST: usize = 1 << 20;

/// The runs in which to read `numbers`, ascending; each element has `element` bytes over all CPUs.
pub(crate) fn runs(numbers: &[u32], element: usize) -> Vec<RangeInclusive<u32>> {
    let bytes = |count: u32| count as usize * element;
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for &number in numbers {
        if let Some(run) = runs.last_mut() {
            let between = number.saturating_sub(run.end() + 1);
            let together = number - run.start() + 1;
            if number <= *run.end() {
                continue;
            }
            if bytes(between) <= WORTH_A_CALL && bytes(together) <= LONGEST {
                *run = *run.start()..=number;
                continue;
            }
        }
        runs.push(number..=number);
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of a real's counters on `cpus` CPUs.
    fn element(cpus: usize) -> usize {
        24 * cpus
    }

    fn read(runs: &[RangeInclusive<u32>], element: usize) -> usize {
        runs.iter().map(|run| run.clone().count() * element).sum()
    }

    #[test]
    fn two_reals_that_are_far_apart_take_two_calls_on_256_cpus() {
        let element = element(256);
        let runs = runs(&[1, 65_535], element);
        assert_eq!(runs, [1..=1, 65_535..=65_535]);
        assert_eq!(read(&runs, element), 2 * element);
    }

    #[test]
    fn all_reals_take_few_calls_of_a_bounded_length() {
        let all: Vec<u32> = (1..=65_535).collect();
        for cpus in [1, 2, 16, 256, 4096] {
            let element = element(cpus);
            let runs = runs(&all, element);
            assert_eq!(read(&runs, element), all.len() * element);
            assert!(
                runs.len() <= read(&runs, element).div_ceil(LONGEST / 2),
                "{cpus}"
            );
        }
    }

    #[test]
    fn small_gaps_are_read_over() {
        assert_eq!(
            runs(&[1, 3, 4, 90, 5000], element(2)),
            [1..=90, 5000..=5000]
        );
        assert_eq!(runs(&[1, 3], element(256)), [1..=1, 3..=3]);
        assert_eq!(runs(&[], 24), []);
        assert_eq!(runs(&[7, 7, 8], 24), [7..=8]);
    }

    proptest! {
        #[test]
        fn each_number_is_read_once_and_little_else(
            numbers in prop::collection::btree_set(1..65_536_u32, 0..200),
            cpus in 1..513_usize,
        ) {
            let numbers: Vec<u32> = numbers.into_iter().collect();
            let element = element(cpus);
            let runs = runs(&numbers, element);
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end() < pair[1].start());
            }
            for number in &numbers {
                prop_assert!(runs.iter().any(|run| run.contains(number)));
            }
            let needed = numbers.len() * element;
            prop_assert!(read(&runs, element) <= needed + numbers.len() * WORTH_A_CALL);
            for run in &runs {
                let bytes = run.clone().count() * element;
                prop_assert!(bytes <= LONGEST.max(element));
            }
        }
    }
}
