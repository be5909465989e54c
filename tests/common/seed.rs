//! The seed of randomised tests: `KATRAN_SEED`, or a random one.

use fastrand::Rng;

/// Prints how to repeat a failure.
pub(crate) struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("KATRAN_SEED={}", self.0);
        }
    }
}

/// A generator, and a guard to keep until the test is over.
pub(crate) fn seeded() -> (Seed, Rng) {
    let given = std::env::var("KATRAN_SEED").ok();
    let given = given.map(|text| text.replace('_', "").parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    (Seed(seed), Rng::with_seed(seed))
}
