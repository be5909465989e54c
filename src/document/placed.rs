//! A document that was read and knows where everything stands in it, for errors that come later.

use std::path::Path;

use super::beside::Nobody;
use super::source::Source;
use super::state::State;
use super::toml_read::read_toml;
use super::toml_read::read_toml_file;
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
        self.source.check(&self.state, &|_, _| false)
    }

    /// An error of a call that was given this state, or one that was made of it, as [`Error::Document`] with file, line
    /// and column, if it is about something that the document says; any other one as it is. It is for people:
    /// a program decides by the error itself.
    #[must_use]
    pub fn placed(&self, error: Error) -> Error {
        self.source.placed(&self.state, error)
    }
}
