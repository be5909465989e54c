//! Parts of `docs/` pages that come from tables in the sources: `make docs` writes them, and the
//! same tests fail when a page is stale.

use std::env;
use std::fs;
use std::path::Path;

/// Compares the parts of a page with what they should be. A part lies between a line
/// `<!-- generated: NAME -->` and the next line `<!-- end -->`. With `UPDATE_DOCS` in the
/// environment the parts are written instead.
pub(crate) fn check(page: &str, parts: &[(&str, String)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(&path).unwrap();
    let mut current = text.clone();
    for (name, part) in parts {
        let head = format!("<!-- generated: {name} -->\n");
        let (before, rest) = current
            .split_once(&head)
            .unwrap_or_else(|| panic!("{page} has no part {name}"));
        let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
        current = format!("{before}{head}{part}<!-- end -->\n{after}");
    }
    assert_eq!(
        current.matches("<!-- generated: ").count(),
        parts.len(),
        "{page} has parts that come from nowhere"
    );
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, current).unwrap();
        return;
    }
    assert!(text == current, "{page} is stale: run `make docs`");
}
