//! Health as metrics, for Prometheus and similar collectors.

use super::outcome::Cause;
use super::report::RealHealth;
use super::report::Report;
use super::report::VipHealth;
use super::score::Status;
use super::tally::Tally;
use crate::counters::Metric;
use crate::counters::MetricKind;
use crate::counters::Sample;

/// The name of a metric, its type and so on.
struct Family {
    name: &'static str,
    kind: MetricKind,
    unit: &'static str,
    labels: &'static [&'static str],
    field: &'static str,
    help: &'static str,
}

impl Family {
    fn metric(self, samples: impl Iterator<Item = (Vec<String>, u64)>) -> Metric {
        Metric {
            name: self.name,
            kind: self.kind,
            unit: self.unit,
            help: self.help,
            labels: self.labels.to_vec(),
            fields: vec![self.field.to_owned()],
            samples: samples
                .map(|(labels, value)| Sample { labels, value })
                .collect(),
        }
    }
}

impl Report {
    /// The report as metrics; prefix the names with the program's. There are 26 series for each VIP
    /// and two for each probed real. Series of reals are left out if there are more than
    /// `most_reals` over all VIPs; `health_reals` counts them in any case.
    pub fn metrics(&self, most_reals: usize) -> Vec<Metric> {
        let mut metrics = self.of_vips();
        let probed = |vip: &VipHealth| vip.reals.iter().filter(|of| of.probed).count();
        let is_shown = self.vips.iter().map(probed).sum::<usize>() <= most_reals;
        let reals = self.vips.iter().filter(|_| is_shown).flat_map(|vip| {
            let reals = vip.reals.iter().filter(|of| of.probed);
            reals.map(|of| (vec![vip.vip.to_string(), of.real.to_string()], of))
        });
        let up = reals.clone();
        let up = up.filter(|(_, of)| of.status != Status::Unknown);
        metrics.push(
            Family {
                name: "health_up",
                kind: MetricKind::Gauge,
                unit: "0 or 1",
                labels: &["vip", "real"],
                field: "vips.reals.status",
                help: "1: the real passes the VIP's checks; 0: it fails them. Absent before the first result.",
            }
            .metric(up.map(|(labels, of)| (labels, u64::from(of.status == Status::Up)))),
        );
        metrics.push(
            Family {
                name: "health_transitions",
                kind: MetricKind::Counter,
                unit: "transitions",
                labels: &["vip", "real"],
                field: "vips.reals.transitions",
                help: "Times that the real came up or went down.",
            }
            .metric(reals.map(|(labels, of)| (labels, of.transitions))),
        );
        metrics.extend(self.of_all());
        metrics
    }

    /// A metric of every VIP, with its own labels for each value.
    fn by_vip<const N: usize>(
        &self,
        family: Family,
        values: impl Fn(&VipHealth) -> [(Option<String>, u64); N],
    ) -> Metric {
        let samples = self.vips.iter().flat_map(|vip| {
            let name = vip.vip.to_string();
            values(vip).map(|(label, value)| {
                let labels = std::iter::once(name.clone()).chain(label).collect();
                (labels, value)
            })
        });
        family.metric(samples)
    }

