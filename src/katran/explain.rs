//! Predicts what would happen to a frame, and to a flow.
//!
//! [`Katran::simulate`] runs the program's explaining twin, compiled from the same source over the
//! same maps, on a frame. [`Katran::real_for_flow`] only reads.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Duration;

use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

use super::Katran;
use super::explained::Answer;
use super::explained::Choice;
use super::explained::Reason;
use super::explained::Simulation;
use super::explained::Verdict;
use super::looks::look_while_it_moves;
use crate::config::ticks;
use crate::counters::DropReason;
use crate::error::Error;
use crate::error::Result;
use crate::maps::VoidReason;
use crate::maps::real_id;
use crate::ring::history::At;
use crate::skel::katran::types;
use crate::skel::katran::types::step;
use crate::sys::program;
use crate::table::Resolved;
use crate::types::Family;
use crate::types::Flow;
use crate::types::Protocol;
use crate::types::RealNumber;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::address_bytes;

/// The shortest frame that the kernel's test run takes: an Ethernet header.
const SHORTEST: usize = 14;
/// The longest frame that it takes without `frags`: a page less the kernel's headroom and the space
/// behind the frame.
const LONGEST: usize = 4096 - 256 - 320;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remembered {
    Nothing,
    /// Void entries, so the ring decides.
    Void,
    Real(IpAddr, Choice),
}

/// # Explaining packets
impl Katran {
    /// Runs the loaded program on a frame as if it had arrived: counters and tables change.
    ///
    /// The frame begins with its Ethernet header. It runs on the first forwarding CPU, so that
    /// frames of one flow find the flow's entry. It comes from no interface, so every Ethernet
    /// destination except a group's counts as this station's. The program's explaining twin runs
    /// it: the same code over the same maps, which also records its decisions. Threads that call
    /// this at the same time take turns.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the frame is longer than the kernel takes for a program without
    /// `frags` (3,520 bytes); [`Error::Kernel`].
    ///
    /// ```no_run
    /// # fn f(katran: &katran::Katran, frame: &[u8]) -> katran::Result<()> {
    /// let simulation = katran.simulate(frame)?;
    /// println!("{} by {}", simulation.verdict, simulation.reason);
    /// # Ok(()) }
    /// ```
    #[doc(alias = "KatranSimulator")]
    pub fn simulate(&self, frame: &[u8]) -> Result<Simulation> {
        if frame.len() < SHORTEST {
            // Neither drivers nor the kernel give such a frame to a program.
            return Ok(Simulation {
                verdict: Verdict::Drop,
                frame: frame.to_vec(),
                vip: None,
                real: None,
                reason: Reason::Dropped(DropReason::FrameTruncated),
            });
        }
        if frame.len() > LONGEST && !self.config.frags {
            return Err(Error::Unsupported {
                what: format!("a frame of {} bytes", frame.len()),
                reason: "without frags the kernel gives the program at most 3,520 bytes: set frags = true",
            });
        }
        let _permit = self.maps.live.tenure().permit()?;
        let _alone = self
            .explaining
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (ran, explanation) = self.on_first_cpu(|| {
            let ran = self.kernel.check(
                "run a frame through",
                "katran_explain",
                program::run(self.programs.explainer.as_fd(), frame),
            )?;
            let explanation =
                self.kernel
                    .check("read", "explanations", self.maps.explanations.lookup(&0))?;
            Ok((ran, explanation.unwrap_or_default()))
        })?;
        let verdict = match ran.action {
            libbpf_sys::XDP_TX | libbpf_sys::XDP_REDIRECT => Verdict::Tx,
            libbpf_sys::XDP_PASS => Verdict::Pass,
            _ => Verdict::Drop,
        };
        Ok(Simulation {
            verdict,
            frame: ran.frame,
            vip: self.vip_numbered(explanation.vip),
            real: self.real_numbered(explanation.real),
            reason: reason(&explanation),
        })
    }

