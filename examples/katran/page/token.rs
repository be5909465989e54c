//! The secret of commands over HTTP.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use anyhow::Result;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

/// Shorter ones can be guessed.
const LEAST: usize = 16;

/// Clients that send it may give commands.
#[derive(Clone)]
pub(crate) struct Token(Arc<str>);

impl Token {
    /// Reads the token from a file that only its owner can read, without surrounding white space.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("--token-file {}", path.display());
        let mode = fs::metadata(path)
            .with_context(cannot)?
            .permissions()
            .mode();
        anyhow::ensure!(
            mode & 0o077 == 0,
            "{}: other users can read it: chmod 600",
            cannot()
        );
        let text = fs::read_to_string(path).with_context(cannot)?;
        Self::new(text.trim()).with_context(cannot)
    }

    fn new(text: &str) -> Result<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        anyhow::ensure!(
            text.len() >= LEAST && is_plain,
            "needs at least {LEAST} ASCII characters without blanks, for example from: openssl rand -hex 16"
        );
        Ok(Self(text.into()))
    }

    /// Whether a request has the token.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        given
            .and_then(|given| given.strip_prefix(b"Bearer "))
            .is_some_and(|given| is_same(given, self.0.as_bytes()))
    }
}

/// Compares in constant time, so that the token cannot be guessed byte by byte.
fn is_same(given: &[u8], right: &[u8]) -> bool {
    let differing = given.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == right.len() && std::hint::black_box(differing) == 0
}
