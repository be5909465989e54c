//! Checks a state against the limits and requirements of its settings, before anything is loaded.
//!
//! Settings that a document leaves out are the balancer's; before load they are the defaults.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::places::probed;
use super::places::reals;
use super::places::wrong;
use super::state::Conflict;
use super::state::Place;
use super::state::ProbeMatch;
use super::state::State;
use super::state::stated_flags;
use crate::config::BalancerState;
use crate::config::Features;
use crate::types::Encapsulation;
use crate::types::ProbeSource;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::Vip;

/// The first thing that exceeds the document's own settings.
pub(super) fn beyond(state: &State) -> Option<Conflict> {
    with(state, state.balancer.as_ref()?)
}

/// The first thing that is impossible with these settings, which are complete.
pub(super) fn beyond_all(
    state: &State,
    settings: &BalancerState,
    is_probed: &dyn Fn(Vip, IpAddr) -> bool,
) -> Option<Conflict> {
    with(state, settings)
        .or_else(|| without_interface(state, settings))
        .or_else(|| without_source(state, settings, is_probed))
        .or_else(|| in_a_circle(state))
}

fn with(state: &State, settings: &BalancerState) -> Option<Conflict> {
    let limit = |setting| limit_of(settings, setting);
    let more = |setting| beyond_limit(state, setting, limit(setting)?);
    let without = |feature: Features, what: &str, is_empty: bool, place| {
        let features = settings.features?;
        (!features.contains(feature) && !is_empty).then(|| {
            let message = format!("{what} needs \"{feature}\" in the features of [balancer]");
            wrong(place, message)
        })
    };
    more("max_vips")
        .or_else(|| more("max_reals"))
        .or_else(|| more("max_server_ids"))
        .or_else(|| {
            let has_none = state.source_routes.is_empty();
            let place = Place::SourceRoute(0);
            without(Features::SOURCE_ROUTING, "a source route", has_none, place)
        })
        .or_else(|| more("max_source_routes"))
        .or_else(|| {
            let has_none = state.decap.is_empty();
            let place = Place::Decap(0);
            without(Features::INLINE_DECAP, "a decap address", has_none, place)
        })
        .or_else(|| more("max_decap"))
}

fn limit_of(settings: &BalancerState, setting: &str) -> Option<u64> {
    let limit = match setting {
        "max_vips" => settings.max_vips,
        "max_reals" => settings.max_reals,
        "max_server_ids" => settings.max_server_ids,
        "max_source_routes" => settings.max_source_routes,
        "max_decap" => settings.max_decap,
        _ => None,
    };
    limit.map(u64::from)
}

/// The first thing that exceeds a limit.
pub(super) fn beyond_limit(state: &State, setting: &str, limit: u64) -> Option<Conflict> {
    let (place, what) = match setting {
        "max_vips" => {
            let vips = nth(state.vips.len(), limit, Place::Vip);
            let probes = || nth(state.probes.len(), limit, Place::Probe);
            let named = |what: &str, place| (place, what.to_owned());
            let vips = vips.map(|place| named("VIP", place));
            vips.or_else(|| probes().map(|place| named("probe", place)))?
        }
        "max_reals" => {
            let real = nth_real(state, limit).map(|(real, place)| (place, format!("real {real}")));
            real.or_else(|| nth_match(state, limit))?
        }
        "max_server_ids" => {
            let place = nth(state.server_ids.len(), limit, Place::ServerId)?;
            (place, "server id".to_owned())
        }
        "max_source_routes" => (nth_route(state, limit)?, "route of its family".to_owned()),
        "max_decap" => {
            let place = nth(state.decap.len(), limit, Place::Decap)?;
            (place, "decap address".to_owned())
        }
        _ => return None,
    };
    let this = match what.starts_with("real ") {
        true => format!("the {what}"),
        false => format!("this {what}"),
    };
    let given = state.balancer.as_ref();
    let message = match given.and_then(|given| limit_of(given, setting)) == Some(limit) {
        true => format!("{setting} = {limit} in [balancer] leaves no room for {this}"),
        false => {
            format!("{setting} = {limit} leaves no room for {this}: raise it in [balancer]")
        }
    };
    Some(wrong(place, message))
}

/// The first one beyond the limit.
fn nth(count: usize, limit: u64, place: fn(usize) -> Place) -> Option<Place> {
    (count as u64 > limit).then(|| place(limit as usize))
}

