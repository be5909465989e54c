//! Where everything in a document is, and errors with that place.

use std::net::IpAddr;

use super::state::Conflict;
use super::state::Place;
use super::state::State;
use crate::config::SETTING_KEYS;

/// Where the parts of a state begin, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub(super) balancer: Option<usize>,
    /// The values of the keys of `[balancer]`.
    pub(super) settings: Vec<(&'static str, usize)>,
    pub(super) vips: Vec<usize>,
    /// The reals of all VIPs.
    pub(super) reals: Vec<usize>,
    pub(super) server_ids: Vec<usize>,
    pub(super) source_routes: Vec<usize>,
    pub(super) decap: Vec<usize>,
    pub(super) marks: Vec<usize>,
    pub(super) probe_matches: Vec<usize>,
    pub(super) probes: Vec<usize>,
}

impl Places {
    /// Records the value of a key of `[balancer]`.
    pub(super) fn add_setting(&mut self, key: &str, at: usize) {
        let key = SETTING_KEYS.iter().find(|known| **known == key);
        self.settings.extend(key.map(|key| (*key, at)));
    }

    /// The place of a part of `state`, which must be the state of these places.
    pub(super) fn start(&self, state: &State, place: Place) -> Option<usize> {
        let list = |starts: &[usize], index: usize| starts.get(index).copied();
        match place {
            Place::Balancer => self.balancer,
            Place::Setting(key) => {
                let mut settings = self.settings.iter();
                let (_, at) = settings.find(|(known, _)| *known == key)?;
                Some(*at)
            }
            Place::Vip(vip) => list(&self.vips, vip),
            Place::Real { vip, real } => {
                let before = state.vips.get(..vip)?.iter();
                let before: usize = before.map(|state| state.reals.len()).sum();
                list(&self.reals, before + real)
            }
            Place::ServerId(index) => list(&self.server_ids, index),
            Place::SourceRoute(index) => list(&self.source_routes, index),
            Place::Decap(index) => list(&self.decap, index),
            Place::Mark(index) => list(&self.marks, index),
            Place::ProbeMatch(index) => list(&self.probe_matches, index),
            Place::Probe(index) => list(&self.probes, index),
        }
    }
}

/// All reals that clients' packets may go to, in the order of the document's sections.
pub(super) fn reals(state: &State) -> impl Iterator<Item = (IpAddr, Place)> {
    let vips = state.vips.iter().enumerate().flat_map(|(vip, of)| {
        let reals = of.reals.iter().enumerate();
        reals.map(move |(real, of)| (of.address(), Place::Real { vip, real }))
    });
    let ids = state.server_ids.iter().enumerate();
    let ids = ids.map(|(index, of)| (of.id.real(), Place::ServerId(index)));
    let routes = state.source_routes.iter().enumerate();
    let routes = routes.map(|(index, of)| (of.real(), Place::SourceRoute(index)));
    vips.chain(ids).chain(routes)
}

/// The reals that probes go to.
pub(super) fn probed(state: &State) -> impl Iterator<Item = (IpAddr, Place)> {
    let marks = state.marks.iter().enumerate();
    let marks = marks.map(|(index, of)| (of.real, Place::Mark(index)));
    let matches = state.probe_matches.iter().enumerate();
    let matches = matches.map(|(index, of)| (of.real, Place::ProbeMatch(index)));
    marks.chain(matches)
}

/// An error at one place, without a second one.
pub(super) fn wrong(place: Place, message: impl Into<String>) -> Conflict {
    Conflict {
        place,
        other: None,
        message: message.into(),
    }
}
