//! The table has every counter of the program, and `docs/metrics.md` matches the table.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::rows::code;
use super::rows::full_name;
use super::rows::rows_of;
use super::*;
use crate::generated;
use crate::skel::healthcheck::types::probe_totals;
use crate::sys::pod::from_words;

#[test]
fn forwarded_leaves_out_own_messages() {
    let mut record = types::counters::default();
    record.tx.packets = 10;
    record.local = 2;
    record.echo_v6 = 3;
    record.too_big_v4 = 2;
    record.drops[DropReason::ReplyFailed.number()] = 1;
    assert_eq!(forwarded(&record), 8);
}

/// All groups of the program's record.
fn groups(record: types::counters) -> Counters {
    let records = &[record];
    Counters {
        totals: Totals::sum(records),
        flow_table: FlowTableCounters::sum(records),
        icmp: IcmpCounters::sum(records),
        ring_drop: RingDrops::sum(records),
        encap_fail: EncapFailures::sum(records),
        drop_reasons: DropReasons::sum(records),
        quic: QuicCounters::sum(records),
        tcp_server_id: TcpServerIdCounters::sum(records),
        stable_udp: StableUdpCounters::sum(records),
        global_lru: GlobalFlowCounters::sum(records),
        source_routing: SourceRoutingCounters::sum(records),
        decap: InlineDecapCounters::sum(records),
        udp_flow_migration: UdpFlowMigrationCounters::sum(records),
        orphan: OrphanCounters::sum(records),
        events: EventCounters::sum(records),
        cpus: vec![CpuCounters {
            forwarded: forwarded(&record),
            ..CpuCounters::default()
        }],
        ..Counters::default()
    }
}

/// For each word of a record, one with a 1 there.
fn records<R: crate::sys::pod::Pod>() -> impl Iterator<Item = (usize, R)> {
    let words = size_of::<R>() / size_of::<u64>();
    (0..words).map(move |place| {
        let mut record = vec![0; words];
        record[place] = 1;
        (place, from_words(&record))
    })
}

/// A counter in `bpf/shared.h` without a row in the table would never be read.
#[test]
fn every_counter_of_the_program_has_a_row() {
    let none = groups(types::counters::default());
    // `DROP_NONE` is not a reason.
    let unused = types::counters {
        drops: std::array::from_fn(|reason| u64::from(reason == 0)),
        ..Default::default()
    };
    let mut unread = Vec::new();
    for (place, record) in records::<types::counters>() {
        if groups(record) == none && !same(&record, &unused) {
            unread.push(place);
        }
    }
    assert_eq!(unread, [0usize; 0], "words of struct counters");
    for (place, record) in records::<types::vip_counters>() {
        assert_ne!(
            VipCounters::sum(&[record]),
            VipCounters::default(),
            "{place}"
        );
    }
    for (place, record) in records::<types::real_counters>() {
        assert_ne!(
            RealCounters::sum(&[record]),
            RealCounters::default(),
            "{place}"
        );
    }
    for (place, record) in records::<types::vip_details>() {
        let sum = VipDetails::sum(&[record]);
        assert_ne!(sum, VipDetails::default(), "{place}");
    }
    for (place, record) in records::<types::vip_real_counters>() {
        let sum = VipRealCounters::sum(&[record]);
        assert_ne!(sum, VipRealCounters::default(), "{place}");
    }
    for (place, record) in records::<probe_totals>() {
        let sum = HealthcheckCounters::sum(&[record]);
        assert_ne!(sum, HealthcheckCounters::default(), "{place}");
    }
}

fn same(one: &types::counters, other: &types::counters) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

/// Metrics have unique names, and each metric's series differ.
#[test]
fn names_and_series_are_unique() {
    let mut names = BTreeSet::new();
    for metric in Counters::default().metrics() {
        assert!(names.insert(metric.name), "{}", metric.name);
        assert!(!metric.unit.is_empty(), "{}", metric.name);
        assert!(
            metric.help.ends_with('.'),
            "{}: {}",
            metric.name,
            metric.help
        );
        let mut series = BTreeSet::new();
        for sample in &metric.samples {
            assert_eq!(sample.labels.len(), metric.labels.len(), "{}", metric.name);
            assert!(series.insert(&sample.labels), "{}", metric.name);
        }
    }
}

#[test]
fn documentation_is_current() {
    let counters = Counters::default();
    let mut tables: Vec<(&str, String)> = Vec::new();
    for (section, metrics) in counters.sections() {
        tables.push((section, rows_of(&metrics)));
    }
    tables.push(("labels", labels(&counters.metrics())));
    let [with, others] = drop_reasons();
    tables.extend([("remedies", with), ("other drop reasons", others)]);
    generated::check("docs/metrics.md", &tables);
}

/// Drop reasons with a remedy, and the others.
fn drop_reasons() -> [String; 2] {
    let mut with = "| reason | meaning | what to do |\n| --- | --- | --- |\n".to_owned();
    let mut others = "| reason | meaning |\n| --- | --- |\n".to_owned();
    for reason in DropReason::ALL {
        let row = format!("| `{reason}` | {} |", reason.meaning());
        match reason.remedy() {
            "" => writeln!(others, "{row}").unwrap(),
            remedy => writeln!(with, "{row} {remedy} |").unwrap(),
        }
    }
    [with, others]
}

/// Labels whose values are known in advance.
fn labels(metrics: &[Metric]) -> String {
    let mut of_labels = BTreeMap::<&str, Vec<(String, Vec<String>)>>::new();
    for metric in metrics {
        for (place, label) in metric.labels.iter().enumerate() {
            let samples = metric.samples.iter();
            let values: Vec<_> = samples.map(|sample| &sample.labels[place]).collect();
            if !values.is_empty() {
                let values = match metric.name {
                    "dropped_frames" => "[drop reasons](#drop-reasons)".to_owned(),
                    _ => code(values),
                };
                let groups = of_labels.entry(label).or_default();
                match groups.iter_mut().find(|(known, _)| *known == values) {
                    Some((_, names)) => names.push(full_name(metric)),
                    None => groups.push((values, vec![full_name(metric)])),
                }
            }
        }
    }
    let mut text = "| label | values |\n| --- | --- |\n".to_owned();
    for (label, groups) in of_labels {
        let is_alone = groups.len() == 1;
        let groups = groups.into_iter();
        let groups: Vec<_> = groups
            .map(|(values, names)| match is_alone {
                true => values,
                false => format!("of {}: {values}", code(names)),
            })
            .collect();
        writeln!(text, "| `{label}` | {} |", groups.join("; ")).unwrap();
    }
    text
}
