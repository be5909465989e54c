//! The terminal while `top` draws on it; it is restored however `top` ends.

use std::io::Result;
use std::sync::mpsc::Sender;
use std::thread;

use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::event::KeyEventKind;
use signal_hook::consts::SIGTSTP;
use signal_hook::low_level::emulate_default_handler;

/// Input from the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Key(KeyEvent),
    /// The terminal was resized.
    Redraw,
    /// Keys cannot be read.
    Deaf(String),
}

/// The terminal's alternate screen in raw mode. Dropping it leaves both; so does a panic, before
/// its message is printed.
pub(crate) struct Screen(DefaultTerminal);

impl Screen {
    pub(crate) fn enter() -> Result<Self> {
        // This sets the panic hook.
        ratatui::try_init().map(Self)
    }

    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.0.draw(draw).map(|_| ())
    }

    /// Restores the terminal, and stops the process until it is continued.
    pub(crate) fn suspend(&mut self) -> Result<()> {
        self.0.show_cursor()?;
        ratatui::restore();
        emulate_default_handler(SIGTSTP)?;
        self.0 = ratatui::try_init()?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads the keyboard until the receiver is gone.
pub(crate) fn listen<T: Send + 'static>(wishes: Sender<T>, wrap: fn(Wish) -> T) {
    thread::spawn(move || {
        loop {
            let (wish, is_last) = match event::read() {
                Ok(Event::Resize(..)) => (Wish::Redraw, false),
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => (Wish::Key(key), false),
                Ok(_) => continue,
                Err(error) => (Wish::Deaf(format!("cannot read keys: {error}")), true),
            };
            if wishes.send(wrap(wish)).is_err() || is_last {
                return;
            }
        }
    });
}
