//! The table of map handles. A row gives a handle, how it is taken from the loaded object, its maps
//! by their names in `bpf/maps.h`, the features that have it, and its usage in `LibraryCounters` (a
//! name and the number of entries). `inside` are maps inside others. The rows of
//! `config/map_table.rs` give sizes and memory.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use libbpf_rs::MapHandle;

use super::Katran;
use super::flow_count::FlowCount;
use super::object::Fixed;
use super::object::InnerTables;
use super::object::own;
use crate::config::Config;
use crate::config::Features;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::Details;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTable;
use crate::maps::FlowTables;
use crate::maps::GracePeriods;
use crate::maps::HopCells;
use crate::maps::Live;
use crate::maps::PrefixTrie;
use crate::maps::RealCells;
use crate::maps::RingStore;
use crate::maps::ServerIdStore;
use crate::maps::SourceRouteMaps;
use crate::maps::VipAddresses;
use crate::maps::VipCells;
use crate::maps::VoidFlows;
use crate::maps::fill_outer;
use crate::skel::katran::KatranMaps as KatranSkelMaps;
use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::nested::MapArray;
use crate::sys::object::numbered;
use crate::types::NextHops;

/// The flow tables that the host application fills.
pub(super) struct GlobalFlowMaps {
    /// By CPU number, ascending.
    pub(super) of_cpus: Vec<(u32, Typed<types::flow_key, u32>)>,
    pub(super) fallback: Typed<types::flow_key, u32>,
    /// The map in which the program looks up its CPU's table.
    pub(super) outer: MapArray,
}

/// A map with published usage, under its published name; its capacity is in the table of maps.
pub(super) struct UseRow {
    pub(super) map: &'static str,
    pub(super) label: &'static str,
    pub(super) entries: fn(&Katran, &FlowCount) -> io::Result<u64>,
}

