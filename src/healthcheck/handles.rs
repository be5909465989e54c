//! The table of the health checks' map handles. A row gives the handle, how it is taken from the
//! loaded object, the map's name in `bpf/probe_maps.h`, and the number of entries for
//! `LibraryCounters`. The rows of `config/map_table.rs` give sizes and memory.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::HealthChecks;
use crate::config::Config;
use crate::maps::ProbeCells;
use crate::skel::healthcheck::HealthcheckMaps;
use crate::skel::healthcheck::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::types::NextHops;

/// What identifies a probe, other than its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MatchBy {
    Destination,
    Source,
}

macro_rules! handles {
    (
        // The names that the rows below use.
        $from:ident $config:ident;
        $($(#[$about:meta])* $field:ident: $type:ty = $take:expr,
            $($name:literal is ($($fd:tt)+) $(shows $entries:tt)?),+;)+
    ) => {
        pub(super) struct Maps {
            $($(#[$about])* pub(super) $field: $type,)+
        }

        impl Maps {
            pub(super) fn take($from: &HealthcheckMaps<'_>, $config: &Config) -> io::Result<Self> {
                Ok(Self {
                    $($field: $take,)+
                })
            }

            /// The existing maps, by name.
            pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
                let named: [(_, Option<BorrowedFd<'_>>); _] = [
                    $($(($name, (self.$field $($fd)+).into()),)+)+
                ];
                named.into_iter().filter_map(|(name, map)| Some((name, map?)))
            }
        }

        /// The maps with published usage, and their entries.
        pub(super) const USES: &[(&str, fn(&HealthChecks) -> usize)] = &[
            $($($(($name, $entries),)?)+)+
        ];
    };
}

handles! {
    from config;
    marks: Typed<u32, types::probe_real> = Typed::new(own(&from.marks)?)?,
        "marks" is (.as_fd()) shows (|checks| checks.marks().len());
    destinations: Typed<types::probe_match, types::probe_real> = Typed::new(own(&from.destinations)?)?,
        "destinations" is (.as_fd()) shows (|checks| checks.matches(MatchBy::Destination).len());
    sources: Typed<types::probe_match, types::probe_real> = Typed::new(own(&from.sources)?)?,
        "sources" is (.as_fd()) shows (|checks| checks.matches(MatchBy::Source).len());
    keys: Typed<types::vip_key, u32> = Typed::new(own(&from.probe_keys)?)?,
        "probe_keys" is (.as_fd()) shows (|checks| checks.keys().count());
    key_counters: PerCpuArray<u64> = PerCpuArray::new(own(&from.probe_counters)?)?,
        "probe_counters" is (.as_fd());
    totals: PerCpuArray<types::probe_totals> = PerCpuArray::new(own(&from.probe_totals)?)?,
        "probe_totals" is (.as_fd());
    /// Only looked up by name.
    flows: OwnedFd = own(&from.probe_flows)?,
        "probe_flows" is (.as_fd());
    cells: Arc<ProbeCells> = Arc::new(ProbeCells::new(
            own(&from.data_settings)?,
            (config.next_hops != NextHops::Gateway).then(|| own(&from.ways)).transpose()?,
        )?),
        ".data.settings" is (.settings_fd()),
        "ways" is (.ways_fd()) shows (|checks| checks.maps.cells.ways());
}

impl Maps {
    pub(super) fn matches(&self, by: MatchBy) -> &Typed<types::probe_match, types::probe_real> {
        match by {
            MatchBy::Destination => &self.destinations,
            MatchBy::Source => &self.sources,
        }
    }
}

/// A duplicate descriptor, so that libbpf's object can go.
pub(super) fn own(of: &impl AsFd) -> io::Result<OwnedFd> {
    of.as_fd().try_clone_to_owned()
}
