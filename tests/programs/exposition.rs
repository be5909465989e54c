//! Prometheus's text formats, read strictly: whatever a lenient reader would guess is a panic.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Version 0.0.4: counters are described by their full name.
    Plain,
    /// OpenMetrics 1.0: described without `_total`, with an end mark.
    OpenMetrics,
}

type Labels = BTreeMap<String, String>;

/// One metric.
#[derive(Clone, Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: BTreeMap<Labels, f64>,
}

/// All metrics, by the name of their samples.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) families: BTreeMap<String, Family>,
}

impl Page {
    pub(crate) fn parse(text: &str, dialect: Dialect) -> Self {
        let text = match dialect {
            Dialect::Plain => text.strip_suffix('\n'),
            Dialect::OpenMetrics => text.strip_suffix("\n# EOF\n"),
        };
        let text = text.expect("the end is missing");
        let mut families = BTreeMap::new();
        // The metric of the samples that follow.
        let mut current: Option<String> = None;
        let mut help: Option<(&str, &str)> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                assert_eq!(help, None, "help twice: {line}");
                help = rest.split_once(' ');
                let (_, text) = help.expect(line);
                assert!(text.ends_with('.') && !text.contains(['\\', '"']), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                let (described, text) = help.take().expect("type without help");
                assert_eq!(described, name, "help of another metric");
                let counter = match kind {
                    "counter" => true,
                    "gauge" => false,
                    _ => panic!("unknown type: {line}"),
                };
                let of_samples = match dialect {
                    Dialect::OpenMetrics if counter => format!("{name}_total"),
                    _ => name.to_owned(),
                };
                assert_eq!(of_samples.ends_with("_total"), counter, "{line}");
                assert!(of_samples.starts_with("katran_"), "{line}");
                assert!(is_name(&of_samples), "{line}");
                let family = Family {
                    kind: kind.to_owned(),
                    help: text.to_owned(),
                    samples: BTreeMap::new(),
                };
                let known = families.insert(of_samples.clone(), family);
                assert!(known.is_none(), "described twice: {line}");
                current = Some(of_samples);
            } else {
                assert_eq!(help, None, "help without type before {line}");
                let (name, labels, value) = sample(line);
                assert_eq!(
                    current.as_deref(),
                    Some(name),
                    "sample of another metric: {line}"
                );
                let family = families.get_mut(name).expect(line);
                assert!(
                    family.samples.insert(labels, value).is_none(),
                    "twice: {line}"
                );
            }
        }
        for (name, family) in &families {
            let labels: BTreeSet<Vec<&String>> =
                family.samples.keys().map(|l| l.keys().collect()).collect();
            assert!(labels.len() <= 1, "{name}: different labels: {labels:?}");
        }
        Self { families }
    }

    fn family(&self, name: &str) -> &Family {
        let family = self.families.get(name);
        family.unwrap_or_else(|| panic!("no metric {name}"))
    }

    pub(crate) fn names(&self) -> BTreeSet<&String> {
        self.families.keys().collect()
    }

    /// The sample with exactly these labels.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let owned = |(label, value): &(&str, &str)| ((*label).to_owned(), (*value).to_owned());
        let labels: Labels = labels.iter().map(owned).collect();
        let sample = self.family(name).samples.get(&labels);
        *sample.unwrap_or_else(|| panic!("no {name} with {labels:?}"))
    }

    /// The sum of all samples with these labels, and any others.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.family(name).samples.iter();
        let has = |all: &Labels| {
            let mut wanted = labels.iter();
            wanted.all(|(label, value)| all.get(*label).is_some_and(|is| is == value))
        };
        samples
            .filter(|(labels, _)| has(labels))
            .map(|(_, value)| value)
            .sum()
    }

    /// All values of a label.
    pub(crate) fn values_of(&self, name: &str, label: &str) -> BTreeSet<String> {
        let samples = self.family(name).samples.keys();
        samples.map(|labels| labels[label].clone()).collect()
    }

    /// Panics if a counter has gone back since an earlier page, or a series is missing.
    pub(crate) fn follows(&self, earlier: &Self) {
        assert_eq!(self.names(), earlier.names());
        for (name, family) in &earlier.families {
            for (labels, before) in &family.samples {
                let now = self.family(name).samples.get(labels);
                let now = now.unwrap_or_else(|| panic!("{name} {labels:?} is gone"));
                assert!(
                    family.kind != "counter" || now >= before,
                    "{name} {labels:?}: {now} after {before}"
                );
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|c| c.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !text.contains("__")
}

fn sample(line: &str) -> (&str, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value: f64 = value.parse().expect(line);
    assert!(value.is_finite() && value >= 0.0, "{line}");
    let mut labels = Labels::new();
    let Some((name, rest)) = series.split_once('{') else {
        return (series, labels, value);
    };
    let inside = rest.strip_suffix('}').expect(line);
    for pair in inside.split("\",") {
        let (label, value) = pair.split_once("=\"").expect(line);
        let value = value.strip_suffix('"').unwrap_or(value);
        assert!(is_name(label), "{line}");
        assert!(
            !value.is_empty() && !value.contains(['"', '\\', ',']),
            "{line}"
        );
        let known = labels.insert(label.to_owned(), value.to_owned());
        assert!(known.is_none(), "a label twice: {line}");
    }
    assert!(inside.ends_with('"'), "{line}");
    (name, labels, value)
}
