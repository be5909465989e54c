//! Names between backticks exist: as items of the crate, settings, metrics, files or strings of the
//! sources, or as others' names, which `names.txt` lists.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use proc_macro2::Delimiter;
use proc_macro2::Spacing;
use proc_macro2::TokenStream;
use proc_macro2::TokenTree;

use crate::files;
use crate::lexer;
use crate::markdown;
use crate::none_of;
use crate::texts;
use crate::weeded;

const LIST: &str = "tests/docs/names.txt";
/// The changelog also has former names, and other projects'.
const NOT_CHECKED: [&str; 1] = ["CHANGELOG.md"];

/// The names in the sources.
struct Known {
    /// Words of code and literals, without comments.
    words: BTreeSet<String>,
    /// Members of types and traits, by the type's name.
    members: BTreeMap<String, BTreeSet<String>>,
    files: Vec<String>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(Known::new);

impl Known {
    fn new() -> Self {
        let mut known = Self {
            words: BTreeSet::new(),
            members: BTreeMap::new(),
            files: files::all(),
        };
        let directories = ["src", "examples", "tests", "benches"];
        let mut sources = files::below(&directories, &[".rs", ".c", ".h"]);
        sources.push("build.rs".to_owned());
        sources.retain(|path| !path.starts_with("tests/docs/"));
        for path in sources {
            let text = files::read(&path);
            known.learn(&lexer::code(&text));
            if path.ends_with(".rs") {
                members(text.parse().unwrap(), &mut known.members);
            }
        }
        // The table of settings generates these.
        let settings = files::read("src/config/settings.rs");
        let setters = settings
            .lines()
            .filter_map(|line| line.trim().strip_prefix("set: "));
        let setters = setters.filter_map(|line| Some(line.split_once('(')?.0.to_owned()));
        known
            .members
            .entry("Builder".to_owned())
            .or_default()
            .extend(setters);
        let others = ["scripts/setup", "Makefile", "Cargo.toml"].map(str::to_owned);
        for path in texts::with_hashes().into_iter().chain(others) {
            known.learn(&files::read(&path));
        }
        known
    }

    fn learn(&mut self, text: &str) {
        let words = text.split(|c: char| !is_part(c));
        self.words
            .extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
    }

    fn has(&self, word: &str) -> bool {
        // Names in strings, such as `flow-table`.
        let parts = || {
            word.split('-')
                .all(|part| part.is_empty() || self.words.contains(part))
        };
        self.words.contains(word) || word.contains('-') && parts() || self.has_metric(word)
    }

    /// The table lists metrics without their common prefix and suffix.
    fn has_metric(&self, word: &str) -> bool {
        let Some(name) = word.strip_prefix("katran_") else {
            return false;
        };
        self.words
            .contains(name.strip_suffix("_total").unwrap_or(name))
    }

    /// The names between a pair of backticks that the sources lack.
    fn missing(&self, span: &str) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(file) = file(span) {
            let end = format!("/{file}");
            if !self
                .files
                .iter()
                .any(|path| path == file || path.ends_with(&end))
            {
                missing.push(file.to_owned());
            }
            return missing;
        }
        // Tests are selected by parts of their names.
        let is_filter = |name: &str| {
            let begins = |word: &String| word.starts_with(name);
            span.starts_with("cargo test") && self.words.iter().any(begins)
        };
        for token in span.split(|c: char| !(is_part(c) || "-:(.".contains(c))) {
            let path = token
                .split('(')
                .next()
                .unwrap_or_default()
                .trim_matches([':', '.', '-']);
            let is_call = token.contains('(');
            let parts: Vec<&str> = path.split("::").collect();
            for two in parts.windows(2) {
                // Modules also have what they re-export.
                let is_type = two[0].starts_with(|c: char| c.is_ascii_uppercase());
                let members = self.members.get(two[0]).filter(|_| is_type);
                if members.is_some_and(|members| !members.contains(two[1])) {
                    missing.push(two.join("::"));
                }
            }
            let is_path = parts.len() > 1;
            for name in parts.iter().flat_map(|part| part.split(['.', ':'])) {
                let is_name = is_path || is_call || token.len() == span.len();
                if is_checked(name, is_name) && !self.has(name) && !is_filter(name) {
                    missing.push(name.to_owned());
                }
            }
        }
        missing
    }
}

/// Part of a Rust or C name, not a number.
fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether to check a name: one of several words, or a single word alone between backticks.
fn is_checked(name: &str, is_alone: bool) -> bool {
    let Some(first) = name.chars().next() else {
        return false;
    };
    let humps = name.chars().filter(char::is_ascii_uppercase).count();
    let is_camel = first.is_ascii_uppercase() && humps > 1 && humps < name.len();
    let is_compound = name.trim_matches('_').contains('_') || is_camel;
    // A name that ends in `_` has a variable part.
    first.is_ascii_alphabetic() && (is_compound || is_alone) && !name.ends_with('_')
}

/// The source file of this project with this name, if it is one.
fn file(span: &str) -> Option<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let ends = [".rs", ".h", ".c", ".md", ".yml", ".json", ".svg", ".pcap"];
    let is_file = span.chars().all(is_part) && ends.iter().any(|end| span.ends_with(end));
    (is_file && !span.starts_with(['/', '.'])).then_some(span)
}

