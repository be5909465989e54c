//! The path of health checks: a tc program that wraps this host's own probes for one real each, and the
//! tables by which it tells them. What is probed and what follows from it is the application's affair.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;

use crate::Encapsulation;
use crate::Error;
use crate::NextHops;
use crate::Result;
use crate::TcAttachment;
use crate::TcHook;
use crate::Vip;
use crate::attach::TcAttachments;
use crate::config::Config;
use crate::maps::KernelCalls;
use crate::maps::ProbeCells;
use crate::maps::kernel_error;
use crate::maps::program_error;
use crate::next_hop::Requests;
use crate::skel::healthcheck::HealthcheckSkelBuilder;
use crate::skel::healthcheck::types;
use crate::skel::katran::types::encapsulation;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::object::VerifierLog;
use crate::sys::object::into_io;
use crate::sys::tc::Direction;
use crate::types::address_bytes;

/// The program's name.
const NAME: &str = "healthcheck";

/// What health checks have done, and what passed by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[doc(alias = "HealthCheckProgStats")]
pub struct HealthcheckCounters {
    /// Probes that were wrapped and sent.
    pub processed: u64,
    /// Probes that were dropped, for whatever reason.
    pub dropped: u64,
    /// Packets of the interface that are no probes.
    pub skipped: u64,
    /// Probes that were dropped because they were longer than `healthcheck_max_packet`.
    pub too_big: u64,
    /// Probes that were told by their destination.
    pub dst_matched: u64,
    /// Probes that were told by their source.
    pub src_matched: u64,
}

/// By what a probe is told, other than its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MatchBy {
    Destination,
    Source,
}

