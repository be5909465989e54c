//! What a document's own settings have no room for: known before anything is loaded.
//!
//! Settings that it does not give are the balancer's, and so are what they leave room for.

use std::collections::BTreeSet;

use super::state::Conflict;
use super::state::Place;
use super::state::State;
use crate::config::Features;

/// The first thing that is more than its settings allow.
pub(super) fn beyond(state: &State) -> Option<Conflict> {
    let settings = state.balancer.as_ref()?;
    let more =
        |count: usize, what: &str, setting: &str, limit: Option<u64>, place: fn(usize) -> Place| {
            let limit = limit?;
            (count as u64 > limit).then(|| Conflict {
                place: place(limit as usize),
                other: None,
                message: format!(
                    "{setting} = {limit} in [balancer] leaves no room for this {what}"
                ),
            })
        };
    let without = |feature: Features, what: &str, is_empty: bool, place| {
        let features = settings.features?;
        (!features.contains(feature) && !is_empty).then(|| Conflict {
            place,
            other: None,
            message: format!("{what} needs \"{feature}\" among the features of [balancer]"),
        })
    };
    let ids = state.server_ids.len();
    let ends = state.decap.len();
    more(
        state.vips.len(),
        "VIP",
        "max_vips",
        settings.max_vips.map(u64::from),
        Place::Vip,
    )
    .or_else(|| reals(state, settings.max_reals?))
    .or_else(|| {
        let limit = settings.max_server_ids.map(u64::from);
        more(ids, "server id", "max_server_ids", limit, Place::ServerId)
    })
    .or_else(|| {
        let has_none = state.source_routes.is_empty();
        let place = Place::SourceRoute(0);
        without(Features::SOURCE_ROUTING, "a source route", has_none, place)
    })
    .or_else(|| routes(state, settings.max_source_routes?))
    .or_else(|| {
        let place = Place::Decap(0);
        without(Features::INLINE_DECAP, "a decap address", ends == 0, place)
    })
    .or_else(|| {
        let limit = settings.max_decap.map(u64::from);
        more(ends, "decap address", "max_decap", limit, Place::Decap)
    })
}

/// The first real, of VIPs, server ids and source routes, that there is no number for.
fn reals(state: &State, limit: u32) -> Option<Conflict> {
    let vips = state.vips.iter().enumerate().flat_map(|(vip, of)| {
        let reals = of.reals.iter().enumerate();
        reals.map(move |(real, of)| (of.address(), Place::Real { vip, real }))
    });
    let ids = state.server_ids.iter().enumerate();
    let ids = ids.map(|(index, of)| (of.id.real(), Place::ServerId(index)));
    let routes = state.source_routes.iter().enumerate();
    let routes = routes.map(|(index, of)| (of.real(), Place::SourceRoute(index)));
    let mut seen = BTreeSet::new();
    let mut all = vips.chain(ids).chain(routes);
    let (address, place) =
        all.find(|(address, _)| seen.insert(*address) && seen.len() > limit as usize)?;
    Some(Conflict {
        place,
        other: None,
        message: format!("max_reals = {limit} in [balancer] leaves no room for the real {address}"),
    })
}

fn routes(state: &State, limit: u32) -> Option<Conflict> {
    let mut counts = [0_u64; 2];
    let mut routes = state.source_routes.iter();
    let index = routes.position(|route| {
        let count = &mut counts[usize::from(route.prefix().address().is_ipv6())];
        *count += 1;
        *count > limit.into()
    })?;
    Some(Conflict {
        place: Place::SourceRoute(index),
        other: None,
        message: format!(
            "max_source_routes = {limit} in [balancer] leaves no room for this route of its family"
        ),
    })
}
