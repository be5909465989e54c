//! Adoption: continuing with a pinned balancer of another process. Programs of this version replace
//! the attached ones, over the same maps; the library's records come from the ledger and from what
//! packets see.

mod pulse;
mod relaid;

use std::collections::BTreeMap;
use std::mem;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::skel::OpenSkel;
use pulse::Pulse;

use super::Katran;
use super::handles::FeatureMaps;
use super::handles::Maps;
use super::load::tick;
use super::object::Fixed;
use super::object::Inner;
use super::object::InnerTables;
use super::object::Programs;
use super::object::are_of_object;
use super::object::load_maps;
use super::object::load_object;
use super::object::open_object;
use super::object::size_maps;
use super::repair::CutOff;
use super::repair::spoiled;
use super::still_attached::LostEntry;
use crate::config::Builder;
use crate::config::Config;
use crate::config::Features;
use crate::config::Machine;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::kernel::kernel_error;
use crate::ledger::Kept;
use crate::ledger::Ledger;
use crate::maps::Entries;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTable;
use crate::maps::FlowTables;
use crate::maps::VoidReason;
use crate::maps::real_id;
use crate::pins::Contents;
use crate::pins::Home;
use crate::pins::PinnedSet;
use crate::pins::SPECIAL;
use crate::pins::Tenant;
use crate::pins::remove_if_there;
use crate::ring::RingSize;
use crate::sys::map;
use crate::sys::map::Typed;
use crate::sys::nested::MapArray;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::types::NextHops;

/// Maps that the object makes and no handle keeps, unless each real has its own next hop.
const HOPS: [&str; 3] = [".data.hops", ".data.ports", "devices"];

/// How the handle of a pinned balancer began.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// By adoption of an existing balancer.
    Adopted {
        /// The time since it was loaded.
        age: Duration,
        /// The version of the crate that made its maps. If their layout was another than this
        /// version's, they have been replaced.
        by_version: String,
    },
    /// By loading, because nothing was pinned.
    Loaded,
}

