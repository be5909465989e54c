//! Metrics as a Markdown table.

use std::fmt::Write as _;

use super::metric::Metric;
use super::metric::MetricKind;

/// The name in Prometheus.
pub(super) fn full_name(metric: &Metric) -> String {
    let suffix = match metric.kind {
        MetricKind::Counter => "_total",
        MetricKind::Gauge => "",
    };
    format!("katran_{}{suffix}", metric.name)
}

pub(super) fn code(names: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// A table of metrics. Their names end in the unit and show the kind.
pub(crate) fn rows_of(metrics: &[Metric]) -> String {
    let mut text = "| metric | labels | meaning |\n| --- | --- | --- |\n".to_owned();
    for metric in metrics {
        let (name, labels) = (full_name(metric), code(&metric.labels));
        writeln!(text, "| `{name}` | {labels} | {} |", metric.help).unwrap();
    }
    text
}
