//! Mutated documents: each is refused with a place, or is a state that can be written and read
//! again. Mutations that do not change the meaning do not change the state.

use std::time::Duration;

use fastrand::Rng;

use super::state::State;
use super::toml_write::ALL_SETTINGS;
use crate::config::BalancerState;
use crate::mutate;

/// Replacements for values.
const VALUES: [&str; 62] = [
    "0",
    "1",
    "-1",
    "2",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "-9223372036854775808",
    "99999999999999999999999999999999999999999999",
    "0xffff_ffff",
    "0b1",
    "+7",
    "1_0",
    "01",
    "1.5",
    "-0.0",
    "1e400",
    "5e-324",
    "1e19",
    "1.8446744073709552e19",
    "86400.000000001",
    "0.1",
    "inf",
    "-inf",
    "nan",
    "true",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "\"\"",
    "\"auto\"",
    "\"x\"",
    "\"\\u0000\"",
    "\"\\U0010FFFF\"",
    "\"\\uD800\"",
    "\"a b\"",
    "'it''s'",
    "\"\"\"\nmany\nlines\"\"\"",
    "\"203.0.113.1\"",
    "\"::ffff:203.0.113.1\"",
    "\"::ffff:203.0.113.0/120\"",
    "\"2001:db8::1\"",
    "\"2001:DB8:0:0::1\"",
    "\"fe80::1%1\"",
    "\"0.0.0.0\"",
    "\"0.0.0.0/0\"",
    "\"203.0.113.256\"",
    "\"203.0.113.01\"",
    "\"10.0.0.0/+8\"",
    "\"10.0.0.0/8\"",
    "\"0A:00:00:00:00:FE\"",
    "\"maglev\"",
    "\"inline\"",
    "[]",
    "[[[]]]",
    "{}",
    "[ { address = \"198.51.100.9\" }, { address = \"::ffff:198.51.100.9\" } ]",
];

/// The places of the values of `key = value`, one after the other on a line as in inline tables
/// too.
fn values(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(" = ") {
        let start = at + 3;
        let rest = &text[start..];
        let end = match rest.as_bytes().first() {
            Some(b'"') => rest[1..].find('"').map(|end| end + 2),
            Some(b'[') => rest.find(']').map(|end| end + 1),
            _ => rest.find([',', ' ', '\n', '}']),
        };
        found.push(start..start + end.unwrap_or(rest.len()));
    }
    found
}

fn keys(text: &str) -> Vec<std::ops::Range<usize>> {
    let starts = text.match_indices(" = ").map(|(at, _)| {
        let start = text[..at].rfind(['\n', ' ', '{', ',']);
        start.map_or(0, |start| start + 1)..at
    });
    starts.collect()
}

