//! `docs/configuration.md` is what the tables of settings and sections say.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::sections::HEALTH;
use super::sections::Key;
use super::sections::SECTIONS;
use super::sections::Section;
use crate::config::Features;
use crate::config::ROWS;
use crate::config::Row;
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

fn settings() -> String {
    let mut text = "| key | meaning | written | unit | default | range | changes after load |\n\
                    | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for row in ROWS {
        let Row {
            key,
            unit,
            changes,
            form,
            ..
        } = row;
        let (meaning, default, range) = (summary(row.doc), plain(row.default), plain(row.range));
        let form = written(*form);
        writeln!(
            text,
            "| `{key}` | {meaning} | `{form}` | {unit} | {default} | {range} | {changes} |"
        )
        .unwrap();
    }
    text
}

/// How a setting looks, by its type and its form in the table of settings.
fn written([given, form]: [&str; 2]) -> &'static str {
    match (form, given) {
        ("text", _) | ("plain", "String") => "\"...\"",
        ("texts" | "set", _) => "[\"...\"]",
        ("list", _) => "[0]",
        ("auto", _) => "0, \"auto\"",
        ("plain", "bool") => "true",
        ("seconds", _) => "0, 0.5",
        ("plain" | "whole", _) => "0",
        (prefix, _) => {
            assert!(prefix.contains("prefix"), "{prefix}");
            "\".../...\""
        }
    }
}

fn sections() -> String {
    tables(SECTIONS)
}

/// The keys of sections.
pub(crate) fn tables(sections: &[&Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let (title, meaning) = (section.title, section.meaning.trim());
        let title = match title {
            of if of.starts_with('[') => format!("`{of}`"),
            "a real" => "a real of `reals`".to_owned(),
            of => of.to_owned(),
        };
        write!(
            text,
            "### {title}\n\n{meaning}\n\n| key | meaning | written | unit | default | range |\n\
             | --- | --- | --- | --- | --- | --- |\n"
        )
        .unwrap();
        for key in section.keys() {
            let Key {
                name,
                meaning,
                unit,
                range,
                ..
            } = key;
            let form = match *unit {
                "address" | "prefix" | "choice" => "\"...\"",
                "flags" => "[\"...\"]",
                "reals" => "[{ ... }]",
                "true or false" => "true",
                "table" => "{ ... }",
                "seconds" => "0, 0.5",
                "list" => "[...]",
                "text" => "\"...\"",
                "check" => "\"...\", { ... }",
                _ => "0",
            };
            let default = key.default.unwrap_or("none: required");
            let meaning = meaning.trim();
            writeln!(
                text,
                "| `{name}` | {meaning} | `{form}` | {unit} | {default} | {range} |"
            )
            .unwrap();
        }
        text.push('\n');
    }
    text
}

/// Words of a list, with what their constants are documented to be.
fn words(names: &[String], source: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let source = fs::read_to_string(path).unwrap();
    let mut text = "| word | meaning |\n| --- | --- |\n".to_owned();
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

/// Constants of the API as the words of a document that they are.
fn in_its_words(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| {
        let (owner, word) = part.rsplit_once("::").unwrap_or(("", part));
        if index % 2 == 0 || !word.starts_with(char::is_uppercase) {
            // Setters are keys.
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

/// Every key that is written can be looked up, and the other way round.
#[test]
fn the_reference_has_every_key() {
    let document = super::toml_write::ALL_SETTINGS;
    for section in SECTIONS {
        let is_real = !section.title.starts_with('[');
        // Health checks are none of what is written.
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
            // Those with their default are left out, and read nevertheless.
            assert!(is_there, "{key} of {}", section.title);
        }
    }
}
