//! The tutorial, run as printed: its commands in order, in one shell, on its own host with a
//! private `/run`. The output must be what the tutorial shows.

use std::path::Path;

use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::require_root;

use crate::pages;
use crate::program::example;
use crate::shell::Shell;
use crate::shell::quoted;

/// Keeps the tutorial's network namespaces and files apart from the machine's.
const PREPARE: &str = "mount -t tmpfs none /run && mount -t sysfs none /sys";

/// A block of commands, and its output as shown.
struct Step {
    commands: String,
    seen: String,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::<Step>::new();
    for block in pages::blocks(text) {
        match block {
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

/// A line without what varies between runs: numbers that are no addresses, and column widths.
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

/// Whether the lines match the tutorial's, where `...` is any number of lines.
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

/// Runs commands in the shell of all steps and returns their standard output; standard error is
/// printed if the test fails.
fn run(shell: &mut Shell, commands: &str) -> String {
    let (_, printed) = shell.run(&format!("eval {}", quoted(commands)));
    printed
}

/// Answered requests, from the counts that `uniq -c` prints.
fn answered(printed: &str) -> u32 {
    let lines = printed.lines().filter(|line| line.contains("this is web"));
    let counts = lines.map(|line| line.split_whitespace().next().unwrap());
    counts.map(|count| count.parse::<u32>().unwrap()).sum()
}

#[test]
fn the_tutorial_shows_the_real_output() {
    require_root();
    let steps = steps(&pages::read("docs/tutorial.md"));
    let (build, steps) = steps.split_first().unwrap();
    // Built with the tests.
    assert!(
        build
            .commands
            .contains("cargo build --release --example katran")
    );
    assert!(steps.len() >= 8, "{}", steps.len());
    let host = Host::new("tutorial").unwrap();
    let program = example("katran").get_program().to_owned();
    let programs = Path::new(&program).parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut shell = Shell::open(&host, &["timeout", "240", "sh"], ("PATH", &path));
    assert_eq!(run(&mut shell, PREPARE), "");
    for Step { commands, seen } in steps {
        let printed = run(&mut shell, commands);
        assert!(
            is_as_shown(seen, &printed),
            "{commands}\nshown:\n{seen}\nprinted:\n{printed}"
        );
        if commands.lines().any(|line| line == "requests") {
            assert_eq!(answered(&printed), 20, "{commands}\n{printed}");
            assert_eq!(answered(seen), 20, "{seen}");
        }
    }
    // Nothing is left; killed processes may take a moment to end.
    assert_eq!(
        run(
            &mut shell,
            "find /run/lab /run/netns -mindepth 1 2>/dev/null"
        ),
        ""
    );
    eventually("its programs end", || {
        let left = run(
            &mut shell,
            "ps -A -o comm= | grep -E 'katran|python' || true",
        );
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