/// Makes one mistake in the document's structure or values.
fn once(rng: &mut Rng, text: &mut String) {
    let (values, keys) = (values(text), keys(text));
    if values.is_empty() {
        return;
    }
    match rng.u32(0..8) {
        0..=3 => {
            let value = mutate::one_of(rng, &values);
            // Any key, or one that looks like it.
            let looks = |text: &str| (text.chars().next(), text.contains(':'), text.contains('/'));
            let look = looks(&text[value.clone()]);
            let alike = |of: &&str| {
                of.parse::<u64>().is_ok() == look.0.is_some_and(|c| c.is_ascii_digit())
                    && (looks(of) == look || of.parse::<u64>().is_ok())
            };
            let alike: Vec<_> = VALUES.into_iter().filter(alike).collect();
            let other = match alike.is_empty() || rng.u32(0..4) == 0 {
                true => mutate::one_of(rng, &VALUES),
                false => mutate::one_of(rng, &alike),
            };
            text.replace_range(value, other);
        }
        // A value from another place, often of the same key.
        4 => {
            let from = rng.usize(0..values.len());
            let key = &text[keys[from].clone()];
            let of_key: Vec<_> = (0..values.len())
                .filter(|of| text[keys[*of].clone()] == *key)
                .collect();
            let to = match rng.bool() {
                true => mutate::one_of(rng, &of_key),
                false => rng.usize(0..values.len()),
            };
            let other = text[values[from].clone()].to_owned();
            text.replace_range(values[to].clone(), &other);
        }
        5 => {
            let other = match rng.bool() {
                true => text[mutate::one_of(rng, &keys)].to_owned(),
                false => {
                    mutate::one_of(rng, &["", "\"\"", "vip", "vip.reals", "weigth", "é"]).to_owned()
                }
            };
            text.replace_range(mutate::one_of(rng, &keys), &other);
        }
        // A table twice, of another kind, or elsewhere.
        6 => {
            let mut tables: Vec<_> = text.split("\n[").map(str::to_owned).collect();
            let (from, to) = (rng.usize(0..tables.len()), rng.usize(0..tables.len()));
            match rng.u32(0..3) {
                0 => tables.insert(to, tables[from].clone()),
                1 => tables.swap(from, to),
                _ => {
                    let kinds = [
                        "[vip]]\n",
                        "vip]\n",
                        "[balancer]]\n",
                        "[mark]]\n",
                        "vip.x]\n",
                        "]\n",
                    ];
                    tables[to].insert_str(0, mutate::one_of(rng, &kinds));
                }
            }
            *text = tables.join("\n[");
        }
        _ => {
            let mut bytes = std::mem::take(text).into_bytes();
            mutate::text(rng, &mut bytes);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

/// Checks what must hold for any text.
fn check(text: &str) -> Option<State> {
    let state = match State::from_toml(text) {
        Ok(state) => state,
        Err(error) => {
            let error = error.to_string();
            let place = error.split_once("line ").and_then(|(_, rest)| {
                let (line, rest) = rest.split_once(", column ")?;
                let (column, what) = rest.split_once(": ")?;
                Some((
                    line.parse::<usize>().ok()?,
                    column.parse::<usize>().ok()?,
                    what,
                ))
            });
            let (line, column, what) = place.unwrap_or_else(|| panic!("{error:?}"));
            let lines: Vec<_> = text.split('\n').collect();
            assert!((1..=lines.len()).contains(&line), "{error}\n{text}");
            assert!(
                column <= lines[line - 1].chars().count() + 1,
                "{error}\n{text}"
            );
            assert!(!what.trim().is_empty(), "{error}\n{text}");
            return None;
        }
    };
    let written = state
        .to_toml()
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    let again = State::from_toml(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again, state, "{text}\n{written}");
    assert_eq!(again.to_toml().unwrap(), written);
    // Settings out of range are refused, and others have a memory estimate.
    if let Err(error) = state.builder().unwrap().memory_estimate() {
        assert!(error.to_string().contains(' '), "{error}");
    }
    Some(state)
}

#[test]
fn mutated_documents_are_refused_or_go_round() {
    let mut read = 0;
    let cases = 4_000;
    mutate::cases(cases, |rng| {
        let mut text = ALL_SETTINGS.to_owned();
        for _ in 0..rng.u32(1..4) {
            once(rng, &mut text);
        }
        read += u64::from(check(&text).is_some());
    });
    // Both are checked.
    assert!((cases / 20..cases).contains(&read), "{read} of {cases}");
}

#[test]
fn documents_may_end_anywhere() {
    for end in 0..ALL_SETTINGS.len() {
        let _ = check(&ALL_SETTINGS[..end]);
    }
}

/// Spaces, comments, line ends, quotes, and the order of keys and of other kinds' tables mean
/// nothing.
#[test]
fn what_means_the_same_is_the_same() {
    let state = State::from_toml(ALL_SETTINGS).unwrap();
    mutate::cases(1_000, |rng| {
        let mut tables: Vec<String> = ALL_SETTINGS.split("\n\n").map(str::to_owned).collect();
        // Tables of one kind keep their order, because the sort is stable.
        let mut kinds: Vec<_> = tables
            .iter()
            .map(|table| table.split('\n').next().unwrap().to_owned())
            .collect();
        kinds.sort();
        kinds.dedup();
        rng.shuffle(&mut kinds);
        tables.sort_by_key(|table| {
            kinds
                .iter()
                .position(|kind| table.starts_with(kind.as_str()))
        });
        let tables = tables.iter().map(|table| same(rng, table));
        let text = tables.collect::<Vec<_>>().join("\n");
        let text = match rng.bool() {
            true => text.replace('\n', "\r\n"),
            false => text,
        };
        assert_eq!(check(&text).as_ref(), Some(&state), "{text}");
    });
}

/// A table, written differently.
fn same(rng: &mut Rng, table: &str) -> String {
    let mut lines = table.trim_end().split('\n');
    let mut text = lines.next().unwrap().to_owned();
    let mut pairs: Vec<String> = Vec::new();
    for line in lines {
        match line.starts_with([' ', ']']) {
            true => pairs.last_mut().unwrap().push_str(&format!("\n{line}")),
            false => pairs.push(line.to_owned()),
        }
    }
    rng.shuffle(&mut pairs);
    for pair in &pairs {
        let (key, value) = pair.split_once(" = ").unwrap();
        let key = match rng.u32(0..3) {
            0 => format!("\"{key}\""),
            1 => format!("'{key}'"),
            _ => key.to_owned(),
        };
        let value = match value.parse::<u64>() {
            Ok(number) if rng.bool() => format!("{number:#x}"),
            Ok(number) if number >= 10 && rng.bool() => {
                let (head, last) = value.split_at(value.len() - 1);
                format!("{head}_{last}")
            }
            _ => value.to_owned(),
        };
        let spaces = mutate::one_of(rng, &["", " ", "\t ", "    "]);
        let comment = mutate::one_of(rng, &["", "# = [", " #é", "\n#\n\n"]);
        text.push_str(&format!(
            "\n{spaces}{key}{spaces}={spaces}{value}{spaces}{comment}"
        ));
    }
    text + "\n"
}

/// Very deep or very long documents give an error, without a stack overflow and in good time.
#[test]
fn deep_and_long_documents_come_to_an_end() {
    let deep = 200_000;
    for text in [
        format!("vip = {}", "[".repeat(deep)),
        format!("vip = {}{}", "[".repeat(deep), "]".repeat(deep)),
        format!("vip = {}", "{a=".repeat(deep)),
        format!("{}a = 1", "a.".repeat(deep)),
        format!("[{}a]", "a.".repeat(deep)),
        format!("[[{}a]]", "vip.".repeat(deep)),
        "[".repeat(deep),
        format!("a = \"{}", "\\".repeat(deep)),
        format!("{} = 1", "a".repeat(deep)),
        "[[vip]]\n".repeat(deep / 100),
        "\n".repeat(deep),
        format!("#{}", "\u{e9}".repeat(deep)),
    ] {
        let _ = check(&text);
    }
}

/// TOML's parser reads numbers that its writer refuses.
#[test]
fn numbers_that_cannot_be_written_are_not_read() {
    let error = State::from_toml("[balancer]\nudp_timeout = 1e19\n").unwrap_err();
    assert!(error.to_string().contains("line 2, column"), "{error}");
    for key in ["hash_seed", "flow_table_size"] {
        let of = |number: u64| State::from_toml(&format!("[balancer]\n{key} = {number}\n"));
        let largest = i64::MAX as u64;
        assert!(
            of(largest)
                .unwrap()
                .to_toml()
                .unwrap()
                .contains("9223372036854775807")
        );
        for number in [largest + 1, u64::MAX] {
            let error = of(number).unwrap_err().to_string();
            assert!(
                error.contains("line 2, column") && error.contains("2^63 - 1"),
                "{error}"
            );
        }
    }
}

/// A value that a document cannot express is refused in writing, and never becomes something else.
#[test]
fn times_are_written_as_they_are_or_not_at_all() {
    let written = |udp_timeout| {
        let mut state = State::default();
        let settings = BalancerState {
            udp_timeout: Some(udp_timeout),
            ..BalancerState::default()
        };
        state.balancer = Some(settings);
        let text = state.to_toml().ok()?;
        match (1..=86_400).contains(&udp_timeout.as_nanos().div_ceil(1_000_000_000))
            && udp_timeout.as_secs() > 0
        {
            true => assert_eq!(State::from_toml(&text).unwrap(), state, "{text}"),
            false => {
                let error = State::from_toml(&text).unwrap_err().to_string();
                assert!(error.contains("1 second to 1 day"), "{error}\n{text}");
            }
        }
        Some(text)
    };
    assert!(written(Duration::from_nanos(1_500_000_001)).is_some());
    assert!(written(Duration::from_nanos(86_399_999_999_999)).is_some());
    assert_eq!(written(Duration::MAX), None);
    assert_eq!(written(Duration::new(1 << 60, 1)), None);
    mutate::cases(20_000, |rng| {
        let seconds = rng.u64(..) >> rng.u32(0..64);
        let nanoseconds = mutate::one_of(
            rng,
            &[
                0,
                1,
                500_000_000,
                999_999_999,
                rng.clone().u32(0..1_000_000_000),
            ],
        );
        let is_of_range = seconds < 86_400;
        let text = written(Duration::new(seconds, nanoseconds));
        assert!(text.is_some() || !is_of_range, "{seconds} {nanoseconds}");
    });
}
