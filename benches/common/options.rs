//! The common options of `packet_path` and `live_frames`: which balancer to time, and which other
//! one beside it.

use std::path::PathBuf;
use std::time::Duration;

use katran::Builder;
use katran::FlowTableKind;
use katran::FlowTracking;

use super::settings;

/// Their lines in the help.
const HELP: &str = "  --quick          seconds instead of minutes, for whether it works
  --table KIND     the kind of flow table: set-associative (the default) or kernel-lru
  --tracking KIND  which flows are remembered: all or changed
  --peer OBJECT    time Katran's own program, compiled to this object, and this crate's alternately;
                   docs/performance.md says how to compile it
  --changed        measure after every slot of every ring has gone from one real to another";

/// Longer than any row is measured, so that no changed slot settles meanwhile.
const NO_TIME_OUT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) changed: bool,
    pub(crate) table: FlowTableKind,
    pub(crate) tracking: FlowTracking,
    /// An object file of Katran's.
    pub(crate) peer: Option<PathBuf>,
}

impl Options {
    /// Parses a command line. `usage` begins a complaint; `other` handles arguments that only this
    /// bench knows, and returns whether it did.
    pub(crate) fn parse(
        mut arguments: impl Iterator<Item = String>,
        usage: &str,
        mut other: impl FnMut(&str) -> bool,
    ) -> Result<Self, String> {
        let mut options = Self::default();
        let mut bench = false;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} needs a value\n{usage}\n{HELP}"))
            };
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--changed" => options.changed = true,
                "--bench" => bench = true,
                "--table" => {
                    options.table = value()?.parse().map_err(|error| format!("{error}"))?
                }
                "--tracking" => {
                    options.tracking = value()?.parse().map_err(|error| format!("{error}"))?;
                }
                "--peer" => options.peer = Some(value()?.into()),
                known if other(known) => {}
                _ => return Err(format!("{argument} is not known\n{usage}\n{HELP}")),
            }
        }
        // Like criterion: without --bench it only tests that the bench works.
        options.quick |= !bench;
        Ok(options)
    }

    /// The settings of the timed balancer, for packets on one CPU.
    pub(crate) fn settings(
        &self,
        flow_table_size: u64,
        flood_threshold: Option<u32>,
        cpu: usize,
    ) -> Builder {
        let settings = settings(self.table, flow_table_size, flood_threshold, &[cpu as u32]);
        settings
            .flow_tracking(self.tracking)
            .flow_idle_timeout(NO_TIME_OUT)
            .udp_timeout(NO_TIME_OUT)
    }

    /// The balancer, for a table's head.
    pub(crate) fn balancer(&self) -> String {
        let changed = if self.changed {
            "; every slot of every ring has changed hands"
        } else {
            ""
        };
        format!(
            "flow table {}, tracking {}{changed}",
            self.table, self.tracking
        )
    }
}
