//! The machine of a measurement, to describe beside the figures.

use std::fmt;
use std::fs;

use serde::Deserialize;
use serde::Serialize;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Its processors' model, as the kernel reports it.
    pub(crate) processor: String,
    /// CPUs online.
    pub(crate) cpus: usize,
    /// The kernel's release.
    pub(crate) linux: String,
    /// The load average of the minute before.
    pub(crate) load: f64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, model)| model.trim().to_owned());
        Self {
            processor: model.unwrap_or_else(|| "a processor without a name".to_owned()),
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            linux: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load(),
        }
    }
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            cpus,
            linux,
            load,
        } = self;
        write!(f, "{processor}, {cpus} CPUs, Linux {linux}, load {load:.2}")
    }
}
