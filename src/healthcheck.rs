//! The path of health checks: a tc program that wraps this host's own probes for one real each, and the
//! tables by which it tells them. The application decides what is probed, and what follows from it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use libbpf_rs::skel::SkelBuilder;

use crate::attach::Attached;
use crate::attach::Attachments;
use crate::attach::OnInterface;
use crate::attach::Place;
use crate::attach::TcAttachment;
use crate::attach::TcLink;
use crate::attach::TcPlan;
use crate::attach::Witness;
use crate::config::Config;
use crate::counters::HealthcheckCounters;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::KernelCalls;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::maps::MAX_WAYS;
use crate::maps::MapUse;
use crate::maps::ProbeCells;
use crate::maps::ProbeWay;
use crate::maps::match_key;
use crate::next_hop::Wanted;
use crate::next_hop::Watcher;
use crate::next_hop::probe_way;
use crate::rtnetlink::Requests;
use crate::skel::healthcheck::HealthcheckSkelBuilder;
use crate::skel::healthcheck::OpenHealthcheckMaps;
use crate::skel::healthcheck::types;
use crate::skel::katran::types::encapsulation;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::object;
use crate::sys::object::into_io;
use crate::sys::tc::Direction;
use crate::types::Encapsulation;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::TcHook;
use crate::types::Vip;
use crate::types::address_bytes;

/// The program's name.
const NAME: &str = "healthcheck";

/// By what a probe is told, other than its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MatchBy {
    Destination,
    Source,
}

/// By what the ways of probes are found: as the packets of clients go.
pub(crate) struct Hops<'a> {
    pub(crate) wanted: Wanted,
    /// Knows the rules and tables of where the balancer is attached, if next hops are followed.
    pub(crate) follower: Option<&'a Watcher>,
}

/// The loaded program and its tables.
pub(crate) struct HealthChecks {
    // Detached before the maps go.
    attachments: Attachments<TcLink>,
    interface: Option<String>,
    priority: u16,
    hook: TcHook,
    limits: Limits,
    /// The interface that probes leave by, and its Ethernet address, while they have a path.
    way: Option<(u64, u32, MacAddr)>,
    /// Of the network namespace that the program is attached in.
    requests: Option<Requests>,
    program: OwnedFd,
    pub(crate) cells: Arc<ProbeCells>,
    mark_map: Typed<u32, types::probe_real>,
    match_maps: [Typed<types::probe_match, types::probe_real>; 2],
    key_map: Typed<types::vip_key, u32>,
    key_counters: PerCpuArray<u64>,
    totals: PerCpuArray<types::probe_totals>,
    marks: BTreeMap<u32, IpAddr>,
    matches: [BTreeMap<SocketAddr, IpAddr>; 2],
    keys: BTreeMap<Vip, u32>,
    free: BTreeSet<u32>,
}

/// How many marks, matches and probes there can be.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    reals: usize,
    vips: usize,
}

impl Limits {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            reals: config.max_reals.into(),
            vips: config.max_vips.into(),
        }
    }

    /// Whether there is room for so many.
    pub(crate) fn check(self, what: &'static str, count: usize) -> Result<()> {
        let (limit, setting) = match what {
            "probes" => (self.vips, "probes (max_vips)"),
            "marks" => (self.reals, "marks (max_reals)"),
            _ => (self.reals, "matches of probes (max_reals)"),
        };
        match count > limit {
            false => Ok(()),
            true => Err(Error::Exhausted {
                what: setting,
                limit: limit as u64,
            }),
        }
    }
}

