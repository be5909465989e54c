//! The terminal while `top` draws on it: put back as it was at the end, whatever the end is.

use std::io::Result;
use std::sync::mpsc::Sender;
use std::thread;

use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEventKind;
use ratatui::crossterm::event::KeyModifiers;

/// What somebody at the terminal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Quit,
    /// The terminal has another size.
    Redraw,
}

/// The terminal's alternate screen, in raw mode. Dropping it leaves both; a panic does so first, so
/// that its message can be read.
pub(crate) struct Screen(DefaultTerminal);

impl Screen {
    pub(crate) fn enter() -> Result<Self> {
        // It sets the hook for panics.
        ratatui::try_init().map(Self)
    }

    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.0.draw(draw).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads the keyboard until nobody listens any more.
pub(crate) fn listen<T: Send + 'static>(wishes: Sender<T>, wrap: fn(Wish) -> T) {
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(wish) = wish(&event)
                && wishes.send(wrap(wish)).is_err()
            {
                return;
            }
        }
    });
}

fn wish(event: &Event) -> Option<Wish> {
    match event {
        Event::Resize(..) => Some(Wish::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
                // In raw mode it makes no signal.
                KeyCode::Char('c') if control => Some(Wish::Quit),
                _ => None,
            }
        }
        _ => None,
    }
}
