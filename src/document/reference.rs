//! Writes the tables of `docs/configuration.md` from those of settings and sections.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::sections::HEALTH;
use super::sections::SECTIONS;
use super::sections::Section;
use crate::config::Features;
use crate::config::ROWS;
use crate::generated;
use crate::types::VipFlags;
use crate::types::flag_names;

#[test]
fn documentation_is_current() {
    let parts = [
        ("settings", settings()),
        ("sections", sections()),
        (
            "flags",
            words(&flag_names(&VipFlags::all()), "src/types/vip.rs"),
        ),
        (
            "features",
            words(
                &flag_names(&Features::IMPLEMENTED),
                "src/config/features.rs",
            ),
        ),
    ];
    generated::check("docs/configuration.md", &parts);
}

const HEAD: &str = "| key | meaning | value | default |\n|---|---|---|---|\n";

fn settings() -> String {
    let mut text = HEAD.to_owned();
    for row in ROWS {
        let (key, meaning) = (row.key, summary(row.doc));
        let value = value(row.unit, &plain(row.range), &meaning);
        let is_list = matches!(row.form[1], "texts" | "set" | "list");
        assert_eq!(value.starts_with("list of"), is_list, "{key}");
        let default = match row.default.starts_with("none: required") {
            true => "required".to_owned(),
            false => plain(row.default),
        };
        let live = match row.changes {
            "yes" => " *Live.*",
            _ => "",
        };
        writeln!(text, "| `{key}` | {meaning}{live} | {value} | {default} |").unwrap();
    }
    text
}

/// The values of a key: its range, with the unit unless the range or the meaning has it.
fn value(unit: &str, range: &str, meaning: &str) -> String {
    let is_plain = matches!(
        unit,
        "choice" | "boolean" | "check" | "flags" | "list" | "table" | "text"
    );
    match unit {
        "address" | "prefix" | "MAC address" | "interface" => range.to_owned(),
        "seconds" if range.contains("second") => format!("{range}, in seconds"),
        "list of features" => "list of [features](#features)".to_owned(),
        _ if range == "any" => unit.to_owned(),
        _ if is_plain => range.to_owned(),
        "number" => range.to_owned(),
        "bytes" | "seconds" | "percent" => format!("{unit}: {range}"),
        _ if meaning.contains(unit) => range.to_owned(),
        _ => format!("{unit}: {range}"),
    }
}

fn sections() -> String {
    tables(SECTIONS)
}

/// The keys of sections. Keys that several sections share have rows in the first of them only.
pub(crate) fn tables(sections: &[&Section]) -> String {
    let mut text = String::new();
    let mut titles: Vec<(Vec<&str>, String)> = Vec::new();
    for section in sections {
        let title = match section.title {
            of if of.starts_with('[') => format!("`{of}`"),
            "a real" => "a real of `reals`".to_owned(),
            of => of.to_owned(),
        };
        let meaning = section.meaning.trim();
        write!(text, "### {title}\n\n{meaning}\n\n").unwrap();
        let mut rows = Vec::new();
        // The title says what `kind` is.
        rows.extend(section.own.iter().filter(|key| key.name != "kind"));
        let mut others: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for keys in section.shared {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            match titles.iter().find(|(of, _)| *of == names) {
                Some((_, first)) => others.entry(first.clone()).or_default().extend(names),
                None => {
                    titles.push((names, title.clone()));
                    rows.extend(keys.iter());
                }
            }
        }
        for (first, names) in others {
            let names = names.join("`, `");
            write!(text, "Also takes these keys of {first}: `{names}`.\n\n").unwrap();
        }
        if rows.is_empty() {
            continue;
        }
        text += HEAD;
        for key in rows {
            let (name, meaning) = (key.name, key.meaning.trim());
            let (value, default) = (
                value(key.unit, key.range, meaning),
                key.default.unwrap_or("required"),
            );
            writeln!(text, "| `{name}` | {meaning} | {value} | {default} |").unwrap();
        }
        text.push('\n');
    }
    text
}

/// The words of a list, with the documentation of their constants.
fn words(names: &[String], source: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let source = fs::read_to_string(path).unwrap();
    let mut text = "| word | meaning |\n|---|---|\n".to_owned();
    for name in names {
        let constant = name.to_uppercase().replace('-', "_");
        let (before, _) = source.split_once(&format!("const {constant} =")).unwrap();
        let lines = before.lines().rev().skip(1).map(str::trim);
        let mut lines: Vec<_> = lines
            .take_while(|line| line.starts_with("///") || line.starts_with("#["))
            .filter_map(|line| line.strip_prefix("///"))
            .collect();
        lines.reverse();
        writeln!(text, "| `{name}` | {} |", summary(&lines.join("\n"))).unwrap();
    }
    text
}

/// The first paragraph, with links as their texts.
fn summary(doc: &str) -> String {
    let lines = doc.lines().map(str::trim);
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let mut text = String::new();
    for part in lines.join(" ").split("](") {
        let part = match text.is_empty() {
            true => part,
            false => part.split_once(')').map_or(part, |(_, rest)| rest),
        };
        text.push_str(part);
    }
    in_its_words(&text.replace(['[', ']'], ""))
}

/// Constants of the API as words of a document.
fn in_its_words(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| {
        let (owner, word) = part.rsplit_once("::").unwrap_or(("", part));
        if index % 2 == 0 || !word.starts_with(char::is_uppercase) {
            // A setter's name is its key.
            return match owner {
                "Builder" => word.to_owned(),
                _ => part.to_owned(),
            };
        }
        if word == word.to_uppercase() {
            return word.to_lowercase().replace('_', "-");
        }
        let mut words = String::new();
        for c in word.chars() {
            if c.is_uppercase() && !words.is_empty() {
                words.push('-');
            }
            words.push(c.to_ascii_lowercase());
        }
        words
    });
    parts.collect::<Vec<_>>().join("`")
}

/// Numbers as people write them.
fn plain(text: &str) -> String {
    let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let plain = text.char_indices().map(|(place, c)| {
        let between = place > 0 && digit(bytes.get(place - 1)) && digit(bytes.get(place + 1));
        if c == '_' && between { ',' } else { c }
    });
    plain.collect()
}

#[test]
fn links_become_their_texts() {
    assert_eq!(
        summary(" See [`a`](b::c) and\n [`d`].\n\n more"),
        "See `a` and `d`."
    );
    assert_eq!(
        in_its_words("with `Features::ICMP_TOO_BIG`, `A::PerReal` by `Katran::events` a::B"),
        "with `icmp-too-big`, `per-real` by `Katran::events` a::B"
    );
    assert_eq!(plain("1 to 65_535, max_vips"), "1 to 65,535, max_vips");
}

/// A written document has every key of the reference.
#[test]
fn the_reference_has_every_key() {
    let document = super::toml_write::ALL_SETTINGS;
    for section in SECTIONS {
        let is_real = !section.title.starts_with('[');
        // Documents are written without health checks.
        for key in section.key_names().filter(|key| *key != HEALTH) {
            let is_there = match is_real {
                true => document
                    .lines()
                    .any(|line| line.starts_with("    {") && line.contains(&format!(" {key} = "))),
                false => document
                    .split("\n\n")
                    .filter(|table| table.starts_with(section.title))
                    .any(|table| table.contains(&format!("\n{key} = "))),
            };
            // Default values are left out, so none of the document's values is one.
            assert!(is_there, "{key} of {}", section.title);
        }
    }
}
