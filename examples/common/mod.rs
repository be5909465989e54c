//! Shared by several examples: reporting, keeping attachments and pins, and the commands that
//! `katran` has too (`decap`, `root`, `simulate`).

#![allow(dead_code, reason = "each example uses a part")]

pub(crate) mod decap;
pub(crate) mod keeper;
pub(crate) mod pin;
pub(crate) mod root;
#[cfg(feature = "serde")]
pub(crate) mod simulate;

use std::io::Write;
use std::io::stderr;
use std::io::stdout;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

/// Logs warnings of the library, or what `RUST_LOG` selects.
pub(crate) fn log() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
}

/// Prints a line. A closed output neither stops the program nor panics.
pub(crate) fn say(line: impl AsRef<str>) {
    let _ = writeln!(stdout(), "{}", line.as_ref());
}

/// Prints a line on standard error, likewise.
pub(crate) fn complain(line: impl AsRef<str>) {
    let _ = writeln!(stderr(), "{}", line.as_ref());
}

/// Parses an option's number of seconds within a range.
pub(crate) fn seconds(text: &str, range: RangeInclusive<f64>) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if range.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!(
            "must be a number of seconds from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// The end of a program: prints an error to standard error, with the program's name. A takeover by
/// another program is not an error.
pub(crate) fn exit(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_handed_over(&error) => {
            say(error.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format!("{program}: {}", with_causes(&error)));
            ExitCode::FAILURE
        }
    }
}

fn is_handed_over(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<katran::Error>();
    error.is_some_and(|error| matches!(error, katran::Error::HandedOver { .. }))
}

/// An error with its causes; some of the library's errors name the cause themselves.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            known if known.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
}
