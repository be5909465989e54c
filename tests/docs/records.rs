//! Checks `docs/decisions.md`: records are short and numbered in order, the list by subject links
//! each of them once, and references to records, on any page or in any source, name one that is
//! still current.

use crate::files;
use crate::files::read;
use crate::markdown::anchor;
use crate::none_of;

const PAGE: &str = "docs/decisions.md";
/// This file has wrong references on purpose.
const THIS: &str = "tests/docs/records.rs";
const MOST_LINES: usize = 15;
const MOST_COLUMNS: usize = 100;

/// A design record: the text below a heading such as `## 7. Title`.
#[derive(Debug, PartialEq)]
struct Record<'a> {
    number: usize,
    title: &'a str,
    body: &'a str,
}

impl Record<'_> {
    /// The anchor of its heading.
    fn anchor(&self) -> String {
        anchor(&format!("{}. {}", self.number, self.title))
    }

    /// Whether another record has replaced it as a whole.
    fn is_superseded(&self) -> bool {
        self.body.starts_with("**Superseded by ")
    }
}

#[test]
fn records_are_short_and_in_order() {
    let page = read(PAGE);
    let (_, records) = records(&page);
    assert!(records.len() > 90, "{}", records.len());
    for (number, record) in (1..).zip(&records) {
        assert_eq!(record.number, number, "{}", record.title);
        let lines: Vec<_> = record.body.lines().collect();
        let of_lines = lines.len();
        assert!(of_lines <= MOST_LINES, "{number} has {of_lines} lines");
        let wide = lines.iter().find(|line| line.len() > MOST_COLUMNS);
        assert_eq!(wide, None, "{number} is too wide");
    }
}

#[test]
fn the_list_by_subject_has_each_record_once() {
    let page = read(PAGE);
    let (list, records) = records(&page);
    let mut listed = links(list);
    listed.sort();
    let all: Vec<_> = records
        .iter()
        .map(|record| (record.number.to_string(), record.anchor()))
        .collect();
    assert!(all.iter().all(|record| listed.contains(record)), "{list}");
    assert_eq!(listed.len(), all.len(), "some are listed twice");
}

#[test]
fn references_name_current_records() {
    let page = read(PAGE);
    let (_, records) = records(&page);
    let mut found = Vec::new();
    let directories = ["benches", "docs", "examples", "src", "tests"];
    let mut files = files::below(&directories, &[".c", ".h", ".md", ".rs", ".toml"]);
    files.push("README.md".to_owned());
    files.retain(|path| path != THIS);
    assert!(files.len() > 300, "{}", files.len());
    for path in files {
        let text = read(&path);
        if path == PAGE {
            // Records link to each other; a superseded one also links to its successor.
            let wrong = links(&text).into_iter().filter(|(number, anchor)| {
                let record = number.parse().ok().and_then(|n| find(&records, n));
                record.is_none_or(|record| record.anchor() != *anchor)
            });
            found
                .extend(wrong.map(|(number, anchor)| format!("{path}: {number} is not #{anchor}")));
        }
        let wrong = references(&text)
            .into_iter()
            .filter_map(|reference| Some((wrong(&records, &reference)?, reference)));
        found.extend(wrong.map(|(why, reference)| format!("{path}: {reference:?} {why}")));
    }
    none_of(&found, "references that lead to no current record");
}

