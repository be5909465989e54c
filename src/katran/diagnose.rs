//! Collects the facts about this balancer for a diagnosis.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use super::Katran;
use crate::attach::SharedEntries;
use crate::config::Features;
use crate::config::Topology;
use crate::counters::CpuCounters;
use crate::counters::DropReason;
use crate::counters::DropReasons;
use crate::counters::IcmpCounters;
use crate::counters::InterfaceCounters;
use crate::counters::Totals;
use crate::diagnose::Balancer;
use crate::diagnose::Counted;
use crate::diagnose::Diagnosis;
use crate::diagnose::EmptyVip;
use crate::diagnose::FlowTableFacts;
use crate::diagnose::Growth;
use crate::diagnose::HostFacts;
use crate::diagnose::InterfaceFacts;
use crate::diagnose::Look;
use crate::diagnose::Ours;
use crate::diagnose::Pages;
use crate::diagnose::RealTroubles;
use crate::diagnose::Recent;
use crate::diagnose::Sends;
use crate::diagnose::TunnelEnds;
use crate::diagnose::Vlans;
use crate::diagnose::judge_balancer;
use crate::diagnose::sysctl;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::TABLES_DECIDE;
use crate::next_hop::NextHop;
use crate::next_hop::preview;
use crate::rtnetlink::Requests;
use crate::skel::katran::types;
use crate::sys::ethtool::Ethtool;
use crate::sys::program;
use crate::types::ByFamily;
use crate::types::DecapMode;
use crate::types::Family;
use crate::types::FlowTracking;
use crate::types::Gateway;
use crate::types::NextHops;
use crate::types::Protocol;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

/// Drops that point to a wrong setting, of the balancer or the network.
const TELLING: [DropReason; 9] = [
    DropReason::NextHopUnknown,
    DropReason::RedirectFailed,
    DropReason::EncapV4,
    DropReason::EncapV6,
    DropReason::VlanFailed,
    DropReason::ReplyFailed,
    DropReason::TooBig,
    DropReason::RingEmpty,
    DropReason::Ipv4Fragment,
];

/// How long a silent flow should be remembered where no setting says.
const SILENT: Duration = Duration::from_secs(60);

const VLAN_DRIVER: &str = "802.1Q VLAN Support";

/// Beyond so many VIP addresses the kernel is not asked for routes.
const MOST_ASKED: usize = 1000;

