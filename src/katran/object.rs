//! The balancer's BPF object: opened, given its constants and map sizes, and loaded with the
//! programs that a configuration needs.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::MapType;
use libbpf_rs::OpenProgramMut;
use libbpf_rs::skel::OpenSkel;

use crate::attach::EntrySet;
use crate::config::Config;
use crate::config::Features;
use crate::config::Machine;
use crate::config::ticks;
use crate::error::Error;
use crate::error::Result;
use crate::kernel;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::kernel::map_error;
use crate::maps::FlowHashKeys;
use crate::maps::FlowTable;
use crate::maps::FlowTableShape;
use crate::maps::Live;
use crate::maps::ServerIdKeys;
use crate::maps::VipHash;
use crate::maps::planes_at;
use crate::ring::FlowHasher;
use crate::ring::RingSize;
use crate::skel::katran::DIGEST;
use crate::skel::katran::KatranSkel;
use crate::skel::katran::KatranSkelBuilder;
use crate::skel::katran::OpenKatranSkel;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Typed;
use crate::sys::object;
use crate::sys::object::Refused;
use crate::sys::object::into_io;
use crate::sys::tenure::Tenure;
use crate::types::Encapsulation;
use crate::types::NextHops;
use crate::types::OuterDontFragment;

/// A SYN follows its flow's entry if that was used so recently: connections do not begin again that
/// soon, and a forged SYN moves nothing.
const SYN_FOLLOWS: Duration = Duration::from_secs(5);

/// Values drawn at random or read from the machine at load, which survive reloads.
pub(super) struct Fixed {
    pub(super) hasher: FlowHasher,
    pub(super) flow_keys: FlowHashKeys,
    pub(super) vip_hash: VipHash,
    pub(super) server_id_keys: ServerIdKeys,
    /// The kernel's tick, which stamps flows.
    pub(super) tick: Duration,
    pub(super) possible_cpus: u32,
}

impl Fixed {
    /// The same for other settings: keeps the keys by which flows are recognised, where possible.
    pub(super) fn for_settings(&self, before: &Config, config: &Config) -> Result<Self> {
        let ring_size = RingSize::try_from(config.ring_size)?;
        let mut hasher = hasher(config, ring_size);
        if (before.hash_seed, before.ring_size) == (config.hash_seed, config.ring_size) {
            // Also with another `max_vips`, or all flows would move.
            hasher = hasher.with_seeds(self.hasher.seeds());
        }
        let max_vips = config.max_vips.into();
        let keys = self.vip_hash.keys();
        let vip_hash = VipHash::of(&keys, max_vips).map_or_else(|| VipHash::draw(max_vips), Ok);
        Ok(Self {
            hasher,
            flow_keys: self.flow_keys.clone(),
            vip_hash: vip_hash
                .map_err(|error| kernel_error("draw random keys for", "the VIP table", error))?,
            server_id_keys: self.server_id_keys,
            tick: self.tick,
            possible_cpus: self.possible_cpus,
        })
    }
}

/// The hash of flows with these settings.
pub(super) fn hasher(config: &Config, ring_size: RingSize) -> FlowHasher {
    let hasher = FlowHasher::new(config.max_vips.into(), ring_size);
    match config.hash_seed {
        None => hasher,
        Some(seed) => hasher.seeded(seed),
    }
}

/// A balancer's programs; a reload replaces them all at once.
pub(super) struct Programs {
    /// The attached one.
    pub(super) main: OwnedFd,
    pub(super) explainer: OwnedFd,
    /// A program that returns the kernel's clock in ticks.
    pub(super) clock: OwnedFd,
    /// The programs that the main one continues in. Held, because the kernel empties such an array
    /// once nothing has a descriptor of it.
    pub(super) special: OwnedFd,
    /// The constants they were loaded with; unknown for a version that kept none.
    pub(super) constants: Option<OwnedFd>,
    /// Where they read signs of life, if not where the current ones do: a replacement has other
    /// maps.
    pub(super) lives_by: Option<Arc<Live>>,
}

impl Programs {
    /// What an entry of a shared array needs.
    pub(super) fn entry_set(&self) -> EntrySet<'_> {
        EntrySet {
            main: self.main.as_fd(),
            special: self.special.as_fd(),
        }
    }
}

/// The inner tables, which are made before the object is loaded.
pub(super) struct InnerTables {
    /// `None`: they are in the maps shared with the replaced balancer.
    pub(super) first_chunk: Option<OwnedFd>,
    pub(super) flows: Vec<(u32, FlowTable)>,
    pub(super) global: Vec<(u32, Typed<types::flow_key, u32>)>,
    /// The time during which this process owns the balancer; a replacement shares it.
    pub(super) tenure: Arc<Tenure>,
}

