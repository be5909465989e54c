//! The command line's options, and how much work they mean.

use crate::common::options;

const USAGE: &str = "\
usage: cargo bench --bench packet_path -- [OPTION ...] [FILTER]
  FILTER           only rows whose name contains it
  --check          fail if a row is slower than the baseline";

#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) packets: u32,
    pub(crate) rounds: usize,
    pub(crate) flows: &'static [u32],
    /// Entries: far more than flows, so that almost none is evicted.
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

/// The command line's options.
pub(crate) struct Options {
    pub(crate) timed: options::Options,
    pub(crate) check: bool,
    pub(crate) filter: String,
}

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut check, mut filter) = (false, String::new());
        let timed = options::Options::parse(arguments, USAGE, |argument| {
            match argument {
                "--check" => check = true,
                name if !name.starts_with('-') => filter = name.to_owned(),
                _ => return false,
            }
            true
        })?;
        if check && (timed.quick || timed.changed || timed.peer.is_some()) {
            return Err(
                "only a full run is checked against the baseline: --check goes with none of \
                 --quick, --changed and --peer"
                    .to_owned(),
            );
        }
        Ok(Self {
            timed,
            check,
            filter,
        })
    }

    pub(crate) fn effort(&self) -> Effort {
        if self.timed.quick { QUICK } else { FULL }
    }

    /// Whether these are all rows, measured as the figures need them.
    pub(crate) fn complete(&self) -> bool {
        self.filter.is_empty() && !self.timed.changed
    }
}
