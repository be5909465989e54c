//! The examples' help: each `--help` fits a terminal of 80 columns and begins with the program's
//! purpose.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::env;
use std::process::Command;
use std::process::Stdio;
use std::sync::LazyLock;

use crate::files;
use crate::none_of;

const WIDTH: usize = 80;

/// The help of each example and each of its commands, by the words of the command: `katran root
/// show`.
pub(crate) fn all() -> &'static BTreeMap<String, String> {
    static HELPS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let mut helps = BTreeMap::new();
        for name in files::targets("examples") {
            collect(&name, &[], &mut helps);
        }
        assert!(helps.len() > 15, "{:?}", helps.keys());
        helps
    });
    &HELPS
}

fn collect(name: &str, commands: &[&str], helps: &mut BTreeMap<String, String>) {
    let help = help(name, commands, "--help");
    let call = [&[name][..], commands].concat().join(" ");
    let of_commands = help.split_once("Commands:\n").map_or("", |(_, list)| list);
    let lines = of_commands.lines().take_while(|line| !line.is_empty());
    let begins = lines.filter_map(|line| line.strip_prefix("  "));
    for command in begins.filter(|line| !line.starts_with(' ')) {
        let command = command.split(' ').next().unwrap_or_default();
        if command != "help" {
            collect(name, &[commands, &[command]].concat(), helps);
        }
    }
    helps.insert(call, help);
}

fn help(name: &str, commands: &[&str], option: &str) -> String {
    let path = env::current_exe().unwrap();
    let path = path.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "run `cargo build --examples` first");
    let mut command = Command::new(path);
    command.args(commands).arg(option).stdin(Stdio::null());
    let output = command.output().unwrap();
    // The shortest example takes the option for a mistake, and prints the same.
    let said = match output.status.success() {
        true => output.stdout,
        false => output.stderr,
    };
    String::from_utf8(said).unwrap()
}

/// The options in a help text.
pub(crate) fn options(help: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words = help.split(|c| !is_part(c));
    words
        .filter(|word| word.len() > 2 && word.starts_with("--"))
        .collect()
}

#[test]
fn help_fits_a_terminal_and_begins_with_what_it_is_for() {
    let mut found = Vec::new();
    for (call, long) in all() {
        let words: Vec<&str> = call.split(' ').collect();
        let short = help(words[0], &words[1..], "-h");
        for (option, text) in [("--help", long), ("-h", &short)] {
            found.extend(
                wrong(text)
                    .into_iter()
                    .map(|wrong| format!("{call} {option}: {wrong}")),
            );
        }
    }
    none_of(&found, "what the examples say of themselves");
}

fn wrong(help: &str) -> Vec<String> {
    let mut found = Vec::new();
    let first = help.lines().next().unwrap_or_default();
    let says = first.starts_with(char::is_uppercase) && first.split(' ').count() > 2;
    if !says || first.starts_with("Usage") {
        found.push(format!("begins with {first:?}"));
    }
    let wide = help.lines().filter(|line| line.chars().count() > WIDTH);
    found.extend(wide.map(|line| format!("is too wide: {line}")));
    found
}

#[test]
fn bad_help_is_found() {
    assert_eq!(wrong("Balance the VIPs of a file\n\nUsage: x\n"), [""; 0]);
    assert_eq!(wrong("Usage: x [OPTIONS] FILE\n").len(), 1);
    assert_eq!(
        wrong(&format!("Balance the VIPs\n\n{}\n", "x".repeat(81))).len(),
        1
    );
    assert_eq!(
        options("  -p, --pin <DIR>  as --socket=PATH"),
        ["--pin", "--socket"].into()
    );
}

/// `scripts/demo-svg` makes it from a run.
#[test]
fn the_picture_shows_the_current_demo() {
    let demo = files::below(&["examples/demo"], &[".rs"]);
    let demo: String = demo.iter().map(|path| files::read(path)).collect();
    let picture = files::read("docs/img/demo.svg");
    let parts = picture.split("class=\"part\">").skip(1);
    let titles: Vec<&str> = parts
        .filter_map(|part| part.split(['.', '<']).nth(1))
        .collect();
    assert!(titles.len() > 2, "{titles:?}");
    let stale = titles
        .iter()
        .filter(|title| !demo.contains(&format!("\"{}\"", title.trim())));
    let stale: Vec<String> = stale.map(|title| (*title).to_owned()).collect();
    none_of(
        &stale,
        "parts that the demo does not have: run `make picture`",
    );
    assert!(
        !picture.contains("href") && !picture.contains("url("),
        "it loads something"
    );
}
