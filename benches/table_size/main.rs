//! How large the flow table must be: connections that lose their real in a rolling deployment, by
//! the table's size, for both kinds of flow tracking. A simulation: the rings are the crate's, the
//! table is `katran_yardstick`'s model of the set-associative one, which `hit_rate` compares with
//! the program's, and the rules for slots are in `slots.rs`. It is deterministic, and needs neither
//! kernel nor privileges.
//!
//! The service has 100 reals of equal weight in one ring of 65,537 slots (MaglevV2). 50,000
//! connections a second begin. Their lengths are log-normal with a median of 5 s and a sigma of 2:
//! the mean is 37 s, one in a thousand lasts 40 minutes, and 1.8 million exist at a time. This
//! assumes web requests with a few downloads and message channels among them, which deployments
//! hurt. Each connection has its own interval between packets, log-uniform from 5 s (for a table,
//! more often makes no difference) to 300 s (how often a client must refresh its NAT). Nine in
//! ten end with a FIN; the others' clients just stop.
//!
//! Every 36 s one change drains a real and adds another in its place; ten minutes later the old one
//! is removed. This takes an hour, after 20 minutes without a change, and the simulation ends half
//! an hour later. A connection is broken when one of its packets goes to another real than its
//! first. Connections whose real is removed do not count.
//!
//! A factor scales down connections and table; ring, changes and times stay.
//!
//! cargo bench --bench table_size            # two minutes
//! cargo bench --bench table_size -- --quick # seconds: only whether it works

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod play;
mod service;
mod slots;
mod traffic;

use std::env;
use std::process::ExitCode;

use katran::FlowTracking;
use serde_json::Value;
use serde_json::json;

use crate::common::grouped;
use crate::common::results_file;
use crate::common::write;
use crate::play::BEFORE;
use crate::play::Outcome;
use crate::play::Run;
use crate::service::Change;
use crate::service::Rollout;
use crate::service::SECOND;
use crate::traffic::Kind;

/// The deployment's seconds.
const HOUR: u32 = 3600;
const DRAINED_FOR: u32 = 600;
/// New connections a second.
const RATE: f64 = 50_000.0;
const KIND: Kind = Kind {
    rate: RATE,
    median: 5.0,
    sigma: 2.0,
    silence: [5.0, 300.0],
    fins: 0.9,
};

struct Effort {
    /// The scale factor.
    factor: u32,
    /// A second factor, which must give the same results.
    other_factor: u32,
    /// Table sizes, in thousands of flows.
    sizes: &'static [u32],
    /// How many of the sizes compare the factors.
    compared: usize,
    /// How many of the other services to play.
    others: usize,
}

const FULL: Effort = Effort {
    factor: 100,
    other_factor: 25,
    sizes: &[125, 250, 500, 1000, 2000, 4000, 8000, 16_000],
    compared: 4,
    others: 8,
};
const QUICK: Effort = Effort {
    factor: 1000,
    other_factor: 500,
    sizes: &[500, 4000, 8000],
    compared: 2,
    others: 1,
};

/// The default sizes, in thousands of flows.
const DEFAULTS: [(FlowTracking, u32); 2] =
    [(FlowTracking::All, 8000), (FlowTracking::Changed, 4000)];

/// The kinds of tracking, with the share of FINs, which makes no difference if all flows are
/// remembered.
const MODES: [(FlowTracking, f64, &str); 3] = [
    (FlowTracking::All, 0.9, "all"),
    (FlowTracking::Changed, 0.9, "changed"),
    (FlowTracking::Changed, 0.0, "changed, no FINs"),
];

fn main() -> ExitCode {
    let (mut quick, mut bench) = (false, false);
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--quick" => quick = true,
            "--bench" => bench = true,
            _ => {
                eprintln!("table_size: {argument} is not known; there is --quick");
                return ExitCode::from(2);
            }
        }
    }
    // Like criterion: without --bench it only tests that the bench works.
    let quick = quick || !bench;
    let effort = if quick { QUICK } else { FULL };
    let rollout = Rollout::Replaced {
        drained_for: DRAINED_FOR,
    };
    let changes = rollout.changes(BEFORE * SECOND, HOUR * SECOND);
    println!(
        "Broken connections per million, by the flows that the table is for; scaled down by {}",
        effort.factor
    );
    let rows = by_size(&effort, &changes);
    let results = json!({
        "quick": quick,
        "factor": effort.factor,
        "at_once": KIND.at_once(),
        "defaults": DEFAULTS.map(|(tracking, size)| (tracking.to_string(), u64::from(size) * 1000)),
        "rows": rows,
    });
    let text = serde_json::to_string_pretty(&results).unwrap();
    let path = results_file("table_size.json");
    write(&path, &(text + "\n")).unwrap();
    println!("\nwritten to {}", path.display());
    factors(&effort, &changes);
    others(&effort);
    ExitCode::SUCCESS
}