/// # Adopting a pinned balancer
impl Builder {
    /// Continues with the balancer that is pinned in the directory of [`pin`](Self::pin), whose
    /// process is gone or [lets go](Self::take_over).
    ///
    /// The balancer keeps its own settings (this builder's do not apply), VIPs, reals, flow tables
    /// and counters. If its programs are not those of this version, the library replaces them
    /// between two packets, which takes the verifier about a second. Links stay.
    ///
    /// The library attaches again what was lost (a removed interface or root program), if the
    /// calling thread's network namespace has one of that name. Otherwise the log and
    /// [`Katran::interfaces`] report it, and [`Katran::reattach`] attaches it later.
    ///
    /// If another version of the crate, newer or older, left maps of another layout, the library
    /// replaces them under traffic, as [`Katran::apply`] does for load-time settings. All state and
    /// attachments stay; flow tables, ring histories and counters each stay if their own layout is
    /// the same, and the log reports what does not. If the gateway must be discovered again and
    /// does not answer within three seconds, packets are dropped until it does; the log reports
    /// that, too.
    ///
    /// Opening maps inside other maps takes `CAP_SYS_ADMIN`.
    ///
    /// It blocks for some 30 ms with one VIP and 100 ms with 512, plus the time that an owner takes
    /// to let go. Another layout takes as long as [`load`](Self::load).
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no complete balancer, or one of its pins was removed (if
    /// that is the record of its state, no owner was asked to let go); [`Error::InvalidConfig`] if
    /// that pin was `identity`; [`Error::Busy`]; [`Error::ForeignProgram`] if its link holds
    /// another program; [`Error::Unsupported`] if another version of the crate uses a layout of the
    /// directory or of its records that this one cannot read (the message says which version, and
    /// what to do; no owner was asked to let go); otherwise as [`load`](Self::load). The pinned
    /// balancer keeps working.
    pub fn adopt(self) -> Result<Katran> {
        let directory = self.directory_to_adopt()?;
        let adopted = adopt_whole(&directory, self.take_over_patience())?;
        adopted
            .map(|(katran, _)| katran)
            .ok_or_else(|| Error::NotFound {
                what: format!("a complete balancer in {}", directory.display()),
            })
    }

    /// [Adopts](Self::adopt) the pinned balancer, or [loads](Self::load) one if there is none,
    /// after removing any incomplete one.
    ///
    /// # Errors
    /// Those of both.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use katran::Katran;
    /// use katran::XdpMode;
    ///
    /// let (mut katran, _) = Katran::builder()
    ///     .gateway_mac("0a:00:00:00:00:fe".parse()?) // for a new balancer
    ///     .pin("/sys/fs/bpf/katran")
    ///     .take_over(Duration::from_secs(5))
    ///     .adopt_or_load()?;
    /// if katran.interfaces().is_empty() {
    ///     katran.attach("eth0", XdpMode::Auto)?;
    /// }
    /// # Ok::<(), katran::Error>(())
    /// ```
    pub fn adopt_or_load(self) -> Result<(Katran, Start)> {
        let directory = self.directory_to_adopt()?;
        if let Some((katran, start)) = adopt_whole(&directory, self.take_over_patience())? {
            return Ok((katran, start));
        }
        remove_if_there(&directory)?;
        self.load().map(|katran| (katran, Start::Loaded))
    }

    fn directory_to_adopt(&self) -> Result<PathBuf> {
        self.pin_directory().ok_or_else(|| Error::InvalidConfig {
            setting: "pin",
            value: "(none)".to_owned(),
            reason: "set the directory of the balancer to adopt".to_owned(),
        })
    }
}

/// Continues with what is pinned in a directory; `None`: there is no complete balancer.
fn adopt_whole(directory: &Path, patience: Option<Duration>) -> Result<Option<(Katran, Start)>> {
    environment::check_kernel()?;
    environment::check_facilities()?;
    let Some((home, age, contents)) = Home::whole(directory, Tenant::Balancer, patience)? else {
        return Ok(None);
    };
    let by_version = contents.version();
    let katran = adopt(home, &contents)?;
    katran.forget_counters()?;
    katran.home.iter().for_each(Home::note_version);
    Ok(Some((katran, Start::Adopted { age, by_version })))
}

fn unsupported(home: &Home, why: String, reason: &'static str) -> Error {
    Error::Unsupported {
        what: format!("adopting the balancer in {}: {why}", home.path().display()),
        reason,
    }
}

fn adopt(home: Home, contents: &Contents) -> Result<Katran> {
    environment::check_opens_by_number("adopt a pinned balancer")?;
    let failed = |error| kernel_error("open", "the ledger", error);
    let ground = home
        .set()
        .ground()
        .map_err(failed)?
        .ok_or_else(|| home.set().missing("ledger"))?;
    let (ledger, replayed) = Ledger::read(ground)
        .map_err(|refused| home.set().unreadable(contents, &refused.to_string()))?;
    let pulse = Pulse::start(&home, &replayed.kept.config)?;
    if !contents.is_known() {
        return relaid::adopt(home, contents, ledger, replayed, pulse);
    }
    let mut kept = replayed.kept;
    let cut_off = replayed
        .under_way
        .map(|intent| CutOff::give_up(&mut kept, intent))
        .transpose()
        .map_err(spoiled)?;
    let (mut katran, programs) = open(&home, &kept)?;
    home.keep_tenure(katran.maps.live.tenure());
    let lost = katran.resume(&home, kept, cut_off)?;
    katran.go_on(ledger);
    katran.note_undone(true);
    if let Some(checks) = &mut katran.healthchecks {
        checks.keep_in(home.attached());
    }
    katran.home = Some(home);
    match programs {
        Some(programs) => katran.put_new_in_place(programs)?,
        None => katran.put_back_in_place()?,
    }
    katran.end_replacement()?;
    katran.note_attached();
    if let Some(before) = replayed.before {
        katran.undo_group(&before);
    }
    // First, because attaching may wait seconds for a gateway.
    katran.keep_house()?;
    drop(pulse);
    katran.put_back_what_is_gone(lost);
    Ok(katran)
}

/// All objects of the balancer with the attached programs; and the programs of this version, if
/// they differ.
fn open(home: &Home, kept: &Kept) -> Result<(Katran, Option<Programs>)> {
    let config = kept.config.clone();
    let cpus = map::possible_cpus()
        .map_err(|error| kernel_error("count the possible CPUs in", "sysfs", error))?;
    let fixed = Fixed::restored(&kept.drawn, &config, tick()?, cpus as u32)
        .map_err(|why| unsupported(home, why.to_owned(), "remove it and load it again"))?;
    let set = home.set();
    let programs = Programs::pinned_in(&set)?;
    let inner = inner_tables(&set, &config)?;
    let machine = Machine {
        config: &config,
        cpus: fixed.possible_cpus,
    };
    let mut storage = MaybeUninit::uninit();
    let mut object = open_object(&mut storage)?;
    size_maps(&mut object, &machine, &Inner::default())
        .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
    for mut map in object.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        // Those of the new programs, and those that no handle keeps.
        let is_new = name == SPECIAL
            || name.ends_with(".rodata")
            || HOPS.contains(&name.as_str()) && config.next_hops == NextHops::Gateway;
        if !map.autocreate() || is_new {
            continue;
        }
        let fd = set.map(&name)?;
        numbered(|| map.reuse_fd(fd.as_fd()))
            .map_err(|error| kernel_error("reuse the map", &name, error))?;
    }
    let (new, skel) = match are_of_object(&programs, &mut object, &config, &fixed)? {
        true => (None, load_maps(object)?),
        false => {
            let (new, skel) = load_object(object, &config, &fixed, 0)?;
            (Some(new), skel)
        }
    };
    let maps = Maps::take(&skel.maps, &config, &fixed, inner)
        .map_err(|error| kernel_error("open", "the maps", error))?;
    // Without a configured interface the path exists only if it was needed.
    let healthchecks = set
        .probe()?
        .map(|program| HealthChecks::resume(&machine, program, |name| set.probe_map(name)));
    let healthchecks = healthchecks.transpose()?;
    if healthchecks.is_none() && config.healthcheck_interface.is_some() {
        return Err(set.missing("healthcheck"));
    }
    let ring_size = RingSize::try_from(config.ring_size)?;
    // A new balancer begins with the value for no interface.
    let longest = maps.live.max_frame();
    let katran = Katran::new(config, fixed, ring_size, programs, maps, healthchecks);
    katran.maps.live.set_max_frame(longest);
    Ok((katran, new))
}

