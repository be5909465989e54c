//! What was measured, as a file, and what it is held against: the baseline, which is such a file of
//! an earlier run.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::common::options::Options;
use crate::common::results_file;
use crate::common::write;

const RESULTS: &str = "packet_path.json";
/// One file for each kind of flow table and of tracking.
const BASELINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/packet_path/baseline");

#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    /// The kind of flow table.
    pub(crate) table: String,
    /// Which flows are remembered.
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
    /// `ns_median` by `lookup_ns`.
    pub(crate) ratio: f64,
}

impl Results {
    /// Writes the file, of which a baseline can be made.
    pub(crate) fn write(&self) {
        let text = serde_json::to_string_pretty(self).unwrap();
        let path = results_file(RESULTS);
        write(&path, &(text + "\n")).unwrap();
        println!("written to {}", path.display());
    }
}

/// Ratios of an earlier run on a quiet machine.
pub(crate) struct Baseline(Results);

impl Baseline {
    /// The committed one of the balancer that is timed.
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

    /// The ratio that a row may have at most; `None` if the baseline lacks the row.
    pub(crate) fn most(&self, traffic: &str, flows: u32) -> Option<f64> {
        let mut rows = self.0.rows.iter();
        let row = rows.find(|row| row.traffic == traffic && row.flows == flows)?;
        Some(row.ratio * (1.0 + tolerance(flows)))
    }
}

/// By how much of itself a ratio may grow. Runs on one machine differ so much by noise: up to a
/// few thousand flows the caches hold everything; above that a packet waits for memory, which the
/// yardstick's one lookup does not, and which other guests of the machine use too.
fn tolerance(flows: u32) -> f64 {
    if flows <= 1 << 10 { 0.25 } else { 0.5 }
}
