//! Measurements as a file, and the baseline that they are compared with, which is the file of an
//! earlier run.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::common::options::Options;
use crate::common::results_file;
use crate::common::write;

const RESULTS: &str = "packet_path.json";
/// One file for each flow table type and flow tracking.
const BASELINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/packet_path/baseline");

#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    /// The flow table type.
    pub(crate) table: String,
    /// The flow tracking.
    pub(crate) tracking: String,
    pub(crate) flow_table_entries: u64,
    pub(crate) quick: bool,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) traffic: String,
    pub(crate) flows: u32,
    pub(crate) ns_median: f64,
    pub(crate) ns_quartiles: [f64; 2],
    /// Nanoseconds of one hash lookup in the same wrapper.
    pub(crate) lookup_ns: f64,
    /// `ns_median` divided by `lookup_ns`.
    pub(crate) ratio: f64,
}

impl Results {
    /// Writes the file, which can become a baseline.
    pub(crate) fn write(&self) {
        let text = serde_json::to_string_pretty(self).unwrap();
        let path = results_file(RESULTS);
        write(&path, &(text + "\n")).unwrap();
        println!("written to {}", path.display());
    }
}

/// The ratios of an earlier run on a quiet machine.
pub(crate) struct Baseline(Results);

impl Baseline {
    /// The committed baseline for the timed balancer.
    pub(crate) fn read(timed: &Options, entries: u64) -> Result<Self, String> {
        let (table, tracking) = (timed.table.to_string(), timed.tracking.to_string());
        let path = Path::new(BASELINES).join(format!("{table}-{tracking}.json"));
        let name = path.display();
        let text = fs::read(&path).map_err(|error| {
            let results = results_file(RESULTS);
            let results = results.display();
            format!("{name}: {error}; to make one, copy {results} of a full run there")
        })?;
        let baseline: Results =
            serde_json::from_slice(&text).map_err(|error| format!("{name}: {error}"))?;
        let of = (&baseline.table, &baseline.tracking);
        if of != (&table, &tracking) || baseline.flow_table_entries != entries || baseline.quick {
            return Err(format!("{name} is of another table, tracking or effort"));
        }
        Ok(Self(baseline))
    }

    /// The highest ratio that a row may have; `None` if the baseline lacks the row.
    pub(crate) fn most(&self, traffic: &str, flows: u32) -> Option<f64> {
        let mut rows = self.0.rows.iter();
        let row = rows.find(|row| row.traffic == traffic && row.flows == flows)?;
        Some(row.ratio * (1.0 + tolerance(flows)))
    }
}

/// How much a ratio may grow, relative to itself, by the noise between runs on one machine: up to a
/// few thousand flows the caches hold everything; above that a packet waits for memory, which the
/// yardstick's lookup does not, and which the machine's other guests use too.
fn tolerance(flows: u32) -> f64 {
    if flows <= 1 << 10 { 0.25 } else { 0.5 }
}