/// The tables inside other maps.
pub(super) fn inner_tables(set: &PinnedSet, config: &Config) -> Result<InnerTables> {
    let of = |name: &'static str| -> Result<Vec<(u32, OwnedFd)>> {
        let outer = MapArray::new(set.map(name)?);
        let outer = outer.map_err(|error| kernel_error("open", name, error))?;
        let tables = config.placement.iter().map(|place| {
            let table = outer.open_at(place.cpu);
            let table = table.map_err(|error| kernel_error("open an inner map of", name, error))?;
            let missing = || Error::NotFound {
                what: format!("the table of CPU {} in {name}", place.cpu),
            };
            Ok((place.cpu, table.ok_or_else(missing)?))
        });
        tables.collect()
    };
    let failed = |error| kernel_error("open", "flows", error);
    let flows = of("flow_tables")?.into_iter().map(|(cpu, map)| {
        let table = FlowTable::new(config.flow_table, config.flows_per_cpu, map);
        Ok((cpu, table.map_err(failed)?))
    });
    let global = match config.features.contains(Features::GLOBAL_FLOW_TABLE) {
        true => of("global_flows")?,
        false => Vec::new(),
    };
    let global = global
        .into_iter()
        .map(|(cpu, map)| Ok((cpu, Typed::new(map).map_err(failed)?)));
    Ok(InnerTables {
        first_chunk: None,
        flows: flows.collect::<Result<_>>()?,
        global: global.collect::<Result<_>>()?,
        tenure: Arc::default(),
    })
}

pub(super) fn flow_tables_in(set: &PinnedSet, config: &Config) -> Result<FlowTables> {
    let failed = |error| kernel_error("open", "flow tables", error);
    let fallback = set.map("fallback_flows")?;
    let fallback = FlowTable::new(config.flow_table, FALLBACK_FLOWS, fallback);
    let outer = MapArray::new(set.map("flow_tables")?);
    Ok(FlowTables {
        of_cpus: inner_tables(set, config)?.flows,
        fallback: fallback.map_err(failed)?,
        outer: outer.map_err(failed)?,
    })
}

impl Katran {
    /// Restores what the ledger has kept and what packets see; returns the entries that are lost.
    fn resume(
        &mut self,
        home: &Home,
        kept: Kept,
        cut_off: Option<CutOff>,
    ) -> Result<Vec<LostEntry>> {
        let failed = |error| kernel_error("open", "server_ids", error);
        self.maps
            .server_ids
            .resume(&self.maps.live)
            .map_err(failed)?;
        let small = self.take_kept(kept);
        let reals = self.table.reals();
        self.links
            .count_reals(reals.filter(|(address, _)| address.is_ipv6()).count(), 0);
        self.resume_rings()?;
        self.resume_voids()?;
        let lost = self.resume_attachments(home)?;
        if let Some(checks) = &mut self.healthchecks {
            checks.restore(&self.kernel, small.marks, small.matches, small.probes)?;
        }
        if let Some(cut_off) = cut_off {
            self.repair(cut_off)?;
        }
        // No monitor reads events yet.
        self.maps.live.set_events(0, 0);
        if let Some(vip) = small.watched {
            self.stats_mut().watch_misses(vip)?;
        }
        Ok(lost)
    }