    fn of_vips(&self) -> Vec<Metric> {
        let one = |value: bool| [(None, u64::from(value))];
        let label = |name: &str| Some(name.to_owned());
        let count = |vip: &VipHealth, is: &dyn Fn(&&RealHealth) -> bool| {
            vip.reals.iter().filter(is).count() as u64
        };
        let of = |name, unit, field, help| Family {
            name,
            kind: MetricKind::Gauge,
            unit,
            labels: &["vip"],
            field,
            help,
        };
        vec![
            self.by_vip(
                Family {
                    labels: &["vip", "state"],
                    ..of(
                        "health_reals",
                        "reals",
                        "vips.reals.status",
                        "The VIP's reals by state, drained ones included; `not_probed`: reals without a check.",
                    )
                },
                |vip| {
                    let of = |status| count(vip, &move |of| of.probed && of.status == status);
                    [
                        (label("up"), of(Status::Up)),
                        (label("down"), of(Status::Down)),
                        (label("unknown"), of(Status::Unknown)),
                        (label("not_probed"), count(vip, &|of| !of.probed)),
                    ]
                },
            ),
            self.by_vip(
                of(
                    "health_out_reals",
                    "reals",
                    "vips.reals.out",
                    "The VIP's reals that health checks keep flows from.",
                ),
                |vip| [(None, count(vip, &|of| of.out))],
            ),
            self.by_vip(
                of(
                    "health_climbing_reals",
                    "reals",
                    "vips.reals.climbs",
                    "The VIP's reals whose weight climbs (slow start).",
                ),
                |vip| [(None, count(vip, &|of| of.climbs))],
            ),
            self.by_vip(
                of(
                    "health_panics",
                    "0 or 1",
                    "vips.panics",
                    "1: too few of the VIP's reals work, so no more are taken out.",
                ),
                |vip| one(vip.panics),
            ),
            self.by_vip(
                of(
                    "health_falls_back",
                    "0 or 1",
                    "vips.falls_back",
                    "1: all other reals of the VIP are down, so its packets go to drained reals.",
                ),
                |vip| one(vip.falls_back),
            ),
            self.by_vip(
                Family {
                    kind: MetricKind::Counter,
                    labels: &["vip", "result"],
                    ..of(
                        "health_probes",
                        "probes",
                        "vips.probes.passed",
                        "Probes of the VIP's reals; those `not_sent` say nothing about a real.",
                    )
                },
                |vip| {
                    [
                        (label("passed"), vip.probes.passed),
                        (label("failed"), vip.probes.failed.values().sum()),
                        (label("not_sent"), vip.probes.not_sent),
                    ]
                },
            ),
            self.by_vip(
                Family {
                    kind: MetricKind::Counter,
                    labels: &["vip", "cause"],
                    ..of(
                        "health_failures",
                        "probes",
                        "vips.probes.failed",
                        "Failed probes of the VIP's reals, by cause.",
                    )
                },
                |vip| {
                    let failed = |cause| vip.probes.failed.get(&cause).copied().unwrap_or(0);
                    Cause::ALL.map(|cause| (Some(cause.to_string()), failed(cause)))
                },
            ),
            self.by_vip(
                Family {
                    kind: MetricKind::Counter,
                    ..of(
                        "health_answer_microseconds",
                        "microseconds",
                        "vips.probes.took",
                        "Total time of all answers of the VIP's reals; divide its rate by that of passed probes.",
                    )
                },
                |vip| [(None, vip.probes.took.as_micros() as u64)],
            ),
            self.by_vip(
                Family {
                    kind: MetricKind::Counter,
                    labels: &["vip", "le"],
                    ..of(
                        "health_answers_within",
                        "answers",
                        "vips.probes.within",
                        "Answers of the VIP's reals that took at most `le` seconds, as a histogram's buckets.",
                    )
                },
                |vip| {
                    let limits = Tally::LIMITS.map(|limit| limit.as_secs_f64().to_string());
                    let [a, b, c, d, e, f] = limits;
                    let [x, y, z, u, v, w] = vip.probes.within;
                    let all = (label("+Inf"), vip.probes.passed);
                    let of = |limit, count| (Some(limit), count);
                    [of(a, x), of(b, y), of(c, z), of(d, u), of(e, v), of(f, w), all]
                },
            ),
        ]
    }

