//! The tables that identify probes: marks, matches and registered counters, with the ways to their
//! reals.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::HealthChecks;
use super::Hops;
use super::handles::MatchBy;
use super::handles::USES;
use crate::config::Config;
use crate::config::Machine;
use crate::counters::HealthcheckCounters;
use crate::document::ProbeMatch;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::KernelCalls;
use crate::maps::MapUse;
use crate::maps::ProbeWay;
use crate::maps::match_key;
use crate::next_hop::probe_way;
use crate::rtnetlink::Requests;
use crate::skel::healthcheck::types;
use crate::types::Family;
use crate::types::Vip;
use crate::types::address_bytes;

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
    pub(crate) fn maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.maps.named()
    }

    /// Capacities and entries of the maps that have any.
    pub(crate) fn use_of_maps(&self, machine: &Machine<'_>) -> Vec<MapUse> {
        let named: BTreeSet<_> = self.maps.named().map(|(name, _)| name).collect();
        let uses = USES.iter().filter(|(name, _)| named.contains(name));
        uses.map(|(name, entries)| machine.use_of(name, entries(self) as u64))
            .collect()
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

    /// Before a mark or a match leads to `real`.
    pub(super) fn use_way(
        &mut self,
        kernel: &KernelCalls,
        hops: &Hops<'_>,
        real: IpAddr,
    ) -> Result<()> {
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
                log::warn!("cannot look up the route of probes to {real}: {error}");
                ProbeWay::default()
            })
        };
        let used = self.maps.cells.use_way(real, find, or);
        kernel.check("write a next hop in", "ways", used)
    }

    /// After writing a mark or a match that leads to `real`, and led to `before`.
    fn settle_way(&self, written: Result<()>, real: IpAddr, before: Option<IpAddr>) -> Result<()> {
        let left = match &written {
            Ok(()) => before,
            Err(_) => Some(real),
        };
        left.into_iter()
            .for_each(|real| self.maps.cells.leave_way(real));
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
        let written = self.maps.marks.update(&mark, &probe_real(real));
        let written = kernel.check("map a mark in", "marks", written);
        self.settle_way(written, real, before)?;
        self.marks.insert(mark, real);
        self.maps.cells.set_marked();
        Ok(())
    }

    pub(crate) fn remove_mark(&mut self, kernel: &KernelCalls, mark: u32) -> Result<()> {
        kernel.check("remove a mark from", "marks", self.maps.marks.delete(&mark))?;
        if let Some(real) = self.marks.remove(&mark) {
            self.maps.cells.leave_way(real);
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
        let written = self
            .maps
            .matches(by)
            .update(&match_key(address), &probe_real(real));
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
        let removed = self.maps.matches(by).delete(&match_key(address));
        kernel.check("remove a match from", map_name(by), removed)?;
        if let Some(real) = self.matches[by as usize].remove(&address) {
            self.maps.cells.leave_way(real);
        }
        self.count_matches();
        Ok(())
    }

    /// Learns again what is in the maps.
    pub(crate) fn restore(
        &mut self,
        kernel: &KernelCalls,
        marks: BTreeMap<u32, IpAddr>,
        matches: BTreeMap<ProbeMatch, IpAddr>,
        probes: BTreeSet<Vip>,
    ) -> Result<()> {
        self.marks = marks;
        for (by, real) in matches {
            let (by, address) = place_of(&by);
            self.matches[by as usize].insert(address, real);
        }
        let of_matches = self.matches.iter().flat_map(BTreeMap::values);
        for real in self.marks.values().chain(of_matches) {
            let resumed = self.maps.cells.resume_way(*real);
            kernel.check("read a next hop in", "ways", resumed)?;
        }
        for vip in probes {
            let number = self.maps.keys.lookup(&vip_key(&vip));
            match kernel.check("read", "probe_keys", number)? {
                Some(number) => {
                    self.free.remove(&number);
                    self.keys.insert(vip, number);
                }
                // Its removal was cut off.
                None => self.register(kernel, vip)?,
            }
        }
        Ok(())
    }

    /// Writes these again, which a change that was cut off may have written.
    pub(crate) fn repair(
        &mut self,
        kernel: &KernelCalls,
        marks: &BTreeMap<u32, IpAddr>,
        matches: &BTreeMap<ProbeMatch, IpAddr>,
        probes: &BTreeSet<Vip>,
    ) -> Result<()> {
        for mark in self.marks.keys().chain(marks.keys()) {
            let written = match self.marks.get(mark) {
                Some(real) => self.maps.marks.update(mark, &probe_real(*real)),
                None => self.maps.marks.delete(mark).map(drop),
            };
            kernel.check("write a mark in", "marks", written)?;
        }
        for by in matches.keys() {
            let (by, address) = place_of(by);
            if !self.matches[by as usize].contains_key(&address) {
                let removed = self.maps.matches(by).delete(&match_key(address));
                kernel.check("remove a match from", map_name(by), removed)?;
            }
        }
        for by in [MatchBy::Destination, MatchBy::Source] {
            for (address, real) in &self.matches[by as usize] {
                let map = self.maps.matches(by);
                let written = map.update(&match_key(*address), &probe_real(*real));
                kernel.check("match probes in", map_name(by), written)?;
            }
        }
        self.count_matches();
        for vip in probes.iter().filter(|vip| !self.keys.contains_key(vip)) {
            let removed = self.maps.keys.delete(&vip_key(vip));
            kernel.check("remove a probe from", "probe_keys", removed)?;
        }
        Ok(())
    }

    pub(crate) fn has_key(&self, vip: &Vip) -> bool {
        self.keys.contains_key(vip)
    }

    pub(super) fn count_matches(&self) {
        let counts = [&self.matches[0], &self.matches[1]].map(BTreeMap::len);
        self.maps.cells.set_matches(counts);
    }

    pub(crate) fn register(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<()> {
        self.limits.check("probes", self.keys.len() + 1)?;
        let number = self.free.first().copied().ok_or(Error::Exhausted {
            what: "probes (max_vips)",
            limit: self.limits.vips as u64,
        })?;
        let cleared = self.maps.key_counters.clear(number);
        kernel.check("clear the counter of", "probe_counters", cleared)?;
        let written = self.maps.keys.update(&vip_key(&vip), &number);
        kernel.check("register a probe in", "probe_keys", written)?;
        self.free.remove(&number);
        self.keys.insert(vip, number);
        Ok(())
    }

    /// Returns the number, under which packets may still count: [take it back](Self::take_back)
    /// when none does.
    pub(crate) fn unregister(&mut self, kernel: &KernelCalls, vip: Vip) -> Result<Option<u32>> {
        let removed = self.maps.keys.delete(&vip_key(&vip));
        kernel.check("remove a probe from", "probe_keys", removed)?;
        Ok(self.keys.remove(&vip))
    }

    /// Frees the number of a removed counter.
    pub(crate) fn take_back(&mut self, number: u32) {
        self.free.insert(number);
    }

    /// Whether a number is free for another counter at once.
    pub(crate) fn has_free_number(&self) -> bool {
        !self.free.is_empty()
    }

    /// Probes of a registered key.
    pub(crate) fn probes_of(&self, kernel: &KernelCalls, vip: &Vip) -> Result<Option<u64>> {
        let Some(number) = self.keys.get(vip) else {
            return Ok(None);
        };
        let counts = self.maps.key_counters.get(*number);
        let counts = kernel.check("read", "probe_counters", counts)?;
        Ok(Some(counts.iter().sum()))
    }

    pub(crate) fn counters(&self, kernel: &KernelCalls) -> Result<HealthcheckCounters> {
        let totals = kernel.check("read", "probe_totals", self.maps.totals.get(0))?;
        Ok(HealthcheckCounters::sum(&totals))
    }
}

fn place_of(by: &ProbeMatch) -> (MatchBy, SocketAddr) {
    match *by {
        ProbeMatch::Destination(address) => (MatchBy::Destination, address),
        ProbeMatch::Source(address) => (MatchBy::Source, address),
    }
}

pub(super) fn map_name(by: MatchBy) -> &'static str {
    match by {
        MatchBy::Destination => "destinations",
        MatchBy::Source => "sources",
    }
}

pub(super) fn probe_real(address: IpAddr) -> types::probe_real {
    types::probe_real {
        address: address_bytes(address),
        v6: address.is_ipv6().into(),
    }
}

pub(super) fn vip_key(vip: &Vip) -> types::vip_key {
    types::vip_key {
        address: address_bytes(vip.address()),
        port: vip.port().to_be(),
        protocol: vip.protocol().number(),
        family: Family::of(vip.address()).number(),
    }
}
