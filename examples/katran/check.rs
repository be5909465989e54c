//! `katran check`: whether a document is valid and, with `--interface`, whether a balancer with it
//! would work there.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use katran::State;
use katran::attachments::SharedEntries;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;

use crate::common::say;
use crate::options::diagnose;
use crate::options::placed;
use crate::options::read;
use crate::report::counted;

/// What to check.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The configuration document (TOML)
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Check this interface, too, for anything that would stop packets; repeatable
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Check an entry of the root program pinned here; --interface names the interfaces that the
    /// root program is on
    #[arg(long, value_name = "PATH", requires = "interface")]
    shared: Option<PathBuf>,
    /// With --shared: the number of the entry, from 0
    #[arg(long, value_name = "N", default_value_t = 2, requires = "shared")]
    position: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let document = read(&arguments.config)?;
    document.check()?;
    let state = &document.state;
    let reals: usize = state.vips.iter().map(|of| of.reals.len()).sum();
    let memory = state.builder()?.memory_estimate();
    let memory = memory.map_err(|error| document.placed(error))?;
    say(format!(
        "{}: valid; {} with {}, at most {} MB of kernel memory",
        arguments.config.display(),
        counted(state.vips.len(), "VIP"),
        counted(reals, "real"),
        memory.at_capacity().div_ceil(1_000_000)
    ));
    if arguments.interface.is_empty() {
        return Ok(());
    }
    let works = place(arguments, state.clone()).map_err(|error| placed(&document, error))?;
    anyhow::ensure!(works, "the balancer would not work; see the problems above");
    Ok(())
}

/// Diagnoses the interfaces with a balancer that is not attached to any.
fn place(arguments: &Arguments, mut state: State) -> Result<bool> {
    // Here it is not pinned.
    if let Some(settings) = &mut state.balancer {
        settings.orphan_limit = None;
    }
    let mut katran = match state.builder()?.load() {
        Ok(katran) => katran,
        Err(error) => {
            // Most likely the reason.
            say(Diagnosis::of_host().to_string());
            return Err(error.into());
        }
    };
    katran.apply(&state)?;
    let mut works = true;
    if let Some(path) = &arguments.shared {
        works &= entry(path, arguments.position)?;
    }
    for (interface, diagnosis) in diagnose(&katran, &arguments.interface)? {
        works &= diagnosis.works();
        say(format!("{interface}:\n{diagnosis}"));
    }
    Ok(works)
}

/// Whether a balancer could have this root entry.
fn entry(path: &Path, position: u32) -> Result<bool> {
    let programs = SharedEntries::open(path)?.programs()?;
    let (works, what) = match programs.get(position as usize) {
        None => (
            false,
            format!(
                "does not exist: the root program has entries 0 to {}",
                programs.len().saturating_sub(1)
            ),
        ),
        Some(None) => (true, "empty".to_owned()),
        Some(Some(program)) if ["katran", "katran_full"].contains(&program.name.as_str()) => {
            (true, "holds a balancer, which would be replaced".to_owned())
        }
        Some(Some(program)) if program.name.is_empty() => (
            false,
            "holds a program; only a process with CAP_SYS_ADMIN can see whose".to_owned(),
        ),
        Some(Some(program)) => (
            false,
            format!(
                "holds {}: choose another entry, or empty this one",
                program.name
            ),
        ),
    };
    let severity = if works {
        Severity::Ok
    } else {
        Severity::Problem
    };
    say(format!(
        "entry {position} of {}:\n{severity:<8} {what}",
        path.display()
    ));
    Ok(works)
}
