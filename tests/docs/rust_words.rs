//! Checks the words of all messages: operators read them in logs and in the examples' output, and
//! know neither Rust nor the library's calls. (Embedders learn from a failing call's documentation
//! what to call.)

use std::collections::BTreeSet;
use std::sync::LazyLock;

use proc_macro2::Delimiter;
use proc_macro2::TokenStream;
use proc_macro2::TokenTree;

use crate::files;
use crate::none_of;

/// The library's calls of several words, except those that documents have as keys, too.
static CALLS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut calls = BTreeSet::new();
    for path in files::below(&["src"], &[".rs"]) {
        for line in files::read(&path).lines() {
            let line = line.trim().replacen("pub const fn ", "pub fn ", 1);
            let name = line.strip_prefix("pub fn ").and_then(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                Some(&rest[..end])
            });
            calls.extend(name.filter(|name| name.contains('_')).map(str::to_owned));
        }
    }
    for page in ["docs/configuration.md", "docs/health.md"] {
        let page = files::read(page);
        let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.for_each(|word| {
            calls.remove(word);
        });
    }
    assert!(calls.len() > 50, "{calls:?}");
    calls
});

/// Texts that are not messages: rustdoc, and test data.
const OTHERS: [&str; 5] = [
    "src/config/settings.rs",
    "src/config/table.rs",
    "src/generated.rs",
    "src/mutate.rs",
    "src/structure.rs",
];
/// Words of systemd and the kernel that look like Rust's.
const NAMES: [&str; 12] = [
    "AmbientCapabilities",
    "LimitNOFILE",
    "TasksMax",
    "CAP_",
    "CONFIG_",
    "PREEMPT_RT",
    "RLIMIT_",
    "SO_",
    "XDP_",
    "BPF_",
    "AF_",
    "IFF_",
];

#[test]
fn no_message_has_rust_words() {
    let mut found = Vec::new();
    let mut messages = 0;
    for name in files::below(&["src", "examples/katran", "examples/common"], &[".rs"]) {
        if OTHERS.contains(&name.as_str())
            || name.contains("test")
            || name.ends_with("_troubles.rs")
            || name.ends_with("reference.rs")
        {
            continue;
        }
        let mut texts = Vec::new();
        collect(files::read(&name).parse().unwrap(), &mut texts);
        messages += texts.len();
        let wrong = texts.iter().filter_map(|text| Some((wrong(text)?, text)));
        found.extend(wrong.map(|(word, text)| format!("{name}: {word} in {text:?}")));
    }
    assert!(messages > 1000, "{messages}");
    none_of(&found, "Rust's words in messages");
}

/// Checks the rules alone, without the sources.
#[test]
fn words_of_rust_are_known() {
    for text in [
        "pin it (Builder::pin)",
        "call next_hops() for them",
        "call add_vip first",
        "see `add_real(vip, real)`",
        "by attach(eth0)",
        "see `set_mac_mut`",
        "give it the flag LOCAL_REAL",
        "start a RootProgram",
        "an Option of u16",
        "expected struct keys",
        "{place} is {state:?}",
    ] {
        assert!(wrong(text).is_some(), "{text}");
    }
    for text in [
        "{SOME_TEXT} {of::a} in [balancer]",
        "run as root, or with CAP_NET_ADMIN",
        "from ::1 to 2001:db8::1, by prlimit(1)",
        "raise `LimitNOFILE=` of the unit",
        "IPv6, QUIC and GUE; eth0-TxRx-0",
        "{program}({id}), set max_vips (and flow_table_size)",
    ] {
        assert_eq!(wrong(text), None, "{text}");
    }
}

/// Texts of several words, except in tests and attributes; of attributes only those of errors have
/// messages.
fn collect(tokens: TokenStream, texts: &mut Vec<String>) {
    let mut tokens = tokens.into_iter().peekable();
    let mut is_test = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(sign) if sign.as_char() == '#' => {
                // An attribute of the whole file.
                let _ = tokens.next_if(|next| next.to_string() == "!");
                let Some(TokenTree::Group(attribute)) = tokens.next() else {
                    continue;
                };
                let attribute = attribute.stream();
                let text = attribute.to_string();
                is_test |=
                    text.starts_with("test") || text.starts_with("cfg") && text.contains("test");
                if text.starts_with("error") {
                    collect(attribute, texts);
                }
            }
            TokenTree::Group(group) => match is_test && group.delimiter() == Delimiter::Brace {
                true => is_test = false,
                false => collect(group.stream(), texts),
            },
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let text = text.trim_start_matches(['b', 'c', 'r', '#']);
                if text.starts_with('"') && text.contains(' ') && !is_test {
                    texts.push(text.trim_matches(['"', '#']).to_owned());
                }
            }
            TokenTree::Punct(sign) if sign.as_char() == ';' => is_test = false,
            _ => {}
        }
    }
}

/// The first Rust word in a text, or placeholder of a value that is printed in Rust's form.
fn wrong(text: &str) -> Option<String> {
    // Values in the form for debugging.
    let placeholders = text.split('{').filter_map(|rest| rest.split_once('}'));
    let mut placeholders = placeholders.map(|(inside, _)| inside);
    if let Some(inside) = placeholders.find(|inside| inside.ends_with('?')) {
        return Some(format!("{{{inside}}}"));
    }
    // Skip other placeholders.
    let mut plain = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => {
                depth += 1;
                plain.push('x');
            }
            '}' => depth -= 1,
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '(' | ')' | '-');
    let mut words = plain.split(|c| !is_part(c)).filter(|word| !word.is_empty());
    words.find(|word| is_of_rust(word)).map(str::to_owned)
}

fn is_of_rust(word: &str) -> bool {
    let is_name = NAMES.iter().any(|name| word.contains(name));
    let begins = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_path = word.split_once("::").is_some_and(|(before, after)| {
        // Addresses contain `::`, too.
        let is_address = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit() || c == ':');
        begins(after) && !before.is_empty() && !(is_address(before) && is_address(after))
    });
    let bare = word.trim_matches(|c| matches!(c, '(' | ')' | ':' | '-'));
    let letters: Vec<char> = bare.chars().collect();
    let is_camel = letters.first().is_some_and(char::is_ascii_uppercase)
        && letters.iter().all(char::is_ascii_alphanumeric)
        && letters
            .windows(2)
            .filter(|two| two[0].is_ascii_lowercase() && two[1].is_ascii_uppercase())
            .count()
            > 0
        && letters.iter().filter(|c| c.is_ascii_lowercase()).count() > 3;
    let is_constant = bare.len() > 1
        && bare.contains('_')
        && bare.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let is_word = matches!(
        bare,
        "struct" | "enum" | "Builder" | "Option" | "u8" | "u16" | "u32" | "u64" | "usize"
    );
    // Sections of manual pages have numbers.
    let is_call = CALLS.contains(bare)
        || word.split_once('(').is_some_and(|(before, after)| {
            let is_name = before.len() > 1 && before.chars().any(|c| c != 'x');
            is_name && !after.starts_with(|c: char| c.is_ascii_digit())
        });
    !is_name && (is_path || is_camel || is_constant || is_word || is_call || bare.ends_with("_mut"))
}
