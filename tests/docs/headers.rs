//! Each file of the BPF programs begins with at least two sentences: what it does, and who uses it.

use crate::files;
use crate::lexer;
use crate::lexer::Piece;
use crate::none_of;

const LEAST: usize = 2;

#[test]
fn bpf_sources_begin_with_sentences() {
    let (mut found, mut seen) = (Vec::new(), 0);
    for path in files::below(&["src/bpf"], &[".c", ".h"]) {
        seen += 1;
        let sentences = first_sentences(&files::read(&path));
        if sentences < LEAST {
            found.push(format!("{path}: {sentences}"));
        }
    }
    assert!(seen > 40, "{seen}");
    none_of(&found, "sentences in the first comment, fewer than two");
}

/// The number of sentences in the first comment, without the licence.
fn first_sentences(source: &str) -> usize {
    let Some((_, Piece::Comment(text))) = lexer::pieces(source).into_iter().next() else {
        return 0;
    };
    let lines = text
        .lines()
        .filter(|line| !line.contains("SPDX-License-Identifier"));
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut words = text.split_whitespace().peekable();
    let mut sentences = 0;
    while let Some(word) = words.next() {
        let is_last = |next: &&str| !next.starts_with(char::is_numeric);
        sentences += usize::from(word.ends_with('.') && words.peek().is_none_or(is_last));
    }
    sentences
}

#[test]
fn sentences_are_counted_without_the_licence() {
    let source = "/* SPDX-License-Identifier: MIT. */\n/* One (RFC 8200,\n * 4.2). Two. */\nint a;\n/* Three. */";
    assert_eq!(first_sentences(source), 2);
    assert_eq!(first_sentences("int a;"), 0);
}