    /// Gives each VIP the ring that packets see, with its history.
    fn resume_rings(&mut self) -> Result<()> {
        let vips = self.table.vips();
        let vips: Vec<_> = vips
            .map(|(vip, entry)| (*vip, entry.number.0, entry.flags))
            .collect();
        for (vip, number, _) in &vips {
            self.maps.vip_addresses.resume(vip);
            let Some(ring) = self.maps.vip_cells.ring_of(*number) else {
                continue;
            };
            let ring = self.maps.rings.occupy(ring);
            let ring = ring.ok_or_else(|| spoiled(format!("another VIP has the ring of {vip}")))?;
            self.rings[usize::from(*number)] = Some(ring);
        }
        // A finished history has left its places, which may be another ring's by now.
        for (vip, number, flags) in vips {
            if let Some(ring) = self.rings[usize::from(number)]
                && self.has_bases(flags)
            {
                self.resume_history(&vip, number.into(), ring)?;
            }
        }
        Ok(())
    }

    /// Void entries stay void, and their removal continues.
    fn resume_voids(&mut self) -> Result<()> {
        let found = self.maps.voids.found();
        let found = found.map_err(|error| kernel_error("read", "down_reals", error))?;
        // The records of a change that was cut off may be false.
        let is_false = |(number, id, reason): &(u16, u32, VoidReason)| {
            let mut vips = self.table.vips();
            let of = vips.find(|(_, entry)| entry.number.0 == *number);
            let named = |real: &IpAddr| {
                let of = self.table.real(*real);
                of.is_some_and(|of| real_id(of.number.0, of.generation) == *id)
            };
            of.is_some_and(|(_, entry)| match reason {
                VoidReason::Down => !entry.down.iter().any(named),
                VoidReason::Removed => entry.reals.keys().any(named),
            })
        };
        let (lies, found): (Vec<_>, Vec<_>) = found.into_iter().partition(is_false);
        for (number, id, _) in lies {
            let lifted = self.maps.voids.lift_found(number, id);
            let kernel = &self.kernel;
            kernel.check("undo a change in", "down_reals", lifted)?;
        }
        self.void_again(&found)?;
        // The removal of entries of removed VIPs may have been incomplete.
        if self.table.reals().len() != 0 {
            for number in self.table.former_vips() {
                self.maps.voids.vip_gone(number, Entries::MayCount);
            }
        }
        Ok(())
    }

    /// Tells packets what is void: entries of down reals, and those whose removal was under way.
    pub(super) fn void_again(&mut self, found: &[(u16, u32, VoidReason)]) -> Result<()> {
        let vips: Vec<_> = self
            .table
            .vips()
            .map(|(vip, entry)| {
                let mut change = self.down_again_of(*vip, entry);
                for (_, id, _) in found.iter().filter(|(of, _, reason)| {
                    (*of, *reason) == (entry.number.0, VoidReason::Removed)
                }) {
                    change.remove(*id);
                }
                (entry.number.0, self.cell_of(entry), change)
            })
            .collect();
        for (number, cell, change) in vips {
            if change.is_empty() {
                continue;
            }
            let prepared = self.maps.voids.prepare(&self.kernel, number, change)?;
            self.maps.voids.switch(number, cell, Some(prepared));
        }
        // Those of removed VIPs.
        let mut gone: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (number, id, _) in found.iter().copied() {
            let mut vips = self.table.vips();
            if vips.all(|(_, entry)| entry.number.0 != number) {
                gone.entry(number).or_default().push(id);
            }
        }
        for (number, ids) in gone {
            self.maps.voids.found_gone(number, ids.into_iter());
        }
        Ok(())
    }

    /// Keeps the current programs, also where a reload that was cut off has put its own.
    fn put_back_in_place(&mut self) -> Result<()> {
        let switched = self.attachments.switch(self.programs.main.as_fd());
        let _for_good = switched.map_err(|(error, _)| error)?;
        let switched = self.shared.switch(self.programs.entry_set());
        let _for_good = switched.map_err(|(error, _)| error)?;
        // Packets may be in a reload's programs, and read what the previous owner has just given
        // up, such as a ring's place.
        self.outlast(Vec::new());
        self.shared.remove_leftovers();
        self.unstage();
        Ok(())
    }

    /// Replaces the attached programs with those of this version.
    fn put_new_in_place(&mut self, programs: Programs) -> Result<()> {
        self.hand_back_from(&programs);
        self.stage(&programs, &FeatureMaps::default(), self.config.features)?;
        let programs = self.put_in_place(programs)?;
        let old = mem::replace(&mut self.programs, programs);
        self.outlast(vec![old]);
        self.shared.remove_leftovers();
        self.unstage();
        Ok(())
    }
}
