//! The history of this process for metrics: since when it has owned the balancer, its documents,
//! and how long next hops have been silent.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use katran::Family;
use katran::Katran;
use katran::Start;
use katran::attachments::NextHop;

use super::owner::now;

/// Beyond this many silent next hops, only their number is reported.
const MOST_SILENT: usize = 100;

/// How often the balancer samples its counters, so that a diagnosis knows what is recent.
const SAMPLE: Duration = Duration::from_secs(10);

/// Times are seconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    /// When this process became the owner.
    pub(crate) owned: f64,
    /// When the balancer was loaded.
    pub(crate) loaded: f64,
    /// Documents and drains that were applied, and that were refused.
    pub(crate) applied: u64,
    pub(crate) refused: u64,
    /// The source of the current document: a file, or `command`.
    pub(crate) source: String,
    silent: BTreeMap<Silent, Instant>,
    sampled: Instant,
}

/// A next hop that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Silent {
    /// The real, or `ipv4` or `ipv6` for all of a family.
    pub(crate) real: String,
    /// The address that should answer; `none` without a route.
    pub(crate) address: String,
}

impl Past {
    pub(super) fn begin(start: Option<&Start>, source: String) -> Self {
        let owned = now();
        let age = match start {
            Some(Start::Adopted { age, .. }) => age.as_secs_f64(),
            _ => 0.0,
        };
        Self {
            owned,
            loaded: owned - age,
            applied: 1,
            refused: 0,
            source,
            silent: BTreeMap::new(),
            sampled: Instant::now(),
        }
    }

    /// Updates which next hops are silent, and samples the counters when it is time.
    pub(super) fn look(&mut self, katran: &Katran) -> katran::Result<()> {
        let now = Instant::now();
        let before = std::mem::take(&mut self.silent);
        for hop in silent(katran) {
            let since = before.get(&hop).copied().unwrap_or(now);
            self.silent.insert(hop, since);
        }
        if now.saturating_duration_since(self.sampled) < SAMPLE {
            return Ok(());
        }
        self.sampled = now;
        katran.stats().sample()
    }

    /// Silent next hops, and for how many seconds.
    pub(crate) fn silent(&self) -> impl Iterator<Item = (&Silent, f64)> {
        let silent = self.silent.iter();
        silent.map(|(hop, since)| (hop, since.elapsed().as_secs_f64()))
    }
}

fn silent(katran: &Katran) -> Vec<Silent> {
    let hops = katran.gateways().next_hops();
    let address = |hop: &NextHop| hop.address.map_or("none".to_owned(), |of| of.to_string());
    let mut found = Vec::new();
    for hop in hops.iter().filter(|hop| hop.is_silent()) {
        if hop.real.is_none() && has_reals(katran, hop.family) {
            let real = match hop.family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            found.push(Silent {
                real: real.to_owned(),
                address: address(hop),
            });
        }
    }
    let of_reals = hops.iter().filter(|hop| hop.is_silent());
    let of_reals = of_reals.filter_map(|hop| {
        Some(Silent {
            real: hop.real?.to_string(),
            address: address(hop),
        })
    });
    found.extend(of_reals.take(MOST_SILENT));
    found
}

fn has_reals(katran: &Katran, family: Family) -> bool {
    let mut reals = katran.real_numbers().into_iter();
    reals.any(|(real, _)| real.is_ipv6() == (family == Family::V6))
}