/// # Diagnosis
impl Katran {
    /// Looks for what commonly keeps a balancer from forwarding on an interface of the calling
    /// thread's network namespace, before or after attaching. It changes nothing.
    ///
    /// The library asks the kernel whether the program runs, so it notices an interface that was
    /// removed and created again, or a program that something else detached. Naming other programs
    /// takes `CAP_SYS_ADMIN`. It blocks for 1 ms with one VIP and 3 ms with 512, to ask the kernel
    /// about the interface, routes and neighbours.
    ///
    /// Faults that only counters show (drops, unsent frames, wrong VLANs, CPUs without a flow
    /// table) are warnings or problems while they happen, and notes when they have not happened for
    /// a minute. To tell, the diagnosis compares with the counters of earlier ones and of
    /// [`Stats::sample`](crate::stats::Stats::sample).
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the kernel does not answer. A missing interface
    /// is a finding, not an error.
    ///
    /// ```no_run
    /// # fn f(katran: &katran::Katran) -> katran::Result<()> {
    /// let diagnosis = katran.diagnose("eth0")?;
    /// println!("{diagnosis}");
    /// assert!(diagnosis.works());
    /// # Ok(()) }
    /// ```
    pub fn diagnose(&self, interface: &str) -> Result<Diagnosis> {
        let failed = |error| kernel_error("inspect the interface", interface, error);
        let program = self.programs.main.as_fd();
        let ours = Ours {
            elsewhere: !self.shared.is_empty(),
            ..Ours::of(program, &self.attachments, interface)
        };
        let compiled = program::info(program).ok().and_then(|info| info.compiled);
        let host = HostFacts {
            shares: ours.elsewhere,
            ..HostFacts::gather(compiled)
        };
        let lost_entries = ours.program.map(|own| self.lost_entries(own));
        let facts = InterfaceFacts::gather(interface, ours).map_err(failed)?;
        let previewed = self.following.watcher.is_none() && self.wanted().needs_watching();
        let next_hops = match previewed {
            true => {
                let reals = self.table.reals();
                let reals = reals.map(|(address, entry)| (entry.number.0, address));
                let attached = facts.index.into_iter().collect();
                preview(self.wanted(), attached, reals).map_err(failed)?
            }
            false => self.gateways().next_hops().to_vec(),
        };
        let mut requests = Requests::new().map_err(failed)?;
        let (next_hops, reals_here) = self.of_others(next_hops);
        let index = facts.index;
        let neighbours = match index {
            Some(index) => requests.neighbours(index).map_err(failed)?,
            None => Vec::new(),
        };
        let config = &self.config;
        let records = self.per_cpu()?;
        let cpus = self.cpus(&records)?;
        let counted: Vec<_> = records.iter().map(|record| record.counters).collect();
        let icmp = IcmpCounters::sum(&counted);
        let sent = self.attachments.sent();
        let now = Instant::now();
        let mut recent = self.recent();
        recent.look(now, look(&records, &counted, &cpus, &sent));
        let growth = |counted| recent.growth(now, counted);
        let forwarded = |counts: &dyn Fn(&CpuCounters) -> bool| {
            let cpus = cpus.iter().filter(|cpu| counts(cpu));
            let growths = cpus.map(|cpu| growth(Counted::Forwarded(cpu.cpu)));
            growths.reduce(Growth::and).unwrap_or_default()
        };
        let forwarding_cpus: BTreeSet<u32> = self.forwarding_cpus().into_iter().collect();
        let by_interface = sent.into_iter().find(|of| Some(of.index) == index);
        let has_reals = |family| {
            let mut reals = self.table.reals();
            reals.any(|(address, _)| Family::of(address) == family)
        };
        let empty_vips = self.table.vips().filter_map(|(vip, entry)| {
            let mut slots = entry.reals.keys().map(|real| entry.ring_weight(real));
            let down = entry.down.len();
            slots.all(|weight| weight == 0).then(|| EmptyVip {
                vip: vip.to_string(),
                down,
                drained: entry.reals.len() - down,
            })
        });
        Ok(judge_balancer(&Balancer {
            host,
            interface: facts,
            pages: match config.frags {
                true => Pages::Many,
                false => Pages::One,
            },
            max_frame: config.max_frame,
            answers_too_big: config.features.contains(Features::ICMP_TOO_BIG),
            answered_too_big: icmp.too_big_v4 + icmp.too_big_v6,
            vlans: Vlans {
                tags: recent.tags(now),
                of_hops: vlans_of(&next_hops, interface).map_err(failed)?,
            },
            flow_tables: self.flow_table_facts(&records, &cpus)?,
            encapsulation: config.encapsulation,
            reals: ByFamily::of(has_reals),
            sources: ByFamily::of(|family| self.source(family).is_some()),
            default_ipip_sources: ByFamily {
                v4: config.ipip_source_v4.octets() == [172, 16, 0, 0],
                v6: config.ipip_source_v6.segments() == [0x100, 0, 0, 0, 0, 0, 0, 0],
            },
            healthchecks: self.healthchecks.is_some(),
            made_up_probe_sources: config.makes_up_probe_sources(),
            healthchecks_attached: self
                .healthchecks
                .as_ref()
                .is_some_and(|checks| checks.place().is_some()),
            gateway: config.gateway_mac,
            gateway_v6: config.gateway_mac_v6,
            mode: config.next_hops,
            lost_entries: lost_entries.unwrap_or_default(),
            next_hops,
            real_troubles: self
                .real_troubles(reals_here, &mut requests)
                .map_err(failed)?,
            next_hops_previewed: previewed,
            neighbours,
            online_cpus: Topology::read()?.online.len() as u32,
            packets: forwarded(&|_| true),
            without_table: forwarded(&|cpu| !forwarding_cpus.contains(&cpu.cpu)),
            forwarding_cpus,
            vips: self.table.vips().len(),
            vips_of_v6: self.table.vips().any(|(vip, _)| vip.address().is_ipv6()),
            tunnel_ends: TunnelEnds {
                unwraps: config.features.contains(Features::INLINE_DECAP),
                is_strict: config.features.contains(Features::STRICT_DESTINATION),
                egress: self.decap.values().any(|mode| *mode == DecapMode::Egress),
                limits_sources: !config.allow_sources.is_empty(),
                limits_egress: !config.egress_sources.is_empty(),
            },
            empty_vips: empty_vips.collect(),
            routed_on: self.routed_on(&mut requests).map_err(failed)?,
            sends: Sends {
                next_hops: config.next_hops,
                unsent: by_interface
                    .as_ref()
                    .map(|of| growth(unsent(of)))
                    .unwrap_or_default(),
                by_interface,
                by_program: growth(Counted::Sent),
            },
            drops: TELLING
                .into_iter()
                .map(|reason| {
                    (
                        reason.name(),
                        growth(Counted::Dropped(reason)),
                        reason.remedy(),
                    )
                })
                .filter(|(_, frames, _)| frames.total > 0)
                .collect(),
        }))
    }

