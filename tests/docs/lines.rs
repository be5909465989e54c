//! Prose in pages is at most 100 columns wide, so that it can be read in a terminal and in a diff.
//! Tables, code, headings, links and generated text may be wider.

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

/// The width without links.
fn width(line: &str) -> usize {
    let mut width = 0;
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        let begin = before.rfind('[').unwrap_or(before.len());
        width += before[..begin].chars().count();
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    width + rest.chars().count()
}

#[test]
fn links_have_no_width() {
    let line = "see [here](docs/operations.md#install), [there](README.md).";
    assert_eq!(width(line), "see , .".len());
    assert_eq!(width("s\u{eb}\u{eb}"), 3);
}
