//! Links lead to existing files and headings, and so do paths that sources mention.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::files;
use crate::markdown;
use crate::markdown::Page;
use crate::none_of;
use crate::texts;

/// Directories whose files can be mentioned by their path from the root.
const DIRECTORIES: [&str; 6] = [
    "benches/",
    "docs/",
    "examples/",
    "scripts/",
    "src/",
    "tests/",
];
/// Files with made-up paths.
const OTHERS: [&str; 1] = ["src/structure.rs"];
/// Words with a slash that are no paths.
const WORDS: [&str; 1] = ["src/dst"];

#[test]
fn links_of_pages_are_valid() {
    let pages = markdown::pages();
    let mut found = Vec::new();
    let mut relative = 0;
    for (path, page) in pages {
        for (line, link) in &page.links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            relative += 1;
            if let Some(wrong) = wrong(path, link, pages) {
                found.push(format!("{path}:{line}: {link}: {wrong}"));
            }
        }
    }
    assert!(relative > 50, "{relative}");
    none_of(&found, "links that lead nowhere");
}

/// The fault in a page's link.
fn wrong(page: &str, link: &str, pages: &BTreeMap<String, Page>) -> Option<String> {
    let (file, anchor) = match link.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (link, None),
    };
    let path = match file {
        "" => page.to_owned(),
        _ => beside(page, file),
    };
    if !files::root().join(&path).exists() {
        return Some(format!("there is no {path}"));
    }
    let has = |anchor: &&str| match pages.get(&path) {
        Some(page) => page.anchors.contains(*anchor),
        // A line of a source, for example.
        None => false,
    };
    let anchor = anchor.filter(|anchor| !has(anchor))?;
    Some(format!("{path} has no heading #{anchor}"))
}

/// The path from the root of a file that a page names relative to itself.
fn beside(page: &str, file: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in file.split('/') {
        match part {
            ".." => _ = parts.pop(),
            "." | "" => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn paths_that_are_mentioned_exist() {
    let pages = markdown::pages();
    let directories = ["benches", "examples", "scripts", "src", "tests"];
    let sources = files::below(&directories, &[".rs", ".c", ".h", ".md"]);
    let mut paths: BTreeSet<String> = sources.into_iter().collect();
    paths.extend(texts::with_hashes());
    paths.extend(pages.keys().filter(|path| *path != "CHANGELOG.md").cloned());
    let (mut found, mut mentioned) = (Vec::new(), 0);
    for path in paths {
        if path.starts_with("tests/docs/") || OTHERS.contains(&&*path) {
            continue;
        }
        for (number, line) in (1..).zip(files::read(&path).lines()) {
            for mention in mentions(line) {
                mentioned += 1;
                let (file, anchor) = mention.split_once('#').unwrap_or((&mention, ""));
                let has = |anchor: &str| {
                    let page = pages.get(file);
                    page.is_none_or(|page| page.anchors.contains(anchor))
                };
                // A crate in a directory names its files relative to it.
                let bases = path.match_indices('/').map(|(end, _)| &path[..=end]);
                if !bases
                    .chain([""])
                    .any(|base| exists(&format!("{base}{file}")))
                {
                    found.push(format!("{path}:{number}: there is no {file}"));
                } else if !anchor.is_empty() && !has(anchor) {
                    found.push(format!("{path}:{number}: {file} has no heading #{anchor}"));
                }
            }
        }
    }
    assert!(mentioned > 200, "{mentioned}");
    none_of(&found, "paths that lead nowhere");
}

/// A file, a directory, or a source named without its ending.
fn exists(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    ["", ".rs", "/mod.rs"].iter().any(|ending| {
        let path = format!("{path}{ending}");
        files::root().join(path).exists()
    })
}

/// Paths from the root in a line, with their anchors.
fn mentions(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        for (at, _) in line.match_indices(directory) {
            // A path below another directory belongs to that one.
            let before = line[..at].trim_end_matches("../");
            let follows = before.ends_with(|c: char| c.is_alphanumeric() || "/_-.:~}".contains(c));
            let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/#".contains(c);
            let rest = &line[at..];
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            // Not names with a variable part.
            let is_whole = !rest[end..].starts_with(['*', '{', '$', '<', '[']);
            let mention = rest[..end].trim_end_matches(['.', '-', '#']);
            let is_whole = is_whole && !mention.contains("NAME");
            if !follows && is_whole && !WORDS.contains(&mention) {
                found.push(mention.to_owned());
            }
        }
    }
    found
}

#[test]
fn dead_links_are_found() {
    let page = Page::of("# A heading\n");
    let pages = BTreeMap::from([("docs/limits.md".to_owned(), page)]);
    let wrong = |link| wrong("docs/glossary.md", link, &pages);
    assert_eq!(wrong("limits.md#a-heading"), None);
    assert_eq!(wrong("../README.md"), None);
    assert!(wrong("limits.md#another").unwrap().contains("no heading"));
    assert!(
        wrong("no-such-page.md")
            .unwrap()
            .contains("docs/no-such-page.md")
    );
    assert_eq!(
        mentions("see `docs/limits.md#x`, \"../src/bpf\", /usr/src/linux and docs/*.md."),
        ["docs/limits.md#x", "src/bpf"]
    );
    assert!(exists("src/bpf/") && exists("src/error") && !exists("src/errors"));
}
