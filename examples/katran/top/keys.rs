//! The keys of `top`.

use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::event::KeyModifiers;

use super::panes::Pane;
use super::rates::Rates;
use super::report::scaled;
use super::table::Look;
use super::table::Table;
use super::view::opened_table;

/// All keys, with their help.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("Up Down PgUp PgDn", "scroll"),
    ("Home End", "first, last"),
    ("Tab", "next table"),
    ("Enter", "a VIP's reals"),
    ("Esc", "back"),
    ("Left Right", "sort by"),
    ("r", "reverse"),
    ("/", "filter by name"),
    ("z", "one table alone"),
    ("q", "quit; Ctrl-Z suspends"),
];

/// What remains for the terminal's owner to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Redraw,
    Quit,
    Suspend,
}

/// The VIP or real that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Vip(String),
    Real(String),
}

impl Opened {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Vip(name) | Self::Real(name) => name,
        }
    }
}

/// What the user looks at, and how.
pub(crate) struct View {
    pub(crate) focus: Pane,
    /// By [`Pane`].
    pub(crate) looks: [Look; Pane::ALL.len()],
    pub(crate) opened: Option<Opened>,
    /// The view of the open table.
    close: Look,
    pub(crate) is_zoomed: bool,
    /// The screen shows one table: it is small, or zoomed.
    pub(crate) has_one_table: bool,
    pub(crate) is_typing: bool,
    pub(crate) shows_keys: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            focus: Pane::Vips,
            looks: Pane::ALL.map(|pane| pane.sort().map_or_else(Look::default, Look::sorted_by)),
            opened: None,
            close: Look::default(),
            is_zoomed: false,
            has_one_table: false,
            is_typing: false,
            shows_keys: false,
        }
    }

    /// The view of the table that has the keys.
    pub(crate) fn look(&mut self) -> &mut Look {
        match self.opened {
            Some(_) => &mut self.close,
            None => &mut self.looks[self.focus as usize],
        }
    }

    /// The table that has the keys.
    pub(crate) fn table(&self, rates: &Rates) -> Table {
        match &self.opened {
            Some(opened) => opened_table(opened, rates),
            None => self.focus.table(rates, scaled),
        }
    }

    pub(crate) fn filter(&self) -> &str {
        match self.opened {
            Some(_) => &self.close.filter,
            None => &self.looks[self.focus as usize].filter,
        }
    }

    /// The tables that Tab cycles through.
    fn panes(&self) -> &'static [Pane] {
        match self.has_one_table {
            true => &Pane::ALL,
            false => &Pane::ALL[..4],
        }
    }

    /// Moves the focus from a table that cannot have it while several are shown.
    pub(crate) fn focus_on_many(&mut self) {
        if !self.panes().contains(&self.focus) {
            self.focus = Pane::Vips;
        }
    }

    fn next(&self, forward: bool) -> Pane {
        let panes = self.panes();
        let at = panes.iter().position(|pane| *pane == self.focus);
        let step = if forward { 1 } else { panes.len() - 1 };
        panes[(at.unwrap_or(0) + step) % panes.len()]
    }

    /// The keys that are useful now, most important first.
    pub(crate) fn hints(&self) -> Vec<(&'static str, &'static str)> {
        let mut hints = vec![("q", "quit"), ("?", "keys")];
        match self.opened {
            Some(_) => hints.push(("Esc", "back")),
            None => hints.push(("Tab", self.next(true).name())),
        }
        match (&self.opened, self.focus) {
            (None, Pane::Vips) => hints.push(("Enter", "reals")),
            (None, Pane::Reals) => hints.push(("Enter", "VIPs")),
            _ => {}
        }
        hints.extend([("/", "filter"), ("Left Right", "sort"), ("r", "reverse")]);
        if self.opened.is_none() {
            hints.push(("z", "zoom"));
        }
        hints
    }

    pub(crate) fn press(&mut self, key: KeyEvent, rates: &Rates) -> Outcome {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            // Raw mode turns these keys into no signals.
            return match key.code {
                KeyCode::Char('c') => Outcome::Quit,
                KeyCode::Char('z') => Outcome::Suspend,
                _ => Outcome::Redraw,
            };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return Outcome::Redraw;
        }
        let shown = std::mem::take(&mut self.shows_keys);
        match key.code {
            KeyCode::Char('q') => return Outcome::Quit,
            KeyCode::Char('?' | 'h') => self.shows_keys = !shown,
            KeyCode::Esc if shown => {}
            KeyCode::Esc => self.back(),
            KeyCode::Tab if self.opened.is_none() => self.focus = self.next(true),
            KeyCode::BackTab if self.opened.is_none() => self.focus = self.next(false),
            KeyCode::Char('z') if self.opened.is_none() => self.is_zoomed = !self.is_zoomed,
            KeyCode::Enter => self.open(rates),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('r') => {
                let look = self.look();
                look.is_reversed = !look.is_reversed;
            }
            code => self.scroll(code, rates),
        }
        Outcome::Redraw
    }

    fn scroll(&mut self, code: KeyCode, rates: &Rates) {
        let table = self.table(rates);
        let look = self.look();
        match code {
            KeyCode::Up | KeyCode::Char('k') => look.step(&table, -1),
            KeyCode::Down | KeyCode::Char('j') => look.step(&table, 1),
            KeyCode::PageUp => look.turn(&table, -1),
            KeyCode::PageDown | KeyCode::Char(' ') => look.turn(&table, 1),
            KeyCode::Home | KeyCode::Char('g') => look.top(),
            KeyCode::End | KeyCode::Char('G') => look.end(&table),
            KeyCode::Left | KeyCode::Char('<') => look.sort_by_next(&table, false),
            KeyCode::Right | KeyCode::Char('>') => look.sort_by_next(&table, true),
            _ => {}
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        let filter = &mut self.look().filter;
        match code {
            KeyCode::Char(character) => filter.push(character),
            KeyCode::Backspace => {
                filter.pop();
            }
            KeyCode::Esc => filter.clear(),
            _ => {}
        }
        if matches!(code, KeyCode::Enter | KeyCode::Esc) {
            self.is_typing = false;
        }
    }

    /// Goes back from an open table, or clears the filter.
    fn back(&mut self) {
        match self.opened.take() {
            Some(_) => self.close = Look::default(),
            None => self.look().filter.clear(),
        }
    }

    /// Opens a VIP's reals or a real's VIPs, and from there the others.
    fn open(&mut self, rates: &Rates) {
        let table = self.table(rates);
        let Some(row) = self.look().selected(&table) else {
            return;
        };
        let name = row.name.clone();
        let opened = match (&self.opened, self.focus) {
            (Some(Opened::Vip(_)), _) | (None, Pane::Reals) => Opened::Real(name),
            (Some(Opened::Real(_)), _) | (None, Pane::Vips) => Opened::Vip(name),
            _ => return,
        };
        self.opened = Some(opened);
        self.close = Look::default();
    }
}