/// Collects the members of types, traits and their implementations.
fn members(tokens: TokenStream, found: &mut BTreeMap<String, BTreeSet<String>>) {
    // The type whose braces follow.
    let mut owner: Option<String> = None;
    let (mut is_header, mut is_path) = (false, false);
    let mut depth = 0_i32;
    for token in tokens {
        match token {
            TokenTree::Ident(word) => {
                let word = word.to_string();
                match word.as_str() {
                    "struct" | "enum" | "trait" | "impl" | "mod" | "union" => {
                        (owner, is_header, depth) = (None, true, 0);
                    }
                    "where" => is_header = false,
                    // The last one counts: after `for`, and at the end of its path.
                    _ if is_header && depth == 0 => owner = Some(word),
                    _ => {}
                }
            }
            TokenTree::Punct(sign) => {
                match sign.as_char() {
                    '<' => depth += 1,
                    '>' => depth -= 1,
                    ';' => (owner, is_header) = (None, false),
                    // Bounds follow, unless this is within a path.
                    ':' if depth == 0 && !is_path && sign.spacing() == Spacing::Alone => {
                        is_header = false;
                    }
                    _ => {}
                }
                is_path = sign.as_char() == ':' && sign.spacing() == Spacing::Joint;
            }
            TokenTree::Group(group) => {
                let stream = group.stream();
                if let (Some(owner), Delimiter::Brace) = (&owner, group.delimiter()) {
                    let members = found.entry(owner.clone()).or_default();
                    members.extend(declared(stream.clone()));
                    (is_header, depth) = (false, 0);
                }
                self::members(stream, found);
                if group.delimiter() == Delimiter::Brace {
                    owner = None;
                }
            }
            TokenTree::Literal(_) => {}
        }
    }
}

/// Names directly within braces: functions, constants, types, fields and variants.
fn declared(tokens: TokenStream) -> Vec<String> {
    let mut names = Vec::new();
    let mut before = String::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if let TokenTree::Ident(word) = &token {
            let follows = tokens.peek().map(ToString::to_string).unwrap_or_default();
            let is_item =
                ["fn", "const", "type", "static", "struct", "enum", "mod"].contains(&&*before);
            let is_field = follows == ":";
            let is_variant =
                ["", ","].contains(&&*before) || before.starts_with('[') || before.starts_with('}');
            if is_item || is_field || is_variant {
                names.push(word.to_string());
            }
        }
        before = token.to_string();
    }
    names
}

#[test]
fn names_between_backticks_exist() {
    let known = &*KNOWN;
    let list = files::read(LIST);
    let listed: BTreeSet<&str> = list.lines().collect();
    assert!(
        list.lines().eq(listed.iter().copied()),
        "{LIST} is not sorted: LC_ALL=C sort -u"
    );
    let (mut found, mut used, mut seen) = (Vec::new(), BTreeSet::new(), 0);
    for (path, page) in markdown::pages() {
        if NOT_CHECKED.contains(&path.as_str()) {
            continue;
        }
        for (line, span) in &page.spans {
            seen += 1;
            for name in known.missing(span) {
                match listed.get(&*name) {
                    Some(name) => _ = used.insert(*name),
                    None => found.push(format!("{path}:{line}: {name} in {span:?}")),
                }
            }
        }
    }
    assert!(seen > 1000, "{seen}");
    none_of(&found, &format!("names that no source has, nor {LIST}"));
    weeded(&listed.difference(&used).copied().collect(), LIST);
}

#[test]
fn metrics_exist_wherever_they_are_named() {
    let known = &*KNOWN;
    let mut paths = files::below(&["examples", "docs"], &[".md", ".yml", ".json"]);
    paths.push("README.md".to_owned());
    let (mut found, mut seen) = (Vec::new(), 0);
    for path in paths {
        for (number, line) in (1..).zip(files::read(&path).lines()) {
            for word in line.split(|c| !is_part(c)) {
                let is_metric = word.starts_with("katran_") && !word.ends_with('_');
                seen += usize::from(is_metric);
                if is_metric && !known.has(word) {
                    found.push(format!("{path}:{number}: {word}"));
                }
            }
        }
    }
    assert!(seen > 200, "{seen}");
    none_of(&found, "metrics that there are not");
}

#[test]
fn missing_names_are_found() {
    let known = &*KNOWN;
    for (span, name) in [
        ("Katran::add_vips", "Katran::add_vips"),
        ("FlowTracking::Some", "FlowTracking::Some"),
        ("flow_table_sizes", "flow_table_sizes"),
        ("flow_table_sizes = 10", "flow_table_sizes"),
        ("FlowTableSort", "FlowTableSort"),
        ("add_vips(vip)", "add_vips"),
        ("reals().enumerated(vip)", "enumerated"),
        ("src/bpf/no_such.h", "src/bpf/no_such.h"),
        ("katran_vip_packages_total", "katran_vip_packages_total"),
    ] {
        assert!(
            known.missing(span).contains(&name.to_owned()),
            "{span}: {:?}",
            known.missing(span)
        );
    }
    for span in [
        "Katran::add_vip",
        "katran::Error",
        "Error::NotFound",
        "Protocol::Tcp",
        "Builder::flow_table_size(1_000_000)",
        "bpf/config.h",
        "katran_vip_packets_total",
    ] {
        assert_eq!(known.missing(span), [""; 0], "{span}");
    }
}
