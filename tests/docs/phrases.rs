//! Phrases to avoid: most are a German sentence in English words, and readers stumble over them.

use crate::none_of;
use crate::texts;
use crate::texts::Kind;

/// Phrases to avoid anywhere, and what to write instead. A point is the end of a sentence.
const PHRASES: [(&str, &str); 48] = [
    ("a matter of", "name the matter"),
    ("affair", "name it"),
    ("affairs", "name them"),
    ("anew", "again"),
    ("are to be", "must be"),
    ("as far as", "a condition: if, where"),
    ("at present", "now, currently"),
    ("became of", "happened to"),
    ("becomes of", "happens to"),
    ("by turns", "alternately"),
    ("come again", "return, come back"),
    ("comes again", "returns, is added again"),
    ("comes to be", "becomes"),
    ("find out itself", "discover"),
    ("finds out itself", "discovers"),
    ("for ever", "forever, or: it deadlocks"),
    ("for want of", "for lack of, without"),
    ("found out", "discovered, measured"),
    ("goes on", "continues, adopts"),
    ("heard of", "knows, received"),
    ("hears of", "is notified of, learns of"),
    ("in force", "current, in use"),
    ("in its stead", "in its place"),
    ("is not told", "name what it does not get"),
    ("is to be", "must be"),
    ("is told", "who reports what"),
    ("not to be", "must not"),
    ("of its own .", "its own, separate"),
    ("of one's own", "your own"),
    ("of their own .", "their own, separate"),
    ("on one's own", "alone"),
    ("says so", "reports it, shows it"),
    ("second and cpu", "per second on each CPU"),
    ("so long that", "longer than"),
    ("somebody else", "another process, another user"),
    ("somebody else's", "another process's, another user's"),
    ("someone else's", "another process's, another user's"),
    ("tells of", "reports, shows"),
    ("the same goes for", "so does"),
    ("to be had", "available"),
    ("told of", "learns of, reported"),
    ("told to", "asked to, made to"),
    ("wanted nowhere", "nothing needs it"),
    ("was told", "received, what was set"),
    ("were told", "received, what was set"),
    ("what goes for", "as for"),
    ("whoever", "if you"),
    ("whosoever", "if you"),
];

/// What no sentence may begin with.
const BEGINNINGS: [(&str, &str); 5] = [
    ("who has", "if you have"),
    ("who does", "if you do"),
    ("who wants", "to"),
    ("who is", "if you are"),
    ("who needs", "if you need"),
];

#[test]
fn no_text_has_unwanted_phrases() {
    let (mut found, mut read) = (Vec::new(), [0; 3]);
    for text in texts::all() {
        read[text.kind as usize] += 1;
        let place = format!("{}:{}", text.path, text.line);
        let wrong = wrong(&text.words).into_iter();
        found.extend(wrong.map(|(phrase, instead)| format!("{place}: {phrase} ({instead})")));
    }
    let [pages, comments, messages] =
        [Kind::Page, Kind::Comment, Kind::Message].map(|kind| read[kind as usize]);
    assert!(pages > 500 && comments > 3000 && messages > 500, "{read:?}");
    none_of(&found, "phrases that are not wanted, and what to write");
}

fn wrong(text: &str) -> Vec<(&'static str, &'static str)> {
    // Words separated by one space; the end of a sentence is a word, too.
    let mut plain = String::from(" . ");
    for c in text.to_lowercase().chars() {
        match c {
            '.' | ':' | ';' | '?' | '!' => plain.push_str(" . "),
            _ if c.is_alphanumeric() || "'_-".contains(c) => plain.push(c),
            _ => plain.push(' '),
        }
    }
    let plain = format!(
        " {} ",
        plain.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    let inside = PHRASES
        .iter()
        .filter(|(phrase, _)| plain.contains(&format!(" {phrase} ")));
    let at_the_beginning = BEGINNINGS
        .iter()
        .filter(|(phrase, _)| begins(&plain, phrase));
    inside.chain(at_the_beginning).copied().collect()
}

/// Whether a sentence, other than a question, begins with the phrase.
fn begins(plain: &str, phrase: &str) -> bool {
    let mut sentences = plain.split(" . ");
    sentences.any(|sentence| format!("{sentence} ").starts_with(&format!("{phrase} ")))
}

#[test]
fn phrases_are_found_across_signs_and_lines() {
    let found = |text| wrong(text).first().map(|(phrase, _)| *phrase);
    assert_eq!(found("Start it anew, then."), Some("anew"));
    assert_eq!(found("the setting in\nforce"), Some("in force"));
    assert_eq!(
        found("It waits. Who has a lock waits, too."),
        Some("who has")
    );
    assert_eq!(found("A renewed lease is in forces that who has"), None);
}