/// The first real beyond the limit, of VIPs, server ids and source routes.
fn nth_real(state: &State, limit: u64) -> Option<(IpAddr, Place)> {
    let mut seen = BTreeSet::new();
    let mut reals = reals(state);
    reals.find(|(address, _)| seen.insert(*address) && seen.len() as u64 > limit)
}

/// The first mark, or probe match by destination or by source, beyond the limit of its kind.
fn nth_match(state: &State, limit: u64) -> Option<(Place, String)> {
    if let Some(place) = nth(state.marks.len(), limit, Place::Mark) {
        return Some((place, "mark".to_owned()));
    }
    let mut counts = [0_u64; 2];
    let mut matches = state.probe_matches.iter();
    let index = matches.position(|of| {
        let count = &mut counts[usize::from(matches!(of.by, ProbeMatch::Source(_)))];
        *count += 1;
        *count > limit
    })?;
    Some((Place::ProbeMatch(index), "probe match".to_owned()))
}

fn nth_route(state: &State, limit: u64) -> Option<Place> {
    let mut counts = [0_u64; 2];
    let mut routes = state.source_routes.iter();
    let index = routes.position(|route| {
        let count = &mut counts[usize::from(route.prefix().address().is_ipv6())];
        *count += 1;
        *count > limit
    })?;
    Some(Place::SourceRoute(index))
}

/// A real with the address of a VIP; the diagnosis reports the same.
fn in_a_circle(state: &State) -> Option<Conflict> {
    let vips = state.vips.iter().enumerate();
    // A VIP's prefix may well cover the backends' network.
    let vips = vips.filter(|(_, of)| !of.vip.is_prefix());
    let vips: BTreeMap<_, _> = vips.map(|(index, of)| (of.vip.address(), index)).collect();
    state.vips.iter().enumerate().find_map(|(vip, of)| {
        let is_far = |real: &Real| !stated_flags(real).contains(RealFlags::LOCAL_REAL);
        let is_vip = |real: &Real| vips.contains_key(&real.address());
        let real = of.reals.iter().position(|real| is_far(real) && is_vip(real))?;
        let address = of.reals[real].address();
        Some(Conflict {
            place: Place::Real { vip, real },
            other: vips.get(&address).map(|vip| Place::Vip(*vip)),
            message: format!(
                "real {address} has the address of a VIP, so its packets come back to the balancer: use the backend's own address"
            ),
        })
    })
}

/// Probes need a configured interface.
fn without_interface(state: &State, settings: &BalancerState) -> Option<Conflict> {
    let probes = state.probes.first().map(|_| Place::Probe(0));
    let first = probed(state).next().map(|(_, place)| place).or(probes)?;
    let message =
        "a probe needs healthcheck_interface in [balancer], the interface through which it leaves";
    let is_missing = settings.healthcheck_interface.is_none();
    is_missing.then(|| wrong(first, message))
}

/// GUE, and probes without made-up sources, need an outer source address of the real's family.
fn without_source(
    state: &State,
    settings: &BalancerState,
    is_probed: &dyn Fn(Vip, IpAddr) -> bool,
) -> Option<Conflict> {
    let missing = |real: IpAddr| match real {
        IpAddr::V4(_) => settings.source_v4.is_none().then_some("source_v4"),
        IpAddr::V6(_) => settings.source_v6.is_none().then_some("source_v6"),
    };
    let find = |what: &str, mut reals: Box<dyn Iterator<Item = (IpAddr, Place)> + '_>| {
        let (real, place, setting) =
            reals.find_map(|(real, place)| Some((real, place, missing(real)?)))?;
        let message = format!("{what} the real {real} needs {setting} in [balancer]");
        Some(wrong(place, message))
    };
    let is_gue = settings.encapsulation == Some(Encapsulation::Gue);
    let is_made_up = !is_gue && settings.healthcheck_source == Some(ProbeSource::MadeUp);
    let of_traffic = match is_gue {
        true => find("GUE to", Box::new(reals(state))),
        false => None,
    };
    of_traffic.or_else(|| match is_made_up {
        true => None,
        false => {
            let of_vips = reals(state).filter(|(real, place)| match place {
                Place::Real { vip, .. } => is_probed(state.vips[*vip].vip, *real),
                _ => false,
            });
            find("a probe of", Box::new(probed(state).chain(of_vips)))
        }
    })
}
