//! A document that was read and knows where everything stands in it, for errors that come later.

use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use super::beside::Nobody;
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
use super::toml_read::read_toml;
use super::toml_read::read_toml_file;
use crate::config::BalancerState;
use crate::config::SETTING_KEYS;
use crate::error::Error;
use crate::error::Result;

/// A [`State`] with the document that it was read from, so that errors of [`load`](crate::Builder::load) and
/// [`apply`](crate::Katran::apply), too, can be told with file and line.
///
/// ```no_run
/// # fn main() -> katran::Result<()> {
/// use katran::state::Document;
///
/// let document = Document::from_toml_file("lb.toml")?;
/// document.check()?;
/// let state = document.state();
/// let mut katran = state.builder()?.load().map_err(|error| document.placed(error))?;
/// katran.apply(state).map_err(|error| document.placed(error))?;
/// # Ok(())
/// # }
/// ```
///
/// It takes the memory of the text, of the state, and eight bytes for each VIP, real and so on.
#[derive(Clone, Debug)]
pub struct Document {
    state: State,
    source: Source,
}

impl Document {
    /// Reads a TOML document, as [`State::from_toml`] does.
    ///
    /// # Errors
    /// Those of [`State::from_toml`].
    pub fn from_toml(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let (state, places) = read_toml(&text, &mut Nobody)?;
        let source = Source::new(None, text, places);
        Ok(Self { state, source })
    }

    /// Reads a file with a TOML document, as [`State::from_toml_file`] does.
    ///
    /// # Errors
    /// Those of [`State::from_toml_file`].
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self> {
        let (state, source) = read_toml_file(path.as_ref(), &mut Nobody)?;
        Ok(Self { state, source })
    }

    /// What it says.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same; where it was said is forgotten.
    pub fn into_state(self) -> State {
        self.state
    }

    /// Checks what a balancer that is loaded with it would refuse, as far as that can be known without this machine
    /// and its kernel: settings that it does not give have their defaults.
    ///
    /// # Errors
    /// [`Error::Document`], with file, line and column.
    pub fn check(&self) -> Result<()> {
        self.source.check(&self.state)
    }

    /// An error of a call that was given this state, or one that was made of it, as [`Error::Document`] with file, line
    /// and column, if it is about something that the document says; any other one as it is. It is for people:
    /// a program decides by the error itself.
    #[must_use]
    pub fn placed(&self, error: Error) -> Error {
        self.source.placed(&self.state, error)
    }
}

/// The text that a state was read from, and where everything stands in it.
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

    pub(crate) fn check(&self, state: &State) -> Result<()> {
        let settings = state
            .builder()
            .and_then(|builder| BalancerState::alone(&builder));
        let settings = settings.map_err(|error| self.placed(state, error))?;
        match beyond_all(state, &settings) {
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

    fn refuse(&self, state: &State, conflict: Conflict) -> Error {
        let page = Page {
            file: self.file.as_deref(),
            text: &self.text,
            start: 0,
        };
        page.refuse_conflict(state, &self.places, conflict)
    }
}

/// What was read.
#[derive(Clone, Copy)]
struct Read<'r> {
    state: &'r State,
    places: &'r Places,
}

impl Read<'_> {
    /// What in the document an error is about.
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
                    None => wrong(Place::Balancer, format!("{setting} is not given: {reason}")),
                });
            }
            // A limit that is to become lower than what there is.
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

    /// What has this address.
    fn address(&self, address: IpAddr) -> Option<Place> {
        let state = self.state;
        let vip = state.vips.iter().position(|of| of.vip.address() == address);
        let end = state.decap.iter().position(|of| of.address == address);
        let mut reals = reals(state).chain(probed(state));
        vip.map(Place::Vip)
            .or_else(|| Some(reals.find(|(real, _)| *real == address)?.1))
            .or_else(|| end.map(Place::Decap))
    }

    /// The first of what a balancer was loaded without.
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

    /// What the kernel was to be told of.
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

/// The setting that is named at the end, in brackets.
fn named(what: &str) -> Option<&'static str> {
    let (_, setting) = what.strip_suffix(')')?.rsplit_once('(')?;
    SETTING_KEYS.iter().find(|key| **key == setting).copied()
}

/// What an error says, without what stands there already.
fn message(error: &Error) -> String {
    let text = error.to_string();
    let rest = text.strip_prefix("configuration: ").map(str::to_owned);
    rest.unwrap_or(text)
}
