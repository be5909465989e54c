//! Code in the pages: Rust compiles as documentation tests, the library parses the balancer's
//! documents, and a shell parses the commands.

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use katran::health::Document;

use crate::files;
use crate::markdown;
use crate::none_of;

#[test]
fn rust_of_all_pages_is_compiled() {
    let root = files::read("src/lib.rs");
    let mut found = Vec::new();
    let mut compiled = 0;
    for (path, page) in markdown::pages() {
        for (line, language, _) in &page.blocks {
            let mut words = language.split(',');
            if words.next() != Some("rust") {
                continue;
            }
            compiled += 1;
            if !root.contains(&format!("#[doc = include_str!(\"../{path}\")]")) {
                found.push(format!(
                    "{path}:{line}: src/lib.rs does not include the page"
                ));
            }
            if let Some(word) = words.find(|word| *word != "no_run") {
                found.push(format!("{path}:{line}: Rust that is {word}"));
            }
        }
    }
    assert!(compiled > 5, "{compiled}");
    none_of(&found, "Rust that is not compiled");
}

#[test]
fn documents_of_all_pages_are_read() {
    let (mut found, mut read) = (Vec::new(), 0);
    for (path, page) in markdown::pages() {
        for (line, language, text) in &page.blocks {
            if language != "toml" || is_manifest(text) {
                continue;
            }
            read += 1;
            if let Err(error) = Document::from_toml(text) {
                found.push(format!("{path}:{line}: {error}"));
            }
        }
    }
    assert!(read > 2, "{read}");
    none_of(&found, "documents that the balancer refuses");
    assert!(Document::from_toml("[balancer]\ncolour = 1\n").is_err());
}

/// A Cargo manifest.
fn is_manifest(text: &str) -> bool {
    ["[package", "[dependencies", "[features", "[profile"]
        .iter()
        .any(|section| text.contains(section))
}

#[test]
fn a_shell_takes_the_commands_of_all_pages() {
    let (mut found, mut taken) = (Vec::new(), 0);
    for (path, page) in markdown::pages() {
        for (line, language, script) in &page.blocks {
            if language != "sh" {
                continue;
            }
            taken += 1;
            if !is_taken(script) {
                found.push(format!("{path}:{line}"));
            }
        }
    }
    assert!(taken > 15, "{taken}");
    none_of(&found, "commands that no shell takes");
    assert!(!is_taken("for irq in 1 2; do echo $irq\n"));
}

fn is_taken(script: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.arg("-n").stdin(Stdio::piped()).stderr(Stdio::null());
    let mut shell = shell.spawn().unwrap();
    let mut input = shell.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    shell.wait().unwrap().success()
}
