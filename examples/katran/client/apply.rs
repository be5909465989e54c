//! `katran apply`: another document for the running balancer.

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
    /// The document: TOML with [balancer] and [[vip]]. It holds until you give the balancer
    /// another one, or it reads its own file again, at SIGHUP or when it is started
    #[arg(value_name = "FILE")]
    document: PathBuf,
    /// Say what it would change, and change nothing
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
