//! How this host's own probes reach a real that has a next hop of its own: as clients' packets do.
//! The kernel sends them by its neighbour table, so it is enough to know by which interface, and
//! whether the gateway's address was given.

use std::io;
use std::net::IpAddr;

use super::wanted::Wanted;
use crate::maps::ProbeWay;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::types::Family;
use crate::types::NextHops;

/// The way of probes to a real, by the main table's routes of now: for as long as no follower knows better.
pub(crate) fn probe_way(
    requests: &mut Requests,
    wanted: &Wanted,
    real: IpAddr,
) -> io::Result<ProbeWay> {
    Ok(way_of_probes(wanted, real, requests.route(real)?))
}

/// The way of probes to a real that a route leads to, if one does.
pub(super) fn way_of_probes(wanted: &Wanted, real: IpAddr, route: Option<Route>) -> ProbeWay {
    let route = route.filter(|route| !route.local);
    match wanted.mode {
        NextHops::Redirect => ProbeWay {
            interface: route.map_or(0, |route| route.interface),
            by_gateway: false,
        },
        // The address that was given is that of the routers.
        _ => ProbeWay {
            interface: 0,
            by_gateway: wanted.fixed(Family::of(real)).is_some()
                && route.is_none_or(|route| route.gateway.is_some()),
        },
    }
}