    /// Reads and remembers the counters that diagnoses compare with.
    pub(super) fn sample_counters(&self) -> Result<()> {
        let look = self.look_at_counters()?;
        self.recent().look(Instant::now(), look);
        Ok(())
    }

    /// Regards everything counted so far as past.
    pub(super) fn forget_counters(&self) -> Result<()> {
        let begun = Recent::begin(Instant::now(), self.look_at_counters()?);
        *self.recent() = begun;
        Ok(())
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at_counters(&self) -> Result<Look> {
        let records = self.per_cpu()?;
        let counted: Vec<_> = records.iter().map(|record| record.counters).collect();
        let cpus = self.cpus(&records)?;
        Ok(look(&records, &counted, &cpus, &self.attachments.sent()))
    }

    /// The CPUs that have a flow table, ascending.
    pub fn forwarding_cpus(&self) -> Vec<u32> {
        let cpus = self.config.placement.iter();
        let mut cpus: Vec<_> = cpus.map(|placed| placed.cpu).collect();
        cpus.sort_unstable();
        cpus
    }

    /// How crowded the flow tables are.
    fn flow_table_facts(
        &self,
        records: &[types::cpu],
        cpus: &[CpuCounters],
    ) -> Result<FlowTableFacts> {
        let vips = self.table.vips().map(|(vip, entry)| (*vip, entry.flags));
        let wanted = match (self.config.flow_tracking, hold_changed_tcp(vips)) {
            (FlowTracking::Changed, true) => self.config.flow_idle_timeout,
            _ => SILENT,
        };
        let wanted = wanted.max(self.config.udp_timeout);
        let mut facts = FlowTableFacts {
            flows: self.config.flow_table_size.unwrap_or_default(),
            wanted,
            flooded: cpus.iter().filter(|cpu| cpu.under_flood).count(),
            threshold: self.config.flood_threshold.unwrap_or_default(),
            ..FlowTableFacts::default()
        };
        let now = self.ticks_now()?;
        let mut silent = Vec::new();
        for (cpu, table) in &self.maps.flows.of_cpus {
            let active = records.get(*cpu as usize).map_or(0, |of| of.sets.count);
            let found = table.crowding(active, now);
            let found = self.kernel.check("inspect", "the flow tables", found)?;
            facts.sets += found.sets;
            silent.extend(found.silent);
        }
        silent.sort_unstable();
        facts.crowded = silent.len();
        if let Some(ticks) = silent.get(silent.len() / 2) {
            facts.silent = self.fixed.tick * *ticks;
        }
        Ok(facts)
    }

    /// VIP addresses that the host would route onwards, by its tables and its forwarding setting.
    fn routed_on(&self, requests: &mut Requests) -> io::Result<Vec<IpAddr>> {
        let forwards = ByFamily {
            v4: sysctl("net/ipv4/ip_forward"),
            v6: sysctl("net/ipv6/conf/all/forwarding"),
        };
        let addresses = self.table.vips().map(|(vip, _)| vip.address());
        let forwarded = addresses.filter(|of| forwards[Family::of(*of)].is_some_and(|on| on != 0));
        let each: BTreeSet<_> = forwarded.collect();
        let asked: Vec<_> = each.into_iter().take(MOST_ASKED).collect();
        let mut routed = Vec::new();
        for (address, route) in asked.iter().zip(requests.routes(&asked, None)?) {
            if route?.is_some_and(|route| !route.local) {
                routed.push(*address);
            }
        }
        Ok(routed)
    }

    /// Reals that no packet can reach; `here` are those whose next hop is this host.
    fn real_troubles(
        &self,
        here: Vec<IpAddr>,
        requests: &mut Requests,
    ) -> io::Result<RealTroubles> {
        let vips: BTreeSet<_> = self.table.vips().map(|(vip, _)| vip.address()).collect();
        let reals = self.table.reals();
        let reals = reals.filter(|(_, entry)| !entry.flags.contains(RealFlags::LOCAL_REAL));
        let (vips, others): (Vec<_>, Vec<_>) = reals
            .map(|(address, _)| address)
            .partition(|real| vips.contains(real));
        let mut troubles = RealTroubles {
            here,
            vips,
            unreachable: Vec::new(),
            gateway_is_given: self.config.gateway_mac != Gateway::Auto,
        };
        troubles.here.retain(|real| !troubles.vips.contains(real));
        if self.config.next_hops != NextHops::Gateway {
            return Ok(troubles);
        }
        let asked = &others[..others.len().min(MOST_ASKED)];
        for (real, route) in asked.iter().zip(requests.routes(asked, None)?) {
            match route? {
                Some(route) if route.local => troubles.here.push(*real),
                Some(_) => {}
                None => troubles.unreachable.push(*real),
            }
        }
        Ok(troubles)
    }

    /// Entries of root programs that were ours and hold something else.
    fn lost_entries(&self, own: u32) -> Vec<String> {
        let entries = self.shared.list().into_iter();
        let lost = entries.filter(|entry| {
            // Where the path is no longer visible, nothing is known.
            let programs = SharedEntries::open(&entry.path).and_then(|entries| entries.programs());
            programs.is_ok_and(|programs| match programs.get(entry.position as usize) {
                Some(Some(program)) => program.id != own,
                _ => true,
            })
        });
        lost.map(|entry| format!("entry {} of {}", entry.position, entry.path.display()))
            .collect()
    }

    /// Next hops except those of reals on this host, which need none; and the reals on this host
    /// that are not marked as local.
    fn of_others(&self, next_hops: Vec<NextHop>) -> (Vec<NextHop>, Vec<IpAddr>) {
        let mut here = Vec::new();
        let mut others = Vec::new();
        let marked = |real: IpAddr| {
            let entry = self.table.real(real);
            entry.is_some_and(|entry| entry.flags.contains(RealFlags::LOCAL_REAL))
        };
        for hop in next_hops {
            match hop.real {
                Some(real) if marked(real) && hop.mac.is_none() => {}
                Some(real) if hop.here => {
                    if !marked(real) {
                        here.push(real);
                    }
                }
                _ => others.push(hop),
            }
        }
        (others, here)
    }
}

/// Whether tables with [`FlowTracking::Changed`] hold only flows that changed, some of them TCP
/// connections that are silent for long. Other flows come as fast as clients like and fill tables
/// of any size; after a minute of silence they have ended.
fn hold_changed_tcp(vips: impl Iterator<Item = (Vip, VipFlags)>) -> bool {
    let mut any_tcp = false;
    for (vip, flags) in vips {
        if flags.intersects(TABLES_DECIDE) {
            return false;
        }
        any_tcp |= vip.protocol() == Protocol::Tcp;
    }
    any_tcp
}

/// The counters that a diagnosis is about.
fn look(
    records: &[types::cpu],
    counted: &[types::counters],
    cpus: &[CpuCounters],
    sent: &[InterfaceCounters],
) -> Look {
    let drops = DropReasons::sum(counted);
    let mut counts: BTreeMap<Counted, u64> = BTreeMap::new();
    let of_cpus = cpus.iter().filter(|cpu| cpu.forwarded > 0);
    counts.extend(of_cpus.map(|cpu| (Counted::Forwarded(cpu.cpu), cpu.forwarded)));
    counts.insert(Counted::Sent, Totals::sum(counted).tx.packets);
    counts.extend(TELLING.map(|reason| (Counted::Dropped(reason), drops.get(reason))));
    counts.extend(sent.iter().map(|of| (unsent(of), of.unsent)));
    let marks = records
        .iter()
        .map(|of| u16::from_be(of.scratch.query.sent_tag));
    Look {
        counts,
        marks: marks.collect(),
    }
}

fn unsent(of: &InterfaceCounters) -> Counted {
    Counted::Unsent {
        namespace: of.namespace,
        index: of.index,
    }
}

/// VLAN interfaces that lead to next hops.
fn vlans_of(next_hops: &[NextHop], interface: &str) -> io::Result<Vec<String>> {
    let others = next_hops.iter().filter_map(|hop| hop.interface.as_deref());
    let others: BTreeSet<_> = others.filter(|name| *name != interface).collect();
    let ethtool = Ethtool::new()?;
    let is_vlan = |name: &&str| {
        ethtool
            .driver(name)
            .is_ok_and(|driver| driver == VLAN_DRIVER)
    };
    let vlans = others.into_iter().filter(is_vlan);
    Ok(vlans.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_with_flows_that_come_and_go_need_not_hold_them_for_an_hour() {
        let tcp = ("203.0.113.1:80/tcp", VipFlags::empty());
        let udp = ("203.0.113.1:53/udp", VipFlags::empty());
        let quic = ("203.0.113.1:443/udp", VipFlags::QUIC);
        let hold = |vips: &[(&str, VipFlags)]| {
            hold_changed_tcp(
                vips.iter()
                    .map(|(vip, flags)| (vip.parse().unwrap(), *flags)),
            )
        };
        assert!(hold(&[tcp]));
        assert!(hold(&[tcp, udp]));
        for vips in [&[udp][..], &[tcp, quic], &[]] {
            assert!(!hold(vips), "{vips:?}");
        }
    }
}
