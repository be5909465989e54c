//! Comments and string literals of Rust and C, by one small lexer: the two languages agree in what
//! matters here.

/// A part of a source with words for people.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// Successive comments, without their markers.
    Comment(String),
    Literal(String),
}

/// A source's comments and literals, with the lines where they begin.
pub(crate) fn pieces(source: &str) -> Vec<(usize, Piece)> {
    let mut lexer = Lexer::new(source);
    while lexer.step() {}
    lexer.pieces
}

/// A source without its comments.
pub(crate) fn code(source: &str) -> String {
    let mut lexer = Lexer::new(source);
    let mut code = String::new();
    loop {
        let before = lexer.rest;
        let is_comment = before.starts_with("//") || before.starts_with("/*");
        let more = lexer.step();
        if !is_comment {
            code.push_str(&before[..before.len() - lexer.rest.len()]);
        }
        if !more {
            return code;
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    pieces: Vec<(usize, Piece)>,
    /// The line of the last comment; a comment on the next line continues it.
    comment_ends: usize,
}

impl<'a> Lexer<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            rest: source,
            line: 1,
            pieces: Vec::new(),
            comment_ends: 0,
        }
    }

    /// Whether there is more.
    fn step(&mut self) -> bool {
        let rest = self.rest;
        if let Some(after) = rest.strip_prefix("//") {
            let length = after.find('\n').unwrap_or(after.len());
            let text = after[..length].trim_start_matches(['/', '!']);
            self.comment(text);
            self.skip(2 + length);
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").map_or(rest.len(), |end| end + 2);
            let inner = rest[2..length].trim_end_matches("*/");
            let lines = inner
                .lines()
                .map(|line| line.trim_start().trim_start_matches(['*', '!']));
            let lines: Vec<&str> = lines.collect();
            self.comment(&lines.join("\n"));
            self.skip(length);
            self.comment_ends = self.line;
        } else if let Some(length) = raw(rest).or_else(|| quoted(rest)) {
            let text = rest[..length].trim_start_matches(['b', 'c', 'r', '#']);
            let text = text.trim_end_matches('#');
            let text = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            let text = text.unwrap_or_default();
            self.pieces
                .push((self.line, Piece::Literal(continued(text))));
            self.skip(length);
        } else if let Some(length) = character(rest) {
            self.skip(length);
        } else {
            // Names as a whole: an `r` within one begins no raw string.
            let name = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            let one = rest.chars().next().map_or(0, char::len_utf8);
            self.skip(name.unwrap_or(rest.len()).max(one));
        }
        !self.rest.is_empty()
    }

    fn comment(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some((_, Piece::Comment(before))) if self.comment_ends + 1 == self.line => {
                before.push('\n');
                before.push_str(text);
            }
            _ => self
                .pieces
                .push((self.line, Piece::Comment(text.to_owned()))),
        }
        self.comment_ends = self.line;
    }

    fn skip(&mut self, length: usize) {
        let (skipped, rest) = self.rest.split_at(length);
        self.line += skipped.matches('\n').count();
        self.rest = rest;
    }
}

/// The length of a raw string that begins here.
fn raw(rest: &str) -> Option<usize> {
    let after = rest
        .strip_prefix(['b', 'c'])
        .unwrap_or(rest)
        .strip_prefix('r')?;
    let signs = after.find(|c: char| c != '#')?;
    let begin = rest.len() - after.len() + signs;
    let inner = after[signs..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(signs));
    Some(begin + 1 + inner.find(&end)? + end.len())
}

fn quoted(rest: &str) -> Option<usize> {
    let after = rest
        .strip_prefix(['b', 'c'])
        .unwrap_or(rest)
        .strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in after.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(rest.len() - after.len() + at + 1),
            _ => {}
        }
    }
    None
}

/// A character literal, which may be a quote; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('\'')?;
    let length = match after.strip_prefix('\\') {
        Some(escape) => 1 + escape.chars().next()?.len_utf8(),
        None => after.chars().next()?.len_utf8(),
    };
    after[length..].starts_with('\'').then_some(length + 2)
}

/// A string without the line breaks that Rust leaves out, and with its escapes resolved.
fn continued(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        whole.push_str(part.trim_start());
    }
    whole.replace("\\n", "\n").replace("\\\"", "\"")
}

#[test]
fn comments_and_texts_are_found() {
    let source = "//! One\n//! two\n\n/* three\n * four */ int x = 'a'; // five\n\
        let c = '\"'; call::<'_>(\"six \\\"seven\\\" \\\n    eight\", r#\"nine \"ten\"\"#);\n/// eleven\n";
    let comment = |text: &str| Piece::Comment(text.to_owned());
    let literal = |text: &str| Piece::Literal(text.to_owned());
    let found = pieces(source);
    assert_eq!(
        found,
        [
            (1, comment(" One\n two")),
            (4, comment("three\n four ")),
            (5, comment(" five")),
            (6, literal("six \"seven\" eight")),
            (7, literal("nine \"ten\"")),
            (8, comment(" eleven")),
        ]
    );
}
