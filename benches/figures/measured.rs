//! The results of other benches in the target directory: nanoseconds a packet by the number of
//! flows, and flow tables' hit rates by their load.

use std::fs;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::chart::Axis;
use crate::chart::BLUE;
use crate::chart::Figure;
use crate::chart::GREEN;
use crate::chart::GREY;
use crate::chart::ORANGE;
use crate::chart::PURPLE;
use crate::chart::Panel;
use crate::chart::Series;
use crate::chart::Style;
use crate::common::Spread;
use crate::common::machine::Machine;
use crate::common::results_file;

/// As `packet_path --peer` writes it.
#[derive(Deserialize)]
struct Comparison {
    machine: Machine,
    tracking: String,
    rounds: usize,
    quick: bool,
    rows: Vec<ComparedRow>,
}

#[derive(Deserialize)]
struct ComparedRow {
    traffic: String,
    /// None if each packet is of another flow.
    flows: Option<u32>,
    katran: Spread,
    ours: Spread,
    ratio: Spread,
}

/// As `hit_rate` writes it.
#[derive(Deserialize)]
struct HitRate {
    traffic: String,
    occupancy_percent: f64,
    table: String,
    source: String,
    hit_rate: f64,
}

pub(crate) fn read<T: DeserializeOwned>(bench: &str) -> Result<T, String> {
    let path = results_file(&format!("{bench}.json"));
    let name = path.display();
    let text = fs::read(&path)
        .map_err(|error| format!("{name}: {error}; cargo bench --bench {bench} makes it"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{name}: {error}"))
}

/// The alternating run of both programs, which needs an object file of Katran's.
const COMPARISON: &str = "packet_path_peer";

/// Whether there was such a run.
pub(crate) fn is_compared() -> bool {
    results_file(COMPARISON).with_extension("json").exists()
}

/// Nanoseconds a packet by the number of flows, for both programs, alternating.
pub(crate) fn packet_path(quick: bool) -> Result<Figure, String> {
    let results: Comparison = read(COMPARISON)?;
    full(quick, results.quick, "packet_path -- --peer OBJECT")?;
    let mut shares = Vec::new();
    let panels = [
        ("TCP/IPv4 established", "TCP/IPv4 to IPv4 reals"),
        ("UDP/IPv4 established", "UDP/IPv4 to IPv4 reals"),
        ("TCP/IPv6 established, IPv6 reals", "TCP/IPv6 to IPv6 reals"),
        ("QUIC by connection id", "QUIC by connection id"),
    ]
    .map(|(traffic, title)| {
        let (mut katrans, mut ours) = (Vec::new(), Vec::new());
        for row in results.rows.iter().filter(|row| row.traffic == traffic) {
            let Some(flows) = row.flows.map(f64::from) else {
                continue;
            };
            katrans.push((flows, row.katran.median));
            ours.push((flows, row.ours.median));
            shares.push(row.ratio.median);
        }
        times_by_flows(title, katrans, ours)
    });
    Ok(Figure {
        title: share_of_katrans(shares)?,
        subtitle: format!(
            "Established flows, tracking {}; both programs alternating, medians of {} rounds. {}.",
            results.tracking, results.rounds, results.machine
        ),
        columns: 2,
        panels: panels.into(),
    })
}

/// An error if a full run's figure would be drawn from a quick run's results.
pub(crate) fn full(quick: bool, quick_run: bool, bench: &str) -> Result<(), String> {
    if quick_run && !quick {
        return Err(format!(
            "the results are a quick run's: cargo bench --bench {bench} makes full ones"
        ));
    }
    Ok(())
}

fn share_of_katrans(mut shares: Vec<f64>) -> Result<String, String> {
    shares.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (shares.first(), shares.last()) else {
        return Err(format!("{COMPARISON}.json has no rows"));
    };
    Ok(format!(
        "A packet takes {:.0} to {:.0} % of the time that it takes in Katran",
        least * 100.0,
        most * 100.0
    ))
}

fn times_by_flows(title: &str, katrans: Vec<(f64, f64)>, ours: Vec<(f64, f64)>) -> Panel {
    let most = katrans.iter().chain(&ours).map(|point| point.1);
    let top = (most.fold(1.0, f64::max) / 100.0).ceil() * 100.0;
    let series = |label: &str, color, points| Series {
        label: label.to_owned(),
        color,
        style: Style::Line,
        points,
    };
    Panel {
        title: title.to_owned(),
        x: Axis {
            label: "flows",
            logarithmic: true,
            ticks: [0, 10, 16, 20].map(|bits| f64::from(1 << bits)).into(),
        },
        y: Axis {
            label: "ns a packet",
            logarithmic: false,
            ticks: (0..=5).map(|fifth| top / 5.0 * f64::from(fifth)).collect(),
        },
        series: vec![
            series("Katran", GREY, katrans),
            series("this crate", BLUE, ours),
        ],
    }
}

/// Hit rates by the ratio of flows to the table's configured flows.
pub(crate) fn hit_rate() -> Result<Figure, String> {
    let rows: Vec<HitRate> = read("hit_rate")?;
    let tables = [
        (
            "set-associative",
            "model",
            "sets of 8, model",
            BLUE,
            Style::Line,
        ),
        (
            "set-associative",
            "kernel",
            "sets of 8, kernel",
            GREEN,
            Style::Points,
        ),
        ("exact-lru", "model", "exact LRU", GREY, Style::Dashed),
        ("kernel-lru", "kernel", "kernel LRU", ORANGE, Style::Points),
        (
            "exact-lru-2x",
            "model",
            "exact LRU, double",
            PURPLE,
            Style::Dashed,
        ),
    ];
    let panels = [("uniform", "uniform"), ("zipf", "Zipf")].map(|(traffic, name)| {
        let series = tables.map(|(table, source, label, color, style)| {
            let of_table = rows.iter().filter(|row| {
                (&*row.traffic, &*row.table, &*row.source) == (traffic, table, source)
            });
            let mut points: Vec<(f64, f64)> = of_table
                .map(|row| (row.occupancy_percent, row.hit_rate * 100.0))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series {
                label: label.to_owned(),
                color,
                style,
                points,
            }
        });
        Panel {
            title: format!("{name} traffic"),
            x: Axis {
                label: "flows, % of what the table is made for",
                logarithmic: false,
                ticks: vec![50.0, 75.0, 100.0, 125.0, 150.0],
            },
            y: Axis {
                label: "hits, % of packets",
                logarithmic: false,
                ticks: vec![60.0, 70.0, 80.0, 90.0, 100.0],
            },
            series: series.into(),
        }
    });
    let rate_at = |traffic: &str, occupancy: f64| {
        let mut rows = rows.iter();
        rows.find(|row| {
            (&*row.traffic, &*row.table, &*row.source) == (traffic, "set-associative", "model")
                && row.occupancy_percent == occupancy
        })
        .map(|row| row.hit_rate * 100.0)
        .ok_or_else(|| format!("hit_rate.json lacks {traffic} traffic at {occupancy} %"))
    };
    Ok(Figure {
        title: format!(
            "A full table of sets finds {:.1} % of packets, {:.1} % under Zipf traffic",
            rate_at("uniform", 100.0)?,
            rate_at("zipf", 100.0)?
        ),
        subtitle:
            "Lines: models at 50, 90, 100 and 150 %. Dots without a line: the loaded program."
                .to_owned(),
        columns: 2,
        panels: panels.into(),
    })
}
