//! Adopts a balancer whose set has another layout. The library makes a set of this version beside
//! it, from the ledger and from those maps that mean the same in both, and replaces it as in
//! `katran/replace.rs`: whenever the process ends, the next owner finds one of the two, whole. The
//! old ledger stays unchanged, except for numbers that packets have met (`relaid/place.rs`).

mod place;

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use place::Former;

use super::HOPS;
use super::flow_tables_in;
use super::inner_tables;
use super::pulse::Pulse;
use super::unsupported;
use crate::config::Config;
use crate::config::Machine;
use crate::config::MapRow;
use crate::config::estimate;
use crate::document::ProbeMatch;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::katran::Katran;
use crate::katran::load::Taken;
use crate::katran::load::assemble;
use crate::katran::load::available_or;
use crate::katran::load::flow_tables;
use crate::katran::load::global_tables;
use crate::katran::load::tick;
use crate::katran::object::Fixed;
use crate::katran::object::InnerTables;
use crate::katran::repair::CutOff;
use crate::katran::repair::spoiled;
use crate::kernel::kernel_error;
use crate::kernel::map_error;
use crate::ledger::Drawn;
use crate::ledger::Kept;
use crate::ledger::Ledger;
use crate::ledger::Replayed;
use crate::ledger::Small;
use crate::maps::Carrier;
use crate::maps::FlowHashKeys;
use crate::maps::FlowTables;
use crate::maps::Live;
use crate::maps::Reader;
use crate::maps::VipHash;
use crate::maps::create_chunk;
use crate::maps::no_carrier;
use crate::pins::Contents;
use crate::pins::Home;
use crate::pins::Part;
use crate::pins::PinnedSet;
use crate::sys::map;
use crate::table::RealRecord;
use crate::types::Family;
use crate::types::NextHops;

/// The maps of the other set that this one shares.
struct Shared {
    state: bool,
    flows: bool,
    counters: bool,
    probes: bool,
}

impl Shared {
    /// `in_steps`: an `apply` was cut off, whose steps must be undone where the other set's next
    /// owner sees nothing of it.
    fn of(contents: &Contents, in_steps: bool) -> Self {
        Self {
            state: contents.knows(Part::State) && !in_steps,
            flows: contents.knows(Part::Flows),
            counters: contents.knows(Part::Counters),
            probes: contents.knows(Part::Probes),
        }
    }

    /// Whether flow tables are shared: the extent in use is in the record of each CPU's counters.
    fn has_tables(&self) -> bool {
        self.flows && self.counters
    }

    fn has(&self, map: &str) -> bool {
        match (Part::of(map), map) {
            (Some(Part::Flows), "flows" | "flow_tables" | "fallback_flows")
            | (Some(Part::Counters), "cpus") => self.has_tables(),
            (Some(Part::State), _) => self.state,
            (Some(Part::Flows), _) => self.flows,
            (Some(Part::Counters), _) => self.counters,
            (Some(Part::Probes), _) => self.probes,
            (None, _) => false,
        }
    }

    fn tell(&self, contents: &Contents) {
        log::info!(
            "the balancer has layout {} of katran {}: replacing it with one of this version",
            contents.layout(),
            contents.version()
        );
        self.lost().for_each(|what| log::warn!("{what}"));
    }

    fn lost(&self) -> impl Iterator<Item = &'static str> {
        let parts = [
            (
                self.state,
                "the rings are built again: flows without a table entry follow the new ones",
            ),
            (
                self.flows,
                "the flow tables start empty: connections move to the reals that the rings pick",
            ),
            (self.counters, "the counters start at 0"),
            (self.probes, "the counters of probes start at 0"),
        ];
        let lost = parts.into_iter().filter(|(is_kept, _)| !is_kept);
        lost.map(|(_, what)| what)
    }
}

