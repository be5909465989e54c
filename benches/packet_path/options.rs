//! What the command line asks for, and how much work that is.

use std::path::PathBuf;

use katran::FlowTableKind;

const HELP: &str = "\
usage: cargo bench --bench packet_path -- [OPTION ...] [FILTER]
  FILTER         only rows whose name contains it
  --quick        seconds instead of minutes, for whether it works
  --table KIND   the kind of flow table: set-associative (the default) or kernel-lru
  --check        fail if a row is slower than the baseline
  --peer OBJECT  time Katran's own program, compiled to this object, and this crate's by turns;
                 docs/performance.md says how to compile it
  --changed      measure after every slot of every ring has gone from one real to another";

#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) packets: u32,
    pub(crate) rounds: usize,
    pub(crate) flows: &'static [u32],
    /// Entries: far more than flows, so that hardly one is evicted.
    pub(crate) flow_table_size: u64,
}

const FULL: Effort = Effort {
    packets: 2_000_000,
    rounds: 15,
    flows: &[1, 1 << 10, 1 << 16, 1 << 20],
    flow_table_size: 4_000_000,
};
const QUICK: Effort = Effort {
    packets: 200_000,
    rounds: 5,
    flows: &[1, 1 << 16],
    flow_table_size: 262_144,
};

/// What the command line asks for.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) check: bool,
    pub(crate) changed: bool,
    pub(crate) table: FlowTableKind,
    /// An object of Katran's.
    pub(crate) peer: Option<PathBuf>,
    pub(crate) filter: String,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut bench = false;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--check" => options.check = true,
                "--changed" => options.changed = true,
                "--bench" => bench = true,
                "--table" => {
                    let kind = arguments.next().unwrap_or_default();
                    options.table = kind.parse().map_err(|error| format!("{error}"))?;
                }
                "--peer" => {
                    let object = arguments.next();
                    let object = object.ok_or(format!("--peer needs an object\n{HELP}"))?;
                    options.peer = Some(object.into());
                }
                name if !name.starts_with('-') => options.filter = argument,
                _ => return Err(format!("{argument} is not known\n{HELP}")),
            }
        }
        // Like criterion: without --bench it is a test that the bench works.
        options.quick |= !bench;
        if options.check && (options.quick || options.changed || options.peer.is_some()) {
            return Err(
                "only a full run is checked against the baseline: --check goes with none of \
                 --quick, --changed and --peer"
                    .to_owned(),
            );
        }
        Ok(options)
    }

    pub(crate) fn effort(&self) -> Effort {
        if self.quick { QUICK } else { FULL }
    }

    /// Whether these are all rows, measured as the figures need them.
    pub(crate) fn complete(&self) -> bool {
        self.filter.is_empty() && !self.changed
    }
}
