//! Finds what commonly keeps a balancer or a backend from working, without changing anything.
//!
//! First it gathers facts (`facts.rs`) about the interface in the calling thread's network
//! namespace. The modules that judge them (`host.rs`, `interface.rs`, `interrupts.rs`,
//! `balancer.rs`, `backend.rs`) need no kernel.

mod backend;
mod balancer;
mod clients;
mod facts;
mod flow_tables;
mod host;
mod interface;
mod interrupts;
mod kernel_tunnels;
mod pinned;
mod reals;
mod recent;
mod sending;
mod tunnel_ends;
mod vlans;

use std::collections::BTreeMap;
use std::fmt;

pub(crate) use backend::Backend;
pub(crate) use backend::judge as judge_backend;
pub(crate) use balancer::Balancer;
pub(crate) use balancer::EmptyVip;
pub(crate) use balancer::judge as judge_balancer;
pub(crate) use clients::Clients;
pub(crate) use clients::WayBack;
pub(crate) use facts::InterfaceFacts;
#[cfg(test)]
pub(crate) use facts::OurAttachment;
pub(crate) use facts::Ours;
#[cfg(test)]
pub(crate) use facts::Present;
pub(crate) use facts::has_ipv6;
pub(crate) use facts::has_ipv6_address;
pub(crate) use facts::sysctl;
pub(crate) use flow_tables::FlowTableFacts;
pub(crate) use host::HostFacts;
pub(crate) use interface::Pages;
pub(crate) use kernel_tunnels::KernelTunnels;
pub(crate) use reals::RealTroubles;
pub(crate) use recent::Counted;
pub(crate) use recent::Growth;
pub(crate) use recent::Look;
pub(crate) use recent::Recent;
pub(crate) use sending::Sends;
pub(crate) use tunnel_ends::TunnelEnds;
pub(crate) use vlans::Vlans;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; nothing is wrong.
    Note,
    /// Packets may be lost, or forwarding is slower than it could be.
    Warning,
    /// Packets are not forwarded or not answered.
    Problem,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        })
    }
}

/// The subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// The kernel: its release, whether it compiles BPF programs, and which optional facilities it
    /// has.
    Kernel,
    /// This process's capabilities.
    Privileges,
    /// Whether the interface exists and is up.
    Interface,
    /// Which process owns a pinned balancer, and whether it lives.
    Owner,
    /// The program on the interface, as the kernel reports it.
    Program,
    /// Native or generic XDP, and why.
    Mode,
    /// Whether the frames that the program sends leave the interface.
    Sending,
    /// Receive queues and their interrupts, compared with the forwarding CPUs.
    Queues,
    /// Offloads that change packets before the program sees them.
    Offload,
    /// Room for the outer headers.
    Mtu,
    /// VLAN tags of frames, compared with the VLAN of the next hops.
    Vlan,
    /// Next hops of encapsulated packets.
    Gateway,
    /// Packets on CPUs without a flow table.
    FallbackTable,
    /// Room for flows.
    FlowTable,
    /// Outer source addresses.
    Source,
    /// Which tunnels are unwrapped, and what is sent on.
    TunnelEnds,
    /// VIPs and their reals.
    Vips,
    /// Reals that fail their health checks.
    Health,
    /// Drops that point to a wrong setting.
    Drops,
    /// The routes from a backend to clients.
    WayBack,
    /// The kernel's reverse-path filter (RFC 3704).
    ReversePathFilter,
    /// Whether the VIPs are addresses of this host.
    VipOnLoopback,
    /// Which addresses a backend answers ARP requests for.
    Arp,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Privileges => "privileges",
            Self::Interface => "interface",
            Self::Owner => "owner",
            Self::Program => "program",
            Self::Mode => "mode",
            Self::Sending => "sending",
            Self::Queues => "queues",
            Self::Offload => "offload",
            Self::Mtu => "mtu",
            Self::Vlan => "vlan",
            Self::Gateway => "gateway",
            Self::FallbackTable => "fallback table",
            Self::FlowTable => "flow table",
            Self::Source => "source",
            Self::TunnelEnds => "tunnel ends",
            Self::Vips => "vips",
            Self::Health => "health",
            Self::Drops => "drops",
            Self::WayBack => "way back",
            Self::ReversePathFilter => "rp_filter",
            Self::VipOnLoopback => "vip on lo",
            Self::Arp => "arp",
        })
    }
}

