//! The demo's report: parts with an introduction each, and failures.

use std::fmt;
use std::time::Duration;

/// Columns of a line of prose.
const WIDTH: usize = 78;

/// Counts checks and keeps failures.
#[derive(Default)]
pub(crate) struct Report {
    parts: usize,
    checks: usize,
    failures: Vec<String>,
}

impl Report {
    /// Begins a part.
    pub(crate) fn part(&mut self, title: &str, sentence: &str) {
        self.parts += 1;
        println!("\n{}. {title}", self.parts);
        println!("{}\n", wrapped(sentence));
    }

    /// Checks that something holds.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl fmt::Display) {
        self.checks += 1;
        if !holds {
            self.failed(otherwise);
        }
    }

    /// Records a failure.
    pub(crate) fn failed(&mut self, what: impl fmt::Display) {
        println!("  FAILED: {what}");
        self.failures.push(match self.parts {
            0 => what.to_string(),
            part => format!("part {part}: {what}"),
        });
    }

    /// Prints the verdict; returns whether everything held.
    pub(crate) fn verdict(&self, took: Duration) -> bool {
        let Self { parts, checks, .. } = self;
        let seconds = took.as_secs();
        println!();
        match self.failures.as_slice() {
            [] => println!("demo: PASS: {checks} checks in {parts} parts hold ({seconds} s)"),
            [one] => println!("demo: FAIL: {one} ({seconds} s)"),
            [first, others @ ..] => {
                println!(
                    "demo: FAIL: {first} (and {} more; {seconds} s)",
                    others.len()
                );
            }
        }
        self.failures.is_empty()
    }
}

/// Text in lines of at most [`WIDTH`] columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
