//! What the packet path's hashes share: random keys from the kernel, and a final mixing step.

use std::io;

/// `HASH_MIX` of `src/bpf/shared.h`.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// `N` random 64-bit words.
pub(super) fn random_words<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0; N];
    for word in &mut words {
        *word = getrandom::u64().map_err(io::Error::from)?;
    }
    Ok(words)
}

/// Spreads sums that differ by equal steps; the higher bits are better.
pub(super) fn mix(sum: u64) -> u64 {
    (sum ^ (sum >> 32)).wrapping_mul(MIX)
}
