//! The project's texts, checked without network and without root: the files, commands, options and
//! names that they mention exist, the code in them compiles or parses, and their English is spelled
//! as in Britain and free of phrases that the house does not want.
//!
//! The texts are the Markdown pages, the comments and rustdoc of Rust and C, and the messages of
//! library and examples.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod code;
mod commands;
mod files;
mod help;
mod lexer;
mod lines;
mod links;
mod markdown;
mod names;
mod phrases;
mod spelling;
mod texts;

/// Fails with a line for each thing found.
#[track_caller]
fn none_of(found: &[String], what: &str) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}