impl InnerTables {
    /// One of each kind, as a template for the kernel.
    pub(super) fn first(&self) -> Inner<'_> {
        Inner {
            ring_chunk: self.first_chunk.as_ref().map(AsFd::as_fd),
            // At least one CPU forwards, so there is a table.
            flows: self.flows.first().map(|(_, table)| table.as_fd()),
            global: self.global.first().map(|(_, table)| table.as_fd()),
        }
    }
}

/// The object, before its settings are made.
pub(super) fn open_object(
    storage: &mut MaybeUninit<libbpf_rs::OpenObject>,
) -> Result<OpenKatranSkel<'_>> {
    kernel::open(KatranSkelBuilder::default(), storage)
}

/// Whether these programs are those of the object with these settings. The constants decide: one of
/// them is the object's digest, and they determine which programs are loaded, and how.
pub(super) fn are_of_object(
    programs: &Programs,
    open: &mut OpenKatranSkel<'_>,
    config: &Config,
    fixed: &Fixed,
) -> Result<bool> {
    set_constants(open, config, fixed)?;
    let Some(constants) = &programs.constants else {
        return Ok(false);
    };
    let theirs = map::first_value(constants.as_fd());
    let theirs = theirs.map_err(|error| kernel_error("read", "the constants", error))?;
    Ok(open.maps.rodata.initial_value() == Some(&theirs))
}

/// Takes over the maps, all of which exist, for programs loaded earlier.
pub(super) fn load_maps(mut open: OpenKatranSkel<'_>) -> Result<KatranSkel<'_>> {
    for mut program in open.open_object_mut().progs_mut() {
        program.set_autoload(false);
    }
    let failed = |error| kernel_error("open", "the maps", into_io(error));
    for map in [&mut open.maps.special_programs, &mut open.maps.rodata] {
        map.set_autocreate(false).map_err(failed)?;
    }
    // libbpf fills program arrays even if it does not make them.
    let special = &mut open.maps.special_programs;
    special.set_type(MapType::Array).map_err(failed)?;
    object::load(open, &[]).map_err(|refused| not_loaded(refused, 0))
}

/// Loads the object, whose map sizes are set, with the programs that `config` needs.
pub(super) fn load_object<'a>(
    mut open: OpenKatranSkel<'a>,
    config: &Config,
    fixed: &Fixed,
    needed: u64,
) -> Result<(Programs, KatranSkel<'a>)> {
    set_constants(&mut open, config, fixed)?;
    let mut flags = 0;
    if config.frags {
        flags |= libbpf_sys::BPF_F_XDP_HAS_FRAGS;
    }
    let full = needs_full(config);
    let progs = &mut open.progs;
    let programs: [(&'static str, &mut OpenProgramMut<'_>, bool); 12] = [
        ("katran", &mut progs.katran, !full),
        ("katran_explain", &mut progs.katran_explain, !full),
        ("katran_full", &mut progs.katran_full, full),
        ("katran_explain_full", &mut progs.katran_explain_full, full),
        ("katran_ids", &mut progs.katran_ids, true),
        ("katran_send", &mut progs.katran_send, true),
        ("katran_special", &mut progs.katran_special, true),
        (
            "katran_explain_special",
            &mut progs.katran_explain_special,
            true,
        ),
        ("katran_rare", &mut progs.katran_rare, true),
        ("katran_explain_rare", &mut progs.katran_explain_rare, true),
        ("katran_quic", &mut progs.katran_quic, true),
        ("ticks", &mut progs.ticks, true),
    ];
    let names = programs.map(|(name, program, wanted)| {
        program.set_flags(flags);
        program.set_autoload(wanted);
        name
    });
    let loaded = object::load(open, &names);
    let skel = loaded.map_err(|refused| not_loaded(refused, needed))?;
    let (main, explainer) = match full {
        false => (&skel.progs.katran, &skel.progs.katran_explain),
        true => (&skel.progs.katran_full, &skel.progs.katran_explain_full),
    };
    let programs = || -> io::Result<_> {
        Ok(Programs {
            lives_by: None,
            main: own(main)?,
            explainer: own(explainer)?,
            clock: own(&skel.progs.ticks)?,
            special: own(&skel.maps.special_programs)?,
            constants: Some(own(&skel.maps.rodata)?),
        })
    };
    let programs = programs().map_err(|error| kernel_error("open", "katran", error))?;
    Ok((programs, skel))
}

