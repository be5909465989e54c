//! The results of the bench `table_size`: connections that a rolling deployment breaks, by the flow
//! table's size.

use serde::Deserialize;

use crate::chart::Axis;
use crate::chart::BLUE;
use crate::chart::Figure;
use crate::chart::GREEN;
use crate::chart::ORANGE;
use crate::chart::Panel;
use crate::chart::Series;
use crate::chart::Style;
use crate::common::grouped;
use crate::measured::full;
use crate::measured::read;

/// The lower end of the axis.
const LEAST: f64 = 1.0;

/// As `table_size` writes it.
#[derive(Deserialize)]
struct TableSize {
    quick: bool,
    /// Flows, by flow tracking.
    defaults: [(String, f64); 2],
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    flows: f64,
    broken_per_million: f64,
}

/// Broken connections by the flow table's size, for both kinds of flow tracking.
pub(crate) fn table_size(quick: bool) -> Result<Figure, String> {
    let results: TableSize = read("table_size")?;
    full(quick, results.quick, "table_size")?;
    let series = [
        ("all", "all flows", ORANGE, Style::Line),
        ("changed", "changed flows", BLUE, Style::Line),
        (
            "changed, no FINs",
            "the same, no FINs",
            GREEN,
            Style::Dashed,
        ),
    ]
    .map(|(name, label, color, style)| {
        let of_name = results.rows.iter().filter(|row| row.name == name);
        let points = of_name.map(|row| (row.flows, row.broken_per_million.max(LEAST)));
        Series {
            label: label.to_owned(),
            color,
            style,
            points: points.collect(),
        }
    });
    let [all, changed] = &results.defaults;
    let at = |(name, flows): &(String, f64)| {
        let mut rows = results.rows.iter();
        rows.find(|row| row.name == *name && row.flows == *flows)
            .map(|row| row.broken_per_million)
            .ok_or_else(|| format!("table_size.json lacks {name} at {flows} flows"))
    };
    let flows = |of: &(String, f64)| grouped(of.1 as i64);
    let sizes = results.rows.iter().filter(|row| row.name == "all");
    Ok(Figure {
        title: format!(
            "Of a million connections {:.0} break with changed flows, {:.0} with all",
            at(changed)?,
            at(all)?
        ),
        subtitle: format!(
            "With the default sizes, {} and {} flows. 100 reals replaced in an hour, 50,000 connections a second.",
            flows(changed),
            flows(all)
        ),
        columns: 1,
        panels: vec![Panel {
            title: String::new(),
            x: Axis {
                label: "flows that the table is for",
                logarithmic: true,
                ticks: sizes.map(|row| row.flows).collect(),
            },
            y: Axis {
                label: "broken, of a million connections",
                logarithmic: true,
                ticks: (0..=6).map(|exponent| 10f64.powi(exponent)).collect(),
            },
            series: series.into(),
        }],
    })
}
