//! The time to fetch a cache line that is in none of the CPU's caches: the part of a packet's time
//! that no program can change, but the machine's other guests can.

use std::hint::black_box;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Words of a cache line.
const LINE: usize = 16;
const FETCHES: u32 = 2_000_000;

/// Nanoseconds from one cache line to the next, where each names the next: a random walk over all
/// lines of this many bytes.
pub fn memory_latency(bytes: usize) -> f64 {
    let lines = bytes / (4 * LINE);
    let mut order: Vec<u32> = (0..lines as u32).collect();
    order.shuffle(&mut StdRng::seed_from_u64(1));
    let mut memory = vec![0u32; lines * LINE];
    for (at, next) in order.iter().zip(order.iter().cycle().skip(1)) {
        memory[*at as usize * LINE] = *next;
    }
    let walk = |fetches| {
        let mut line = order[0];
        let start = Instant::now();
        for _ in 0..fetches {
            line = memory[line as usize * LINE];
        }
        black_box(line);
        start.elapsed().as_secs_f64() * 1e9 / f64::from(fetches)
    };
    walk(lines as u32);
    walk(FETCHES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_memory_takes_longer_than_the_first_cache() {
        let (near, far) = (memory_latency(16 << 10), memory_latency(64 << 20));
        assert!(near > 0.0 && far > 2.0 * near, "{near} and {far} ns");
    }
}
