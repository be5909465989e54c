//! `katran apply`: applies another document to the running balancer.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use super::To;
use crate::common::say;
use crate::socket::Request;

/// The document.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The document (TOML). It stays current until you apply another one, or until the balancer
    /// reads its own file again (at SIGHUP or start)
    #[arg(value_name = "FILE")]
    document: PathBuf,
    /// Print what would change, without changing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    to: To,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let file = arguments.document.display();
    let document = fs::read_to_string(&arguments.document);
    let document = document.with_context(|| format!("cannot read {file}"))?;
    let request = Request::Apply {
        document,
        dry_run: arguments.dry_run,
    };
    let applied: Result<String> = arguments.to.ask(&request);
    let applied = applied.with_context(|| format!("cannot apply {file}"))?;
    say(applied);
    Ok(())
}