    /// The real that a flow's packets currently go to. No counter moves and no entry is made.
    /// `None` if no VIP covers the destination.
    ///
    /// The answer is for a packet that is not a SYN, needs no fragmentation and has no server id;
    /// ask [`simulate`](Self::simulate) about packets with ids. The network card decides on which
    /// CPU a flow arrives, so the library looks in the tables of all CPUs. If several know the
    /// flow, that of the lowest CPU answers.
    ///
    /// Tables move entries while they grow. If this flow's entry may have moved meanwhile, the
    /// library looks again: once for each doubling of a table, and 64 times at most. Then it
    /// answers as for an unknown flow.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if source and destination are of different families;
    /// [`Error::Kernel`].
    ///
    /// ```no_run
    /// use katran::Flow;
    ///
    /// # fn example(katran: &katran::Katran) -> katran::Result<()> {
    /// let flow = Flow::tcp(
    ///     "192.0.2.1:1234".parse().unwrap(),
    ///     "203.0.113.1:443".parse().unwrap(),
    /// );
    /// if let Some(answer) = katran.real_for_flow(&flow)? {
    ///     println!("{:?} by {:?}", answer.real, answer.choice);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "getRealForFlow")]
    pub fn real_for_flow(&self, flow: &Flow) -> Result<Option<Answer>> {
        let _permit = self.maps.live.tenure().permit()?;
        let flow = &flow.as_sent()?;
        let Some((found, key)) = self.key_of(flow)? else {
            return Ok(None);
        };
        let flags = found.entry.flags;
        if self.tracks_changes(&found.vip, flags) {
            return self.real_by_slot(flow, &found, &key).map(Some);
        }
        let mut remembered = Remembered::Nothing;
        let has_reals = !found.entry.reals.is_empty();
        if !flags.contains(VipFlags::LRU_BYPASS) && has_reals {
            remembered = self.remembered(&key, flow.protocol, |_| true)?;
        }
        if remembered == Remembered::Nothing && flags.contains(VipFlags::GLOBAL_LRU) && has_reals {
            let global = self.in_global_flows(&key)?;
            remembered = match global {
                Some((real, _)) if self.is_void(&key, real) => Remembered::Void,
                Some((real, cpu)) => Remembered::Real(real, Choice::GlobalFlowTable { cpu }),
                None => Remembered::Nothing,
            };
        }
        if let Remembered::Real(real, choice) = remembered {
            return Ok(Some(Answer {
                vip: found.vip,
                real: Some(real),
                choice,
                drop: None,
            }));
        }
        let source = flow.source.ip();
        let (source_port, destination_port) = hashed_ports(flow, &found);
        let by_port = flags.contains(VipFlags::DPORT_HASH);
        let (hashed, hashed_port) = match (by_port, source) {
            (false, _) => (source, source_port),
            (true, IpAddr::V4(_)) => (std::net::Ipv4Addr::UNSPECIFIED.into(), destination_port),
            (true, IpAddr::V6(_)) => (std::net::Ipv6Addr::UNSPECIFIED.into(), destination_port),
        };
        if flags.contains(VipFlags::SRC_ROUTING)
            && let Some((prefix, real)) = self.source_routes.longest(source)
            && !self.leads_to_down(&key, real)
        {
            return Ok(Some(Answer {
                vip: found.vip,
                real: self.table.address_of(real),
                choice: Choice::SourceRoute { prefix },
                drop: None,
            }));
        }
        let slot = self
            .fixed
            .hasher
            .slot(hashed, hashed_port, destination_port);
        let place = usize::from(found.entry.number.0);
        if let Some(before) = self.slot_before(place, slot)
            && before.base != 0
        {
            return Ok(Some(self.answer(found.vip, before.base, Choice::Base)));
        }
        let ring = self.rings[place];
        let number = ring.map_or(0, |ring| self.real_in(ring, slot));
        Ok(Some(self.answer(found.vip, number, Choice::Ring)))
    }

    /// The answer with the real of this number.
    fn answer(&self, vip: Vip, number: u16, choice: Choice) -> Answer {
        let real = self.real_numbered(number.into());
        let drop = match (real, number) {
            (Some(_), _) => None,
            (None, 0) => Some(DropReason::RingEmpty),
            (None, _) => Some(DropReason::RingUnknownReal),
        };
        Answer {
            vip,
            real,
            choice,
            drop,
        }
    }

    /// As [`real_for_flow`](Self::real_for_flow), where tables hold only flows that changed.
    fn real_by_slot(
        &self,
        flow: &Flow,
        found: &Resolved<'_>,
        key: &types::flow_key,
    ) -> Result<Answer> {
        let (source_port, destination_port) = hashed_ports(flow, found);
        let source = flow.source.ip();
        let hasher = &self.fixed.hasher;
        let slot = hasher.slot(source, source_port, destination_port);
        let place = usize::from(found.entry.number.0);
        let current = self.rings[place].map_or(0, |ring| self.real_in(ring, slot));
        let Some(before) = self.slot_before(place, slot) else {
            return Ok(self.answer(found.vip, current, Choice::SettledSlot));
        };
        let shift = self.moment_shift(flow.protocol);
        let is_younger =
            |value: &types::flow_value| At::of_ticks(value.used, shift).is_not_before(before.since);
        if let Remembered::Real(real, choice) = self.remembered(key, flow.protocol, is_younger)? {
            return Ok(Answer {
                vip: found.vip,
                real: Some(real),
                choice,
                drop: None,
            });
        }
        let timeout = ticks(self.config.udp_timeout, self.fixed.tick);
        let joins = match flow.protocol {
            Protocol::Tcp => true,
            Protocol::Udp => {
                let now = At::of_ticks(self.ticks_now()?, shift);
                u32::from(now.after(before.since)) << shift <= timeout
            }
        };
        Ok(match before.base {
            0 => self.answer(found.vip, current, Choice::Ring),
            base if joins => self.answer(found.vip, base, Choice::Base),
            _ => self.answer(found.vip, current, Choice::Ring),
        })
    }

