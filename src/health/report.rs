//! Health as plain data, for metrics and pages.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use super::outcome::Cause;
use super::score::Status;
use super::tally::Tally;
use crate::document::Changes;
use crate::types::Vip;

/// The state and the history of health checks at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// By VIP, in ascending order.
    pub vips: Vec<VipHealth>,
    /// Probes since the start that passed.
    pub passed: u64,
    /// Probes that failed.
    pub failed: u64,
    /// Probes whose results are ignored: not sent, or not through the tunnel.
    pub not_sent: u64,
    /// Results lost because the balancer was locked for too long.
    pub lost: u64,
    /// Changes of the balancer.
    pub applied: u64,
    /// Why the last change was refused, if it was; the checks retry each second.
    pub refused: Option<String>,
    /// Why the checks have ended, if they have.
    pub ended: Option<String>,
}

/// The reals of a VIP.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VipHealth {
    /// The VIP.
    pub vip: Vip,
    /// Too few reals work, so no further one is taken out (see
    /// [`Policy::panic_threshold`](super::Policy::panic_threshold)).
    pub panics: bool,
    /// All other reals are down, so packets go to drained ones.
    pub falls_back: bool,
    /// The counts of their probes.
    pub probes: Tally,
    /// Its reals, in ascending order.
    pub reals: Vec<RealHealth>,
}

/// The health of one real of a VIP.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RealHealth {
    /// The real.
    pub real: IpAddr,
    /// Whether it is probed.
    pub probed: bool,
    /// What probes found.
    pub status: Status,
    /// Whether the checks keep flows from it, by [marking it down](crate::Katran::mark_down).
    pub out: bool,
    /// The operator's weight; the balancer may have another one while weights climb.
    pub weight: u32,
    /// The weight that the checks last set in the balancer.
    pub applied_weight: Option<u32>,
    /// When the last probe ended.
    pub last: Option<SystemTime>,
    /// Its result, as text.
    pub last_result: Option<String>,
    /// Whether the last probe says nothing about the real: not sent, or not through the tunnel.
    pub last_unsent: bool,
    /// Why the last probe failed, if it did.
    pub last_cause: Option<Cause>,
    /// How often it came up or went down.
    pub transitions: u64,
    /// Whether its weight climbs; see [`Policy::slow_start`](super::Policy::slow_start).
    pub climbs: bool,
    /// The last transitions, oldest first; see [`Settings::history`](super::Settings::history).
    pub history: Vec<Transition>,
}

/// A change of a real's status.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The time.
    pub at: SystemTime,
    /// The new status.
    pub to: Status,
    /// The reason, as text.
    pub reason: String,
}

/// An event for an operator. Its text form is one line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A real came up or went down.
    Turned {
        /// The VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// The new status.
        to: Status,
        /// The reason, as text.
        reason: String,
    },
    /// A real gets no flows from now on (`true`), or gets them again.
    Out {
        /// The VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// Whether it is out.
        out: bool,
    },
    /// Too few reals of a VIP work, so no further one is taken out (`true`), or enough work again.
    Panics {
        /// The VIP.
        vip: Vip,
        /// Whether that is so.
        panics: bool,
    },
    /// All other reals of a VIP are down, so packets go to drained ones (`true`), or that is over.
    FallsBack {
        /// The VIP.
        vip: Vip,
        /// Whether that is so.
        falls_back: bool,
    },
    /// Probes of a VIP miss the tunnel, so their results are ignored (`Some`: why), or they go
    /// through it again.
    Missed {
        /// The VIP.
        vip: Vip,
        /// The reason, as text.
        why: Option<String>,
    },
    /// A probe could not be sent, so the real's health is unknown. Reported for the first of
    /// several in a row, and at most once a minute.
    NotSent {
        /// The VIP.
        vip: Vip,
        /// The real.
        real: IpAddr,
        /// The reason, as in [`RealHealth::last_result`].
        why: String,
    },
    /// The checks changed the balancer.
    Applied {
        /// The changes.
        changes: Box<Changes>,
    },
    /// The balancer refused a change; the checks retry each second.
    Refused {
        /// The reason, as text.
        why: String,
    },
    /// The checks have ended; the balancer forwards as it is.
    Ended {
        /// The reason, as text.
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
                write!(f, "{vip}: too few reals answer: no more are taken out")
            }
            Self::Panics { vip, .. } => write!(f, "{vip}: enough reals answer again"),
            Self::FallsBack {
                vip,
                falls_back: true,
            } => {
                write!(
                    f,
                    "{vip}: all other reals are down: packets go to drained ones"
                )
            }
            Self::FallsBack { vip, .. } => {
                write!(f, "{vip}: packets no longer go to drained reals")
            }
            Self::Missed {
                vip,
                why: Some(why),
            } => write!(
                f,
                "{vip}: probes do not go through the tunnel, so their results are ignored: {why}"
            ),
            Self::Missed { vip, .. } => write!(f, "{vip}: probes go through the tunnel again"),
            Self::NotSent { vip, real, why } => {
                write!(f, "{vip}: real {real}: probe {why}")
            }
            Self::Applied { changes } => write!(f, "applied: {changes}"),
            Self::Refused { why } => write!(f, "{why}; trying again"),
            Self::Ended { why } => write!(f, "health checks have ended: {why}"),
        }
    }
}
