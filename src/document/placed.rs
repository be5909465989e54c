//! A document that knows where everything in it is, for errors that occur after reading.

use std::path::Path;

use super::beside::Nobody;
use super::source::Source;
use super::state::State;
use super::toml_read::read_toml;
use super::toml_read::read_toml_file;
use crate::error::Error;
use crate::error::Result;

/// A [`State`] with the document that it was read from, so that errors of
/// [`load`](crate::Builder::load) and [`apply`](crate::Katran::apply) can name file and line too.
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
/// It holds the text, the state, and eight bytes for each VIP, real and so on.
#[derive(Clone, Debug)]
pub struct Document {
    state: State,
    source: Source,
}

/// # Reading and checking
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

    /// The state that the document describes.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same, without the places.
    pub fn into_state(self) -> State {
        self.state
    }

    /// Checks what [`load`](crate::Builder::load) and [`apply`](crate::Katran::apply) would refuse,
    /// except for what depends on this machine and its kernel. Settings that it leaves out have
    /// their defaults.
    ///
    /// # Errors
    /// [`Error::Document`], with file, line and column.
    pub fn check(&self) -> Result<()> {
        self.source.check(&self.state, &|_, _| false)
    }

    /// Adds the place in the document to an error of a call that was given this state or one made
    /// from it: returns [`Error::Document`] with file, line and column if the document contains
    /// what the error is about, else the error itself. The result is for people; a program should
    /// match on the original error.
    #[must_use]
    pub fn placed(&self, error: Error) -> Error {
        self.source.placed(&self.state, error)
    }
}
