//! Loading: from checked settings to a program in the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::skel::OpenSkel;
use nix::time::ClockId;

use super::Katran;
use super::handles::Maps;
use super::object::Fixed;
use super::object::InnerTables;
use super::object::flow_sets;
use super::object::hasher;
use super::object::load_object;
use super::object::open_object;
use super::object::size_maps;
use crate::config::Builder;
use crate::config::Config;
use crate::config::Features;
use crate::config::ForwardingCpu;
use crate::config::Machine;
use crate::config::estimate;
use crate::config::flow_table_bytes;
use crate::config::global_table_bytes;
use crate::environment;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::kernel::kernel_error;
use crate::kernel::map_error;
use crate::kernel::out_of_memory;
use crate::maps::FlowHashKeys;
use crate::maps::FlowTable;
use crate::maps::ServerIdKeys;
use crate::maps::VipHash;
use crate::maps::create_chunk;
use crate::maps::fill_outer;
use crate::maps::mask;
use crate::pins::Home;
use crate::pins::Tenant;
use crate::ring::RingSize;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Typed;
use crate::sys::object::into_io;
use crate::sys::object::numbered;

/// # Loading
impl Katran {
    /// Starts with all settings at their defaults; [`Builder::load`] loads them.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

/// # Loading
impl Builder {
    /// Checks the settings, then loads program and maps: this runs the kernel's verifier.
    ///
    /// It needs no interface and attaches nothing. It blocks for one to four seconds, nearly all of
    /// it in the verifier, whatever the settings.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) and
    /// [`Error::Unsupported`](crate::Error::Unsupported) for settings;
    /// [`Error::KernelTooOld`](crate::Error::KernelTooOld),
    /// [`Error::BpfUnavailable`](crate::Error::BpfUnavailable),
    /// [`Error::Privilege`](crate::Error::Privilege) and
    /// [`Error::InsufficientMemory`](crate::Error::InsufficientMemory) for what the machine lacks;
    /// [`Error::Verifier`](crate::Error::Verifier) if the kernel rejects the program;
    /// [`Error::Exhausted`](crate::Error::Exhausted) if the process has no descriptors left;
    /// [`Error::Kernel`](crate::Error::Kernel) for any other refusal.
    ///
    /// With [`pin`](Self::pin) also [`Error::AlreadyExists`](crate::Error::AlreadyExists) if a
    /// balancer is pinned in the directory (see [`adopt`](Self::adopt));
    /// [`Error::Busy`](crate::Error::Busy) if another process uses the directory;
    /// [`Error::File`](crate::Error::File) if the directory cannot be made, examined or locked; and
    /// [`Error::Exhausted`](crate::Error::Exhausted) if the process already has 64 pinned
    /// balancers.
    ///
    /// After an error nothing stays in the kernel, and no new directory.
    pub fn load(self) -> Result<Katran> {
        let directory = self.pin_directory();
        let config = self.validate()?;
        Self::check_place(&config, directory.as_deref())?;
        environment::check_kernel()?;
        environment::check_facilities()?;
        let cpus = map::possible_cpus()
            .map_err(|error| kernel_error("count the possible CPUs in", "sysfs", error))?;
        let needed = check_memory(&config, cpus as u64)?;
        let home = directory
            .map(|path| Home::claim(&path, Tenant::Balancer))
            .transpose()?;
        let loaded = load(config, cpus, needed);
        match (loaded, home) {
            (Ok(mut katran), Some(home)) => katran.settle_in(home).map(|()| katran),
            (Err(error), Some(home)) => {
                home.give_up();
                Err(error)
            }
            (loaded, None) => loaded,
        }
    }
}

fn load(config: Config, cpus: usize, needed: u64) -> Result<Katran> {
    let ring_size = RingSize::try_from(config.ring_size)?;
    let fixed = Fixed {
        hasher: hasher(&config, ring_size),
        flow_keys: FlowHashKeys::draw()
            .map_err(|error| kernel_error("draw random keys for", "flow_tables", error))?,
        vip_hash: VipHash::draw(config.max_vips.into())
            .map_err(|error| kernel_error("draw random keys for", "the VIP table", error))?,
        server_id_keys: ServerIdKeys::draw()
            .map_err(|error| kernel_error("draw random keys for", "server_ids", error))?,
        tick: tick()?,
        possible_cpus: cpus as u32,
    };
    let inner = InnerTables {
        first_chunk: create_chunk(config.ring_size)
            .map(Some)
            .map_err(|error| map_error("ring_chunk", needed, error))?,
        flows: flow_tables(&config)?,
        global: global_tables(&config)?,
        tenure: Arc::default(),
    };
    let healthchecks = match config.healthcheck_interface {
        Some(_) => Some(HealthChecks::load(&Machine {
            config: &config,
            cpus: fixed.possible_cpus,
        })?),
        None => None,
    };
    let mut katran = assemble(config, fixed, inner, needed, &Taken::default())?;
    katran.put_healthchecks(healthchecks);
    Ok(katran)
}

/// What a replacement shares with the balancer it replaces.
#[derive(Default)]
pub(super) struct Taken<'a> {
    /// Maps that both use.
    pub(super) maps: Vec<(&'static str, BorrowedFd<'a>)>,
    /// The sets of each flow table that are in use from the start; `None`: only the first ones.
    pub(super) sets: Option<u32>,
}

