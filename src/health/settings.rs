//! The settings of all health checks.

use std::collections::BTreeMap;
#[cfg(feature = "serde")]
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::check::Check;
use super::check::Command;
use super::check::Trust;
use super::policy::Policy;
#[cfg(feature = "serde")]
use super::policy::Via;
use super::policy::lasts;
use super::policy::within;
use crate::error::Result;
use crate::types::Protocol;
use crate::types::Vip;

/// How many marks the checks use from the first one on: one for each real probed through the
/// tunnel.
pub(super) const MARKS: u32 = 1 << 16;

/// How reals are probed, by VIP.
///
/// ```
/// use katran::health::{Http, Policy, Settings};
///
/// let mut settings = Settings::default();
/// let page = Policy::new(Http::new("/healthz"));
/// settings.vips.insert("203.0.113.1:80/tcp".parse()?, page);
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Policies of single VIPs. A policy for a VIP that the balancer lacks takes effect when the
    /// VIP is added.
    pub vips: BTreeMap<Vip, Policy>,
    /// The policy of all other TCP VIPs. Default: [`Check::Tcp`].
    pub tcp: Policy,
    /// The policy of all other UDP VIPs. Default: no probes, because there is no datagram that
    /// every service answers.
    pub udp: Policy,
    /// The first socket mark of probes. The checks own 65,536 marks from there on: neither the
    /// document nor anything else on this host may use them. Range: 1 to 4,294,901,760; default:
    /// 0x6b000000.
    pub first_mark: u32,
    /// The largest number of probes in flight; each holds one or two descriptors. Others wait.
    /// Range: 1 to 65,536; default: 512.
    pub concurrency: u32,
    /// The number of threads that probe. Range: 1 to 64; default: 2.
    pub threads: u32,
    /// The number of transitions to remember for each real. Range: 0 to 1,000; default: 16.
    pub history: u32,
    /// The shortest time between two changes of the balancer; results in between become one change.
    /// Range: 10 ms to 10 s; default: 100 ms.
    pub pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vips: BTreeMap::new(),
            tcp: Policy::new(Check::Tcp),
            udp: Policy::none(),
            first_mark: 0x6b00_0000,
            concurrency: 512,
            threads: 2,
            history: 16,
            pause: Duration::from_millis(100),
        }
    }
}

/// # Ranges, files and commands
impl Settings {
    /// Refuses settings that are out of range or contradictory, without any I/O.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig).
    pub fn validate(&self) -> Result<()> {
        within("first_mark", self.first_mark, 1, u32::MAX - MARKS + 1)?;
        within("concurrency", self.concurrency, 1, 65_536)?;
        within("threads", self.threads, 1, 64)?;
        within("history", self.history, 0, 1000)?;
        let pauses = Duration::from_millis(10)..=Duration::from_secs(10);
        lasts("pause", self.pause, pauses, "10 ms to 10 s")?;
        let mut all = self.vips.values().chain([&self.tcp, &self.udp]);
        all.try_for_each(Policy::validate)
    }

    /// Whether a real of a VIP is probed through the tunnel.
    #[cfg(feature = "serde")]
    pub(super) fn is_by_tunnel(&self, vip: Vip, real: IpAddr) -> bool {
        let probing = self.of(vip).of_real(vip, real);
        probing.is_some_and(|probing| probing.via == Via::Tunnel)
    }

    /// The files of authorities that checks name, with duplicates. The checking process opens them,
    /// and its errors reveal which exist: consider that if you did not choose the settings.
    pub fn authorities(&self) -> impl Iterator<Item = &Path> {
        let tls = self.checks().filter_map(|check| match check {
            Check::Http(http) => http.tls.as_ref(),
            Check::Quic(quic) => Some(&quic.tls),
            _ => None,
        });
        tls.filter_map(|tls| match &tls.trust {
            Trust::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// The programs that checks run, with arguments and duplicates.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        let checks = self.checks();
        checks.filter_map(|check| match check {
            Check::Command(command) => Some(command.as_ref()),
            _ => None,
        })
    }

    /// All checks, with duplicates.
    pub(super) fn checks(&self) -> impl Iterator<Item = &Check> {
        let policies = self.vips.values().chain([&self.tcp, &self.udp]);
        policies.flat_map(|policy| {
            let of_reals = policy.reals.values();
            policy
                .check
                .iter()
                .chain(of_reals.filter_map(|of| of.check.as_ref()))
        })
    }

    /// The policy of a VIP.
    pub(super) fn of(&self, vip: Vip) -> &Policy {
        let usual = match vip.protocol() {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        };
        self.vips.get(&vip).unwrap_or(usual)
    }

    /// Whether the checks own a mark.
    pub(super) fn is_own_mark(&self, mark: u32) -> bool {
        mark.checked_sub(self.first_mark)
            .is_some_and(|at| at < MARKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused() {
        assert!(Settings::default().validate().is_ok());
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.validate().unwrap_err().to_string()
        };
        assert!(with(|it| it.first_mark = 0).contains("first_mark = 0"));
        assert!(with(|it| it.first_mark = u32::MAX - MARKS + 2).contains("4294901760"));
        assert!(with(|it| it.concurrency = 0).contains("concurrency"));
        assert!(with(|it| it.threads = 65).contains("1 to 64"));
        assert!(with(|it| it.history = 1001).contains("history"));
        assert!(with(|it| it.pause = Duration::ZERO).contains("pause"));
        assert!(with(|it| it.tcp.rise = 0).contains("rise = 0: must be 1 to 100"));
        assert!(with(|it| it.tcp.fall = 101).contains("fall"));
        assert!(with(|it| it.udp.jitter = 51).contains("jitter"));
        assert!(with(|it| it.tcp.panic_threshold = 101).contains("panic_threshold"));
        assert!(with(|it| it.tcp.slow_start_steps = 3).contains("4 to 8"));
        assert!(with(|it| it.tcp.interval = Duration::ZERO).contains("10 ms to 1 h"));
        assert!(with(|it| it.tcp.timeout = Duration::from_secs(601)).contains("timeout"));
        assert!(with(|it| it.tcp.slow_start = Duration::from_secs(3601)).contains("slow_start"));
        assert!(with(|it| it.tcp.port = Some(0)).contains("port"));
    }
}
