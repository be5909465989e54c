//! Prose of pages is at most 100 columns wide, so that it can be read in a terminal and in a diff. Tables, code,
//! headings and the targets of links may be wider.

use crate::files;
use crate::markdown;
use crate::none_of;

const WIDTH: usize = 100;

#[test]
fn prose_is_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for (path, page) in markdown::pages() {
        for (number, line) in (1..).zip(files::read(&path).lines()) {
            if !page.unbroken.contains(&number) && width(line) > WIDTH {
                found.push(format!("{path}:{number}: {} columns", width(line)));
            }
        }
    }
    none_of(&found, "wider than 100 columns");
}

/// Without the targets of links.
fn width(line: &str) -> usize {
    let mut parts = line.split("](");
    let first = parts.next().unwrap_or_default().chars().count();
    let others = parts.map(|part| part.find(')').map_or(part, |end| &part[end..]));
    first + others.map(|part| 1 + part.chars().count()).sum::<usize>()
}

#[test]
fn targets_of_links_have_no_width() {
    assert_eq!(
        width("see [here](docs/operations.md#install)."),
        "see [here]).".len()
    );
    assert_eq!(width("sëë"), 3);
}