/// One result of a diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// What was found, with figures.
    pub message: String,
    /// What to do; empty only for [`Severity::Ok`].
    pub advice: String,
}

/// The findings about everything that was examined, good ones included. Prints as a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Diagnosis {
    findings: Vec<Finding>,
}

/// # Findings
impl Diagnosis {
    /// Diagnoses the machine and the calling thread, without a balancer: kernel and privileges. Use
    /// it to explain why loading failed.
    ///
    /// ```no_run
    /// # fn f(builder: katran::Builder) {
    /// if let Err(error) = builder.load() {
    ///     println!("{error}\n{}", katran::diagnosis::Diagnosis::of_host());
    /// }
    /// # }
    /// ```
    pub fn of_host() -> Self {
        let mut found = Self::default();
        host::host(&HostFacts::gather(None), &mut found);
        found
    }

    /// All findings, in the order of a packet's path.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The worst severity.
    pub fn worst(&self) -> Severity {
        let severities = self.findings.iter().map(|finding| finding.severity);
        severities.max().unwrap_or(Severity::Ok)
    }

    /// Whether there is no [`Severity::Problem`].
    pub fn works(&self) -> bool {
        self.worst() < Severity::Problem
    }

    /// The number of warnings and problems for each subject, 0 included. Metrics use it, because
    /// messages change with their figures.
    pub fn counts(&self) -> BTreeMap<(Subject, Severity), u64> {
        let mut counts = BTreeMap::new();
        for finding in &self.findings {
            for severity in [Severity::Warning, Severity::Problem] {
                let count = counts.entry((finding.subject, severity)).or_insert(0);
                *count += u64::from(finding.severity == severity);
            }
        }
        counts
    }

    /// The findings about one subject.
    pub fn about(&self, subject: Subject) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding.subject == subject)
    }

    fn add(&mut self, severity: Severity, subject: Subject, message: String, advice: &str) {
        self.findings.push(Finding {
            severity,
            subject,
            message,
            advice: advice.to_owned(),
        });
    }

    fn ok(&mut self, subject: Subject, message: impl Into<String>) {
        self.add(Severity::Ok, subject, message.into(), "");
    }

    fn note(&mut self, subject: Subject, message: impl Into<String>, advice: impl AsRef<str>) {
        self.add(Severity::Note, subject, message.into(), advice.as_ref());
    }

    fn warn(&mut self, subject: Subject, message: impl Into<String>, advice: impl AsRef<str>) {
        self.add(Severity::Warning, subject, message.into(), advice.as_ref());
    }

    fn problem(&mut self, subject: Subject, message: impl Into<String>, advice: impl AsRef<str>) {
        self.add(Severity::Problem, subject, message.into(), advice.as_ref());
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let Finding {
                severity,
                subject,
                message,
                advice,
            } = finding;
            writeln!(f, "{severity:<8} {subject:<15} {message}")?;
            if !advice.is_empty() {
                writeln!(f, "{:<24} -> {advice}", "")?;
            }
        }
        let count = |severity| {
            let findings = self.findings.iter();
            findings
                .filter(|finding| finding.severity == severity)
                .count()
        };
        let problems = counted(count(Severity::Problem), "problem");
        let warnings = counted(count(Severity::Warning), "warning");
        let notes = counted(count(Severity::Note), "note");
        write!(f, "{problems}, {warnings}, {notes}")
    }
}

/// A number of things, such as `1 frame` or `2 frames`.
fn counted(number: impl fmt::Display, one: &str) -> String {
    let number = number.to_string();
    let many = if number == "1" { "" } else { "s" };
    format!("{number} {one}{many}")
}
