//! From checked settings to a program in the kernel.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use libbpf_rs::OpenMapMut;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;
use nix::libc;
use nix::time::ClockId;

use super::Katran;
use super::watch::Callbacks;
use crate::Builder;
use crate::Error;
use crate::Features;
use crate::FlowTableKind;
use crate::Result;
use crate::attach::Attachments;
use crate::config::Config;
use crate::config::FALLBACK_FLOWS;
use crate::config::ForwardingCpu;
use crate::config::estimate;
use crate::config::flow_table_bytes;
use crate::environment;
use crate::maps::FlowHashKeys;
use crate::maps::FlowTable;
use crate::maps::FlowTableShape;
use crate::maps::FlowTables;
use crate::maps::KernelCalls;
use crate::maps::Live;
use crate::maps::Maps;
use crate::maps::RealCells;
use crate::maps::RingStore;
use crate::maps::VipCells;
use crate::maps::VipHash;
use crate::maps::create_chunk;
use crate::maps::kernel_error;
use crate::maps::mask;
use crate::maps::max_chunks_in_surge;
use crate::maps::vip_table_bytes;
use crate::ring::FlowHasher;
use crate::ring::RingSize;
use crate::skel::katran::KatranSkelBuilder;
use crate::skel::katran::OpenKatranSkel;
use crate::skel::katran::types;
use crate::state::Table;
use crate::sys::map;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::map::set_inner;
use crate::sys::object::VerifierLog;

/// As how old a TCP flow starts in a set-associative table. In a flood of new flows it is they that
/// make room, while flows that send more often than this keep their entries.
const NEW_FLOW_AGE: Duration = Duration::from_secs(5);

/// Lines of the verifier's log that an error shows.
const LOG_LINES: usize = 30;

const _: () = {
    assert!(Features::ICMP_TOO_BIG.bits() == types::feature::FEATURE_ICMP_TOO_BIG.0);
    assert!(Features::LOCAL_DELIVERY.bits() == types::feature::FEATURE_LOCAL_DELIVERY.0);
};

impl Builder {
    /// Checks the configuration, then loads: the kernel's verifier runs here.
    ///
    /// Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] and [`Error::Unsupported`] for settings;
    /// [`Error::KernelTooOld`], [`Error::BpfUnavailable`], [`Error::Privilege`] and
    /// [`Error::InsufficientMemory`] for what the machine lacks; [`Error::Verifier`] if the
    /// kernel rejects the program; [`Error::Kernel`] for any other refusal. Nothing stays in the
    /// kernel then.
    pub fn load(self) -> Result<Katran> {
        let config = self.validate()?;
        environment::check_kernel()?;
        let cpus = map::possible_cpus()
            .map_err(|error| kernel_error("count the possible CPUs", "sysfs", error))?;
        let needed = estimate(&config, cpus as u64).at_load();
        if let Some(available) = environment::available_memory()
            && needed > available
        {
            return Err(Error::InsufficientMemory {
                what: "the maps together".to_owned(),
                needed,
                available,
            });
        }
        let ring_size = RingSize::try_from(config.ring_size)?;
        let hasher = FlowHasher::new(config.max_vips.into(), ring_size);

        let first_chunk = create_chunk(config.ring_size)
            .map_err(|error| map_error("ring_chunk", needed, error))?;
        let flow_tables = flow_tables(&config)?;
        let flow_keys = FlowHashKeys::draw()
            .map_err(|error| kernel_error("draw random keys for", "flow_tables", error))?;
        let vip_hash = VipHash::draw(config.max_vips.into())
            .map_err(|error| kernel_error("draw random keys for", "the VIP table", error))?;
        let tick = tick()?;
        let mut storage = MaybeUninit::uninit();
        let mut open = KatranSkelBuilder::default()
            .open(&mut storage)
            .map_err(|error| kernel_error("open", "the BPF object", into_io(error)))?;
        size_maps(&mut open, &config, cpus as u32, &first_chunk, &flow_tables)
            .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        set_constants(&mut open, &config, &hasher, &flow_keys, &vip_hash, tick)?;
        let mut flags = 0;
        if config.frags {
            flags |= libbpf_sys::BPF_F_XDP_HAS_FRAGS;
        }
        open.progs.katran.set_flags(flags);
        open.progs.katran_explain.set_flags(flags);
        let logs = [
            ("katran", VerifierLog::of(&mut open.progs.katran)),
            (
                "katran_explain",
                VerifierLog::of(&mut open.progs.katran_explain),
            ),
        ];
        open.progs.ticks.set_flags(flags);
        let loaded = open.load();
        let skel = loaded.map_err(|error| load_error(&logs, needed, into_io(error)))?;

        let from = &skel.maps;
        let maps = (|| {
            Ok(Maps {
                prefix_vips: Typed::new(own(&from.prefix_vips)?)?,
                vip_cells: VipCells::new(
                    own(&from.data_vip_heads)?,
                    own(&from.data_vip_infos)?,
                    config.max_vips.into(),
                    vip_hash,
                )?,
                real_cells: RealCells::new(own(&from.data_reals)?, config.max_reals.into())?,
                rings: RingStore::new(
                    own(&from.rings)?,
                    first_chunk,
                    config.ring_size,
                    config.max_vips.into(),
                )?,
                live: Live::new(own(&from.data_live)?)?,
                counters: PerCpuArray::new(own(&from.counters)?)?,
                vip_counters: PerCpuArray::new(own(&from.vip_counters)?)?,
                real_counters: PerCpuArray::new(own(&from.real_counters)?)?,
                explanations: Typed::new(own(&from.explanations)?)?,
                flows: FlowTables {
                    of_cpus: flow_tables,
                    fallback: FlowTable::new(
                        config.flow_table,
                        FALLBACK_FLOWS,
                        own(&from.fallback_flows)?,
                    )?,
                    outer: own(&from.flow_tables)?,
                },
            })
        })()
        .map_err(|error| kernel_error("take over", "the maps", error))?;
        let inner: Vec<_> = maps
            .flows
            .of_cpus
            .iter()
            .map(|(cpu, table)| (*cpu, table.as_fd()))
            .collect();
        set_inner(maps.flows.outer.as_fd(), &inner)
            .map_err(|error| kernel_error("put the flow tables into", "flow_tables", error))?;
        let program =
            own(&skel.progs.katran).map_err(|error| kernel_error("take over", "katran", error))?;
        let explainer = own(&skel.progs.katran_explain)
            .map_err(|error| kernel_error("take over", "katran_explain", error))?;
        let clock =
            own(&skel.progs.ticks).map_err(|error| kernel_error("take over", "ticks", error))?;
        let first_sets = flow_sets(&config).min(types::flow_table_constant::FIRST_SETS.0);
        let record = types::counters {
            active_sets: first_sets,
            set_mask: mask(first_sets),
            ..Default::default()
        };
        maps.counters
            .fill(0, record)
            .map_err(|error| kernel_error("write the first", "counters", error))?;
        maps.live.set_gateway_mac(config.gateway_mac);
        Ok(Katran {
            gateway_mac: config.gateway_mac,
            table: Table::new(config.max_vips, config.max_reals),
            hasher,
            ring_size,
            rings: vec![None; config.max_vips.into()],
            given_back: VecDeque::new(),
            attachments: Attachments::default(),
            maps,
            program,
            explainer,
            clock,
            tick,
            flow_keys,
            explaining: Mutex::new(()),
            kernel: KernelCalls::default(),
            rejected_addresses: AtomicU64::new(0),
            watch: None,
            callbacks: Callbacks::default(),
            config,
        })
    }
}

