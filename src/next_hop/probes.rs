//! How this host's probes reach a real with its own next hop, on the path of clients' packets. The
//! kernel sends them by its neighbour table, so the interface is enough, and whether the gateway's
//! address is configured.

use std::io;
use std::net::IpAddr;

use super::wanted::Wanted;
use crate::maps::ProbeWay;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::types::Family;
use crate::types::NextHops;

/// The path of probes to a real by the current main routing table, while no follower knows better.
pub(crate) fn probe_way(
    requests: &mut Requests,
    wanted: &Wanted,
    real: IpAddr,
) -> io::Result<ProbeWay> {
    Ok(way_of_probes(wanted, real, requests.route(real)?))
}

/// The path of probes to a real with this route, if there is one.
pub(super) fn way_of_probes(wanted: &Wanted, real: IpAddr, route: Option<Route>) -> ProbeWay {
    let route = route.filter(|route| !route.local);
    match wanted.mode {
        NextHops::Redirect => ProbeWay {
            interface: route.map_or(0, |route| route.interface),
            by_gateway: false,
        },
        // The configured address is that of the routers.
        _ => ProbeWay {
            interface: 0,
            by_gateway: wanted.fixed(Family::of(real)).is_some()
                && route.is_none_or(|route| route.gateway.is_some()),
        },
    }
}
