//! How series become text: metrics with one label or none, which is what nearly all of them are, and
//! the two formats that Prometheus reads.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;

/// The two text formats of Prometheus; the values are the same.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// Version 0.0.4, for everybody else.
    Plain,
}

impl Format {
    /// The better one of those that a request accepts.
    pub(crate) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The series of a metric that is told by address family.
pub(crate) fn families(v4: u64, v6: u64) -> [(&'static str, u64); 2] {
    [("ipv4", v4), ("ipv6", v6)]
}

/// The page that a scrape fills. Names go without the prefix `katran_` and without the `_total` of
/// counters: the encoder adds both.
pub(crate) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(crate) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(MetricType::Counter, name, help, [([], value)])
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(MetricType::Gauge, name, help, [([], value)])
    }

    pub(crate) fn counters<L: ToString>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let series = series.into_iter();
        let series = series.map(|(value, count)| ([(label, value.to_string())], count));
        self.family(MetricType::Counter, name, help, series)
    }

    pub(crate) fn gauges<L: ToString>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let series = series.into_iter();
        let series = series.map(|(value, count)| ([(label, value.to_string())], count));
        self.family(MetricType::Gauge, name, help, series)
    }

    /// One metric, and its series with the same labels each.
    pub(crate) fn family<const N: usize>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        let counter = matches!(kind, MetricType::Counter);
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            match (counter, N) {
                (true, 0) => metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                (true, _) => metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                (false, 0) => metric.encode_gauge(&value)?,
                (false, _) => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// OpenMetrics as version 0.0.4 of the text format: there the name of a counter has its `_total` in
/// the lines that describe it, too, and no end is marked.
pub(crate) fn plain(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let suffix = if typed.ends_with(" counter") {
                "_total"
            } else {
                ""
            };
            if let (Some((name, help)), Some((_, kind))) = (help, typed.split_once(' ')) {
                page += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
        } else if line != "# EOF" {
            page += line;
            page.push('\n');
        }
    }
    page
}