/// `ledger`: the set's own, with its contents as read.
pub(super) fn adopt(
    home: Home,
    contents: &Contents,
    ledger: Ledger,
    replayed: Replayed,
    pulse: Pulse,
) -> Result<Katran> {
    let Replayed {
        mut kept,
        under_way,
        before,
    } = replayed;
    let shared = Shared::of(contents, before.is_some());
    shared.tell(contents);
    let cut_off = under_way
        .map(|intent| CutOff::give_up(&mut kept, intent))
        .transpose()
        .map_err(spoiled)?;
    let set = home.set();
    let mut former = Former {
        ledger,
        table: kept.table.clone(),
        // Those whose entries are copied one by one.
        flows: match shared.flows && !shared.has_tables() {
            true => Some(flow_tables_in(&set, &kept.config)?),
            false => None,
        },
        has_state: shared.state,
        is_open: cut_off.is_some(),
    };
    let mut katran = load(&home, &kept, &shared, former.flows.as_ref())?;
    pulse.also(&katran.maps.live);
    home.keep_tenure(katran.maps.live.tenure());
    let held = katran.maps.voids.hold();
    let carriers = match shared.counters && !shared.has_tables() {
        true => carrier_of_cpus(&set, &katran)?,
        false => None,
    };
    let since = Some(katran.ticks_now()?);
    if let Some(flows) = &former.flows {
        katran.enter_flows(flows, Reader::Nobody)?;
    }
    let small = katran.take_state(kept, &shared)?;
    katran.take_probes(small, &set, &shared)?;
    if let Some(cut_off) = cut_off {
        katran.repair(cut_off)?;
    }
    if let Some(before) = before {
        katran.undo_group(&before);
    }
    let lost = katran.resume_attachments(&home)?;
    match home.next_set().is_there() {
        true => katran.go_back_to(&home, &mut former)?,
        // A failed adoption may have removed it: no packets are handed back.
        false => katran.catch_up(None)?,
    }
    if let Some(checks) = &mut katran.healthchecks {
        checks.keep_in(home.attached());
    }
    katran.be_ready(&shared)?;
    let seat = katran.stage_in(&home)?;
    katran.take_the_place(&home, &seat, &mut former)?;
    katran.home = Some(home);
    katran.carriers.extend(carriers);
    katran.outlast(Vec::new());
    if let Some(flows) = &former.flows
        && let Err(error) = katran.enter_flows(flows, Reader::Packets { since })
    {
        log::warn!("some flows that began during the adoption are lost: {error}");
    }
    drop(held);
    katran.shared.remove_leftovers();
    if katran.carriers.is_empty() {
        katran.unstage_set();
    }
    katran.note_attached();
    // First, because attaching may wait seconds for a gateway.
    katran.keep_house()?;
    drop(pulse);
    katran.put_back_what_is_gone(lost);
    Ok(katran)
}

/// Loads this version's programs over the shared maps, with new ones for the rest. `flows`: tables
/// to be copied.
fn load(home: &Home, kept: &Kept, shared: &Shared, flows: Option<&FlowTables>) -> Result<Katran> {
    let config = &kept.config;
    let set = home.set();
    let cpus = map::possible_cpus()
        .map_err(|error| kernel_error("count the possible CPUs in", "sysfs", error))?;
    let drawn = drawn_for(&kept.drawn, config, shared)?;
    let fixed = Fixed::restored(&drawn, config, tick()?, cpus as u32)
        .map_err(|why| unsupported(home, why.to_owned(), "remove it and load it again"))?;
    let maps = shared_maps(&set, config, shared)?;
    let estimate = estimate(config, cpus as u64);
    let others = estimate.maps().iter().filter(|map| !shared.has(map.name));
    let needed = available_or(others.map(|map| map.at_load).sum())?;
    let theirs = match shared.flows {
        true => Some(inner_tables(&set, config)?),
        false => None,
    };
    let (tables, global) = match theirs {
        Some(theirs) if shared.has_tables() => (Some(theirs.flows), Some(theirs.global)),
        theirs => (None, theirs.map(|theirs| theirs.global)),
    };
    let first_chunk = match shared.state {
        true => None,
        false => Some(
            create_chunk(config.ring_size)
                .map_err(|error| map_error("ring_chunk", needed, error))?,
        ),
    };
    let inner = InnerTables {
        first_chunk,
        flows: tables.map_or_else(|| flow_tables(config), Ok)?,
        global: global.map_or_else(|| global_tables(config), Ok)?,
        tenure: Arc::default(),
    };
    let longest =
        longest_frame(&maps).map_err(|error| kernel_error("open", ".data.live", error))?;
    let taken = Taken {
        maps: maps
            .iter()
            .map(|(name, map)| (*name, map.as_fd()))
            .collect(),
        sets: flows.map(sets_in_use).transpose()?,
    };
    let katran = assemble(config.clone(), fixed, inner, needed, &taken)?;
    if let Some(longest) = longest {
        katran.maps.live.set_max_frame(longest);
    }
    Ok(katran)
}

/// The set's maps that this balancer shares, except those of health checks and inner ones.
fn shared_maps(
    set: &PinnedSet,
    config: &Config,
    shared: &Shared,
) -> Result<Vec<(&'static str, OwnedFd)>> {
    let is_pinned = |name: &&str| {
        let is_inside = ["flows", "ring_chunk"].contains(name);
        let is_nobodys = HOPS.contains(name) && config.next_hops == NextHops::Gateway;
        let is_made = MapRow::of(name).is_some_and(|row| row.is_made(config));
        is_made && !is_inside && !is_nobodys && Part::of(name) != Some(Part::Probes)
    };
    let names = MapRow::names().filter(is_pinned);
    let names = names.filter(|name| shared.has(name));
    names.map(|name| Ok((name, set.map(name)?))).collect()
}

