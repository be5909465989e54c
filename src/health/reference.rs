//! `docs/health.md` is what the tables of keys say.

use super::keys::SECTIONS;
use crate::document::tables;
use crate::generated;

#[test]
fn documentation_is_current() {
    generated::check("docs/health.md", &[("keys", tables(SECTIONS))]);
}