/// Loads programs and makes or shares maps, without a health-check path.
pub(super) fn assemble(
    config: Config,
    fixed: Fixed,
    inner: InnerTables,
    needed: u64,
    taken: &Taken<'_>,
) -> Result<Katran> {
    let ring_size = RingSize::try_from(config.ring_size)?;
    let mut storage = MaybeUninit::uninit();
    let mut open = open_object(&mut storage)?;
    let machine = Machine {
        config: &config,
        cpus: fixed.possible_cpus,
    };
    size_maps(&mut open, &machine, &inner.first())
        .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let mut maps = taken.maps.iter();
        if let Some((_, fd)) = maps.find(|(of, _)| *of == name)
            && map.autocreate()
        {
            numbered(|| map.reuse_fd(*fd))
                .map_err(|error| kernel_error("reuse the map", &name, error))?;
        }
    }
    let (programs, skel) = load_object(open, &config, &fixed, needed)?;
    let maps = Maps::take(&skel.maps, &config, &fixed, inner)
        .map_err(|error| kernel_error("open", "the maps", error))?;
    let is_new = |name: &str| taken.maps.iter().all(|(of, _)| *of != name);
    if is_new("flow_tables") {
        fill_outer("flow_tables", &maps.flows.outer, &maps.flows.of_cpus)?;
    }
    maps.features.fill(&config)?;
    if is_new("cpus") {
        let first = types::flow_table_constant::FIRST_SETS.0;
        let sets = flow_sets(&config).min(taken.sets.unwrap_or(first));
        let record = types::cpu {
            sets: types::active_sets {
                count: sets,
                mask: mask(sets),
            },
            ..Default::default()
        };
        maps.cpus
            .fill(0, record)
            .map_err(|error| kernel_error("write the first entry of", "cpus", error))?;
    }
    maps.live
        .set_own_addresses(config.source_v4, config.source_v6);
    Ok(Katran::new(config, fixed, ring_size, programs, maps, None))
}

/// The same for a replacement of `before`: counts only what is not shared.
pub(super) fn check_memory_for(config: &Config, before: &Config, cpus: u64) -> Result<u64> {
    let needed = estimate(config, cpus).at_load();
    let needed = needed.saturating_sub(estimate(before, cpus).at_load());
    available_or(needed)
}

/// Checks that there is memory for the new maps; returns the bytes needed.
fn check_memory(config: &Config, cpus: u64) -> Result<u64> {
    available_or(estimate(config, cpus).at_load())
}

pub(super) fn available_or(needed: u64) -> Result<u64> {
    match environment::available_memory() {
        Some(available) if needed > available.bytes => Err(out_of_memory(
            "the maps together".to_owned(),
            needed,
            &available,
        )),
        _ => Ok(needed),
    }
}

/// The kernel's tick, the resolution of its coarse clocks, which stamps flows.
pub(super) fn tick() -> Result<Duration> {
    let tick = ClockId::CLOCK_MONOTONIC_COARSE
        .res()
        .map(Duration::from)
        .map_err(io::Error::from)
        .and_then(|tick| match tick.is_zero() {
            true => Err(io::Error::other("a tick of zero length")),
            false => Ok(tick),
        });
    tick.map_err(|error| kernel_error("read the resolution of", "the coarse clock", error))
}

/// One table per forwarding CPU, on that CPU's node.
pub(super) fn flow_tables(config: &Config) -> Result<Vec<(u32, FlowTable)>> {
    let placement = config.placement.iter();
    placement.map(|place| flow_table(config, place)).collect()
}

pub(super) fn flow_table(config: &Config, place: &ForwardingCpu) -> Result<(u32, FlowTable)> {
    let (kind, flows) = (config.flow_table, config.flows_per_cpu);
    let table = FlowTable::create(kind, flows, place.numa_node)
        .map_err(|error| map_error("flows", flow_table_bytes(kind, flows), error))?;
    Ok((place.cpu, table))
}

/// One table per forwarding CPU for the host application to fill, if the feature is on.
pub(super) fn global_tables(config: &Config) -> Result<Vec<(u32, Typed<types::flow_key, u32>)>> {
    if !config.features.contains(Features::GLOBAL_FLOW_TABLE) {
        return Ok(Vec::new());
    }
    let placement = config.placement.iter();
    placement.map(|place| global_table(config, place)).collect()
}

pub(super) fn global_table(
    config: &Config,
    place: &ForwardingCpu,
) -> Result<(u32, Typed<types::flow_key, u32>)> {
    let flows = config.global_flow_table_size;
    let map = map::create(&map::Spec {
        kind: libbpf_sys::BPF_MAP_TYPE_LRU_HASH,
        name: "global_flows",
        key_size: size_of::<types::flow_key>() as u32,
        value_size: size_of::<u32>() as u32,
        max_entries: flows,
        flags: 0,
        numa_node: place.numa_node,
    });
    let table = map
        .and_then(Typed::new)
        .map_err(|error| map_error("global_flows", global_table_bytes(flows), error))?;
    Ok((place.cpu, table))
}
