//! The layout of a pinned set: the words of its map `contents`, which tests change to make it
//! another version's.

use std::os::fd::AsFd;
use std::path::Path;

use super::bpf;
use super::pins;

/// The words: the set's layout, then its parts'.
pub(crate) const LAYOUT: usize = 1;
pub(crate) const STATE: usize = 2;
pub(crate) const FLOWS: usize = 3;
pub(crate) const COUNTERS: usize = 4;
pub(crate) const PROBES: usize = 5;
/// A layout that no version has.
pub(crate) const OTHER: u64 = 0xffff;

/// The words of a set.
pub(crate) fn words(set: &Path) -> Vec<u64> {
    let contents = pins::open(&set.join("contents"));
    let value = bpf::lookup(contents.as_fd(), &[0; 4]).unwrap();
    let words = value.chunks_exact(8);
    words
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect()
}

/// Overwrites a set's words.
pub(crate) fn write(set: &Path, words: &[u64]) {
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let contents = pins::open(&set.join("contents"));
    bpf::update(contents.as_fd(), &[0; 4], &value);
}

/// Gives a set another layout, in these parts.
pub(crate) fn relay(set: &Path, parts: &[usize]) {
    let mut words = words(set);
    for at in parts.iter().chain([&LAYOUT]) {
        words[*at] = OTHER;
    }
    write(set, &words);
}
