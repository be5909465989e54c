//! Commands that pages, comments, messages and alerts quote exist: make targets, Cargo's, and those
//! of the examples.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::files;
use crate::help;
use crate::lexer;
use crate::lexer::Piece;
use crate::markdown;
use crate::markdown::Page;
use crate::none_of;

/// Languages of blocks with commands.
const SHELL: [&str; 5] = ["", "console", "ini", "sh", "text"];
/// What may precede a command on its line.
const BEFORE: [&str; 7] = ["$", "#", "env", "exec", "ip", "setpriv", "sudo"];
/// Options of foreign programs: Cargo, shell and kernel tools, systemd.
const FOREIGN: [&str; 1] = ["--help"];

/// The commands that exist.
struct Known {
    targets: BTreeSet<String>,
    /// Names by Cargo option, such as `--bench`.
    of_cargo: BTreeMap<&'static str, BTreeSet<String>>,
    /// The help texts, by the words of their command.
    helps: &'static BTreeMap<String, String>,
    /// Options of all examples, benches and scripts.
    options: BTreeSet<String>,
    /// The commands that were checked.
    called: RefCell<BTreeSet<String>>,
}

impl Known {
    fn new() -> Self {
        let of = |directory| files::targets(directory).into_iter().collect();
        let packages = ["katran", "katran-lab", "katran-model", "katran-yardstick"];
        let helps = help::all();
        let mut options: BTreeSet<String> = FOREIGN.map(str::to_owned).into();
        for help in helps.values() {
            options.extend(help::options(help).into_iter().map(str::to_owned));
        }
        let benches = files::below(&["benches", "scripts"], &[""]);
        for path in benches {
            let words = files::read(&path);
            let words = words.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
            let found = words.filter(|word| word.len() > 2 && word.starts_with("--"));
            options.extend(found.map(str::to_owned));
        }
        Self {
            targets: targets(&files::read("Makefile")),
            of_cargo: BTreeMap::from([
                ("--bench", of("benches")),
                ("--test", of("tests")),
                ("--example", of("examples")),
                ("--package", packages.map(str::to_owned).into()),
                ("-p", packages.map(str::to_owned).into()),
                ("--features", ["health", "serde"].map(str::to_owned).into()),
            ]),
            helps,
            options,
            called: RefCell::default(),
        }
    }

    /// The faults in a line of commands.
    fn wrong(&self, line: &str) -> Vec<String> {
        let mut found = Vec::new();
        for words in commands(line) {
            let mut words = words.iter().map(String::as_str).peekable();
            let is_set = |word: &&str| word.contains('=') && !word.starts_with("Exec");
            while words.next_if(is_set).is_some() {}
            let mut words: Vec<&str> = words.collect();
            let is_before = words.first().is_some_and(|word| BEFORE.contains(word));
            if let Some(at) = words.iter().position(|word| self.is_program(word))
                && is_before
            {
                words.drain(..at);
            }
            let Some((program, arguments)) = words.split_first() else {
                continue;
            };
            // As systemd units start it.
            let started = program
                .strip_prefix("Exec")
                .and_then(|rest| rest.split_once('='));
            let name = started.map_or(*program, |(_, program)| program.trim_start_matches('-'));
            match name.rsplit('/').next().unwrap_or_default() {
                "make" => found.extend(self.wrong_target(arguments)),
                "cargo" => found.extend(self.wrong_of_cargo(arguments)),
                name if self.helps.contains_key(name) => {
                    found.extend(self.wrong_call(name, arguments));
                }
                option if option.starts_with("--") && option == *program => {
                    let option = option.split('=').next().unwrap_or_default();
                    if !self.options.contains(option) {
                        found.push(format!("nothing has the option {option}"));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn is_program(&self, word: &str) -> bool {
        let name = word.rsplit('/').next().unwrap_or_default();
        ["make", "cargo"].contains(&name) || self.helps.contains_key(name)
    }

    fn wrong_target(&self, arguments: &[&str]) -> Vec<String> {
        let is_target = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase());
        let targets = arguments.iter().take_while(|word| !word.starts_with('-'));
        let targets = targets.filter(is_target);
        let missing = targets.filter(|target| !self.targets.contains(**target));
        missing
            .map(|target| format!("there is no make {target}"))
            .collect()
    }

    fn wrong_of_cargo(&self, arguments: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        let arguments = arguments.iter().take_while(|word| **word != "--");
        let arguments: Vec<&str> = arguments.copied().collect();
        for two in arguments.windows(2) {
            let is_name = two[1]
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            let names = self.of_cargo.get(two[0]).filter(|_| is_name);
            if names.is_some_and(|names| !names.contains(two[1])) {
                found.push(format!("there is no {} {}", two[0], two[1]));
            }
        }
        found
    }

    fn wrong_call(&self, name: &str, arguments: &[&str]) -> Vec<String> {
        let mut call = name.to_owned();
        let mut arguments = arguments.iter().peekable();
        // Subcommands.
        while let Some(next) = arguments.peek() {
            let longer = format!("{call} {next}");
            if !self.helps.contains_key(&longer) {
                break;
            }
            call = longer;
            arguments.next();
        }
        let help = &self.helps[&call];
        self.called.borrow_mut().insert(call.clone());
        let mut found = Vec::new();
        if let Some(next) = arguments.peek() {
            let is_word = next.chars().all(|c| c.is_ascii_lowercase());
            if help.contains("\nCommands:\n") && is_word && **next != "help" {
                found.push(format!("{call} has no command {next}"));
            }
        }
        let known = help::options(help);
        for option in arguments.filter(|word| word.starts_with("--") && word.len() > 2) {
            // A message may continue with an inserted value.
            let option = option.split(['=', '{']).next().unwrap_or_default();
            if !known.contains(option) && option != "--help" {
                found.push(format!("{call} has no option {option}"));
            }
        }
        found
    }
}

fn targets(makefile: &str) -> BTreeSet<String> {
    let rules = makefile.lines().filter_map(|line| line.split_once(':'));
    let names = rules.map(|(name, _)| name.to_owned());
    names
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase()))
        .collect()
}

/// The commands of a line as words: quotes keep words together, `#` begins a comment, and shell
/// operators begin another command.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![vec![String::new()]];
    let mut quote = None;
    for character in line.chars() {
        let command = commands.last_mut().unwrap();
        let is_first = command.iter().all(String::is_empty);
        let word = command.last_mut().unwrap();
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, '#') if word.is_empty() && !is_first => break,
            (None, ' ' | '[' | ']' | ',') => command.push(String::new()),
            (None, ';' | '|' | '&' | '(' | ')') => commands.push(vec![String::new()]),
            _ => word.push(character),
        }
    }
    for command in &mut commands {
        command.retain(|word| !word.is_empty());
    }
    commands
}