macro_rules! handles {
    (
        // The names that the rows below use.
        $from:ident $config:ident $fixed:ident $inner:ident $rings:ident $grace:ident $global:ident
            $cells:ident $flows:ident $cpus:ident $tenure:ident;
        always {$(
            $(#[$about:meta])*
            $field:ident: $type:ty = $take:expr,
                $($name:literal is ($($fd:tt)+) $(shows $label:literal = $entries:tt)?),+;
        )+}
        of_features {$(
            $(#[$of_feature:meta])*
            $option:ident: $handle:ty, with $feature:ident = $make:expr,
                $($called:literal is ($($its_fd:tt)+) $(shows $its_label:literal = $its_entries:tt)?),+;
        )+}
        inside {$(
            $inside:literal shows $inside_label:literal = $inside_entries:tt;
        )+}
    ) => {
        /// The maps with published usage.
        pub(super) const USES: &[UseRow] = &[
            $($($(UseRow { map: $name, label: $label, entries: $entries },)?)+)+
            $($($(UseRow { map: $called, label: $its_label, entries: $its_entries },)?)+)+
            $(UseRow { map: $inside, label: $inside_label, entries: $inside_entries },)+
        ];

        pub(super) struct Maps {
            $($(#[$about])* pub(super) $field: $type,)+
            /// Only if each real has its own next hop.
            pub(super) next_hops: Option<Arc<HopCells>>,
            /// Only if more than packets and bytes is counted.
            pub(super) details: Option<Details>,
            pub(super) features: FeatureMaps,
        }

        impl Maps {
            pub(super) fn take(
                $from: &KatranSkelMaps<'_>,
                $config: &Config,
                $fixed: &Fixed,
                $inner: InnerTables,
            ) -> io::Result<Self> {
                let (outer, ring_size, vips) =
                    (own(&$from.rings)?, $config.ring_size, $config.max_vips.into());
                let $tenure = Arc::clone(&$inner.tenure);
                let tenure = Arc::clone(&$tenure);
                let $rings = match $inner.first_chunk {
                    Some(first) => RingStore::new(outer, first, ring_size, vips, tenure)?,
                    None => RingStore::resume(outer, ring_size, vips, tenure)?,
                };
                let $grace = $rings.grace_periods().clone();
                // The thread that removes void entries uses these, too.
                let $cells = Arc::new(VipCells::new(
                    own(&$from.data_vip_heads)?,
                    own(&$from.data_vip_infos)?,
                    $config.max_vips.into(),
                    $fixed.vip_hash.clone(),
                    $config.flow_tracking,
                    $config.counts_in_detail(),
                )?);
                let $flows = Arc::new(FlowTables {
                    of_cpus: $inner.flows,
                    fallback: FlowTable::new(
                        $config.flow_table,
                        FALLBACK_FLOWS,
                        own(&$from.fallback_flows)?,
                    )?,
                    outer: MapArray::new(own(&$from.flow_tables)?)?,
                });
                let $cpus = Arc::new(PerCpuArray::new(own(&$from.cpus)?)?);
                Ok(Self {
                    features: FeatureMaps::take($from, $config.features, $inner.global)?,
                    next_hops: next_hops($from, $config, &$grace)?,
                    details: details($from, $config)?,
                    $($field: $take,)+
                })
            }

            /// Every map that has a name, with that name; not the inner ones.
            pub(super) fn named(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
                let mut named = self.named_always();
                named.extend(self.features.named());
                named
            }

            /// Those that no reload makes or removes.
            pub(super) fn named_always(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
                let mut named = vec![$($(($name, self.$field $($fd)+),)+)+];
                if let Some(hops) = &self.next_hops {
                    named.extend(hops.named());
                }
                if let Some(details) = &self.details {
                    named.extend(details.named());
                }
                named
            }
        }

        /// The maps that only features have; none for those that are off.
        #[derive(Default)]
        pub(super) struct FeatureMaps {
            $($(#[$of_feature])* pub(super) $option: Option<$handle>,)+
        }

        impl FeatureMaps {
            /// Those of these features.
            pub(super) fn take(
                $from: &KatranSkelMaps<'_>,
                features: Features,
                $global: Vec<(u32, Typed<types::flow_key, u32>)>,
            ) -> io::Result<Self> {
                Ok(Self {
                    $($option: match features.contains(Features::$feature) {
                        true => Some($make),
                        false => None,
                    },)+
                })
            }

            /// These and the new ones; only `features` have any.
            pub(super) fn with(self, new: Self, features: Features) -> Self {
                Self {
                    $($option: new
                        .$option
                        .or(self.$option)
                        .filter(|_| features.contains(Features::$feature)),)+
                }
            }

            pub(super) fn named(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
                self.named_of(Features::all())
            }

            /// Those of these features that exist.
            pub(super) fn named_of(
                &self,
                features: Features,
            ) -> Vec<(&'static str, BorrowedFd<'_>)> {
                let mut named = Vec::new();
                $(if let Some(handle) = &self.$option
                    && features.contains(Features::$feature)
                {
                    named.extend([$(($called, handle $($its_fd)+)),+]);
                })+
                named
            }
        }
    };
}

handles! {
    from config fixed inner rings grace global cells flows cpus tenure;
    always {
        prefix_vips: Typed<types::vip_prefix_key, u32> = Typed::new(own(&from.prefix_vips)?)?,
            "prefix_vips" is (.as_fd()) shows "prefix_vips" = (|katran, _| Ok(prefix_vips(katran)));
        vip_addresses: VipAddresses =
            VipAddresses::new(Typed::new(own(&from.vip_addresses)?)?),
            "vip_addresses" is (.as_fd())
                shows "vip_addresses" = (|katran, _| Ok(katran.maps.vip_addresses.len() as u64));
        vip_cells: Arc<VipCells> = Arc::clone(&cells),
            ".data.vip_heads" is (.heads_fd()), ".data.vip_infos" is (.infos_fd())
                shows "vips" = (|katran, _| Ok(katran.table.vips().len() as u64 - prefix_vips(katran)));
        real_cells: RealCells = RealCells::new(own(&from.data_reals)?, config.max_reals.into())?,
            ".data.reals" is (.as_fd())
                shows "reals" = (|katran, _| Ok(katran.table.reals().len() as u64));
        rings: RingStore = rings, "rings" is (.outer().as_fd());
        live: Arc<Live> = Arc::new(Live::new(own(&from.data_live)?, Arc::clone(&tenure))?),
            ".data.live" is (.as_fd());
        cpus: Arc<PerCpuArray<types::cpu>> = Arc::clone(&cpus), "cpus" is (.as_fd());
        vip_counters: PerCpuArray<types::vip_counters> =
            PerCpuArray::new(own(&from.vip_counters)?)?,
            "vip_counters" is (.as_fd());
        real_counters: PerCpuArray<types::real_counters> =
            PerCpuArray::new(own(&from.real_counters)?)?,
            "real_counters" is (.as_fd());
        explanations: Typed<u32, types::explanation> = Typed::new(own(&from.explanations)?)?,
            "explanations" is (.as_fd());
        flows: Arc<FlowTables> = Arc::clone(&flows),
            "flow_tables" is (.outer.as_fd()), "fallback_flows" is (.fallback.as_fd())
                shows "fallback_flows" = (|_, flows| Ok(flows.of_shared()));
        /// The server-id tables; `live` selects the one that packets look into.
        server_ids: ServerIdStore = ServerIdStore::new(
                MapArray::new(own(&from.server_ids)?)?,
                grace.clone(),
                fixed.server_id_keys,
                config.max_server_ids,
            ),
            "server_ids" is (.as_fd())
                shows "server_ids" = (|katran, _| Ok(katran.maps.server_ids.len().into()));
        voids: VoidFlows = VoidFlows::new(
                Typed::new(own(&from.down_reals)?)?,
                config.max_reals.into(),
                cells,
                flows,
                cpus,
                tenure,
            )?,
            "down_reals" is (.as_fd())
                shows "down_reals" = (|katran, _| Ok(katran.maps.voids.pairs() as u64));
    }
    of_features {
        source_routes: SourceRouteMaps, with SOURCE_ROUTING = SourceRouteMaps {
                v4: Typed::new(own(&from.source_routes_v4)?)?,
                v6: Typed::new(own(&from.source_routes_v6)?)?,
            },
            "source_routes_v4" is (.v4.as_fd())
                shows "source_routes_v4" = (|katran, _| Ok(katran.source_routes.counts()[0] as u64)),
            "source_routes_v6" is (.v6.as_fd())
                shows "source_routes_v6" = (|katran, _| Ok(katran.source_routes.counts()[1] as u64));
        global_flows: GlobalFlowMaps, with GLOBAL_FLOW_TABLE = GlobalFlowMaps {
                of_cpus: global,
                fallback: Typed::new(own(&from.global_fallback)?)?,
                outer: MapArray::new(own(&from.global_flows)?)?,
            },
            "global_flows" is (.outer.as_fd()), "global_fallback" is (.fallback.as_fd());
        decap_destinations: Typed<types::decap_destination, u32>, with INLINE_DECAP =
            Typed::new(own(&from.decap_destinations)?)?,
            "decap_destinations" is (.as_fd())
                shows "decap_destinations" = (|katran, _| Ok(katran.decap.len() as u64));
        allowed_sources: PrefixTrie, with INLINE_DECAP = PrefixTrie::new(own(&from.allowed_sources)?)?,
            "allowed_sources" is (.as_fd());
        egress_sources: PrefixTrie, with INLINE_DECAP = PrefixTrie::new(own(&from.egress_sources)?)?,
            "egress_sources" is (.as_fd());
        events: MapHandle, with INTROSPECTION = numbered(|| MapHandle::try_from(&from.events))?,
            "events" is (.as_fd());
    }
    inside {
        "ring_chunk" shows "ring_chunk" = (|katran, _| Ok(katran.maps.rings.in_use().into()));
        "flows" shows "flows" = (|_, flows| Ok(flows.of_cpus()));
    }
}

/// VIPs whose address is a prefix.
fn prefix_vips(katran: &Katran) -> u64 {
    let vips = katran.table.vips();
    vips.filter(|(vip, _)| vip.is_prefix()).count() as u64
}

fn next_hops(
    from: &KatranSkelMaps<'_>,
    config: &Config,
    grace: &GracePeriods,
) -> io::Result<Option<Arc<HopCells>>> {
    if config.next_hops == NextHops::Gateway {
        return Ok(None);
    }
    let cells = HopCells::new(
        own(&from.data_hops)?,
        own(&from.data_ports)?,
        own(&from.devices)?,
        config.max_reals.into(),
        grace.clone(),
    )?;
    Ok(Some(Arc::new(cells)))
}

fn details(from: &KatranSkelMaps<'_>, config: &Config) -> io::Result<Option<Details>> {
    if !config.counts_in_detail() {
        return Ok(None);
    }
    let pairs = match config.max_vip_reals {
        0 => None,
        _ => Some(own(&from.vip_reals)?),
    };
    Details::new(own(&from.vip_details)?, pairs).map(Some)
}

impl FeatureMaps {
    /// Puts the inner tables into the outer ones, and load-time values into the others.
    pub(super) fn fill(&self, config: &Config) -> Result<()> {
        for (name, trie, prefixes) in [
            (
                "allowed_sources",
                &self.allowed_sources,
                &config.allow_sources,
            ),
            (
                "egress_sources",
                &self.egress_sources,
                &config.egress_sources,
            ),
        ] {
            let filled = trie.as_ref().map_or(Ok(()), |trie| trie.insert(prefixes));
            filled.map_err(|error| kernel_error("write prefixes into", name, error))?;
        }
        match &self.global_flows {
            Some(global) => fill_outer("global_flows", &global.outer, &global.of_cpus),
            None => Ok(()),
        }
    }
}

impl Maps {
    /// The inner maps: of each kind the number, and one of them.
    pub(super) fn inner(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let global = self.features.global_flows.iter();
        let global =
            global.flat_map(|global| global.of_cpus.iter().map(|(_, table)| table.as_fd()));
        let flows = self.flows.of_cpus.iter().map(|(_, table)| table.as_fd());
        let single = flows.chain(global).map(|map| (1, map));
        single
            .chain([self.rings.chunks()])
            .chain(self.server_ids.chunks())
    }

    /// The grace periods that callers have waited while maps were put into others, on a kernel that
    /// waits for each.
    pub(super) fn waits(&self) -> u64 {
        let global = self.features.global_flows.iter();
        let outer = [
            self.rings.outer(),
            &self.flows.outer,
            self.server_ids.outer(),
        ];
        let outer = outer.into_iter().chain(global.map(|global| &global.outer));
        outer.map(MapArray::waits).sum()
    }
}
