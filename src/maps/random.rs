//! Random numbers from the kernel, for the keys of the packet path's hashes.

use std::io;

/// So many random 64-bit words.
pub(super) fn random_words<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0; N];
    for word in &mut words {
        *word = getrandom::u64().map_err(io::Error::from)?;
    }
    Ok(words)
}
