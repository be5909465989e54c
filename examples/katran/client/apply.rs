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
    let cannot = || format!("cannot use {}", arguments.document.display());
    let document = fs::read_to_string(&arguments.document).with_context(cannot)?;
    let request = Request::Apply {
        document,
        dry_run: arguments.dry_run,
    };
    let applied: String = arguments.to.ask(&request).with_context(cannot)?;
    say(applied);
    Ok(())
}