impl HealthChecks {
    /// Loads the program. Needs no interface and attaches nothing.
    pub(crate) fn load(config: &Config) -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let mut open = HealthcheckSkelBuilder::default()
            .open(&mut storage)
            .map_err(|error| kernel_error("open", "the BPF object", into_io(error)))?;
        let (vips, reals) = (u32::from(config.max_vips), u32::from(config.max_reals));
        let own_hops = config.next_hops != NextHops::Gateway;
        size_maps(&mut open.maps, vips, reals, own_hops)
            .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        let constants = constants(NAME, open.maps.rodata_data.as_deref_mut())?;
        constants.encapsulation = match config.encapsulation {
            Encapsulation::Ipip => encapsulation::ENCAPSULATION_IPIP.0,
            Encapsulation::Gue => encapsulation::ENCAPSULATION_GUE.0,
        };
        constants.gue_port = config.gue_port;
        constants.max_packet = config.healthcheck_max_packet;
        constants.next_hops = own_hops.into();
        let skel = object::load(open, &[NAME]).map_err(|refused| load_error(NAME, refused))?;
        let own = |of: BorrowedFd<'_>| of.try_clone_to_owned();
        let take_over = || -> std::io::Result<Self> {
            let maps = &skel.maps;
            Ok(Self {
                attachments: Attachments::default(),
                interface: config.healthcheck_interface.clone(),
                priority: config.healthcheck_priority,
                hook: config.healthcheck_hook,
                limits: Limits::of(config),
                way: None,
                requests: None,
                program: own(skel.progs.healthcheck.as_fd())?,
                cells: Arc::new(ProbeCells::new(
                    own(maps.data_settings.as_fd())?,
                    own_hops.then(|| own(maps.ways.as_fd())).transpose()?,
                )?),
                mark_map: Typed::new(own(maps.marks.as_fd())?)?,
                match_maps: [
                    Typed::new(own(maps.destinations.as_fd())?)?,
                    Typed::new(own(maps.sources.as_fd())?)?,
                ],
                key_map: Typed::new(own(maps.probe_keys.as_fd())?)?,
                key_counters: PerCpuArray::new(own(maps.probe_counters.as_fd())?)?,
                totals: PerCpuArray::new(own(maps.probe_totals.as_fd())?)?,
                marks: BTreeMap::new(),
                matches: [BTreeMap::new(), BTreeMap::new()],
                keys: BTreeMap::new(),
                free: (0..vips).collect(),
            })
        };
        let taken = take_over().map_err(|error| kernel_error("take over", NAME, error))?;
        taken
            .cells
            .set_own_addresses(config.source_v4, config.source_v6);
        Ok(taken)
    }

    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Whether there is an interface to attach to.
    pub(crate) fn has_interface(&self) -> bool {
        self.interface.is_some()
    }

    /// Attaches to the interface of the configuration, in the calling thread's network namespace, if it is
    /// not attached. Probes leave by the first of `mains` that is of that namespace and there, or by that
    /// interface.
    pub(crate) fn attach(&mut self, mains: &[Place]) -> Result<()> {
        let Some(own) = self.interface.clone() else {
            return Ok(());
        };
        if self.place().is_some() {
            return self.route(mains);
        }
        let target = self.attachments.check(&own)?;
        let failed = |error| kernel_error("ask about the interface", &own, error);
        let mut requests = Requests::new().map_err(failed)?;
        let way = way_out(&mut requests, mains, target.place, &own)?;
        // Told first, so that no probe goes another way.
        let before = self.way.replace(way);
        self.tell_way();
        let plan = TcPlan {
            program: self.program.as_fd(),
            name: NAME,
            direction: Direction::Egress,
            priority: self.priority,
            hook: self.hook,
        };
        if let Err(error) = self.attachments.attach(&own, plan) {
            self.way = before;
            self.tell_way();
            return Err(error);
        }
        self.requests = Some(requests);
        Ok(())
    }

    /// The same for what is attached beside it: if the path was lost and cannot be put back, that keeps
    /// nothing else from being attached.
    pub(crate) fn attach_along(&mut self, mains: &[Place]) -> Result<()> {
        match self.attachments.is_empty() {
            true => self.attach(mains),
            false => self.reattach(mains),
        }
    }

    /// Attaches again where the path was lost and its interface is there again, in the calling thread's
    /// network namespace; and looks again by which interface probes leave.
    pub(crate) fn reattach(&mut self, mains: &[Place]) -> Result<()> {
        if self.attachments.lost().is_empty() {
            return self.route(mains);
        }
        match self.attach(mains) {
            Err(Error::NoSuchInterface { .. }) => Ok(()),
            attached => attached,
        }
    }

    /// Looks again by which interface probes leave, as far as they have a path.
    pub(crate) fn route(&mut self, mains: &[Place]) -> Result<()> {
        let (Some(own), Some(requests), Some(name)) =
            (self.place(), &mut self.requests, &self.interface)
        else {
            return Ok(());
        };
        let way = way_out(requests, mains, own, name)?;
        self.way = Some(way);
        // In any case: the follower may have written another one, as this one was gone.
        self.tell_way();
        Ok(())
    }

    /// Whoever attaches the program by other means has its packets leave where they were sent.
    pub(crate) fn detach(&mut self) {
        self.attachments.clear();
        self.requests = None;
        if self.way.take().is_some() {
            self.tell_way();
        }
    }

    fn tell_way(&self) {
        self.cells.leave_by(self.way);
    }

    /// The interface that it is attached to, if it is there.
    pub(crate) fn place(&self) -> Option<Place> {
        self.attachments.places().first().copied()
    }

    /// The interface that it is attached to, if it is there, and what says so on another thread.
    pub(crate) fn witness(&self) -> Option<(Place, std::io::Result<Witness>)> {
        let held = self.attachments.present().next()?;
        Some((held.target().place, held.witness()))
    }

    pub(crate) fn attachment(&self) -> Option<TcAttachment> {
        self.attachments.list().pop()
    }

    pub(crate) fn marks(&self) -> &BTreeMap<u32, IpAddr> {
        &self.marks
    }

    pub(crate) fn matches(&self, by: MatchBy) -> &BTreeMap<SocketAddr, IpAddr> {
        &self.matches[by as usize]
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Vip> {
        self.keys.keys().copied()
    }

    /// A mark or a match is about to lead to `real`.
    fn use_way(&mut self, kernel: &KernelCalls, hops: &Hops<'_>, real: IpAddr) -> Result<()> {
        let find = || {
            if let Some(follower) = hops.follower {
                follower.find_way(real);
            }
        };
        let (requests, wanted) = (&mut self.requests, &hops.wanted);
        let or = || {
            let found = match requests {
                Some(requests) => probe_way(requests, wanted, real),
                None => Requests::new().and_then(|mut own| probe_way(&mut own, wanted, real)),
            };
            found.unwrap_or_else(|error| {
                log::warn!("cannot ask for the route of probes to {real}: {error}");
                ProbeWay::default()
            })
        };
        let used = self.cells.use_way(real, find, or);
        kernel.check("write a way in", "ways", used)
    }

    /// What came of writing a mark or a match that leads to `real`, and to `before` until now.
    fn settle_way(&self, written: Result<()>, real: IpAddr, before: Option<IpAddr>) -> Result<()> {
        let left = match &written {
            Ok(()) => before,
            Err(_) => Some(real),
        };
        left.into_iter().for_each(|real| self.cells.leave_way(real));
        written
    }

    pub(crate) fn set_mark(
        &mut self,
        kernel: &KernelCalls,
        hops: &Hops<'_>,
        mark: u32,
        real: IpAddr,
    ) -> Result<()> {
        let before = self.marks.get(&mark).copied();
        let new = usize::from(before.is_none());
        self.limits.check("marks", self.marks.len() + new)?;
        self.use_way(kernel, hops, real)?;
        let written = self.mark_map.update(&mark, &probe_real(real));
        let written = kernel.check("map a mark in", "marks", written);
        self.settle_way(written, real, before)?;
        self.marks.insert(mark, real);
        Ok(())
    }

    pub(crate) fn remove_mark(&mut self, kernel: &KernelCalls, mark: u32) -> Result<()> {
        kernel.check("remove a mark from", "marks", self.mark_map.delete(&mark))?;
        if let Some(real) = self.marks.remove(&mark) {
            self.cells.leave_way(real);
        }
        Ok(())
    }

    pub(crate) fn set_match(
        &mut self,
        kernel: &KernelCalls,
        hops: &Hops<'_>,
        (by, address): (MatchBy, SocketAddr),
        real: IpAddr,
    ) -> Result<()> {
        let known = &self.matches[by as usize];
        let before = known.get(&address).copied();
        let new = usize::from(before.is_none());
        self.limits.check("matches", known.len() + new)?;
        self.use_way(kernel, hops, real)?;
        let written = self.match_maps[by as usize].update(&match_key(address), &probe_real(real));
        let written = kernel.check("match probes in", map_name(by), written);
        self.settle_way(written, real, before)?;
        self.matches[by as usize].insert(address, real);
        self.count_matches();
        Ok(())
    }

    pub(crate) fn remove_match(
        &mut self,
        kernel: &KernelCalls,
        by: MatchBy,
        address: SocketAddr,
    ) -> Result<()> {
        let removed = self.match_maps[by as usize].delete(&match_key(address));
        kernel.check("remove a match from", map_name(by), removed)?;
        if let Some(real) = self.matches[by as usize].remove(&address) {
            self.cells.leave_way(real);
        }
        self.count_matches();
        Ok(())
    }

    pub(crate) fn has_key(&self, vip: &Vip) -> bool {
        self.keys.contains_key(vip)
    }

    fn count_matches(&self) {
        let counts = [&self.matches[0], &self.matches[1]].map(BTreeMap::len);
        self.cells.set_matches(counts);
    }

    pub(crate) fn register(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<()> {
        self.limits.check("probes", self.keys.len() + 1)?;
        let number = self.free.first().copied().ok_or(Error::Exhausted {
            what: "probes (max_vips)",
            limit: self.limits.vips as u64,
        })?;
        let cleared = self.key_counters.clear(number);
        kernel.check("clear the counter of", "probe_counters", cleared)?;
        let written = self.key_map.update(&vip_key(&vip), &number);
        kernel.check("register a probe in", "probe_keys", written)?;
        self.free.remove(&number);
        self.keys.insert(vip, number);
        Ok(())
    }

    /// Returns the number, which packets may still count under: it is to be
    /// [taken back](Self::take_back) when none does.
    pub(crate) fn unregister(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<Option<u32>> {
        let removed = self.key_map.delete(&vip_key(&vip));
        kernel.check("remove a probe from", "probe_keys", removed)?;
        Ok(self.keys.remove(&vip))
    }

    /// The number of a probe that is no more can be another's.
    pub(crate) fn take_back(&mut self, number: u32) {
        self.free.insert(number);
    }

    /// Whether there is a number for one more probe at once.
    pub(crate) fn has_free_number(&self) -> bool {
        !self.free.is_empty()
    }

    /// The maps, by their names.
    pub(crate) fn maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let [destinations, sources] = &self.match_maps;
        let own = [
            ("marks", self.mark_map.as_fd()),
            ("destinations", destinations.as_fd()),
            ("sources", sources.as_fd()),
            ("probe_keys", self.key_map.as_fd()),
            ("probe_counters", self.key_counters.as_fd()),
            ("probe_totals", self.totals.as_fd()),
        ];
        own.into_iter().chain(self.cells.named())
    }

    /// Capacities and entries of the maps that have any.
    pub(crate) fn use_of_maps(&self) -> impl Iterator<Item = MapUse> {
        let [destinations, sources] = &self.matches;
        let (reals, vips) = (self.limits.reals, self.limits.vips);
        let uses = [
            ("marks", reals, self.marks.len()),
            ("destinations", reals, destinations.len()),
            ("sources", reals, sources.len()),
            ("probe_keys", vips, self.keys.len()),
        ];
        let ways = self
            .cells
            .ways()
            .map(|ways| ("ways", MAX_WAYS as usize * reals + 1, ways));
        let uses = uses.into_iter().chain(ways);
        uses.map(|(name, capacity, entries)| MapUse {
            name,
            capacity: capacity as u64,
            entries: entries as u64,
        })
    }

    /// Probes of a registered key.
    pub(crate) fn probes_of(&self, kernel: &KernelCalls, vip: &Vip) -> Result<Option<u64>> {
        let Some(number) = self.keys.get(vip) else {
            return Ok(None);
        };
        let counts = self.key_counters.get(*number);
        let counts = kernel.check("read", "probe_counters", counts)?;
        Ok(Some(counts.iter().sum()))
    }

    pub(crate) fn counters(&self, kernel: &KernelCalls) -> Result<HealthcheckCounters> {
        let totals = kernel.check("read", "probe_totals", self.totals.get(0))?;
        Ok(HealthcheckCounters::sum(&totals))
    }
}

/// The interface that probes leave by, and its Ethernet address: the first of `mains` that is of the
/// namespace of `own` and there, else that one, whose name is `name`.
fn way_out(
    requests: &mut Requests,
    mains: &[Place],
    own: Place,
    name: &str,
) -> Result<(u64, u32, MacAddr)> {
    let failed = |error| kernel_error("ask for the address of", name, error);
    let mains = mains.iter().filter(|main| main.namespace == own.namespace);
    for place in mains.chain([&own]) {
        let Some(interface) = requests.interface(place.index).map_err(failed)? else {
            continue;
        };
        let mac = interface.mac.ok_or_else(|| Error::Unsupported {
            what: format!("health checks by {}", interface.name),
            reason: "it has no Ethernet address",
        })?;
        return Ok((own.namespace, place.index, mac));
    }
    Err(Error::NoSuchInterface {
        interface: name.to_owned(),
    })
}

fn size_maps(
    maps: &mut OpenHealthcheckMaps<'_>,
    vips: u32,
    reals: u32,
    own_hops: bool,
) -> libbpf_rs::Result<()> {
    maps.marks.set_max_entries(reals)?;
    maps.destinations.set_max_entries(reals)?;
    maps.sources.set_max_entries(reals)?;
    // Each mark and each match may have a real of its own.
    // One more: a way that is changed is there twice for a moment.
    maps.ways.set_max_entries(MAX_WAYS * reals + 1)?;
    maps.ways.set_autocreate(own_hops)?;
    maps.probe_keys.set_max_entries(vips)?;
    maps.probe_counters.set_max_entries(vips)
}

fn map_name(by: MatchBy) -> &'static str {
    match by {
        MatchBy::Destination => "destinations",
        MatchBy::Source => "sources",
    }
}

fn probe_real(address: IpAddr) -> types::probe_real {
    types::probe_real {
        address: address_bytes(address),
        v6: address.is_ipv6().into(),
    }
}

fn vip_key(vip: &Vip) -> types::vip_key {
    types::vip_key {
        address: address_bytes(vip.address()),
        port: vip.port().to_be(),
        protocol: vip.protocol().number(),
        family: Family::of(vip.address()).number(),
    }
}
