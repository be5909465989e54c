//! Programs that draw on a terminal, on a pseudo-terminal whose keys a test presses: what they show,
//! and in which state they leave it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use katran_lab::Host;
use katran_lab::Process;
use katran_lab::eventually;
use nix::pty::Winsize;
use nix::pty::openpty;
use nix::sys::termios::Termios;
use nix::sys::termios::tcgetattr;

const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal of its own.
pub(crate) struct OnTerminal {
    pub(crate) process: Process,
    pub(crate) keyboard: File,
    shown: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    /// The terminal's other end, to ask for its settings.
    pub(crate) terminal: OwnedFd,
    pub(crate) before: Termios,
}

impl OnTerminal {
    pub(crate) fn start(host: &Host, program: &Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        // Its controlling terminal is this one, not that of whoever runs the tests.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program());
        command.args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm");
        command.stdin(pty.slave.try_clone().unwrap());
        command.stdout(pty.slave.try_clone().unwrap());
        command.stderr(pty.slave.try_clone().unwrap());
        let process = host.spawn_command(command).unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let mut screen = File::from(pty.master.try_clone().unwrap());
        let (sink, mut bytes) = (Arc::clone(&shown), [0; 4096]);
        let reader = thread::spawn(move || {
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]);
                sink.lock().unwrap().push_str(&text);
            }
        });
        Self {
            process,
            keyboard: pty.master.into(),
            shown,
            reader,
            terminal: pty.slave,
            before,
        }
    }

    pub(crate) fn shows(&self, text: &str) {
        eventually(format_args!("`{text}` on the terminal"), || {
            self.shown.lock().unwrap().contains(text)
        });
    }

    /// Waits for the end, and checks what is left on the terminal.
    pub(crate) fn ended(mut self, success: bool) -> String {
        let status = self.process.wait(PATIENCE).unwrap();
        assert_eq!(status.success(), success, "{:?}", self.shown.lock());
        // Left the alternate screen, cursor shown again; nothing is drawn after that.
        self.shows("\u{1b}[?1049l");
        self.shows("\u{1b}[?25h");
        let after = tcgetattr(&self.terminal).unwrap();
        // Nobody else writes there: the reader comes to an end.
        drop(self.terminal);
        self.reader.join().unwrap();
        let shown = self.shown.lock().unwrap().clone();
        let entered = shown.matches("\u{1b}[?1049h").count();
        assert_eq!(entered, 1, "{shown:?}");
        assert_eq!(self.before, after);
        let (_, rest) = shown.split_once("\u{1b}[?1049l").unwrap();
        rest.to_owned()
    }
}