/// A page's lines of commands, with their numbers.
fn lines(page: &Page) -> Vec<(usize, String)> {
    let mut lines = page.spans.clone();
    for (begin, language, text) in &page.blocks {
        if SHELL.contains(&&**language) {
            let text = text.replace("\\\n", " ");
            lines.extend((*begin..).zip(text.lines().map(str::to_owned)));
        }
    }
    lines
}

#[test]
fn commands_that_are_quoted_exist() {
    let known = Known::new();
    assert!(known.targets.contains("demo") && known.options.contains("--pin"));
    let (mut found, mut seen) = (Vec::new(), 0);
    let mut look = |path: &str, before: usize, page: &Page| {
        for (line, text) in lines(page) {
            seen += 1;
            let wrong = known.wrong(&text).into_iter();
            found.extend(wrong.map(|wrong| format!("{path}:{}: {wrong}", before + line)));
        }
    };
    for (path, page) in markdown::pages() {
        // The changelog also names removed ones.
        if path != "CHANGELOG.md" {
            look(path, 0, page);
        }
    }
    for path in files::below(&["src", "examples", "tests", "benches"], &[".rs"]) {
        for (line, piece) in lexer::pieces(&files::read(&path)) {
            match piece {
                Piece::Comment(text) => look(&path, line - 1, &Page::of(&text)),
                Piece::Literal(text) => look(&path, line - 1, &quoted(&text)),
            }
        }
    }
    for path in files::below(&["examples"], &[".yml"]) {
        look(&path, 0, &quoted(&files::read(&path)));
    }
    assert!(seen > 2000, "{seen}");
    let called = known.called.borrow();
    for name in [
        "run",
        "check",
        "decap",
        "drain",
        "monitor",
        "remove",
        "root attach",
        "status",
    ] {
        assert!(
            called.contains(&format!("katran {name}")),
            "{name}: {called:?}"
        );
    }
    none_of(&found, "commands that do not exist");
}

/// What is between backticks in a text that is not Markdown.
fn quoted(text: &str) -> Page {
    let mut page = Page::default();
    let mut line = 1;
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 && !part.contains('\n') {
            page.spans.push((line, part.to_owned()));
        }
        line += part.matches('\n').count();
    }
    page
}

#[test]
fn commands_in_messages_are_quoted() {
    let page = quoted("run `katran check`\nand `ip link`, or not");
    assert_eq!(
        page.spans,
        [(1, "katran check".to_owned()), (2, "ip link".to_owned())]
    );
}

#[test]
fn missing_commands_are_found() {
    let known = Known::new();
    for (line, wrong) in [
        ("sudo make tests", "make tests"),
        ("make demo && make demos", "make demos"),
        (
            "cargo bench --bench hit_rates -- --quick",
            "--bench hit_rates",
        ),
        ("cargo test --test e2e -p katran-labs", "-p katran-labs"),
        ("katran balance", "no command balance"),
        (
            "katran run --config x --colour red",
            "katran run has no option --colour",
        ),
        (
            "target/release/examples/katran root show --entry=3",
            "katran root show has no option --entry",
        ),
        (
            "decap --interface eth0 --backwards",
            "decap has no option --backwards",
        ),
        (
            "ip netns exec balancer katran run --backwards",
            "no option --backwards",
        ),
        (
            "ExecStart=/usr/local/sbin/katran run --backwards",
            "no option --backwards",
        ),
        ("--backwards", "nothing has the option --backwards"),
    ] {
        let found = known.wrong(line);
        assert!(
            found.len() == 1 && found[0].contains(wrong),
            "{line}: {found:?}"
        );
    }
    for line in [
        "make soak FRAMES=100_000_000  # and make coffee",
        "sudo env \"PATH=$PATH\" make test",
        "cargo test --test limits packets -- --nocapture",
        "katran drain 198.51.100.1 [VIP] [--wait]",
        "katran run --config lb.toml --interface eth0 [--pin DIR]",
        "systemctl restart katran",
        "--pin DIR",
    ] {
        assert_eq!(known.wrong(line), [""; 0], "{line}");
    }
}
