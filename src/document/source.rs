//! The text of a document with all places, and the place that an error is about.

use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use super::page::Page;
use super::places::Places;
use super::places::probed;
use super::places::reals;
use super::places::wrong;
use super::room::beyond_all;
use super::room::beyond_limit;
use super::state::Conflict;
use super::state::Place;
use super::state::State;
use crate::config::BalancerState;
use crate::config::SETTING_KEYS;
use crate::error::Error;
use crate::error::Result;
use crate::types::Vip;

/// The text that a state was read from, and all places in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    file: Option<PathBuf>,
    text: String,
    places: Places,
}

impl Source {
    pub(crate) fn new(file: Option<&Path>, text: String, places: Places) -> Self {
        let file = file.map(Path::to_owned);
        Self { file, text, places }
    }

    /// Also checks reals of VIPs that are probed through the tunnel, besides those with marks.
    pub(crate) fn check(
        &self,
        state: &State,
        is_probed: &dyn Fn(Vip, IpAddr) -> bool,
    ) -> Result<()> {
        let settings = state
            .builder()
            .and_then(|builder| BalancerState::alone(&builder));
        let settings = settings.map_err(|error| self.placed(state, error))?;
        match beyond_all(state, &settings, is_probed) {
            None => Ok(()),
            Some(conflict) => Err(self.refuse(state, conflict)),
        }
    }

    pub(crate) fn placed(&self, state: &State, error: Error) -> Error {
        let places = &self.places;
        match (Read { state, places }).conflict(&error) {
            Some(conflict) => self.refuse(state, conflict),
            None => error,
        }
    }

    /// An error at one of the marks.
    #[cfg(feature = "health")]
    pub(crate) fn refuse_mark(&self, state: &State, mark: usize, message: String) -> Error {
        self.refuse(state, wrong(Place::Mark(mark), message))
    }

    /// An error at one of the VIPs.
    #[cfg(feature = "health")]
    pub(crate) fn refuse_vip(&self, state: &State, vip: usize, message: String) -> Error {
        self.refuse(state, wrong(Place::Vip(vip), message))
    }

    /// An error about what is at a place.
    #[cfg(feature = "health")]
    pub(crate) fn refuse_at(&self, at: usize, error: &Error) -> Error {
        self.page().refuse(at, message(error))
    }

    fn refuse(&self, state: &State, conflict: Conflict) -> Error {
        self.page().refuse_conflict(state, &self.places, conflict)
    }

    fn page(&self) -> Page<'_> {
        Page {
            file: self.file.as_deref(),
            text: &self.text,
            start: 0,
        }
    }
}

/// What was read.
#[derive(Clone, Copy)]
struct Read<'r> {
    state: &'r State,
    places: &'r Places,
}

impl Read<'_> {
    /// The part of the document that an error is about.
    fn conflict(&self, error: &Error) -> Option<Conflict> {
        let state = self.state;
        let place = match error {
            Error::Exhausted { what, limit } => {
                let setting = named(what)?;
                return beyond_limit(state, setting, *limit);
            }
            Error::InvalidConfig {
                setting, reason, ..
            } => {
                let setting = SETTING_KEYS.iter().find(|key| *key == setting)?;
                return Some(match self.setting(setting) {
                    Some(_) => wrong(Place::Setting(setting), message(error)),
                    None => wrong(Place::Balancer, format!("{setting} is missing: {reason}")),
                });
            }
            // A limit below the number of things that exist.
            Error::InUse { what, .. } => {
                let words = what.split(' ');
                let keys = words.filter_map(|word| SETTING_KEYS.iter().find(|key| **key == word));
                let mut keys = keys.filter(|key| self.setting(key).is_some());
                Place::Setting(keys.next()?)
            }
            Error::NoSuchInterface { interface } => {
                let settings = state.balancer.as_ref()?;
                let is_it = settings.healthcheck_interface.as_ref() == Some(interface);
                is_it.then_some(Place::Setting("healthcheck_interface"))?
            }
            Error::InvalidAddress { address, .. } => self.address(*address)?,
            Error::Unsupported { what, .. } => self.unsupported(what)?,
            Error::Kernel { object, .. } => self.object(object)?,
            _ => return None,
        };
        Some(wrong(place, message(error)))
    }

    fn setting(&self, key: &'static str) -> Option<usize> {
        self.places.start(self.state, Place::Setting(key))
    }

    /// The part with this address.
    fn address(&self, address: IpAddr) -> Option<Place> {
        let state = self.state;
        let vip = state.vips.iter().position(|of| of.vip.address() == address);
        let end = state.decap.iter().position(|of| of.address == address);
        let mut reals = reals(state).chain(probed(state));
        vip.map(Place::Vip)
            .or_else(|| Some(reals.find(|(real, _)| *real == address)?.1))
            .or_else(|| end.map(Place::Decap))
    }

    /// The first use of something that the balancer was loaded without.
    fn unsupported(&self, what: &str) -> Option<Place> {
        let state = self.state;
        match what {
            "a source route" => state.source_routes.first().map(|_| Place::SourceRoute(0)),
            "a decap address" => state.decap.first().map(|_| Place::Decap(0)),
            "attaching health checks" => {
                let probe = state.probes.first().map(|_| Place::Probe(0));
                probed(state).next().map(|(_, place)| place).or(probe)
            }
            _ => None,
        }
    }

    /// The part of a state that a kernel object represents.
    fn object(&self, object: &str) -> Option<Place> {
        let state = self.state;
        let vip = state
            .vips
            .iter()
            .position(|of| of.vip.to_string() == object);
        vip.map(Place::Vip)
            .or_else(|| self.address(object.parse().ok()?))
    }
}

/// The setting named in brackets at the end.
fn named(what: &str) -> Option<&'static str> {
    let (_, setting) = what.strip_suffix(')')?.rsplit_once('(')?;
    SETTING_KEYS.iter().find(|key| **key == setting).copied()
}

/// The text of an error, without the parts that the place makes redundant.
fn message(error: &Error) -> String {
    let text = error.to_string();
    let rest = text.strip_prefix("configuration: ").map(str::to_owned);
    rest.unwrap_or(text)
}
