//! Reads lines from a client, bounded in length and time.

use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::TryLockError;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

/// The length of a line that any client may send at any time.
const SHORT: usize = 64 << 10;
/// The length of a line with a document.
pub(crate) const LONGEST: usize = 64 << 20;

/// The client that holds it may send a line longer than [`SHORT`].
pub(super) type Long = Arc<Mutex<()>>;

pub(super) struct Lines<'a> {
    stream: &'a UnixStream,
    long: Long,
    /// The beginning of the next lines.
    rest: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(stream: &'a UnixStream, long: Long) -> Self {
        Self {
            stream,
            long,
            rest: Vec::new(),
        }
    }

    /// The next line; `None` if the client hung up or was silent too long.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let long = Arc::clone(&self.long);
        let mut permit = None;
        let mut looked = 0;
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(at) = self.rest[looked..].iter().position(|byte| *byte == b'\n') {
                let after = self.rest.split_off(looked + at + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, after)));
            }
            looked = self.rest.len();
            if looked > SHORT && permit.is_none() {
                permit = Some(match long.try_lock() {
                    Ok(permit) => permit,
                    Err(TryLockError::Poisoned(permit)) => permit.into_inner(),
                    Err(TryLockError::WouldBlock) => {
                        anyhow::bail!("another client is sending a long request: try again later")
                    }
                });
            }
            anyhow::ensure!(
                looked <= LONGEST,
                "a request may have at most {LONGEST} bytes"
            );
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                anyhow::ensure!(
                    looked == 0,
                    "the request did not arrive within {} s",
                    patience.as_secs()
                );
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut piece) {
                Ok(0) if looked == 0 => return Ok(None),
                Ok(0) => anyhow::bail!("a request must end with a newline"),
                Ok(length) => self.rest.extend_from_slice(&piece[..length]),
                Err(error)
                    if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
