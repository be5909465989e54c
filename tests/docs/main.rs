//! The project's texts, checked without network and without root: the files, commands, options and
//! names that they mention exist, the code in them compiles or parses, and their English is British
//! and free of certain phrases.
//!
//! The texts are the Markdown pages, the comments and rustdoc of Rust and C, and the messages of
//! library and examples.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod code;
mod commands;
mod files;
mod headers;
mod help;
mod lexer;
mod lines;
mod links;
mod markdown;
mod names;
mod phrases;
mod records;
mod rust_words;
mod spelling;
mod texts;

use std::collections::BTreeSet;

/// How many superfluous words a list may have before it must be pruned.
const SPARE: usize = 20;

/// Fails with a line for each thing found.
#[track_caller]
fn none_of(found: &[String], what: &str) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Fails if a list has many superfluous words. A few may stay, so that not every change of a text
/// changes the list.
#[track_caller]
fn weeded(unused: &BTreeSet<&str>, list: &str) {
    assert!(unused.len() <= SPARE, "{list} has unused words: {unused:?}");
}
