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
    match names.is_empty() {
        true => "-".to_owned(),
        false => names.join(", "),
    }
}

/// A table of metrics, whose fields are those of the type `owner`.
pub(crate) fn rows_of(owner: &str, metrics: &[Metric]) -> String {
    let mut text = format!(
        "| metric | type | unit | labels | field of `{owner}` | meaning |\n\
         | --- | --- | --- | --- | --- | --- |\n"
    );
    for metric in metrics {
        let (name, labels, fields) = (
            full_name(metric),
            code(&metric.labels),
            code(&metric.fields),
        );
        let Metric {
            kind, unit, help, ..
        } = metric;
        writeln!(
            text,
            "| `{name}` | {kind} | {unit} | {labels} | {fields} | {help} |"
        )
        .unwrap();
    }
    text
}
