//! All of the project's prose.

use std::sync::LazyLock;

use crate::files;
use crate::lexer;
use crate::lexer::Piece;
use crate::markdown;
use crate::markdown::CODE;
use crate::markdown::Page;

/// A piece of prose, and the line where it begins.
pub(crate) struct Text {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) kind: Kind,
    pub(crate) words: String,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Page,
    Comment,
    Message,
}

/// Sources whose literals people see: messages, logs, and programs' output.
const SPEAKING: [&str; 2] = ["src", "examples"];

pub(crate) fn all() -> &'static [Text] {
    static TEXTS: LazyLock<Vec<Text>> = LazyLock::new(collect);
    &TEXTS
}

fn collect() -> Vec<Text> {
    let mut texts = Vec::new();
    for (path, page) in markdown::pages() {
        add(path, Kind::Page, 1, page, &mut texts);
    }
    let directories = ["src", "examples", "tests", "benches"];
    for path in files::below(&directories, &[".rs", ".c", ".h"]) {
        let source = files::read(&path);
        let speaks = SPEAKING.iter().any(|directory| path.starts_with(directory));
        let last = if speaks { last_of_messages(&source) } else { 0 };
        for (line, piece) in lexer::pieces(&source) {
            match piece {
                Piece::Comment(text) => {
                    add(&path, Kind::Comment, line, &Page::of(&text), &mut texts);
                }
                Piece::Literal(text) if line <= last && text.contains(' ') => {
                    let words = without_values(&text);
                    let (path, kind) = (path.clone(), Kind::Message);
                    texts.push(Text {
                        path,
                        line,
                        kind,
                        words,
                    });
                }
                Piece::Literal(_) => {}
            }
        }
    }
    for path in with_hashes() {
        for (line, text) in after_hashes(&files::read(&path)) {
            add(&path, Kind::Comment, line, &Page::of(&text), &mut texts);
        }
    }
    texts
}

/// The last line of a source before its tests, whose literals no user sees; 0 for a source of
/// tests.
fn last_of_messages(source: &str) -> usize {
    let before = match source.split_once("\n#[cfg(test)]\nmod tests {") {
        Some((before, _)) => before,
        None if ["#[test]", "#[tokio::test"]
            .iter()
            .any(|mark| source.contains(mark)) =>
        {
            ""
        }
        None => source,
    };
    before.lines().count()
}

fn add(path: &str, kind: Kind, begin: usize, page: &Page, texts: &mut Vec<Text>) {
    texts.extend(page.prose.iter().map(|(line, words)| Text {
        path: path.to_owned(),
        line: begin + line - 1,
        kind,
        words: words.clone(),
    }));
}

/// Files whose comments begin with `#`.
pub(crate) fn with_hashes() -> Vec<String> {
    let mut files = files::all();
    files.retain(|path| {
        let is_script = path.starts_with("scripts/") || path.starts_with(".ci/");
        let ends = [".toml", ".yml", ".sh"]
            .iter()
            .any(|ending| path.ends_with(ending));
        path == "Makefile" || ends || is_script && !path.contains('.') || path == ".ci/run"
    });
    files
}

/// Comments on separate lines.
fn after_hashes(text: &str) -> Vec<(usize, String)> {
    let mut comments: Vec<(usize, String)> = Vec::new();
    let mut is_in_one = false;
    for (number, line) in text.lines().enumerate() {
        let comment = line.trim_start().strip_prefix("# ");
        match (comment, comments.last_mut()) {
            (Some(comment), Some((_, before))) if is_in_one => {
                before.push('\n');
                before.push_str(comment);
            }
            (Some(comment), _) => comments.push((number + 1, comment.to_owned())),
            (None, _) => {}
        }
        is_in_one = comment.is_some();
    }
    comments
}

/// A message with a placeholder for inserted values and for code between backticks.
fn without_values(text: &str) -> String {
    let mut words = String::new();
    let (mut depth, mut is_code) = (0_usize, false);
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                words.push(CODE);
            }
            '`' => {
                is_code = !is_code;
                words.push(CODE);
            }
            _ if depth == 0 && !is_code => words.push(c),
            _ => {}
        }
    }
    words
}

#[test]
fn messages_are_read_without_inserted_values() {
    let words = without_values("no {what:?} of {}: run `katran check` again");
    let words: Vec<&str> = words
        .split([CODE, ' ', ':'])
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(words, ["no", "of", "run", "again"]);
}

#[test]
fn comments_of_scripts_are_read_together() {
    let comments = after_hashes("#!/bin/sh\n# One,\n# two.\nx # not this\n\n  # Three\n");
    assert_eq!(
        comments,
        [(2, "One,\ntwo.".to_owned()), (6, "Three".to_owned())]
    );
}