/// The loaded program and its tables.
pub(crate) struct HealthChecks {
    // Detached before the maps go.
    attachments: TcAttachments,
    interface: Option<String>,
    priority: u16,
    hook: TcHook,
    limits: Limits,
    by_route: bool,
    /// The interface that probes leave by, once that is known.
    main: Option<String>,
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
        let maps = &mut open.maps;
        for (map, entries) in [
            (&mut maps.marks, reals),
            (&mut maps.destinations, reals),
            (&mut maps.sources, reals),
            (&mut maps.probe_keys, vips),
            (&mut maps.probe_counters, vips),
        ] {
            map.set_max_entries(entries)
                .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        }
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.encapsulation = match config.encapsulation {
                Encapsulation::Ipip => encapsulation::ENCAPSULATION_IPIP.0,
                Encapsulation::Gue => encapsulation::ENCAPSULATION_GUE.0,
            };
            constants.gue_port = config.gue_port;
            constants.max_packet = config.healthcheck_max_packet;
            constants.next_hops = (config.next_hops != NextHops::Gateway).into();
        }
        let log = VerifierLog::of(&mut open.progs.healthcheck);
        let skel = open
            .load()
            .map_err(|error| program_error(NAME, &log, into_io(error)))?;
        let own = |of: BorrowedFd<'_>| of.try_clone_to_owned();
        let take_over = || -> std::io::Result<Self> {
            let maps = &skel.maps;
            Ok(Self {
                attachments: TcAttachments::default(),
                interface: config.healthcheck_interface.clone(),
                priority: config.healthcheck_priority,
                hook: config.healthcheck_hook,
                limits: Limits::of(config),
                main: None,
                by_route: config.next_hops == NextHops::Redirect,
                program: own(skel.progs.healthcheck.as_fd())?,
                cells: Arc::new(ProbeCells::new(own(maps.data_settings.as_fd())?)?),
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

    /// Attaches to the interface of the configuration, if it names one, in the calling thread's network
    /// namespace; probes leave by `main`. Does nothing but to name `main` if it is attached.
    pub(crate) fn attach(&mut self, main: Option<&str>) -> Result<()> {
        let Some(own) = &self.interface else {
            return Ok(());
        };
        let name = main.unwrap_or(own);
        if self.attachment().is_some() && self.main.as_deref() == Some(name) {
            return Ok(());
        }
        let index = nix::net::if_::if_nametoindex(name);
        let index = index.map_err(|_| Error::NoSuchInterface {
            interface: name.to_owned(),
        })?;
        let interface = Requests::new().and_then(|mut requests| requests.interface(index));
        let interface =
            interface.map_err(|error| kernel_error("ask for the address of", name, error))?;
        let Some(mac) = interface.and_then(|interface| interface.mac) else {
            return Err(Error::Unsupported {
                what: format!("health checks by {name}"),
                reason: "it has no Ethernet address",
            });
        };
        self.cells.set_interface(index, mac);
        self.main = Some(name.to_owned());
        if self.attachment().is_none() {
            self.attachments.attach(
                self.program.as_fd(),
                NAME,
                own,
                (Direction::Egress, self.priority),
                self.hook,
            )?;
        }
        Ok(())
    }

    pub(crate) fn detach(&mut self) {
        self.attachments.clear();
    }

    pub(crate) fn attachment(&self) -> Option<&TcAttachment> {
        self.attachments.list().next()
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

    fn real(&self, address: IpAddr) -> types::probe_real {
        let interface = match self.by_route {
            false => 0,
            true => Requests::new()
                .and_then(|mut requests| requests.route(address))
                .ok()
                .flatten()
                .map_or(0, |route| route.interface),
        };
        types::probe_real {
            address: address_bytes(address),
            v6: address.is_ipv6().into(),
            interface,
        }
    }

    pub(crate) fn set_mark(&mut self, kernel: &KernelCalls, mark: u32, real: IpAddr) -> Result<()> {
        let new = !self.marks.contains_key(&mark);
        self.limits
            .check("marks", self.marks.len() + usize::from(new))?;
        let written = self.mark_map.update(&mark, &self.real(real));
        kernel.check("map a mark in", "marks", written)?;
        self.marks.insert(mark, real);
        Ok(())
    }

    pub(crate) fn remove_mark(&mut self, kernel: &KernelCalls, mark: u32) -> Result<()> {
        kernel.check("remove a mark from", "marks", self.mark_map.delete(&mark))?;
        self.marks.remove(&mark);
        Ok(())
    }

    pub(crate) fn set_match(
        &mut self,
        kernel: &KernelCalls,
        by: MatchBy,
        address: SocketAddr,
        real: IpAddr,
    ) -> Result<()> {
        let known = &self.matches[by as usize];
        let new = !known.contains_key(&address);
        self.limits
            .check("matches", known.len() + usize::from(new))?;
        let written = self.match_maps[by as usize].update(&match_key(address), &self.real(real));
        kernel.check("match probes in", map_name(by), written)?;
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
        self.matches[by as usize].remove(&address);
        self.count_matches();
        Ok(())
    }

    fn count_matches(&self) {
        let counts = [&self.matches[0], &self.matches[1]].map(BTreeMap::len);
        self.cells.set_matches(counts);
    }

    pub(crate) fn register(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<()> {
        self.limits.check("probes", self.keys.len() + 1)?;
        let Some(number) = self.free.first().copied() else {
            return Ok(());
        };
        let cleared = self.key_counters.clear(number);
        kernel.check("clear the counter of", "probe_counters", cleared)?;
        let written = self.key_map.update(&vip_key(&vip), &number);
        kernel.check("register a probe in", "probe_keys", written)?;
        self.free.remove(&number);
        self.keys.insert(vip, number);
        Ok(())
    }

    pub(crate) fn unregister(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<()> {
        let removed = self.key_map.delete(&vip_key(&vip));
        kernel.check("remove a probe from", "probe_keys", removed)?;
        if let Some(number) = self.keys.remove(&vip) {
            self.free.insert(number);
        }
        Ok(())
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
        let sum = |field: fn(&types::probe_totals) -> u64| totals.iter().map(field).sum();
        Ok(HealthcheckCounters {
            processed: sum(|of| of.processed),
            dropped: sum(|of| of.dropped),
            skipped: sum(|of| of.skipped),
            too_big: sum(|of| of.too_big),
            dst_matched: sum(|of| of.dst_matched),
            src_matched: sum(|of| of.src_matched),
        })
    }
}

fn map_name(by: MatchBy) -> &'static str {
    match by {
        MatchBy::Destination => "destinations",
        MatchBy::Source => "sources",
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

fn match_key(address: SocketAddr) -> types::probe_match {
    types::probe_match {
        address: address_bytes(address.ip()),
        port: address.port().to_be(),
        family: family(address.ip()).into(),
    }
}

fn vip_key(vip: &Vip) -> types::vip_key {
    types::vip_key {
        address: address_bytes(vip.address()),
        port: vip.port().to_be(),
        protocol: vip.protocol().number(),
        family: family(vip.address()),
    }
}
