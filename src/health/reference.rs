//! Writes the tables of `docs/health.md` from those of keys and metrics.

use super::keys::SECTIONS;
use super::report::Report;
use crate::counters::rows_of;
use crate::document::tables;
use crate::generated;

#[test]
fn documentation_is_current() {
    let metrics = Report::default().metrics(0);
    let parts = [("keys", tables(SECTIONS)), ("metrics", rows_of(&metrics))];
    generated::check("docs/health.md", &parts);
}
