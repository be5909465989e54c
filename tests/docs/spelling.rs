//! Spelling, by Debian's British dictionary and this project's words in `words.txt`. Words with
//! inner capitals, digits or special characters count as names; names of people and things are in
//! the list like other words.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use crate::files;
use crate::none_of;
use crate::texts;
use crate::weeded;

const LIST: &str = "tests/docs/words.txt";

#[test]
fn words_are_spelled_as_in_the_dictionary_or_in_the_list() {
    // By their first place.
    let mut places = BTreeMap::new();
    for text in texts::all() {
        for word in words(&text.words) {
            let place = || format!("{}:{}", text.path, text.line);
            places.entry(word.to_owned()).or_insert_with(place);
        }
    }
    assert!(places.len() > 3000, "{}", places.len());
    let list = files::read(LIST);
    let listed: BTreeSet<&str> = list.lines().collect();
    assert!(
        list.lines().eq(listed.iter().copied()),
        "{LIST} is not sorted: LC_ALL=C sort -u"
    );
    let unknown = unknown(places.keys().map(String::as_str));
    let is_listed = |word: &str| listed.contains(word) || listed.contains(&*word.to_lowercase());
    let wrong = unknown.iter().filter(|word| !is_listed(word));
    let wrong: Vec<String> = wrong
        .map(|word| format!("{}: {word}", places[word]))
        .collect();
    none_of(&wrong, &format!("not in the dictionary, and not in {LIST}"));
    let used: BTreeSet<String> = unknown.iter().map(|word| word.to_lowercase()).collect();
    let is_used = |word: &&&str| used.contains(&word.to_lowercase());
    weeded(
        &listed
            .iter()
            .filter(|word| !is_used(word))
            .copied()
            .collect(),
        LIST,
    );
}

/// The words whose spelling can be checked.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let tokens = text.split(|c: char| c.is_whitespace() || "—–…()[]\"“”,;!?|".contains(c));
    let is_path =
        |token: &str| token.starts_with('/') || token.contains('/') && token.contains('.');
    let tokens = tokens.filter(|token| !is_path(token));
    for token in tokens.flat_map(|token| token.split('/')) {
        let token = token.trim_matches(|c: char| !c.is_alphanumeric());
        // Not names of files and items, addresses, numbers, or words attached to code.
        if token.contains(|c: char| !(c.is_alphabetic() || "-'’".contains(c))) {
            continue;
        }
        for word in token.split('-') {
            let word = word.trim_matches(['\'', '’']);
            let word = word
                .strip_suffix("'s")
                .or(word.strip_suffix("’s"))
                .unwrap_or(word);
            let is_name = word.chars().skip(1).any(char::is_uppercase);
            if word.chars().count() > 1 && !is_name {
                words.push(word);
            }
        }
    }
    words
}

/// The words that the dictionary lacks.
fn unknown<'a>(words: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut hunspell = Command::new("hunspell");
    hunspell.args(["-d", "en_GB", "-i", "utf-8", "-l"]);
    hunspell.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut hunspell = hunspell
        .spawn()
        .expect("scripts/setup test installs hunspell");
    let mut input = hunspell.stdin.take().unwrap();
    let lines: Vec<String> = words.map(|word| format!("{word}\n")).collect();
    let writing = std::thread::spawn(move || input.write_all(lines.concat().as_bytes()));
    let output = hunspell.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn a_wrong_word_is_found() {
    let text = "The balancer's behaviour, a mispeled color: IPv6, eth0 and /etc/x.toml, half-wrng.";
    let found: Vec<String> = unknown(words(text).into_iter()).into_iter().collect();
    assert_eq!(found, ["color", "mispeled", "wrng"]);
}
