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

/// So many marks from the first one on are the checks': one for each real that is probed.
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
    /// How the reals of these VIPs are probed. One that the balancer does not have counts when it gets it.
    pub vips: BTreeMap<Vip, Policy>,
    /// How those of all other VIPs of TCP are. Default: [`Check::Tcp`].
    pub tcp: Policy,
    /// How those of all other VIPs of UDP are. Default: not at all, for no datagram is answered by every service.
    pub udp: Policy,
    /// The first of the socket marks that probes have. 65,536 from here on are the checks': neither the document nor
    /// anything else of this host may use them. Range: 1 to 4,294,901,760; default: 0x6b000000.
    pub first_mark: u32,
    /// How many probes are on their way at once; each holds a descriptor or two. If more are due they wait. Range: 1
    /// to 65,536; default: 512.
    pub concurrency: u32,
    /// Threads that probe. Range: 1 to 64; default: 2.
    pub threads: u32,
    /// How many transitions of each real are remembered. Range: 0 to 1,000; default: 16.
    pub history: u32,
    /// Between two changes of the balancer: what is found meanwhile is one change. Range: 10 ms to 10 s; default: 100
    /// ms.
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

impl Settings {
    /// Refuses what is out of range or contradicts itself, without any I/O.
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

    /// The files with authorities that checks name, each as often as they do. They are opened by the process that checks, and an
    /// error tells whether there is one: think of that where the settings are somebody else's.
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

    /// The programs that checks run, with their arguments, each as often as they do.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        let checks = self.checks();
        checks.filter_map(|check| match check {
            Check::Command(command) => Some(command.as_ref()),
            _ => None,
        })
    }

    /// All checks, some of them many times.
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

    /// How the reals of a VIP are probed.
    pub(super) fn of(&self, vip: Vip) -> &Policy {
        let usual = match vip.protocol() {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        };
        self.vips.get(&vip).unwrap_or(usual)
    }

    /// Whether a mark is the checks'.
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
        assert!(with(|it| it.tcp.rise = 0).contains("rise = 0: 1 to 100"));
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
