//! Prose in pages and comments is at most 100 columns wide, so that it can be read in a terminal
//! and in a diff. Tables, code, headings, links' targets and generated text may be wider.

use crate::files;
use crate::markdown;
use crate::none_of;

const WIDTH: usize = 100;

#[test]
fn prose_is_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for (path, page) in markdown::pages() {
        let mut is_generated = false;
        for (number, line) in (1..).zip(files::read(path).lines()) {
            is_generated =
                line.starts_with("<!-- generated") || is_generated && line != "<!-- end -->";
            if is_generated {
                continue;
            }
            if !page.unbroken.contains(&number) && width(line) > WIDTH {
                found.push(format!("{path}:{number}: {} columns", width(line)));
            }
        }
    }
    none_of(&found, "wider than 100 columns");
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    let (mut found, mut seen) = (Vec::new(), 0);
    for path in files::below(
        &["src", "examples", "tests", "benches"],
        &[".rs", ".c", ".h"],
    ) {
        // As rustfmt and clang-format count tabs.
        let tab = " ".repeat(if path.ends_with(".rs") { 4 } else { 8 });
        for (number, line) in (1..).zip(files::read(&path).lines()) {
            let Some(comment) = comment(line, !path.ends_with(".rs")) else {
                continue;
            };
            seen += 1;
            let columns = line.replace('\t', &tab).chars().count();
            if columns > WIDTH && !comment.starts_with('|') && !comment.contains("://") {
                found.push(format!("{path}:{number}: {columns} columns"));
            }
        }
    }
    assert!(seen > 10_000, "{seen}");
    none_of(&found, "comments wider than 100 columns");
}

/// The text of a line that is a comment, or of C that ends in one.
fn comment(line: &str, is_c: bool) -> Option<&str> {
    let text = line.trim_start();
    let begin = match is_c {
        true if text.starts_with("* ") => "* ",
        true => "/*",
        false => "//",
    };
    let at = match is_c {
        true => text.find(begin)?,
        false => text.starts_with(begin).then_some(0)?,
    };
    let text = &text[at + begin.len()..];
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

#[test]
fn comments_are_recognised() {
    assert_eq!(comment("    /// | a | b |", false), Some("| a | b |"));
    assert_eq!(comment("let a = 1; // one", false), None);
    assert_eq!(comment("\tint a; /* one */", true), Some("one */"));
    assert_eq!(comment("\t * and two */", true), Some("and two */"));
    assert_eq!(comment("\ta * b;", true), None);
}

/// The width without links' targets.
fn width(line: &str) -> usize {
    let mut width = 0;
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        width += before.chars().count() - usize::from(before.contains('['));
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    width + rest.chars().count()
}

#[test]
fn targets_have_no_width() {
    let line = "see [here](docs/operations.md#install), [there](README.md).";
    assert_eq!(width(line), "see here, there.".len());
    assert_eq!(width("s\u{eb}\u{eb}"), 3);
}