/// Whether the program must be the one with the rarely used parts.
fn needs_full(config: &Config) -> bool {
    let rare = Features::SOURCE_ROUTING
        | Features::INLINE_DECAP
        | Features::TCP_SERVER_ID
        | Features::INTROSPECTION;
    config.features.intersects(rare)
        || config.encapsulation != Encapsulation::Ipip
        || config.outer_dont_fragment != OuterDontFragment::Clear
        || config.next_hops != NextHops::Gateway
        || config.frags
        || !config.orphan_limit.is_zero()
}

/// The sets in each forwarding CPU's table, if it has sets.
pub(super) fn flow_sets(config: &Config) -> u32 {
    FlowTableShape::new(config.flow_table, config.flows_per_cpu).max_entries
}

/// Sets the maps' sizes from the table of maps; maps of features that are off are not made. Shared
/// maps need their lengths, too: libbpf maps data sections into memory, over whatever follows the
/// length that it knows. `inner` are the templates for new maps of maps.
pub(super) fn size_maps(
    open: &mut OpenKatranSkel<'_>,
    machine: &Machine<'_>,
    inner: &Inner<'_>,
) -> libbpf_rs::Result<()> {
    object::size_maps(open.open_object_mut(), |name| machine.size_of(name))?;
    let maps = &mut open.maps;
    for (map, table) in [
        (&mut maps.rings, inner.ring_chunk),
        (&mut maps.flow_tables, inner.flows),
        (&mut maps.global_flows, inner.global),
    ] {
        if let Some(table) = table {
            map.set_inner_map_fd(table)?;
        }
    }
    let shape = machine.fallback();
    let fallback = &mut maps.fallback_flows;
    fallback.set_type(shape.kind.into())?;
    fallback.set_key_size(shape.key_size)?;
    fallback.set_value_size(shape.value_size)?;
    fallback.set_map_flags(shape.flags)
}

/// One table of each kind that is inside a map of maps.
#[derive(Default)]
pub(super) struct Inner<'a> {
    pub(super) ring_chunk: Option<BorrowedFd<'a>>,
    pub(super) flows: Option<BorrowedFd<'a>>,
    pub(super) global: Option<BorrowedFd<'a>>,
}

/// Writes the constants that are drawn or read from the machine; the table of settings writes the
/// others.
fn set_constants(open: &mut OpenKatranSkel<'_>, config: &Config, fixed: &Fixed) -> Result<()> {
    let tick = fixed.tick;
    let constants = constants("katran", open.maps.rodata_data.as_deref_mut())?;
    let (seed, seed_v6) = fixed.hasher.seeds();
    config.write_constants(constants, tick);
    constants.ring_planes_at = planes_at(config.ring_size);
    constants.digest = DIGEST;
    constants.full = needs_full(config).into();
    constants.in_detail = config.counts_in_detail().into();
    constants.hash_seed = seed;
    constants.hash_seed_v6 = seed_v6;
    constants.ticks_per_second = ticks(Duration::from_secs(1), tick);
    constants.flow_sets = flow_sets(config);
    constants.flow_keys = fixed.flow_keys.keys();
    constants.syn_follows = ticks(SYN_FOLLOWS, tick);
    constants.vip_keys = fixed.vip_hash.keys();
    constants.vip_shift = fixed.vip_hash.shift();
    constants.server_id_key = fixed.server_id_keys.key;
    constants.server_id_start = fixed.server_id_keys.start;
    Ok(())
}

/// A duplicate descriptor, so that libbpf's object can go.
pub(super) fn own(of: &impl AsFd) -> io::Result<OwnedFd> {
    of.as_fd().try_clone_to_owned()
}

/// The error for an object that did not load, whose maps take so much memory.
fn not_loaded(refused: Refused, needed: u64) -> Error {
    let is_memory = refused.error.kind() == io::ErrorKind::OutOfMemory;
    match is_memory && refused.rejected.is_none() {
        true => map_error("unknown", needed, refused.error),
        false => load_error("katran", refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MapRow;

    /// A map without a row would keep its placeholder size.
    #[test]
    fn every_map_has_a_row() {
        let mut storage = MaybeUninit::uninit();
        let mut open = open_object(&mut storage).unwrap();
        let names: Vec<String> = open
            .open_object_mut()
            .maps_mut()
            .map(|map| map.name().to_string_lossy().into_owned())
            .collect();
        assert!(names.len() > 20, "{names:?}");
        // Constants have no size to set, and are named after the object.
        for name in names.iter().filter(|name| !name.ends_with(".rodata")) {
            assert!(MapRow::of(name).is_some(), "{name}");
        }
    }
}
