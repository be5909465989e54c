//! Shell completions and manual pages, from the parser's description.

use std::io::Write;
use std::io::stdout;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use clap::CommandFactory;

use crate::Arguments;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "katran", &mut script);
    stdout().write_all(&script)?;
    Ok(())
}

/// `katran.1`, `katran-run.1` and so on.
pub(crate) fn manual(directory: &Path) -> Result<()> {
    let cannot = || format!("cannot write manual pages into {}", directory.display());
    clap_mangen::generate_to(Arguments::command(), directory).with_context(cannot)
}