    /// The VIP of a flow's packets, and the flow's key in tables; `None` if no VIP covers the
    /// destination.
    pub(super) fn key_of(&self, flow: &Flow) -> Result<Option<(Resolved<'_>, types::flow_key)>> {
        let flow = flow.as_sent()?;
        let (source, destination) = (flow.source.ip(), flow.destination.ip());
        let port = flow.destination.port();
        let Some(found) = self.table.resolve(destination, port, flow.protocol) else {
            return Ok(None);
        };
        let (source_port, destination_port) = match flow.protocol {
            Protocol::Udp => hashed_ports(&flow, &found),
            // Tables distinguish connections that the ring does not.
            Protocol::Tcp => (flow.source.port(), port),
        };
        let key = types::flow_key {
            source: address_bytes(source),
            destination: address_bytes(destination),
            source_port: source_port.to_be(),
            destination_port: destination_port.to_be(),
            protocol: flow.protocol.number(),
            family: Family::of(source).number(),
            vip: found.entry.number.0 + 1,
        };
        Ok(Some((found, key)))
    }

    /// Whether a flow's entry for this real is void.
    fn is_void(&self, key: &types::flow_key, real: IpAddr) -> bool {
        self.void_reason(key, real).is_some()
    }

    /// Whether a source route leads to a real that is down for the flow's VIP.
    fn leads_to_down(&self, key: &types::flow_key, real: RealNumber) -> bool {
        let address = self.table.address_of(real);
        let reason = address.and_then(|real| self.void_reason(key, real));
        reason == Some(VoidReason::Down)
    }

    fn void_reason(&self, key: &types::flow_key, real: IpAddr) -> Option<VoidReason> {
        let of = self.table.real(real)?;
        let id = real_id(of.number.0, of.generation);
        self.maps.voids.reason(key.vip.saturating_sub(1), id)
    }

    /// The real that a flow table has for this key.
    fn remembered(
        &self,
        key: &types::flow_key,
        protocol: Protocol,
        counts: impl Fn(&types::flow_value) -> bool,
    ) -> Result<Remembered> {
        let fingerprint = self.fixed.flow_keys.fingerprint(key);
        let found = look_while_it_moves(
            || self.per_cpu(),
            |records| {
                let found = self.remembered_in(records, key, protocol, &counts)?;
                Ok((found != Remembered::Nothing).then_some(found))
            },
            |record| fingerprint.set_of(record.sets.count.max(1)),
        )?;
        Ok(found.unwrap_or(Remembered::Nothing))
    }

    fn remembered_in(
        &self,
        records: &[types::cpu],
        key: &types::flow_key,
        protocol: Protocol,
        counts: impl Fn(&types::flow_value) -> bool,
    ) -> Result<Remembered> {
        let mut found = Remembered::Nothing;
        let flows = &self.maps.flows;
        let of_cpus = flows.of_cpus.iter();
        let of_cpus = of_cpus.map(|(cpu, table)| (table, Choice::FlowTable { cpu: *cpu }));
        let tables = of_cpus.chain([(&flows.fallback, Choice::FallbackTable)]);
        let fingerprint = self.fixed.flow_keys.fingerprint(key);
        for (table, choice) in tables {
            let active = match choice {
                Choice::FlowTable { cpu } => records.get(cpu as usize).map(|of| of.sets.count),
                _ => None,
            };
            let value = table.find(key, fingerprint, active);
            let value = self.kernel.check("look into", "a flow table", value)?;
            if let Some(value) = value.filter(&counts)
                && let Some(real) = self.real_of(&value, protocol)?
            {
                if !self.is_void(key, real) {
                    return Ok(Remembered::Real(real, choice));
                }
                found = Remembered::Void;
            }
        }
        Ok(found)
    }

