//! Slots settle over real time, and program and model must agree. Changed slots settle after a
//! timeout without packets that deviate from the ring; the others do not, but datagrams give up
//! their base.

use crate::balancers::SETTLING;
use crate::changes;
use crate::generate::Generator;
use crate::pair::Pair;
use crate::pair::Step;
use crate::random;
use crate::random::setting;

const FRAMES: usize = 500;
/// When frames return, in milliseconds: half way through the timeout of two seconds; when only
/// the slots without frames then are settled; when all are.
const AGAIN: u64 = 1200;
const SOME_ARE_SETTLED: u64 = 2850;
const ALL_ARE_SETTLED: u64 = 6000;
const ROUNDS: u64 = 2;

#[test]
fn the_model_and_the_program_agree_on_what_settles() {
    let seed = setting("KATRAN_SEED", fastrand::u64(..));
    eprintln!("KATRAN_SEED={seed}");
    let mut pair = Pair::new(SETTLING, 0);
    let mut decided = 0;
    for round in 0..ROUNDS {
        let target = random::target(&SETTLING, &pair);
        let mut generator = Generator::new(seed.wrapping_add(round), target);
        let vips = pair.changeable();
        let hot = changes::draw_hot(&mut generator.rng, &pair.katran, &vips);
        generator.prefer(changes::services(&pair.katran, &hot));
        let frames: Vec<Step> = (0..FRAMES)
            .map(|_| Step::Frame(generator.frame()))
            .collect();
        let mut steps = frames.clone();
        changes::draw(&mut generator.rng, &vips, &hot, &mut steps, false);
        steps.push(Step::Until(AGAIN));
        steps.extend_from_slice(&frames[..FRAMES / 2]);
        steps.push(Step::Until(SOME_ARE_SETTLED));
        steps.extend_from_slice(&frames);
        steps.push(Step::Until(ALL_ARE_SETTLED));
        steps.extend(frames);
        match random::decide(&mut pair, &steps) {
            Ok(said) => decided += u64::from(said),
            Err(first) => panic!(
                "KATRAN_SEED={seed}\n{}",
                random::explain(&mut pair, steps, &first)
            ),
        }
    }
    for (what, count) in &pair.seen {
        eprintln!("{count:>10} {what}");
    }
    assert_ne!(decided, 0, "it took too long every time");
}
