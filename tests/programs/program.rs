//! Examples under test: started as a user would, with their output, signals, and temporary files.

use std::env;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Backend;
use katran_lab::Host;
use katran_lab::Process;
use katran_lab::eventually;

/// How long to wait for a program's line on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An example, as built by `cargo test` beside this test.
pub(crate) fn example(name: &str) -> Command {
    let path = env::current_exe().unwrap();
    let path = path.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "run `cargo build --examples` first");
    let mut command = Command::new(path);
    // Neither the caller's backtrace setting nor its log level.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

/// A command of `katran`. Tests that give `run` a command socket say so; otherwise it has none.
pub(crate) fn katran(name: &str) -> Command {
    let mut command = example("katran");
    command.arg(name);
    if name == "run" {
        command.arg("--no-socket");
    }
    command
}

/// A file that is removed after the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("{}-{name}", process::id());
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    pub(crate) fn write(&self, content: &str) {
        fs::write(&self.0, content).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An example running on a host, with its output.
pub(crate) struct Running {
    pub(crate) process: Process,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    pub(crate) fn start(host: &Host, mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = host.spawn_command(command).unwrap();
        let (sender, lines) = mpsc::channel();
        forward(process.take_stdout().unwrap(), sender.clone());
        forward(process.take_stderr().unwrap(), sender);
        Self {
            process,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that satisfies the condition, and returns it.
    pub(crate) fn line(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with {what} after:\n{}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if is(&line) {
                return line;
            }
        }
    }

    pub(crate) fn says(&mut self, text: &str) -> String {
        self.line(text, |line| line.contains(text))
    }

    /// Waits for a line of numbers whose number in this column is not 0.
    pub(crate) fn counts(&mut self, column: usize) {
        self.line(&format!("a count in column {column}"), |line| {
            let numbers: Option<Vec<f64>> =
                line.split_whitespace().map(|w| w.parse().ok()).collect();
            numbers.is_some_and(|numbers| numbers.get(column).is_some_and(|n| *n > 0.0))
        });
    }

    /// Its whole output, once it has ended.
    pub(crate) fn said(mut self) -> Vec<String> {
        self.seen.extend(self.lines.iter());
        self.seen
    }

    /// Ends it with a signal; it must exit with status 0.
    pub(crate) fn end(&mut self, signal: i32) {
        self.process.signal(signal).unwrap();
        let status = self.process.wait(PATIENCE).unwrap();
        assert!(status.success(), "{status}: {}", self.seen.join("\n"));
    }
}

fn forward(stream: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// A balancer that takes commands, and its socket.
pub(crate) struct Commanded {
    pub(crate) balancer: Running,
    socket: Scratch,
}

impl Commanded {
    /// Starts one with a file and the options for where it balances.
    pub(crate) fn start(host: &Host, file: &Scratch, options: &[&str]) -> Self {
        let name = file.0.file_stem().unwrap().to_str().unwrap();
        let socket = Scratch(file.0.with_file_name(format!("{name}.sock")));
        let mut command = example("katran");
        command.arg("run").arg("--config").arg(&file.0);
        command.arg("--socket").arg(&socket.0).args(options);
        let mut balancer = Running::start(host, command);
        balancer.says("commands at");
        Self { balancer, socket }
    }

    /// A command for this balancer.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = katran(name);
        command.arg("--socket").arg(&self.socket.0);
        command
    }

    /// A command's output, and whether it succeeded. A status is of this moment: not of one before
    /// a change, which the balancer reports while it is busy.
    pub(crate) fn say(&self, host: &Host, name: &str, arguments: &[&str]) -> (bool, String) {
        let mut said = (false, String::new());
        eventually(format_args!("an answer to {name} {arguments:?}"), || {
            let mut command = self.command(name);
            command.args(arguments);
            let output = host.output(command).unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let errors = String::from_utf8(output.stderr).unwrap();
            said = (output.status.success(), text + &errors);
            name != "status" || !said.1.contains("busy with a change: ")
        });
        said
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket.0
    }
}

/// A running decapsulator on a backend.
pub(crate) fn decap(backend: &Backend) -> Running {
    let mut command = example("decap");
    command.args(["--interface", &backend.interface]);
    let mut decap = Running::start(&backend.host, command);
    decap.says("stripping tunnels on eth0 in native mode");
    decap
}