/// The fault in a reference, if any.
fn wrong(records: &[Record<'_>], reference: &Reference) -> Option<&'static str> {
    let Some(record) = find(records, reference.number) else {
        return Some("is no record");
    };
    if record.is_superseded() {
        return Some("is superseded");
    }
    let anchor = reference.anchor.as_ref()?;
    (*anchor != record.anchor()).then_some("is no heading")
}

fn find<'a, 'b>(records: &'a [Record<'b>], number: usize) -> Option<&'a Record<'b>> {
    records.iter().find(|record| record.number == number)
}

/// The text before the first record, and the records.
fn records(page: &str) -> (&str, Vec<Record<'_>>) {
    let mut parts = page.split("\n## ");
    let list = parts.next().unwrap_or_default();
    let records = parts.map(|part| {
        let (heading, body) = part.split_once('\n').unwrap_or((part, ""));
        let (number, title) = heading.split_once(". ").unwrap_or(("", heading));
        Record {
            number: number.parse().unwrap_or_default(),
            title,
            body: body.trim(),
        }
    });
    (list, records.collect())
}

/// The links in a text to its own page's headings: text and anchor.
fn links(text: &str) -> Vec<(String, String)> {
    let parts: Vec<_> = text.split("](#").collect();
    let pairs = parts.windows(2).filter_map(|pair| {
        let (_, text) = pair[0].rsplit_once('[')?;
        let (anchor, _) = pair[1].split_once(')')?;
        Some((text.to_owned(), anchor.to_owned()))
    });
    pairs.collect()
}

/// A record that a text mentions, and the heading that it links to.
#[derive(Debug, PartialEq)]
struct Reference {
    number: usize,
    anchor: Option<String>,
}

/// References such as `design record 7`, `[Design records](decisions.md) 7 and 8`,
/// `decisions.md#7-title`.
fn references(text: &str) -> Vec<Reference> {
    let anchors = text.split("decisions.md#").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"-_".contains(c));
        let anchor = &rest[..end.unwrap_or(rest.len())];
        let (number, _) = anchor.split_once('-').unwrap_or((anchor, ""));
        Reference {
            number: number.parse().unwrap_or_default(),
            anchor: Some(anchor.to_owned()),
        }
    });
    let mut found: Vec<_> = anchors.collect();
    let mut words = text
        .split_whitespace()
        .filter(|word| !["//", "///", "//!", "*", "#"].contains(word))
        .peekable();
    while let Some(word) = words.next() {
        if !names_records(word) {
            continue;
        }
        while let Some(number) = words.peek().and_then(|word| number(word)) {
            found.push(Reference {
                number,
                anchor: None,
            });
            let goes_on = words.next().is_some_and(|word| word.ends_with(','));
            let and = words.next_if(|word| ["and", "or"].contains(word));
            if !goes_on && and.is_none() {
                break;
            }
        }
    }
    found
}

/// `record`, `(records`, `record](decisions.md)`.
fn names_records(word: &str) -> bool {
    let word = word
        .trim_start_matches(|c: char| !c.is_alphanumeric())
        .to_lowercase();
    let (word, target) = word.split_once("](").unwrap_or((&word, "decisions.md)"));
    ["record", "records"].contains(&word) && target.ends_with("decisions.md)")
}

/// `7`, `7:`, `7).`
fn number(word: &str) -> Option<usize> {
    word.trim_end_matches(|c: char| c.is_ascii_punctuation())
        .parse()
        .ok()
}

#[test]
fn references_are_found_in_all_forms() {
    let numbers = |text| {
        let numbers: Vec<_> = references(text).iter().map(|found| found.number).collect();
        numbers
    };
    assert_eq!(numbers("see design record 7."), [7]);
    assert_eq!(numbers("// (Design\n// records 7, 8 and 9)"), [7, 8, 9]);
    assert_eq!(numbers("[design record](decisions.md) 16: so"), [16]);
    assert_eq!(
        numbers("[records](../docs/decisions.md)\n16 and 17 say"),
        [16, 17]
    );
    assert_eq!(numbers("[7](docs/decisions.md#7-a-title)"), [7]);
    assert_eq!(
        numbers("a [record](events.md) 7, let record = 7, 7 records"),
        [0; 0]
    );
}

#[test]
fn wrong_references_are_found() {
    let (list, records) = records(
        "# Records\n\n- All: [1](#1-a-title), [2](#2-b)\n\n## 1. A `title`\n\nText.\n\n## 2. B\n\n**Superseded by [1](#1-a-title).**\n",
    );
    assert_eq!(links(list)[1], ("2".to_owned(), "2-b".to_owned()));
    assert_eq!(records[0].body, "Text.");
    let why = |text| wrong(&records, &references(text)[0]);
    assert_eq!(why("record 1"), None);
    assert_eq!(why("decisions.md#1-a-title"), None);
    assert_eq!(why("decisions.md#1-title"), Some("is no heading"));
    assert_eq!(why("record 2"), Some("is superseded"));
    assert_eq!(why("record 3"), Some("is no record"));
}