/// The kernel's tick, by which flows are stamped: the resolution of its coarse clocks.
fn tick() -> Result<Duration> {
    let tick = ClockId::CLOCK_MONOTONIC_COARSE
        .res()
        .map(Duration::from)
        .map_err(io::Error::from)
        .and_then(|tick| match tick.is_zero() {
            true => Err(io::Error::other("a tick of no length")),
            false => Ok(tick),
        });
    tick.map_err(|error| kernel_error("read the resolution of", "the coarse clock", error))
}

/// `time` in ticks, at least so long.
pub(super) fn ticks(time: Duration, tick: Duration) -> u32 {
    let ticks = time.as_nanos().div_ceil(tick.as_nanos());
    // A day, the longest time there is, of ticks of a microsecond would not fit; a tick is 1 to
    // 10 ms.
    u32::try_from(ticks).unwrap_or(u32::MAX / 2)
}

/// Sets of each forwarding CPU's table, if it has sets.
fn flow_sets(config: &Config) -> u32 {
    FlowTableShape::new(config.flow_table, config.flows_per_cpu).max_entries
}

/// One table per forwarding CPU, on that CPU's node.
fn flow_tables(config: &Config) -> Result<Vec<(u32, FlowTable)>> {
    let (kind, flows) = (config.flow_table, config.flows_per_cpu);
    let table = |place: &ForwardingCpu| {
        let table = FlowTable::create(kind, flows, place.numa_node)
            .map_err(|error| map_error("flows", flow_table_bytes(kind, flows), error))?;
        Ok((place.cpu, table))
    };
    config.forwarding_cpus.iter().map(table).collect()
}

