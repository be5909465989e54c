//! Reals that no packet can get to, or that send each one back.

use std::net::IpAddr;

use super::Diagnosis;
use super::Subject;

/// Those that are not marked as this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct RealTroubles {
    /// They are this host.
    pub(crate) here: Vec<IpAddr>,
    /// They have the address of a VIP of this balancer.
    pub(crate) vips: Vec<IpAddr>,
    /// By the gateway; this host has no route there, or one that says so.
    pub(crate) unreachable: Vec<IpAddr>,
    /// The gateway is not found by routes: it may know more than they.
    pub(crate) gateway_is_given: bool,
}

pub(crate) fn judge(troubles: &RealTroubles, found: &mut Diagnosis) {
    if let Some((real, are)) = named(&troubles.here) {
        let message = format!("{real} {are} this host, and not said to be: no packets get there");
        let advice = "give the real `local = true` and its VIP the flag local-vip, or take it out";
        found.problem(Subject::Vips, message, advice);
    }
    if let Some((real, are)) = named(&troubles.vips) {
        let message = format!(
            "{real} {are} the address of a VIP: what is sent there comes back to a balancer"
        );
        let advice = "give the real an address of its backend's own: the VIP's belongs on the backend's lo only";
        found.problem(Subject::Vips, message, advice);
    }
    if let Some((real, are)) = named(&troubles.unreachable) {
        let message = format!("{real} {are} unreachable: this host has no route there");
        let advice = "ip route get ADDRESS; add a route by the gateway, or correct the address";
        match troubles.gateway_is_given {
            true => found.warn(
                Subject::Vips,
                format!("{message}, unless the router of gateway_mac knows one"),
                advice,
            ),
            false => found.problem(Subject::Vips, message, advice),
        }
    }
}

/// The first, and how many more there are; and the verb.
fn named(reals: &[IpAddr]) -> Option<(String, &'static str)> {
    let [first, others @ ..] = reals else {
        return None;
    };
    Some(match others.len() {
        0 => (format!("real {first}"), "is"),
        more => (format!("real {first} and {more} more"), "are"),
    })
}
