//! Counters as metrics: name, kind, unit, help text and samples, for any collector.
//!
//! `table.rs` assigns counters to metrics; the macro here turns its rows into the snapshot's
//! struct, the sum over CPUs and the metrics.

use std::fmt;

use super::Count;
use crate::skel::katran::types;

/// A named number for a collector such as Prometheus; see
/// [`Counters::metrics`](super::Counters::metrics).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, without the program's prefix or a suffix for the kind.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: MetricKind,
    /// What is counted, such as `packets`.
    pub unit: &'static str,
    /// What it means, in one sentence.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
    /// The fields of [`Counters`](super::Counters) with its values, such as `icmp.echo_v4`.
    pub fields: Vec<String>,
    /// Its values: one if it has no labels, else one for each combination.
    pub samples: Vec<Sample>,
}

/// Whether the growth of a metric matters, or its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 at load.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

/// One value of a [`Metric`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// The values of the metric's labels, in the same order.
    pub labels: Vec<String>,
    /// The number.
    pub value: u64,
}

/// A metric of a group of counters of type `G`.
pub(super) struct Family<G: 'static> {
    pub(super) name: &'static str,
    pub(super) kind: MetricKind,
    pub(super) unit: &'static str,
    /// The label of its series, if it has several.
    pub(super) label: Option<&'static str>,
    /// `None`: its only series' documentation.
    pub(super) help: Option<&'static str>,
    pub(super) series: &'static [Series<G>],
}

/// One counter of a group.
pub(super) struct Series<G> {
    pub(super) label: Option<&'static str>,
    pub(super) field: &'static str,
    /// Its documentation.
    pub(super) doc: &'static str,
    pub(super) get: fn(&G) -> u64,
}

/// The metrics of a group that the snapshot has once, in the field `place`.
pub(super) fn of_one<G>(place: &str, group: &G, families: &[Family<G>]) -> Vec<Metric> {
    let metric = |family| of_family(place, &[], family, [(Vec::new(), group)]);
    families.iter().map(metric).collect()
}

/// The metrics of a group that the snapshot has several times, with the label `of`.
pub(super) fn of_many<'a, G: 'a>(
    place: &str,
    of: &'static str,
    all: impl Iterator<Item = (String, &'a G)> + Clone,
    families: &[Family<G>],
) -> Vec<Metric> {
    let all = all.map(|(name, group)| (vec![name], group));
    of_each(place, &[of], all, families)
}

/// The same with several labels.
pub(super) fn of_each<'a, G: 'a>(
    place: &str,
    of: &[&'static str],
    all: impl Iterator<Item = (Vec<String>, &'a G)> + Clone,
    families: &[Family<G>],
) -> Vec<Metric> {
    let metric = |family| of_family(place, of, family, all.clone());
    families.iter().map(metric).collect()
}

fn of_family<'a, G: 'a>(
    place: &str,
    of: &[&'static str],
    family: &Family<G>,
    all: impl IntoIterator<Item = (Vec<String>, &'a G)>,
) -> Metric {
    let fields = family.series.iter();
    let samples = all.into_iter().flat_map(|(name, group)| {
        family.series.iter().map(move |series| Sample {
            labels: name
                .clone()
                .into_iter()
                .chain(series.label.map(str::to_owned))
                .collect(),
            value: (series.get)(group),
        })
    });
    Metric {
        name: family.name,
        kind: family.kind,
        unit: family.unit,
        help: family
            .help
            .unwrap_or_else(|| family.series[0].doc.trim_start()),
        labels: of.iter().copied().chain(family.label).collect(),
        fields: fields
            .map(|series| format!("{place}.{}", series.field))
            .collect(),
        samples: samples.collect(),
    }
}

/// A metric with one label, given value by value.
pub(super) fn by_label<L: ToString>(
    kind: MetricKind,
    (name, unit, label): (&'static str, &'static str, &'static str),
    help: &'static str,
    fields: &[&str],
    samples: impl Iterator<Item = (L, u64)>,
) -> Metric {
    Metric {
        name,
        kind,
        unit,
        help,
        labels: vec![label],
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        samples: samples
            .map(|(label, value)| Sample {
                labels: vec![label.to_string()],
                value,
            })
            .collect(),
    }
}

/// Sums over all CPUs.
pub(super) fn sum(of_cpus: impl Iterator<Item = u64>) -> u64 {
    of_cpus.sum()
}

/// Any CPU's value that is not 0.
pub(super) fn any(mut of_cpus: impl Iterator<Item = u64>) -> u64 {
    of_cpus.find(|value| *value != 0).unwrap_or(0)
}

/// Packets and bytes of all CPUs.
pub(super) fn count<'a>(of_cpus: impl Iterator<Item = &'a types::count>) -> Count {
    let mut sum = Count::default();
    for count in of_cpus {
        sum.add(count);
    }
    sum
}

/// Makes the groups of `table.rs`: for each the snapshot's struct, `sum` over the records of all
/// CPUs, and its metrics.
macro_rules! counters {
    ($(
        $(#[$about:meta])*
        $group:ident from $record:ty {
            $(
                $(#[doc = $count_doc:literal])+
                count $count:ident {
                    packets: $packets_metric:ident, $packets_help:literal;
                    bytes: $bytes_metric:ident, $bytes_help:literal;
                }
            )?
            $(
                $kind:ident $metric:ident, $unit:literal $(by $label:ident)? $(: $help:literal)? {
                    $(
                        $(#[doc = $doc:literal])+
                        $field:ident = $how:ident($($path:tt)+) $(as $value:literal)?;
                    )+
                }
            )+
        }
    )+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct $group {
            $(
                $(#[doc = $count_doc])+
                pub $count: Count,
            )?
            $($(
                $(#[doc = $doc])+
                pub $field: u64,
            )+)+
        }

        impl $group {
            /// The sum over all CPUs.
            pub(crate) fn sum(records: &[$record]) -> Self {
                Self {
                    $($count: $crate::counters::metric::count(
                        records.iter().map(|record| &record.$count),
                    ),)?
                    $($($field: $crate::counters::metric::$how(
                        records.iter().map(|record| record.$($path)+),
                    ),)+)+
                }
            }

            pub(super) const FAMILIES: &'static [Family<Self>] = &[
                $(
                    Family {
                        name: stringify!($packets_metric),
                        kind: MetricKind::Counter,
                        unit: "packets",
                        label: None,
                        help: Some($packets_help),
                        series: &[Series {
                            label: None,
                            field: concat!(stringify!($count), ".packets"),
                            doc: "",
                            get: |group| group.$count.packets,
                        }],
                    },
                    Family {
                        name: stringify!($bytes_metric),
                        kind: MetricKind::Counter,
                        unit: "bytes",
                        label: None,
                        help: Some($bytes_help),
                        series: &[Series {
                            label: None,
                            field: concat!(stringify!($count), ".bytes"),
                            doc: "",
                            get: |group| group.$count.bytes,
                        }],
                    },
                )?
                $(Family {
                    name: stringify!($metric),
                    kind: MetricKind::$kind,
                    unit: $unit,
                    label: counters!(@option $(stringify!($label))?),
                    help: counters!(@option $($help)?),
                    series: &[$(Series {
                        label: counters!(@option $($value)?),
                        field: stringify!($field),
                        doc: concat!($($doc),+),
                        get: |group| group.$field,
                    },)+],
                },)+
            ];
        }
    )+};
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
}
pub(super) use counters;