fn size_maps(
    open: &mut OpenKatranSkel<'_>,
    config: &Config,
    cpus: u32,
    chunk: &OwnedFd,
    flow_tables: &[(u32, FlowTable)],
) -> libbpf_rs::Result<()> {
    let maps = &mut open.maps;
    let vips = u32::from(config.max_vips);
    let reals = u32::from(config.max_reals) + 1;
    let sizes: [(&mut OpenMapMut<'_>, u32); 5] = [
        (&mut maps.prefix_vips, vips),
        (&mut maps.vip_counters, vips),
        (&mut maps.real_counters, reals),
        (&mut maps.rings, max_chunks_in_surge(vips)),
        (&mut maps.flow_tables, cpus),
    ];
    for (map, entries) in sizes {
        map.set_max_entries(entries)?;
    }
    let [vip_heads, vip_infos] = vip_table_bytes(vips);
    maps.data_vip_heads.set_value_size(vip_heads)?;
    maps.data_vip_infos.set_value_size(vip_infos)?;
    maps.data_reals
        .set_value_size(reals * size_of::<types::real>() as u32)?;
    maps.rings.set_inner_map_fd(chunk.as_fd())?;
    // At least one CPU forwards, so there is a table to show the kernel.
    if let Some((_, table)) = flow_tables.first() {
        maps.flow_tables.set_inner_map_fd(table.as_fd())?;
    }
    let shape = FlowTableShape::new(config.flow_table, FALLBACK_FLOWS);
    let fallback = &mut maps.fallback_flows;
    fallback.set_type(shape.kind.into())?;
    fallback.set_key_size(shape.key_size)?;
    fallback.set_value_size(shape.value_size)?;
    fallback.set_max_entries(shape.max_entries)?;
    fallback.set_map_flags(shape.flags)
}

fn set_constants(
    open: &mut OpenKatranSkel<'_>,
    config: &Config,
    hasher: &FlowHasher,
    flow_keys: &FlowHashKeys,
    vip_hash: &VipHash,
    tick: Duration,
) -> Result<()> {
    let Some(constants) = open.maps.rodata_data.as_deref_mut() else {
        return Err(Error::Unsupported {
            what: "the BPF object without constants".to_owned(),
            reason: "it was not built by this crate's build script",
        });
    };
    let (seed, seed_v6) = hasher.seeds();
    constants.features = config.features.bits();
    constants.max_frame = config.max_frame;
    constants.ring_size = config.ring_size;
    constants.hash_seed = seed;
    constants.hash_seed_v6 = seed_v6;
    constants.ticks_per_second = ticks(Duration::from_secs(1), tick);
    constants.udp_timeout = ticks(config.udp_timeout, tick);
    constants.flow_table_kind = match config.flow_table {
        FlowTableKind::SetAssociative => types::flow_table_constant::FLOW_TABLE_SETS.0,
        FlowTableKind::KernelLru => types::flow_table_constant::FLOW_TABLE_LRU.0,
    };
    constants.flow_sets = flow_sets(config);
    constants.flow_keys = flow_keys.keys();
    constants.new_flow_age = ticks(NEW_FLOW_AGE, tick);
    constants.max_vips = config.max_vips.into();
    constants.max_reals = config.max_reals.into();
    constants.vip_keys = vip_hash.keys();
    constants.vip_shift = vip_hash.shift();
    constants.flood_threshold = config.flood_threshold.into();
    let [a, b, ..] = config.ipip_source_v4.octets();
    constants.ipip_source_v4 = u16::from_ne_bytes([a, b]);
    let source_v6 = config.ipip_source_v6.octets();
    for (word, bytes) in constants.ipip_source_v6.iter_mut().zip(source_v6.chunks(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    constants.frags = config.frags.into();
    Ok(())
}

/// A descriptor of our own, so that libbpf's object can go.
fn own(of: &impl AsFd) -> io::Result<OwnedFd> {
    of.as_fd().try_clone_to_owned()
}

/// The errno of a libbpf-rs error. It keeps the `io::Error` to itself, also as a source, and tells
/// only some kinds apart; its text, however, is that of the `io::Error`, which names the errno.
pub(crate) fn into_io(error: libbpf_rs::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(errno) = errno_in(&inner.to_string()) {
            return io::Error::from_raw_os_error(errno);
        }
        source = inner.source();
    }
    io::Error::other(error.to_string())
}

/// The number in `... (os error 12)`.
fn errno_in(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.strip_suffix(')')?.parse().ok()
}

/// The error for a map that the kernel refused to make.
fn map_error(name: &str, needed: u64, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::E2BIG) => Error::InsufficientMemory {
            what: format!("map {name}"),
            needed,
            available: environment::available_memory().unwrap_or(0),
        },
        _ => kernel_error("make the map", name, error),
    }
}

/// The error for an object that did not load: a program's log says whether it was the verifier.
fn load_error(logs: &[(&'static str, VerifierLog)], needed: u64, error: io::Error) -> Error {
    let rejected = logs
        .iter()
        .map(|(program, log)| (*program, log.tail(LOG_LINES)))
        .find(|(_, log)| !log.is_empty());
    match rejected {
        Some((program, log)) if !environment::is_unprivileged(&error) => Error::Verifier {
            program,
            log,
            errno: error,
        },
        _ if error.raw_os_error() == Some(libc::ENOMEM) => map_error("unknown", needed, error),
        _ => kernel_error("load", "katran", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_survives_libbpf_rs() {
        use libbpf_rs::ErrorExt;
        for errno in [
            libc::EPERM,
            libc::ENOSYS,
            libc::ENOMEM,
            libc::EBUSY,
            libc::ENOSPC,
        ] {
            let error = libbpf_rs::Error::from_raw_os_error(errno);
            assert_eq!(into_io(error).raw_os_error(), Some(errno));
            let error = libbpf_rs::Error::from_raw_os_error(errno).context("while (os error)");
            assert_eq!(into_io(error).raw_os_error(), Some(errno));
        }
        let error = libbpf_rs::Error::from(io::Error::other("no number"));
        assert_eq!(into_io(error).raw_os_error(), None);
    }
}
