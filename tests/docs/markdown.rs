//! A Markdown page, parsed: prose, code, links and headings, with their lines.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;

use pulldown_cmark::CodeBlockKind;
use pulldown_cmark::Event;
use pulldown_cmark::Options;
use pulldown_cmark::Parser;
use pulldown_cmark::Tag;
use pulldown_cmark::TagEnd;

use crate::files;

/// Stands in prose for code between backticks.
pub(crate) const CODE: char = '\u{fffc}';

#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Paragraphs, headings, list items and table cells, without code and link targets.
    pub(crate) prose: Vec<(usize, String)>,
    /// The texts between backticks.
    pub(crate) spans: Vec<(usize, String)>,
    /// Code blocks: the line of the first line of code, the language, and the code.
    pub(crate) blocks: Vec<(usize, String, String)>,
    /// Targets of links and images.
    pub(crate) links: Vec<(usize, String)>,
    /// The anchors of headings: `set-up` for `Set up`.
    pub(crate) anchors: BTreeSet<String>,
    /// The lines of headings, tables, code and HTML.
    pub(crate) unbroken: BTreeSet<usize>,
}

/// The pages by path: what people read without opening a source.
pub(crate) fn pages() -> &'static BTreeMap<String, Page> {
    static PAGES: LazyLock<BTreeMap<String, Page>> = LazyLock::new(|| {
        let mut pages = files::all();
        pages.retain(|file| file.ends_with(".md"));
        assert!(pages.len() > 10, "{pages:?}");
        let read = |path: String| (path.clone(), Page::of(&files::read(&path)));
        pages.into_iter().map(read).collect()
    });
    &PAGES
}

impl Page {
    pub(crate) fn of(text: &str) -> Self {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        let mut page = Self::default();
        let mut reader = Reader {
            begins: text.match_indices('\n').map(|(at, _)| at + 1).collect(),
            ..Reader::default()
        };
        for (event, place) in Parser::new_ext(text, options).into_offset_iter() {
            reader.read(event, place, &mut page);
        }
        reader.end_prose(&mut page);
        page
    }
}

#[derive(Default)]
struct Reader {
    /// The offsets of all lines but the first.
    begins: Vec<usize>,
    prose: Option<(usize, String)>,
    heading: Option<String>,
    block: Option<(usize, String, String)>,
    seen: BTreeMap<String, usize>,
}

impl Reader {
    fn read(&mut self, event: Event, place: Range<usize>, page: &mut Page) {
        let line = self.line(place.start);
        match event {
            Event::Start(tag) => self.start(tag, place, page),
            Event::End(tag) => self.end(tag, page),
            Event::Text(text) => match &mut self.block {
                Some((_, _, code)) => code.push_str(&text),
                None => self.say(line, &text),
            },
            Event::Code(code) => {
                page.spans.push((line, code.to_string()));
                if let Some(heading) = &mut self.heading {
                    heading.push_str(&code);
                }
                self.prose_at(line).push(CODE);
            }
            Event::SoftBreak | Event::HardBreak => self.prose_at(line).push(' '),
            Event::Html(_) => self.unbroken(place, page),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag, place: Range<usize>, page: &mut Page) {
        let line = self.line(place.start);
        match tag {
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                page.links.push((line, dest_url.to_string()));
                return;
            }
            Tag::Emphasis | Tag::Strong | Tag::Strikethrough => return,
            Tag::Heading { .. } => {
                self.heading = Some(String::new());
                self.unbroken(place, page);
            }
            Tag::CodeBlock(kind) => {
                let (begin, language) = match kind {
                    CodeBlockKind::Fenced(language) => (line + 1, language.to_string()),
                    CodeBlockKind::Indented => (line, String::new()),
                };
                self.block = Some((begin, language, String::new()));
                self.unbroken(place, page);
            }
            Tag::Table(_) | Tag::HtmlBlock => self.unbroken(place, page),
            _ => {}
        }
        self.end_prose(page);
    }

    fn end(&mut self, tag: TagEnd, page: &mut Page) {
        match tag {
            TagEnd::Link | TagEnd::Image => return,
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => return,
            TagEnd::Heading(_) => {
                let anchor = anchor(&self.heading.take().unwrap());
                let seen = self.seen.entry(anchor.clone()).or_default();
                page.anchors.insert(match *seen {
                    0 => anchor,
                    again => format!("{anchor}-{again}"),
                });
                *seen += 1;
            }
            TagEnd::CodeBlock => page.blocks.extend(self.block.take()),
            _ => {}
        }
        self.end_prose(page);
    }

    fn say(&mut self, line: usize, text: &str) {
        if let Some(heading) = &mut self.heading {
            heading.push_str(text);
        }
        self.prose_at(line).push_str(text);
    }

    fn prose_at(&mut self, line: usize) -> &mut String {
        &mut self.prose.get_or_insert_with(|| (line, String::new())).1
    }

    fn end_prose(&mut self, page: &mut Page) {
        page.prose.extend(self.prose.take());
    }

    fn unbroken(&self, place: Range<usize>, page: &mut Page) {
        let lines = self.line(place.start)..=self.line(place.end.saturating_sub(1));
        page.unbroken.extend(lines);
    }

    /// The line number, from 1.
    fn line(&self, at: usize) -> usize {
        1 + self.begins.partition_point(|begin| *begin <= at)
    }
}

/// The anchor of a heading, by GitHub's rule.
pub(crate) fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ => c.is_alphanumeric().then_some(c),
    });
    kept.collect()
}

#[test]
fn a_page_is_parsed() {
    let page = Page::of(
        "# A `b` c: d\n\nSome *prose*,\nwith `code` and [a link](x.md#y).\n\n## Same\n## Same\n\n\
         | a | b |\n| --- | --- |\n| c | `d` |\n\n```rust,no_run\nlet x;\n```\n- item\n  - inner\n",
    );
    assert_eq!(
        page.anchors,
        ["a-b-c-d", "same", "same-1"].map(String::from).into()
    );
    let prose: Vec<_> = page
        .prose
        .iter()
        .map(|(line, text)| (*line, &**text))
        .collect();
    assert_eq!(prose[0], (1, "A \u{fffc} c: d"));
    assert_eq!(prose[1], (3, "Some prose, with \u{fffc} and a link."));
    assert_eq!(prose[prose.len() - 2..], [(16, "item"), (17, "inner")]);
    assert_eq!(page.links, [(4, "x.md#y".to_owned())]);
    assert_eq!(page.spans.len(), 3);
    let block = (14, "rust,no_run".to_owned(), "let x;\n".to_owned());
    assert_eq!(page.blocks, [block]);
    assert_eq!(page.unbroken, [1, 6, 7, 9, 10, 11, 13, 14, 15].into());
}
