//! Turns series into text, in the two formats that Prometheus reads.

use std::fmt;

use katran::stats::Metric;
use katran::stats::MetricKind;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;

/// The two text formats of Prometheus; the values are the same.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, which Prometheus requests.
    OpenMetrics,
    /// Version 0.0.4, for all others.
    Plain,
}

impl Format {
    /// The better format that a request accepts.
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

/// The names and values of a series' labels.
type Labels = Vec<(&'static str, String)>;

/// The page of one scrape. Names lack the prefix `katran_` and the counters' `_total`: the encoder
/// adds both.
pub(crate) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(crate) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A counter or gauge of the library.
    pub(crate) fn metric(&mut self, metric: &Metric) -> fmt::Result {
        let kind = match metric.kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            // A kind that this program does not know yet.
            _ => MetricType::Unknown,
        };
        let series = metric.samples.iter().map(|sample| {
            let values = sample.labels.iter().cloned();
            let labels = metric.labels.iter().copied().zip(values);
            (labels.collect(), sample.value)
        });
        self.family(kind, metric.name, metric.help, series)
    }

    pub(crate) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Gauge, name, help, series)
    }

    /// A gauge with fractional values: seconds, and times in seconds since 1970.
    pub(crate) fn seconds(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            match labels.is_empty() {
                true => metric.encode_gauge(&value)?,
                false => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    pub(crate) fn counter(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Counter, name, help, series)
    }

    /// One metric and its series, all with the same labels.
    fn family(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let counter = matches!(kind, MetricType::Counter);
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            match (counter, labels.is_empty()) {
                (true, true) => metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                (true, false) => metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                (false, true) => metric.encode_gauge(&value)?,
                (false, false) => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// Converts OpenMetrics to version 0.0.4 of the text format, in which the descriptions of counters
/// have `_total` too, and there is no end mark.
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