/// The longest frame that packets may have, if the maps keep it: a new balancer begins with the
/// value for no interface.
fn longest_frame(maps: &[(&'static str, OwnedFd)]) -> std::io::Result<Option<u32>> {
    let Some((_, live)) = maps.iter().find(|(name, _)| *name == ".data.live") else {
        return Ok(None);
    };
    let live = Live::new(live.try_clone()?, Arc::default())?;
    Ok(Some(live.max_frame()))
}

/// The random values; new ones where this version takes other keys, for what is not shared.
fn drawn_for(drawn: &Drawn, config: &Config, shared: &Shared) -> Result<Drawn> {
    let failed = |error| kernel_error("draw random keys for", "the maps", error);
    let mut drawn = drawn.clone();
    if !shared.flows && FlowHashKeys::of(&drawn.flow_keys).is_none() {
        drawn.flow_keys = FlowHashKeys::draw().map_err(failed)?.keys().to_vec();
    }
    let max_vips = config.max_vips.into();
    if !shared.state && VipHash::of(&drawn.vip_keys, max_vips).is_none() {
        let hash = VipHash::draw(max_vips).map_err(failed)?;
        drawn.vip_keys = hash.keys().to_vec();
    }
    Ok(drawn)
}

/// The number of sets in use in flow tables, by their contents.
fn sets_in_use(flows: &FlowTables) -> Result<u32> {
    let failed = |error| kernel_error("read", "flow_tables", error);
    let mut used = flows.of_cpus.iter().map(|(_, table)| table.sets_in_use());
    used.try_fold(1, |most, used| Ok(most.max(used.map_err(failed)?)))
}

fn carrier_of_cpus(set: &PinnedSet, katran: &Katran) -> Result<Option<Carrier>> {
    let from = set.map("cpus")?;
    let carrier = Carrier::between("cpus", from.as_fd(), katran.maps.cpus.as_fd());
    carrier.map_err(no_carrier)
}

impl Katran {
    /// Takes over what the ledger has kept, and what packets see where that is shared; writes the
    /// rest.
    fn take_state(&mut self, kept: Kept, shared: &Shared) -> Result<Small> {
        if shared.state {
            let resumed = self.maps.server_ids.resume(&self.maps.live);
            resumed.map_err(|error| kernel_error("open", "server_ids", error))?;
        }
        let small = self.take_kept(kept);
        match shared.state {
            true => {
                let reals = self.table.reals();
                let of_v6 = reals.filter(|(address, _)| address.is_ipv6()).count();
                self.links.count_reals(of_v6, 0);
                self.resume_rings()?;
            }
            false => self.write_state(shared)?,
        }
        self.resume_voids()?;
        // No monitor reads events yet.
        self.maps.live.set_events(0, 0);
        if let Some(vip) = small.watched {
            self.stats_mut().watch_misses(vip)?;
        }
        Ok(small)
    }

    /// Makes packets see the table's records.
    fn write_state(&mut self, shared: &Shared) -> Result<()> {
        let reals = self.table.reals();
        let reals: Vec<_> = reals
            .map(|(address, entry)| RealRecord {
                number: entry.number,
                address,
                generation: entry.generation,
                flags: entry.flags,
            })
            .collect();
        self.publish_reals(&reals);
        let vips = self.enter_vips()?;
        self.write_names()?;
        self.maps.rings.reserve(&self.kernel, vips.len() as u32)?;
        for (vip, entry) in &vips {
            self.make_ring(vip, entry)?;
        }
        match shared.flows {
            true => self.ask_tables(&vips),
            false => Ok(()),
        }
    }

    /// The same for health checks, if there is a path for them.
    fn take_probes(&mut self, small: Small, set: &PinnedSet, shared: &Shared) -> Result<()> {
        if set.probe()?.is_none() {
            return match self.config.healthcheck_interface {
                Some(_) => Err(set.missing("healthcheck")),
                None => Ok(()),
            };
        }
        let machine: Machine<'_> = self.machine();
        let checks = HealthChecks::load_over(&machine, |name| match shared.probes {
            true => set.probe_map(name).map(Some),
            false => Ok(None),
        })?;
        self.put_healthchecks(Some(checks));
        if shared.state && !shared.probes {
            self.tell_probes_gateways();
        }
        if let Some(checks) = &mut self.healthchecks
            && shared.probes
        {
            return checks.restore(&self.kernel, small.marks, small.matches, small.probes);
        }
        let mut probes = self.probes_mut();
        for (mark, real) in small.marks {
            probes.map_mark(mark, real)?;
        }
        for (by, real) in small.matches {
            match by {
                ProbeMatch::Destination(address) => probes.match_destination(address, real)?,
                ProbeMatch::Source(address) => probes.match_source(address, real)?,
            }
        }
        let mut registered = small.probes.into_iter();
        registered.try_for_each(|vip| probes.register(vip))
    }

    /// Probes use the gateways that packets know, until they are discovered again.
    fn tell_probes_gateways(&self) {
        for family in Family::ALL {
            if let (Some(mac), Some(probes)) =
                (self.maps.live.gateway_mac(family), self.probe_cells())
            {
                probes.set_gateway_mac(family, mac);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also if the reason is not another layout.
    #[test]
    fn rings_that_are_made_again_are_told() {
        let mut shared = Shared {
            state: true,
            flows: true,
            counters: true,
            probes: true,
        };
        assert_eq!(shared.lost().count(), 0);
        shared.state = false;
        let lost: Vec<_> = shared.lost().collect();
        assert!(lost.len() == 1 && lost[0].starts_with("the rings are built again"));
    }
}
