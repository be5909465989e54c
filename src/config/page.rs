//! `docs/configuration.md` is what the table of settings says.

use std::fmt::Write as _;

use super::settings::ROWS;
use super::table::Row;
use crate::generated;

#[test]
fn documentation_is_current() {
    let mut text = "| key | meaning | unit | default | range | changes after load |\n\
                    | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for row in ROWS {
        let Row {
            key, unit, changes, ..
        } = row;
        let (meaning, default, range) = (summary(row.doc), plain(row.default), plain(row.range));
        writeln!(
            text,
            "| `{key}` | {meaning} | {unit} | {default} | {range} | {changes} |"
        )
        .unwrap();
    }
    generated::check("docs/configuration.md", &[("settings", text)]);
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
    text.replace(['[', ']'], "")
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
    assert_eq!(plain("1 to 65_535, max_vips"), "1 to 65,535, max_vips");
}
