//! What the demo prints: parts with a sentence each, and what did not hold.

use std::fmt;
use std::time::Duration;

/// Columns of a terminal, which no line exceeds.
const COLUMNS: usize = 80;
/// Columns of a line of prose.
const WIDTH: usize = 78;

/// Counts what was checked and keeps what failed.
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
        let number = self.parts;
        self.print(format_args!(
            "\n{number}. {title}\n{}\n\n",
            wrapped(sentence)
        ));
    }

    /// Prints lines. One that a terminal would break is a failure.
    pub(crate) fn print(&mut self, text: impl fmt::Display) {
        for line in text.to_string().lines() {
            println!("{line}");
            if line.chars().count() > COLUMNS {
                self.failed(format_args!(
                    "the line above has more than {COLUMNS} columns"
                ));
            }
        }
    }

    /// Prints prose in lines that a terminal does not break.
    pub(crate) fn say(&mut self, sentences: &str) {
        self.print(wrapped(sentences));
    }

    /// Notes whether something holds that should.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl fmt::Display) {
        self.checks += 1;
        if !holds {
            self.failed(otherwise);
        }
    }

    /// Notes that something went wrong.
    pub(crate) fn failed(&mut self, what: impl fmt::Display) {
        println!("  FAILED: {what}");
        self.failures.push(match self.parts {
            0 => what.to_string(),
            part => format!("part {part}: {what}"),
        });
    }

    /// Prints the verdict; whether all was true.
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
