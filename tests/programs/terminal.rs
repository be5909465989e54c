//! Programs that draw on a pseudo-terminal whose keys the test presses: what they show, and the
//! state they leave the terminal in.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Process;
use katran_lab::eventually;
use nix::fcntl::OFlag;
use nix::fcntl::open;
use nix::pty::grantpt;
use nix::pty::posix_openpt;
use nix::pty::ptsname_r;
use nix::pty::unlockpt;
use nix::sys::stat::Mode;
use nix::sys::termios::Termios;
use nix::sys::termios::tcgetattr;
use vt100::Parser;

const PATIENCE: Duration = Duration::from_secs(60);

/// A program on its own terminal.
pub(crate) struct OnTerminal {
    pub(crate) process: Process,
    keyboard: File,
    shown: Arc<Mutex<String>>,
    /// The screen as a terminal would show it.
    screen: Arc<Mutex<Parser>>,
    reader: JoinHandle<()>,
    /// The terminal's other end, for reading its settings.
    pub(crate) terminal: OwnedFd,
    pub(crate) before: Termios,
}

fn count(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

/// A terminal of 80 columns and 24 lines: the end with the keyboard, and the program's. Children of
/// other tests get neither; the program's end would stay open in them.
fn pair() -> (File, OwnedFd) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let keyboard = posix_openpt(flags).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let path = ptsname_r(&keyboard).unwrap();
    let terminal = open(path.as_str(), flags, Mode::empty()).unwrap();
    set_size(&terminal, 80, 24);
    (OwnedFd::from(keyboard).into(), terminal)
}

fn set_size(terminal: &OwnedFd, columns: u16, lines: u16) {
    let mut stty = Command::new("stty");
    stty.args(["rows", &lines.to_string(), "cols", &columns.to_string()]);
    stty.stdin(terminal.try_clone().unwrap());
    assert!(stty.status().unwrap().success());
}

impl OnTerminal {
    pub(crate) fn start(host: &Host, program: &Command) -> Self {
        let (keyboard, terminal) = pair();
        let before = tcgetattr(&terminal).unwrap();
        // This becomes its controlling terminal instead of the one the tests started from.
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
        command.stdin(terminal.try_clone().unwrap());
        command.stdout(terminal.try_clone().unwrap());
        command.stderr(terminal.try_clone().unwrap());
        let process = host.spawn_command(command).unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let screen = Arc::new(Mutex::new(Parser::new(count(24), count(80), 0)));
        let mut output = keyboard.try_clone().unwrap();
        let (sink, mut bytes) = (Arc::clone(&shown), [0; 4096]);
        let drawn = Arc::clone(&screen);
        let reader = thread::spawn(move || {
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                drawn.lock().unwrap().process(&bytes[..length]);
                let text = String::from_utf8_lossy(&bytes[..length]);
                sink.lock().unwrap().push_str(&text);
            }
        });
        Self {
            process,
            keyboard,
            shown,
            screen,
            reader,
            terminal,
            before,
        }
    }

    pub(crate) fn shows(&self, text: &str) {
        eventually(format_args!("`{text}` on the terminal"), || {
            self.shown.lock().unwrap().contains(text)
        });
    }

    /// Changes the window's size.
    pub(crate) fn resize(&self, columns: u16, lines: u16) {
        let mut screen = self.screen.lock().unwrap();
        screen.screen_mut().set_size(count(lines), count(columns));
        set_size(&self.terminal, columns, lines);
    }

    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// The screen's current lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let screen = self.screen.lock().unwrap();
        let (_, columns) = screen.screen().size();
        screen.screen().rows(0, columns.get()).collect()
    }

    /// Waits until the screen is like this.
    pub(crate) fn stands(&self, what: &str, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let lines = self.lines();
            if is_so(&lines) {
                return lines;
            }
            let text = lines.join("\n");
            assert!(begun.elapsed() < PATIENCE, "{what} in\n{text}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has restored the screen.
    pub(crate) fn is_put_back(&self) -> bool {
        let screen = self.screen.lock().unwrap();
        let (is_alternate, is_hidden) = (
            screen.screen().alternate_screen(),
            screen.screen().hide_cursor(),
        );
        !is_alternate && !is_hidden && tcgetattr(&self.terminal).unwrap() == self.before
    }

    /// Waits for the end, and checks the terminal's state.
    pub(crate) fn ended(mut self, success: bool) -> String {
        let status = self.process.wait(PATIENCE).unwrap();
        assert_eq!(status.success(), success, "{:?}", self.shown.lock());
        // Left the alternate screen and showed the cursor; nothing is drawn after that.
        self.shows("\u{1b}[?1049l");
        self.shows("\u{1b}[?25h");
        let after = tcgetattr(&self.terminal).unwrap();
        // No other writer is left: the reader ends.
        drop(self.terminal);
        self.reader.join().unwrap();
        let shown = self.shown.lock().unwrap().clone();
        let [entered, left] = ["h", "l"].map(|end| {
            let switch = format!("\u{1b}[?1049{end}");
            shown.matches(&switch).count()
        });
        // A panic restores it twice.
        assert!(entered > 0 && entered <= left, "{shown:?}");
        assert_eq!(self.before, after);
        let (_, rest) = shown.split_once("\u{1b}[?1049l").unwrap();
        rest.to_owned()
    }
}
