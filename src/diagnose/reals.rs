//! Reals that no packet can reach, or that send every packet back.

use std::net::IpAddr;

use super::Diagnosis;
use super::Subject;

/// The reals that are not marked `local`.
#[derive(Clone, Debug, Default)]
pub(crate) struct RealTroubles {
    /// Reals that are this host.
    pub(crate) here: Vec<IpAddr>,
    /// Reals with the address of one of this balancer's VIPs.
    pub(crate) vips: Vec<IpAddr>,
    /// The gateway is their next hop, and this host has no usable route to them.
    pub(crate) unreachable: Vec<IpAddr>,
    /// The gateway's address is configured, so that router may know a route.
    pub(crate) gateway_is_given: bool,
}

pub(crate) fn judge(troubles: &RealTroubles, found: &mut Diagnosis) {
    if let Some((real, are)) = named(&troubles.here) {
        let message = format!("{real} {are} this host, but not marked local: no packets get there");
        let advice =
            "set `local = true` for the real and the flag local-vip for its VIP, or remove it";
        found.problem(Subject::Vips, message, advice);
    }
    if let Some((real, are)) = named(&troubles.vips) {
        let message =
            format!("{real} {are} the address of a VIP: packets to it come back to a balancer");
        let advice =
            "use the backend's own address for the real; the VIP belongs only on the backend's lo";
        found.problem(Subject::Vips, message, advice);
    }
    if let Some((real, are)) = named(&troubles.unreachable) {
        let message = format!("{real} {are} unreachable: this host has no route there");
        let advice =
            "check with ip route get ADDRESS; add a route via the gateway, or correct the address";
        match troubles.gateway_is_given {
            true => found.warn(
                Subject::Vips,
                format!("{message}, unless the router of gateway_mac has one"),
                advice,
            ),
            false => found.problem(Subject::Vips, message, advice),
        }
    }
}

/// The first real, the number of others, and the verb.
fn named(reals: &[IpAddr]) -> Option<(String, &'static str)> {
    let [first, others @ ..] = reals else {
        return None;
    };
    Some(match others.len() {
        0 => (format!("real {first}"), "is"),
        more => (format!("real {first} and {more} more"), "are"),
    })
}
