//! How a VIP's reals are probed, and what results change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::check::Check;
use super::check::invalid;
use crate::error::Result;
use crate::types::Protocol;
use crate::types::Vip;

const HOUR: Duration = Duration::from_secs(3600);

/// The path of probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Via {
    /// To the VIP's address, through the tunnel to the real, as clients' packets. The balancer
    /// needs [`healthcheck_interface`](crate::Builder::healthcheck_interface) and an outer source
    /// address.
    #[default]
    Tunnel,
    /// To the real's own address, as any connection of this host. It tests neither tunnel nor VIP.
    Direct,
}

/// How a VIP's reals are probed, and what results change.
///
/// ```
/// use std::time::Duration;
/// use katran::health::{Http, Policy};
///
/// let mut policy = Policy::new(Http::new("/healthz"));
/// policy.interval = Duration::from_secs(1);
/// policy.slow_start = Duration::from_secs(60);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// The check; `None`: no probes, and reals stay in use.
    pub check: Option<Check>,
    /// The port to probe. Range: 1 to 65,535; default: the VIP's.
    pub port: Option<u16>,
    /// The path of probes. Default: [`Via::Tunnel`].
    pub via: Via,
    /// The time from the end of a probe to the next one of the same real. Range: 10 ms to 1 h;
    /// default: 2 s.
    pub interval: Duration,
    /// The time for a whole answer. Range: 1 ms to 10 minutes; default: 1 s.
    pub timeout: Duration,
    /// Successes in a row that bring a real back. Range: 1 to 100; default: 2.
    pub rise: u32,
    /// Failures in a row that take a real out. Range: 1 to 100; default: 3. If a real's very first
    /// probe fails, that takes it out.
    pub fall: u32,
    /// The largest random change of an interval, which keeps probes from synchronising. Unit:
    /// percent; range: 0 to 50; default: 10.
    pub jitter: u32,
    /// If working reals have less than this share of the VIP's weight, no further real is taken
    /// out: then the checker is more likely cut off, or the rest could not carry the load. Unit:
    /// percent; range: 0 to 100; default: 0, only if none works.
    pub panic_threshold: u32,
    /// Whether drained reals (weight 0) that work take flows, in equal shares, while all others are
    /// down. Default: yes.
    pub drained_fallback: bool,
    /// How long a real's weight climbs after the real came back or joined others. Needs
    /// [`MaglevV2`](crate::HashFunction::MaglevV2), whose shares depend only on the ratio of
    /// weights: during the climb, all other weights of the VIP are multiplied. With
    /// [`Maglev`](crate::HashFunction::Maglev) it has no effect, and a
    /// [`Document`](super::Document) with both is refused. Range: 0 to 1 h; default: 0, at once.
    pub slow_start: Duration,
    /// The number of steps, each with another ring. Range: 4 to 8; default: 8.
    pub slow_start_steps: u32,
    /// Exceptions for some of its reals.
    pub reals: BTreeMap<IpAddr, RealPolicy>,
}

impl Policy {
    /// This check, with defaults.
    pub fn new(check: impl Into<Check>) -> Self {
        Self {
            check: Some(check.into()),
            port: None,
            via: Via::Tunnel,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter: 10,
            panic_threshold: 0,
            drained_fallback: true,
            slow_start: Duration::ZERO,
            slow_start_steps: 8,
            reals: BTreeMap::new(),
        }
    }