/// Plays a scaled-down service; `flows` is the table's size, in thousands, before scaling.
fn play(
    tracking: FlowTracking,
    thousands: u32,
    kind: Kind,
    changes: &[Change],
    factor: u32,
) -> Outcome {
    let kind = Kind {
        rate: kind.rate / f64::from(factor),
        ..kind
    };
    Run {
        tracking,
        flows: thousands * 1000 / factor,
        kind,
        changes,
        length: HOUR,
    }
    .play()
}

fn by_size(effort: &Effort, changes: &[Change]) -> Vec<Value> {
    println!("\n| flows | all | changed | changed, no FINs | need an entry at once |");
    println!("| --- | --- | --- | --- | --- |");
    let mut rows = Vec::new();
    for thousands in effort.sizes {
        let mut line = format!("| {} |", grouped(i64::from(*thousands) * 1000));
        let mut needed = 0;
        for (tracking, fins, name) in MODES {
            let kind = Kind { fins, ..KIND };
            let outcome = play(tracking, *thousands, kind, changes, effort.factor);
            line += &format!(" {} |", outcome.text());
            needed = outcome.need_entries * u64::from(effort.factor);
            rows.push(json!({
                "name": name,
                "flows": u64::from(*thousands) * 1000,
                "broken_per_million": outcome.per_million(),
                "unsettled": outcome.unsettled,
            }));
        }
        println!("{line} {} |", grouped(needed as i64));
    }
    rows
}

/// Repeats some runs with the other factor.
fn factors(effort: &Effort, changes: &[Change]) {
    let factors = [effort.factor, effort.other_factor];
    println!(
        "\n| flows, tracking | scaled down by {} | by {} |\n| --- | --- | --- |",
        factors[0], factors[1]
    );
    let compared = [
        (FlowTracking::All, 2000),
        (FlowTracking::Changed, 1000),
        (FlowTracking::All, 8000),
        (FlowTracking::Changed, 2000),
    ];
    for (tracking, thousands) in &compared[..effort.compared] {
        let [one, other] = factors.map(|factor| play(*tracking, *thousands, KIND, changes, factor));
        let flows = grouped(i64::from(*thousands) * 1000);
        println!(
            "| {flows}, {tracking} | {} | {} |",
            one.text(),
            other.text()
        );
        // By chance a count may differ by a few times its square root.
        let (one, other) = (&one, &other);
        let tolerance = 0.02 + 6.0 * [one, other].map(Outcome::error).iter().sum::<f64>();
        let ratio = one.per_million() / other.per_million();
        assert!(
            (ratio - 1.0).abs() < tolerance,
            "{ratio} within {tolerance}"
        );
    }
}

/// Other services and deployments, with the default sizes and others.
fn others(effort: &Effort) {
    let replaced = |drained_for| Rollout::Replaced { drained_for };
    let usual = replaced(DRAINED_FOR);
    let silent = |most| Kind {
        silence: [5.0, most],
        ..KIND
    };
    let long = |median, sigma| Kind {
        median,
        sigma,
        ..KIND
    };
    let restarted = Rollout::Restarted {
        drained_for: DRAINED_FOR,
    };
    let services = [
        ("as above", KIND, usual),
        ("silent for a minute at most", silent(60.0), usual),
        ("silent for 15 minutes at most", silent(900.0), usual),
        ("median 1 s, sigma 1.5", long(1.0, 1.5), usual),
        ("median 10 s, sigma 2", long(10.0, 2.0), usual),
        ("removed after a minute", KIND, replaced(60)),
        ("removed after an hour", KIND, replaced(HOUR)),
        ("removed, and a minute later back", KIND, restarted),
    ];
    let [all, changed] = DEFAULTS;
    let tables = [
        all,
        changed,
        (FlowTracking::Changed, 2000),
        (FlowTracking::Changed, 8000),
    ];
    let titles = tables.map(|(tracking, size)| {
        let flows = grouped(i64::from(size) * 1000);
        format!(" {tracking}, {flows} |")
    });
    println!("\n| service |{} at once |", titles.concat());
    println!("| --- |{} --- |", " --- |".repeat(tables.len()));
    for (name, kind, rollout) in &services[..effort.others] {
        let changes = rollout.changes(BEFORE * SECOND, HOUR * SECOND);
        let outcomes =
            tables.map(|(tracking, size)| play(tracking, size, *kind, &changes, effort.factor));
        let texts = outcomes.each_ref().map(|it| format!(" {} |", it.text()));
        let at_once = grouped(kind.at_once() as i64);
        println!("| {name} |{} {at_once} |", texts.concat());
        if *name == "as above" {
            let [all, changed] = [outcomes[0], outcomes[1]].map(|it| it.per_million());
            assert!(
                changed < all / 4.0,
                "{changed} with changed flows in a table of the default size, {all} with all"
            );
        }
    }
}
