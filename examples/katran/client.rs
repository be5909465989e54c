//! The client's end of the socket, for `status`, `apply`, `drain`, `top` and `monitor`.

pub(crate) mod apply;

use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::report::Report;
use crate::socket;
use crate::socket::Request;

/// The balancer to talk to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct To {
    /// The socket of the running balancer (its option --socket)
    #[arg(long, value_name = "PATH", default_value = socket::PATH)]
    socket: PathBuf,
}

impl To {
    pub(crate) fn connect(&self) -> Result<Client> {
        let cannot = || {
            format!(
                "no balancer listens at {}: start `katran run`, or name its --socket",
                self.socket.display()
            )
        };
        let stream = UnixStream::connect(&self.socket).with_context(cannot)?;
        Ok(Client {
            answers: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    /// Sends one request and returns the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        self.connect()?.ask(request)
    }

    pub(crate) fn report(&self, diagnose: bool) -> Result<Report> {
        self.ask(&Request::Status { diagnose })
    }
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let line = serde_json::to_string(request)? + "\n";
        // A balancer that refuses a client answers before any request, and hangs up.
        let _ = self.stream.write_all(line.as_bytes());
        let answer = self.line()?;
        Self::of(&mut answer.context("the balancer has ended")?)
    }

    /// The next line; `None` at the end.
    pub(crate) fn line(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The content of an answer.
    pub(crate) fn of<T: DeserializeOwned>(answer: &mut Value) -> Result<T> {
        if let Some(error) = answer["error"].as_str() {
            anyhow::bail!("{error}");
        }
        serde_json::from_value(answer["ok"].take())
            .context("the balancer is another version of katran: use its `katran` command")
    }
}
