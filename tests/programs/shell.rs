//! A shell that stays open while a test reads a page: on a host, in mount and PID namespaces that
//! end with it.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use katran_lab::Host;
use katran_lab::Process;

/// Printed after each command.
const END: &str = "@@ status ";

pub(crate) struct Shell {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// Starts the shell with one environment variable.
    pub(crate) fn open(host: &Host, shell: &[&str], variable: (&str, &str)) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(shell).env(variable.0, variable.1);
        command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = host.spawn_command(command).unwrap();
        Self {
            input: process.take_stdin().unwrap(),
            output: BufReader::new(process.take_stdout().unwrap()),
            _process: process,
        }
    }

    /// Makes the shell read a text, such as functions that commands use.
    pub(crate) fn read(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
    }

    /// Runs a command, and returns its status and what it prints.
    pub(crate) fn run(&mut self, command: &str) -> (String, String) {
        // The status begins a line, even if the command's output does not end with one.
        writeln!(self.input, "{command} </dev/null; echo \"\n{END}$?\"").unwrap();
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "it does not end:\n{command}\n{text}");
            if let Some(status) = line.strip_prefix(END) {
                text.pop();
                return (status.trim().to_owned(), text);
            }
            text += &line;
        }
    }
}

/// A text quoted as one shell word.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