    fn of_all(&self) -> [Metric; 4] {
        let of = |name, kind, unit, field, help, value| {
            let family = Family {
                name,
                kind,
                unit,
                labels: &[],
                field,
                help,
            };
            family.metric(std::iter::once((Vec::new(), value)))
        };
        [
            of(
                "health_changes",
                MetricKind::Counter,
                "changes",
                "applied",
                "Changes of the balancer by health checks.",
                self.applied,
            ),
            of(
                "health_lost_results",
                MetricKind::Counter,
                "results",
                "lost",
                "Probe results lost because the balancer was busy for too long.",
                self.lost,
            ),
            of(
                "health_refused",
                MetricKind::Gauge,
                "0 or 1",
                "refused",
                "1: the last change by health checks was refused; they try again each second.",
                u64::from(self.refused.is_some()),
            ),
            of(
                "health_ended",
                MetricKind::Gauge,
                "0 or 1",
                "ended",
                "1: health checks have ended, though they should run.",
                u64::from(self.ended.is_some()),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::outcome::Outcome;
    use super::*;

    fn real(last: u8, status: Status) -> RealHealth {
        RealHealth {
            real: [198, 51, 100, last].into(),
            probed: true,
            status,
            out: status == Status::Down,
            weight: 1,
            applied_weight: Some(1),
            last: None,
            last_result: None,
            last_unsent: false,
            last_cause: None,
            transitions: last.into(),
            climbs: false,
            history: Vec::new(),
        }
    }

    fn report() -> Report {
        let mut probes = Tally::default();
        let slow = Duration::from_millis(30);
        let failed = |cause| Outcome::Failed(cause, String::new());
        probes.count(&Outcome::Passed, Duration::from_millis(1));
        probes.count(&Outcome::Passed, slow);
        probes.count(&Outcome::Passed, Duration::from_secs(9));
        probes.count(&failed(Cause::Timeout), slow);
        probes.count(&failed(Cause::Timeout), slow);
        probes.count(&failed(Cause::Answer), slow);
        probes.count(&Outcome::NotSent(String::new()), slow);
        let unprobed = RealHealth {
            probed: false,
            ..real(4, Status::Unknown)
        };
        let vip = VipHealth {
            vip: "203.0.113.1:80/tcp".parse().unwrap(),
            panics: true,
            falls_back: false,
            probes,
            reals: vec![
                real(1, Status::Up),
                real(2, Status::Down),
                real(3, Status::Unknown),
                unprobed,
            ],
        };
        Report {
            vips: vec![vip],
            applied: 7,
            ..Report::default()
        }
    }

    fn value(metrics: &[Metric], name: &str, labels: &[&str]) -> Option<u64> {
        let metric = metrics.iter().find(|of| of.name == name).unwrap();
        let mut samples = metric.samples.iter();
        let found = samples.find(|of| of.labels[metric.labels.len() - labels.len()..] == *labels);
        found.map(|of| of.value)
    }

    #[test]
    fn metrics_say_what_the_report_says() {
        let metrics = report().metrics(3);
        let is = |name: &str, labels: &[&str], expected: u64| {
            assert_eq!(
                value(&metrics, name, labels),
                Some(expected),
                "{name} {labels:?}"
            );
        };
        is("health_up", &["198.51.100.1"], 1);
        is("health_up", &["198.51.100.2"], 0);
        assert_eq!(value(&metrics, "health_up", &["198.51.100.3"]), None);
        is("health_transitions", &["198.51.100.3"], 3);
        assert_eq!(
            value(&metrics, "health_transitions", &["198.51.100.4"]),
            None
        );
        for state in ["up", "down", "unknown", "not_probed"] {
            is("health_reals", &[state], 1);
        }
        is("health_out_reals", &[], 1);
        is("health_panics", &[], 1);
        is("health_falls_back", &[], 0);
        is("health_probes", &["passed"], 3);
        is("health_probes", &["failed"], 3);
        is("health_probes", &["not_sent"], 1);
        is("health_failures", &["timeout"], 2);
        is("health_failures", &["answer"], 1);
        is("health_failures", &["refused"], 0);
        is("health_answer_microseconds", &[], 9_031_000);
        let within = [
            ("0.001", 1),
            ("0.005", 1),
            ("0.025", 1),
            ("0.1", 2),
            ("2.5", 2),
            ("+Inf", 3),
        ];
        for (limit, count) in within {
            is("health_answers_within", &[limit], count);
        }
        is("health_changes", &[], 7);
        is("health_ended", &[], 0);
    }

    /// The number of series does not depend on the number of reals.
    #[test]
    fn series_are_bounded() {
        let few = report().metrics(3);
        let of_vip = few.iter().filter(|of| of.labels.first() == Some(&"vip"));
        let of_vip = of_vip.filter(|of| !of.labels.contains(&"real"));
        assert_eq!(of_vip.map(|of| of.samples.len()).sum::<usize>(), 26);
        let none = report().metrics(2);
        assert_eq!(value(&none, "health_reals", &["up"]), Some(1));
        let of_reals = none.iter().filter(|of| of.labels.contains(&"real"));
        assert!(of_reals.clone().count() == 2 && of_reals.clone().all(|of| of.samples.is_empty()));
        // Names and series are there once.
        let names: BTreeSet<_> = few.iter().map(|of| of.name).collect();
        assert_eq!(names.len(), few.len());
    }
}
