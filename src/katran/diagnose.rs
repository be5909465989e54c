//! The facts about this balancer that a diagnosis is made from.

use nix::sys::utsname::uname;

use super::DropReason;
use super::Katran;
use crate::Diagnosis;
use crate::Encapsulation;
use crate::Result;
use crate::config::Topology;
use crate::diagnose::Balancer;
use crate::diagnose::InterfaceFacts;
use crate::diagnose::Ours;
use crate::diagnose::judge_balancer;
use crate::diagnose::sysctl;
use crate::environment;
use crate::maps::kernel_error;
use crate::next_hop::Requests;
use crate::next_hop::preview;

/// Drops that a setting, of ours or of the network's, is to blame for.
const TELLING: [(DropReason, &str); 9] = [
    (
        DropReason::NextHopUnknown,
        "reals that nobody answers for: `ip neighbour`, Katran::next_hops",
    ),
    (
        DropReason::RedirectFailed,
        "the interface that leads to the real takes no packets from XDP: it needs native XDP, and \
         some drivers a program of their own on it",
    ),
    (DropReason::EncapV4, "the driver leaves too little headroom"),
    (DropReason::EncapV6, "the driver leaves too little headroom"),
    (
        DropReason::VlanFailed,
        "the driver leaves too little headroom",
    ),
    (
        DropReason::ReplyFailed,
        "the driver leaves too little headroom",
    ),
    (
        DropReason::TooBig,
        "packets above max_frame: raise it with the MTU, or switch icmp-too-big on",
    ),
    (
        DropReason::RingEmpty,
        "a VIP without reals that take new flows",
    ),
    (
        DropReason::Ipv4Fragment,
        "clients' packets are fragmented on the way: smaller MTU or MSS on the backends",
    ),
];

impl Katran {
    /// Looks for what commonly keeps a balancer from forwarding on an interface of the calling thread's
    /// network namespace, before it is attached or after. It changes nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the kernel cannot be asked. That there is no such
    /// interface is a finding.
    ///
    /// ```no_run
    /// # fn f(katran: &katran::Katran) -> katran::Result<()> {
    /// let diagnosis = katran.diagnose("eth0")?;
    /// println!("{diagnosis}");
    /// assert!(diagnosis.works());
    /// # Ok(()) }
    /// ```
    pub fn diagnose(&self, interface: &str) -> Result<Diagnosis> {
        let failed = |error| kernel_error("ask about the interface", interface, error);
        let mut attached = self.attachments.list();
        let xdp = attached
            .find(|attached| attached.interface == interface)
            .map(|attached| attached.mode);
        let ours = Ours {
            xdp,
            elsewhere: !self.shared.is_empty(),
        };
        let facts = InterfaceFacts::gather(interface, ours).map_err(failed)?;
        let previewed = self.watcher.is_none() && self.wanted().needs_watching();
        let next_hops = match previewed {
            true => {
                let reals = self.table.reals();
                let reals = reals.map(|(address, entry)| (entry.number.0, address));
                let attached = facts.index.into_iter().collect();
                preview(self.wanted(), attached, reals).map_err(failed)?
            }
            false => self.next_hops(),
        };
        let neighbours = match facts.index {
            Some(index) => Requests::new()
                .and_then(|mut requests| requests.neighbours(index))
                .map_err(failed)?,
            None => Vec::new(),
        };
        let config = &self.config;
        let flow_table = self.flow_table_counters()?;
        let drops = self.drop_reasons()?;
        let reals = |v6: bool| {
            let mut reals = self.table.reals();
            reals.any(|(address, _)| address.is_ipv6() == v6)
        };
        let empty_vips = self.table.vip_states();
        let empty_vips = empty_vips.iter().filter(|of_vip| {
            let mut reals = of_vip.reals.iter();
            reals.all(|real| real.get_weight() == 0)
        });
        let release = uname().map(|name| name.release().to_string_lossy().into_owned());
        Ok(judge_balancer(&Balancer {
            release: release.unwrap_or_default(),
            jit: sysctl("net/core/bpf_jit_enable").map(|on| on != 0),
            missing_capabilities: environment::lacks_capabilities(),
            interface: facts,
            frags: config.frags,
            max_frame: config.max_frame,
            gue: config.encapsulation == Encapsulation::Gue,
            reals: [reals(false), reals(true)],
            sources: [false, true].map(|v6| self.source(v6).is_some()),
            default_ipip_source: config.ipip_source_v4.octets() == [172, 16, 0, 0],
            healthchecks: self.healthchecks.is_some(),
            healthchecks_attached: self.healthcheck_attachment().is_some(),
            gateway: config.gateway,
            gateway_v6: config.gateway_mac_v6,
            mode: config.next_hops,
            next_hops,
            next_hops_previewed: previewed,
            neighbours,
            online_cpus: Topology::read()?.online.len() as u32,
            forwarding_cpus: config.forwarding_cpus.len() as u32,
            packets: flow_table.packets,
            fallback: flow_table.fallback,
            vips: self.table.vips().len(),
            empty_vips: empty_vips.map(|of_vip| of_vip.vip.to_string()).collect(),
            drops: TELLING
                .into_iter()
                .map(|(reason, advice)| (reason.name(), drops.get(reason), advice))
                .filter(|(_, frames, _)| *frames > 0)
                .collect(),
        }))
    }
}
