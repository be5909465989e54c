//! What is known, as plain data: for metrics and pages.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use super::outcome::Cause;
use super::score::Status;
use super::tally::Tally;
use crate::document::Changes;
use crate::types::Vip;

/// What health checks know, and have done, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// By VIP, ascending.
    pub vips: Vec<VipHealth>,
    /// Results since the start that were answers.
    pub passed: u64,
    /// Those that were failures.
    pub failed: u64,
    /// Probes that say nothing of a real: they could not be sent, or did not go through the tunnel.
    pub not_sent: u64,
    /// Results that were lost, as the balancer was held by somebody for long.
    pub lost: u64,
    /// How often the balancer was changed.
    pub applied: u64,
    /// Why the last change was refused; it is tried again each second. `None`: it was not.
    pub refused: Option<String>,
    /// Why there are no checks any more; `None`: there are.
    pub ended: Option<String>,
}

/// The reals of a VIP.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VipHealth {
    /// The VIP.
    pub vip: Vip,
    /// Too few reals work (see [`Policy::panic_threshold`](super::Policy::panic_threshold)), so those that are in use
    /// stay so.
    pub panics: bool,
    /// All others are down, so drained reals serve.
    pub falls_back: bool,
    /// What came of their probes.
    pub probes: Tally,
    /// Its reals, ascending.
    pub reals: Vec<RealHealth>,
}

/// What is known of one real of a VIP.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RealHealth {
    /// The real.
    pub real: IpAddr,
    /// Whether it is probed.
    pub probed: bool,
    /// What probes have found.
    pub status: Status,
    /// Whether the checks keep flows from it: it is [marked down](crate::Katran::mark_down).
    pub out: bool,
    /// The operator's weight; what the balancer has may be another one, while weights climb.
    pub weight: u32,
    /// The weight that the balancer was told last.
    pub told_weight: Option<u32>,
    /// When the last probe ended.
    pub last: Option<SystemTime>,
    /// What became of it, in words.
    pub last_result: Option<String>,
    /// Whether the last probe says nothing of the real: it could not be sent, or did not go through the tunnel.
    pub last_unsent: bool,
    /// Why the last probe failed; `None`: it did not.
    pub last_cause: Option<Cause>,
    /// How often it has come up or gone down.
    pub transitions: u64,
    /// Whether its weight climbs; see [`Policy::slow_start`](super::Policy::slow_start).
    pub climbs: bool,
    /// The last transitions, oldest first; see [`Settings::history`](super::Settings::history).
    pub history: Vec<Transition>,
}

/// A real has come up or gone down.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// When.
    pub at: SystemTime,
    /// What it is since then.
    pub to: Status,
    /// Why, in words.
    pub reason: String,
}

/// Something that an operator may want to read. Its text form is a line for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A real has come up or gone down.
    Turned {
        /// Of this VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// What it is now.
        to: Status,
        /// Why, in words.
        reason: String,
    },
    /// A real gets no flows from now on (`true`), or does again.
    Out {
        /// Of this VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// Whether it is out.
        out: bool,
    },
    /// Too few reals of a VIP work: those in use stay so from now on (`true`), or that is over.
    Panics {
        /// The VIP.
        vip: Vip,
        /// Whether it is so.
        panics: bool,
    },
    /// All reals of a VIP are down, and drained ones serve from now on (`true`), or that is over.
    FallsBack {
        /// The VIP.
        vip: Vip,
        /// Whether it is so.
        falls_back: bool,
    },
    /// Probes of a VIP do not go through the tunnel, so they say nothing (`Some`: why), or they do again.
    Missed {
        /// The VIP.
        vip: Vip,
        /// Why.
        why: Option<String>,
    },
    /// A probe of a real could not be sent, so nothing is known of it until one can: of those in a row the first one,
    /// and once a minute at most.
    NotSent {
        /// Of this VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// Why, as [`RealHealth::last_result`] has it.
        why: String,
    },
    /// The balancer was changed.
    Applied {
        /// What has changed.
        changes: Box<Changes>,
    },
    /// The balancer could not be changed; it is tried again each second.
    Refused {
        /// Why.
        why: String,
    },
    /// There are no checks from now on; the balancer forwards as it is.
    Ended {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turned {
                vip,
                real,
                to,
                reason,
            } => match to {
                Status::Down => write!(f, "{vip}: real {real} is down: {reason}"),
                _ => write!(f, "{vip}: real {real} is up"),
            },
            Self::Out {
                vip,
                real,
                out: true,
            } => write!(f, "{vip}: real {real} gets no flows"),
            Self::Out { vip, real, .. } => write!(f, "{vip}: real {real} gets flows"),
            Self::Panics { vip, panics: true } => {
                write!(f, "{vip}: too few reals answer: those in use stay so")
            }
            Self::Panics { vip, .. } => write!(f, "{vip}: enough reals answer again"),
            Self::FallsBack {
                vip,
                falls_back: true,
            } => {
                write!(f, "{vip}: all reals are down: drained ones serve")
            }
            Self::FallsBack { vip, .. } => write!(f, "{vip}: drained reals serve no more"),
            Self::Missed {
                vip,
                why: Some(why),
            } => write!(
                f,
                "{vip}: probes do not go through the tunnel, so their results count for nothing: {why}"
            ),
            Self::Missed { vip, .. } => write!(f, "{vip}: probes go through the tunnel again"),
            Self::NotSent { vip, real, why } => {
                write!(
                    f,
                    "{vip}: whether real {real} answers is not known: probe {why}"
                )
            }
            Self::Applied { changes } => write!(f, "applied: {changes}"),
            Self::Refused { why } => write!(f, "{why}: it is tried again"),
            Self::Ended { why } => write!(f, "health checks have ended: {why}"),
        }
    }
}
