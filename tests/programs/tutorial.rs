//! The tutorial, run as printed: its commands in order, in one shell, on a host of its own with a private `/run`. What it
//! prints is what the tutorial shows.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use katran_lab::Host;
use katran_lab::Process;
use katran_lab::eventually;
use katran_lab::require_root;

use crate::program::example;

/// Behind the output of a block.
const END: &str = "@@ end of a block";
/// Network namespaces and files of the tutorial are not those of the machine.
const PREPARE: &str = "mount -t tmpfs none /run && mount -t sysfs none /sys";

/// A block of commands, and what one sees of it.
struct Step {
    commands: String,
    seen: String,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::<Step>::new();
    for block in text.split("```").skip(1).step_by(2) {
        match block.split_once('\n').unwrap() {
            ("sh", commands) => steps.push(Step {
                commands: commands.to_owned(),
                seen: String::new(),
            }),
            ("text", seen) => steps.last_mut().unwrap().seen += seen,
            (other, _) => panic!("a block of {other}"),
        }
    }
    steps
}

/// A line without what differs from one run to the next: numbers that are no addresses, and the width of columns.
fn shape(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let numeric = word.starts_with(|first: char| first.is_ascii_digit());
        match numeric && word.matches('.').count() < 3 {
            true => word.replace(|of: char| of.is_ascii_digit() || of == '.', ""),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether the lines are those that the tutorial shows, where `...` is any number of lines.
fn is_as_shown(shown: &str, printed: &str) -> bool {
    fn matches(shown: &[String], printed: &[String]) -> bool {
        match (shown.split_first(), printed.split_first()) {
            (None, _) => printed.is_empty(),
            (Some((line, rest)), _) if line == "..." => {
                (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
            }
            (Some((line, rest)), Some((first, others))) => line == first && matches(rest, others),
            (Some(_), None) => false,
        }
    }
    let shapes = |text: &str| text.lines().map(shape).collect::<Vec<_>>();
    matches(&shapes(shown), &shapes(printed))
}

/// One shell for all steps.
struct Shell {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn open(host: &Host) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["timeout", "240", "sh"]);
        let program = example("katran").get_program().to_owned();
        let programs = Path::new(&program).parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{programs}:{path}"));
        command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = host.spawn_command(command).unwrap();
        let mut shell = Self {
            input: process.take_stdin().unwrap(),
            output: BufReader::new(process.take_stdout().unwrap()),
            _process: process,
        };
        assert_eq!(shell.run(PREPARE), "");
        shell
    }

    /// What the commands print: not what they say of errors, which comes with a failure of the test.
    fn run(&mut self, commands: &str) -> String {
        let quoted = commands.replace('\'', "'\\''");
        writeln!(self.input, "eval '{quoted}' </dev/null; echo '{END}'").unwrap();
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "it does not end:\n{commands}\n{text}");
            if line.trim_end() == END {
                return text;
            }
            text += &line;
        }
    }
}

/// Requests that were answered, by the counts that `uniq -c` prints.
fn answered(printed: &str) -> u32 {
    let lines = printed.lines().filter(|line| line.contains("this is web"));
    let counts = lines.map(|line| line.split_whitespace().next().unwrap());
    counts.map(|count| count.parse::<u32>().unwrap()).sum()
}

#[test]
fn the_tutorial_shows_what_one_sees() {
    require_root();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial.md");
    let text = fs::read_to_string(text).unwrap();
    let steps = steps(&text);
    let (build, steps) = steps.split_first().unwrap();
    // The tests have built it.
    assert!(
        build
            .commands
            .contains("cargo build --release --example katran")
    );
    assert!(steps.len() >= 8, "{}", steps.len());
    let host = Host::new("tutorial").unwrap();
    let mut shell = Shell::open(&host);
    for Step { commands, seen } in steps {
        let printed = shell.run(commands);
        assert!(
            is_as_shown(seen, &printed),
            "{commands}\nshown:\n{seen}\nprinted:\n{printed}"
        );
        if commands.lines().any(|line| line == "requests") {
            assert_eq!(answered(&printed), 20, "{commands}\n{printed}");
            assert_eq!(answered(seen), 20, "{seen}");
        }
    }
    // Nothing is left: what was killed may take a moment to end.
    assert_eq!(
        shell.run("find /run/lab /run/netns -mindepth 1 2>/dev/null"),
        ""
    );
    eventually("its programs end", || {
        let left = shell.run("ps -A -o comm= | grep -E 'katran|python' || true");
        left.is_empty()
    });
}

#[test]
fn another_output_is_not_what_the_tutorial_shows() {
    let shown = "katran 0.1.0, process 135\n...\n  10.0.0.11    weight 1\n...\n";
    let printed = "katran 0.2.0, process 7\nmore\n\n  10.0.0.11  weight 1\n";
    assert!(is_as_shown(shown, printed));
    assert!(!is_as_shown(shown, &printed.replace("0.11", "0.12")));
    assert!(!is_as_shown(shown, &printed.replace("weight", "DOWN")));
    assert!(!is_as_shown(shown, ""));
    assert!(is_as_shown("  9 this is web1\n", "  11 this is web1\n"));
    let both = "  9 this is web1\n 11 this is web2\n";
    assert!(!is_as_shown(both, " 20 this is web2\n"));
    assert!(!is_as_shown(" 20 this is web2\n", both));
    assert_eq!(answered(both), 20);
}