    /// No probes: reals stay in use.
    pub fn none() -> Self {
        Self {
            check: None,
            ..Self::new(Check::Tcp)
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        timing(self.interval, self.timeout)?;
        counts(self.rise, self.fall)?;
        within("jitter", self.jitter, 0, 50)?;
        within("panic_threshold", self.panic_threshold, 0, 100)?;
        within("slow_start_steps", self.slow_start_steps, 4, 8)?;
        lasts(
            "slow_start",
            self.slow_start,
            Duration::ZERO..=HOUR,
            "0 to 1 h",
        )?;
        asked(self.check.as_ref(), self.port)?;
        for of_real in self.reals.values() {
            timing(
                of_real.interval.unwrap_or(self.interval),
                of_real.timeout.unwrap_or(self.timeout),
            )?;
            counts(
                of_real.rise.unwrap_or(self.rise),
                of_real.fall.unwrap_or(self.fall),
            )?;
            asked(of_real.check.as_ref(), of_real.port)?;
        }
        Ok(())
    }

    /// How a real of this VIP is probed; `None` if it is not.
    pub(super) fn of_real(&self, vip: Vip, real: IpAddr) -> Option<Probing<'_>> {
        let own = self.reals.get(&real);
        if own.is_some_and(|own| !own.probed) {
            return None;
        }
        let check = own.and_then(|own| own.check.as_ref());
        let check = check.or(self.check.as_ref())?;
        let port = own.and_then(|own| own.port).or(self.port);
        let port = port.unwrap_or(vip.port());
        if port == 0 || (vip.is_prefix() && self.via == Via::Tunnel) {
            return None;
        }
        let address = match self.via {
            Via::Tunnel => vip.address(),
            Via::Direct => real,
        };
        let protocol: Protocol = check.protocol().unwrap_or(vip.protocol());
        Some(Probing {
            check,
            to: Vip::new((address, port).into(), protocol),
            counted: self.via == Via::Tunnel && check.protocol().is_some(),
            via: self.via,
            interval: own.and_then(|own| own.interval).unwrap_or(self.interval),
            timeout: own.and_then(|own| own.timeout).unwrap_or(self.timeout),
            jitter: self.jitter,
        })
    }

    /// The results in a row that change a real's status.
    pub(super) fn thresholds(&self, real: IpAddr) -> Thresholds {
        let own = self.reals.get(&real);
        Thresholds {
            rise: own.and_then(|own| own.rise).unwrap_or(self.rise),
            fall: own.and_then(|own| own.fall).unwrap_or(self.fall),
        }
    }
}

/// Exceptions for one real of a VIP; `None` means the VIP's value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RealPolicy {
    /// Whether it is probed; a real that is not stays in use. Default: yes.
    pub probed: bool,
    /// See [`Policy::check`].
    pub check: Option<Check>,
    /// See [`Policy::port`].
    pub port: Option<u16>,
    /// See [`Policy::interval`].
    pub interval: Option<Duration>,
    /// See [`Policy::timeout`].
    pub timeout: Option<Duration>,
    /// See [`Policy::rise`].
    pub rise: Option<u32>,
    /// See [`Policy::fall`].
    pub fall: Option<u32>,
}

impl Default for RealPolicy {
    fn default() -> Self {
        Self {
            probed: true,
            check: None,
            port: None,
            interval: None,
            timeout: None,
            rise: None,
            fall: None,
        }
    }
}

/// How one real is probed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Probing<'a> {
    pub(super) check: &'a Check,
    /// The target of probes, and what they are counted by if they go through the tunnel.
    pub(super) to: Vip,
    pub(super) via: Via,
    /// Whether they are counted on their way through the tunnel.
    pub(super) counted: bool,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) jitter: u32,
}

/// How many results in a row change a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) rise: u32,
    pub(super) fall: u32,
}

fn asked(check: Option<&Check>, port: Option<u16>) -> Result<()> {
    if port == Some(0) {
        return Err(invalid("port", 0, "must be 1 to 65,535"));
    }
    check.map_or(Ok(()), Check::validate)
}

fn timing(interval: Duration, timeout: Duration) -> Result<()> {
    let intervals = Duration::from_millis(10)..=HOUR;
    lasts("interval", interval, intervals, "10 ms to 1 h")?;
    let timeouts = Duration::from_millis(1)..=Duration::from_secs(600);
    lasts("timeout", timeout, timeouts, "1 ms to 10 minutes")
}

fn counts(rise: u32, fall: u32) -> Result<()> {
    within("rise", rise, 1, 100)?;
    within("fall", fall, 1, 100)
}

/// Refuses a duration out of range; `words` is the range as text.
pub(super) fn lasts(
    setting: &'static str,
    value: Duration,
    range: RangeInclusive<Duration>,
    words: &str,
) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(invalid(
            setting,
            format!("{value:?}"),
            format!("must be {words}"),
        )),
    }
}

pub(super) fn within(setting: &'static str, value: u32, least: u32, most: u32) -> Result<()> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(invalid(
            setting,
            value,
            format!("must be {least} to {most}"),
        )),
    }
}