    /// The real of an entry; `None` if the program would not use the entry.
    pub(super) fn real_of(
        &self,
        value: &types::flow_value,
        protocol: Protocol,
    ) -> Result<Option<IpAddr>> {
        let number = value.id & types::flow_table_constant::REAL_NUMBER_MASK.0;
        let Some(address) = self.real_numbered(number) else {
            return Ok(None);
        };
        let alive = self
            .table
            .real(address)
            .is_some_and(|real| real_id(real.number.0, real.generation) == value.id);
        if !alive {
            return Ok(None);
        }
        if protocol == Protocol::Udp {
            let timeout = ticks(self.config.udp_timeout, self.fixed.tick);
            let second = ticks(Duration::from_secs(1), self.fixed.tick);
            // Both wrap around; an entry slightly ahead of now was just stamped.
            let age = self.ticks_now()?.wrapping_sub(value.used);
            if age.wrapping_add(second) > timeout + second {
                return Ok(None);
            }
        }
        Ok(Some(address))
    }

    /// The kernel's clock in the ticks that stamp flow entries.
    pub(super) fn ticks_now(&self) -> Result<u32> {
        let frame = [0; SHORTEST];
        let ran = program::run(self.programs.clock.as_fd(), &frame);
        Ok(self
            .kernel
            .check("read the clock with", "ticks", ran)?
            .action)
    }

    /// Runs `f` on the first forwarding CPU, so that it uses that CPU's flow table.
    fn on_first_cpu<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let this_thread = Pid::from_raw(0);
        let before = self.kernel.check(
            "ask for the CPUs of",
            "this thread",
            sched_getaffinity(this_thread).map_err(std::io::Error::from),
        )?;
        let mut first = CpuSet::new();
        let cpu = self.config.placement.first().map_or(0, |place| place.cpu);
        let set = first.set(cpu as usize);
        let pinned = set.and_then(|()| sched_setaffinity(this_thread, &first));
        // A process that may not run there gets an answer from another CPU's table.
        if let Err(errno) = pinned {
            log::warn!("cannot run on CPU {cpu} ({errno}): simulating on another one");
        }
        let result = f();
        if let Err(errno) = sched_setaffinity(this_thread, &before) {
            log::warn!("cannot return to the CPUs of this thread: {errno}");
        }
        result
    }

    fn vip_numbered(&self, plus_one: u32) -> Option<Vip> {
        self.table
            .vips()
            .find(|(_, entry)| u32::from(entry.number.0) + 1 == plus_one)
            .map(|(vip, _)| *vip)
    }

    pub(super) fn real_numbered(&self, number: u32) -> Option<IpAddr> {
        let number = u16::try_from(number).ok()?;
        self.table.address_of(crate::types::RealNumber(number))
    }
}

/// A flow's ports as its VIP's ring sees them: 0 for one that does not count.
fn hashed_ports(flow: &Flow, found: &Resolved<'_>) -> (u16, u16) {
    let flags = found.entry.flags;
    let keeps_port = VipFlags::DPORT_HASH | VipFlags::SRC_DST_PORT;
    let destination_port = match found.exact || flags.intersects(keeps_port) {
        true => flow.destination.port(),
        false => 0,
    };
    let source_port = match flags.contains(VipFlags::NO_SRC_PORT) {
        true => 0,
        false => flow.source.port(),
    };
    (source_port, destination_port)
}

fn reason(explanation: &types::explanation) -> Reason {
    if let Some(dropped) = DropReason::from_number(explanation.drop.0 as usize) {
        return Reason::Dropped(dropped);
    }
    match explanation.step {
        step::STEP_OTHER_STATION => Reason::OtherStation,
        step::STEP_ORPHAN => Reason::Orphan,
        step::STEP_ICMP_ECHO => Reason::IcmpEcho,
        step::STEP_ICMP_OTHER => Reason::IcmpOther,
        step::STEP_NOT_TRANSPORT => Reason::NotTransport,
        step::STEP_NO_VIP => Reason::NotAVip,
        step::STEP_TOO_BIG => Reason::TooBig,
        step::STEP_FLOW_TABLE => Reason::FlowTable,
        step::STEP_RING => Reason::Ring,
        step::STEP_SETTLED_SLOT => Reason::SettledSlot,
        step::STEP_BASE => Reason::Base,
        step::STEP_CONNECTION_ID => Reason::ConnectionId,
        step::STEP_TCP_SERVER_ID => Reason::TcpServerId,
        step::STEP_STABLE_UDP => Reason::StableUdp,
        step::STEP_GLOBAL_FLOWS => Reason::GlobalFlowTable,
        step::STEP_SOURCE_ROUTE => Reason::SourceRoute,
        step::STEP_DECAP_FOREIGN => Reason::DecapForeign,
        step::STEP_DECAP_TO_HOST => Reason::DecapToHost,
        step::STEP_DECAP_EGRESS => Reason::DecapEgress,
        step::STEP_TUNNEL_IN_TUNNEL => Reason::TunnelInTunnel,
        _ => Reason::NotIp,
    }
}
