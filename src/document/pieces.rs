//! Cuts a document into pieces, which are parsed one by one: the tree that TOML's parser makes
//! takes 25 to 50 times the memory of the text.
//!
//! A piece begins with a line such as `[[vip]]`. Such a line is never part of something else: no
//! section's name is a value, so it is in no list, and none of our values is a string of several
//! lines. In a document where it is, the piece before it is incomplete and refused.

use super::sections::HEALTH;
use super::sections::is_section;

const BALANCER: &str = "balancer";

/// Longer pieces end with the next section.
const ENOUGH: usize = 1 << 16;

/// A part of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'t> {
    /// Where the piece begins in the document.
    pub(super) start: usize,
    pub(super) text: &'t str,
}

/// The pieces; together they are the document. The first has everything before the first section,
/// each other one has tables of one section.
pub(super) fn pieces(document: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut start = 0;
    // If this line ended the piece before, it was examined there.
    let mut section = None;
    std::iter::from_fn(move || {
        if start == document.len() {
            return None;
        }
        let mut at = start;
        let mut next = None;
        for line in document[start..].split_inclusive('\n') {
            if let Some(header) = header(line)
                && at != start
                && (section != Some(header) || header.is_single || at - start >= ENOUGH)
            {
                next = Some(header);
                break;
            }
            if at == start {
                section = header(line);
            }
            at += line.len();
        }
        let text = &document[start..at];
        let piece = Piece { start, text };
        start = at;
        section = next;
        Some(piece)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header<'t> {
    name: &'t str,
    is_single: bool,
}

/// The section that a line begins.
fn header(line: &str) -> Option<Header<'_>> {
    let line = line.trim_start_matches([' ', '\t']).strip_prefix('[')?;
    let (rest, is_single) = match line.strip_prefix('[') {
        Some(rest) => (rest, false),
        None => (line, true),
    };
    let (name, rest) = rest.split_once(']')?;
    let rest = match is_single {
        true => rest,
        false => rest.strip_prefix(']')?,
    };
    let ends = rest.trim().is_empty() || rest.trim_start().starts_with('#');
    let is_ours = [BALANCER, HEALTH].contains(&name) || is_section(name);
    (ends && is_ours).then_some(Header { name, is_single })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(document: &str) -> Vec<&str> {
        let pieces: Vec<_> = pieces(document).collect();
        for piece in &pieces {
            assert!(document[piece.start..].starts_with(piece.text));
            assert!(!piece.text.is_empty());
        }
        let texts: Vec<_> = pieces.iter().map(|piece| piece.text).collect();
        assert_eq!(texts.concat(), document);
        texts
    }

    #[test]
    fn a_piece_has_tables_of_one_section() {
        assert!(texts("").is_empty());
        let parts = [
            "# here\nvip = []\n",
            "[balancer]\nmax_vips = 1\n",
            "  [balancer] # once more\n",
            "[[vip]]\na = 1\n[[vip.reals]]\n[\"vip\"]\n[[vip]]\n",
            "[[server_id]]\r\nid = 1\r\n[[server_id]] x\n# [[vip]]\n",
            "[[vip]]\nb = 1\n",
            "[vip]\n",
        ];
        assert_eq!(texts(&parts.concat()), parts);
        let unended = ["a = 1\n", "[[vip]]"];
        assert_eq!(texts(&unended.concat()), unended);
    }

    #[test]
    fn long_pieces_end_with_the_next_table() {
        let table = "[[server_id]]\nid = 1\nreal = \"198.51.100.1\"\n\n";
        let document = table.repeat(5_000);
        let texts = texts(&document);
        assert_eq!(texts.len(), document.len().div_ceil(ENOUGH + table.len()));
        assert!(texts.iter().all(|text| text.len() < ENOUGH + table.len()));
    }
}
