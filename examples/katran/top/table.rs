//! A table of many rows on few lines: sorted by a column, filtered by name, scrolled, with the
//! columns that fit. A figure is never cut: a column that does not fit is left out.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Style;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::Block;
use ratatui::widgets::Borders;
use ratatui::widgets::Cell;
use ratatui::widgets::Scrollbar;
use ratatui::widgets::ScrollbarOrientation;
use ratatui::widgets::ScrollbarState;

/// Lines above the rows: a title in a rule, and the headings.
pub(crate) const ABOVE: u16 = 2;
/// Names keep this width before another column loses its place.
const SHORTEST_NAME: usize = 12;
/// From this width on, a space precedes the scroll bar.
const ROOMY: u16 = 60;
/// The widest gap between columns; wider ones would tear rows apart.
const WIDEST_GAP: usize = 3;

/// A column of figures.
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    /// The width of the widest figure, and of the heading.
    pub(crate) width: u16,
    /// Lower ranks get room first; rank 0 comes before names.
    pub(crate) rank: u8,
}

/// The text of a cell, and the value to sort by.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) shown: String,
    pub(crate) number: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// Needs attention.
    Bad,
    /// Takes no part.
    Faint,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) tone: Tone,
    /// The order among names: addresses and numbers do not sort as text.
    pub(crate) place: usize,
}

/// Names, with a figure for each column.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: &'static [Column],
    pub(crate) rows: Vec<Row>,
}

/// How the user views a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// The sort column; `None` for names.
    pub(crate) sort: Option<usize>,
    pub(crate) is_reversed: bool,
    /// Show only names that contain this, in upper or lower case.
    pub(crate) filter: String,
    /// The name of the selected row, which stays selected when it moves. `None`: the first row.
    pub(crate) selected: Option<String>,
    /// Its last place, where the selection stays if the name goes.
    at: usize,
    /// The first visible row, and how many fit.
    offset: usize,
    page: usize,
}

impl Look {
    pub(crate) fn sorted_by(column: usize) -> Self {
        Self {
            sort: Some(column),
            ..Self::default()
        }
    }

    /// The rows in display order.
    fn rows<'t>(&self, table: &'t Table) -> Vec<&'t Row> {
        let wanted = self.filter.to_lowercase();
        let rows = table.rows.iter();
        let mut rows: Vec<_> = rows
            .filter(|row| row.name.to_lowercase().contains(&wanted))
            .collect();
        let by_name = |a: &Row, b: &Row| a.place.cmp(&b.place).then_with(|| a.name.cmp(&b.name));
        rows.sort_by(|a, b| match self.sort {
            None => self.turned(by_name(a, b)),
            // Largest first.
            Some(column) => {
                let [a_number, b_number] = [a, b].map(|row| row.figures[column].number);
                let by_number = self.turned(b_number.total_cmp(&a_number));
                by_number.then_with(|| by_name(a, b))
            }
        });
        rows
    }

    fn turned(&self, order: Ordering) -> Ordering {
        match self.is_reversed {
            true => order.reverse(),
            false => order,
        }
    }

    /// The position of the selected row among these.
    fn place(&self, rows: &[&Row]) -> usize {
        let Some(selected) = &self.selected else {
            return 0;
        };
        let place = rows.iter().position(|row| row.name == *selected);
        place.unwrap_or(self.at).min(rows.len().saturating_sub(1))
    }

    pub(crate) fn selected<'t>(&self, table: &'t Table) -> Option<&'t Row> {
        let rows = self.rows(table);
        rows.get(self.place(&rows)).copied()
    }

    /// Moves by this many rows.
    pub(crate) fn step(&mut self, table: &Table, rows: isize) {
        let shown = self.rows(table);
        let last = shown.len().saturating_sub(1);
        self.at = self.place(&shown).saturating_add_signed(rows).min(last);
        self.selected = shown.get(self.at).map(|row| row.name.clone());
    }

    /// Moves by this many pages.
    pub(crate) fn turn(&mut self, table: &Table, pages: isize) {
        let rows = isize::try_from(self.page.max(1)).unwrap_or(1);
        self.step(table, pages * rows);
    }

    /// Moves to the first row, whichever it is then.
    pub(crate) fn top(&mut self) {
        (self.selected, self.at) = (None, 0);
    }

    pub(crate) fn end(&mut self, table: &Table) {
        self.step(table, isize::MAX);
    }

    /// Sorts by the next or previous column; names count as one.
    pub(crate) fn sort_by_next(&mut self, table: &Table, forward: bool) {
        let columns = table.columns.len() + 1;
        let now = self.sort.map_or(0, |column| column + 1);
        let next = match forward {
            true => now + 1,
            false => now + columns - 1,
        };
        self.sort = (next % columns).checked_sub(1);
        self.is_reversed = false;
    }

    /// Draws the table; `name_heading` is above the names.
    pub(crate) fn draw(&mut self, frame: &mut Frame<'_>, area: Rect, table: &Table, focus: bool) {
        let rows = self.rows(table);
        self.page = usize::from(area.height.saturating_sub(ABOVE));
        let place = self.place(&rows);
        self.at = place;
        let last_offset = rows.len().saturating_sub(self.page);
        let lowest = (place + 1).saturating_sub(self.page);
        self.offset = self
            .offset
            .clamp(lowest, place.max(lowest))
            .min(last_offset);
        let is_scrolled = rows.len() > self.page;
        let beside = match is_scrolled {
            true if area.width >= ROOMY => 2,
            true => 1,
            false => 0,
        };
        let width = usize::from(area.width).saturating_sub(beside);
        let room = Room::new(table, &rows, width, self.sort);

        let shown = rows.iter().enumerate().skip(self.offset).take(self.page);
        let shown = shown.map(|(index, row)| {
            let name = shortened(&row.name, room.name);
            let style = match row.tone {
                Tone::Bad => Style::new().fg(Color::Red).bold(),
                Tone::Faint => Style::new().dim(),
                Tone::Plain => Style::new(),
            };
            let figures = room.columns.iter();
            let figures = figures.map(|column| row.figures[*column].shown.clone());
            let style = match focus && index == place {
                true => style.reversed(),
                false => style,
            };
            cells(name, figures, |_| Style::new()).style(style)
        });
        let shown: Vec<_> = shown.collect();
        let headings = room.columns.iter();
        let headings = headings.map(|column| table.columns[*column].heading.to_owned());
        let heading = cells(String::new(), headings, |at| {
            match self.sort == Some(room.columns[at]) {
                true => Style::new().underlined(),
                false => Style::new(),
            }
        });
        let widths = [Constraint::Length(
            u16::try_from(room.name).unwrap_or(u16::MAX),
        )]
        .into_iter()
        .chain(
            room.columns
                .iter()
                .map(|column| Constraint::Length(table.columns[*column].width)),
        );
        let title = self.title(table, &rows, usize::from(area.width), focus);
        let rule = match focus {
            true => Style::new().fg(Color::Cyan).bold(),
            false => Style::new().dim(),
        };
        let block = Block::new()
            .borders(Borders::TOP)
            .border_style(rule)
            .title(Line::from(title).style(Style::reset().bold()));
        let widget = ratatui::widgets::Table::new(shown, widths)
            .header(heading.bold())
            .column_spacing(room.gap)
            .block(block);
        frame.render_widget(widget, area);
        if is_scrolled && self.page > 0 {
            let mut state = ScrollbarState::new(last_offset + 1)
                .position(self.offset)
                .viewport_content_length(self.page);
            let bar = Scrollbar::new(ScrollbarOrientation::VerticalRight)
                .begin_symbol(None)
                .end_symbol(None);
            // Directly after the last column.
            let columns = room.columns.iter();
            let columns = columns.map(|column| table.columns[*column].width + room.gap);
            let taken = room.name as u16 + columns.sum::<u16>() + beside as u16;
            let beside_rows = Rect {
                y: area.y + ABOVE,
                height: area.height - ABOVE,
                width: taken.min(area.width),
                ..area
            };
            frame.render_stateful_widget(bar, beside_rows, &mut state);
        }
    }

    /// The table's name, how many rows are visible, filter and sort order; as much as fits.
    fn title(&self, table: &Table, rows: &[&Row], width: usize, focus: bool) -> String {
        let mut parts = vec![table.title.clone()];
        if !self.filter.is_empty() {
            parts.push(format!("{} with \"{}\"", rows.len(), self.filter));
        }
        if rows.len() > self.page && self.page > 0 {
            let last = (self.offset + self.page).min(rows.len());
            parts.push(format!("{} to {last}", self.offset + 1));
        }
        let (by, falls) = match self.sort {
            None => ("name", self.is_reversed),
            Some(column) => (table.columns[column].heading, !self.is_reversed),
        };
        if rows.len() > 1 && (focus || self.sort.is_some()) {
            parts.push(format!("by {by} {}", if falls { "▼" } else { "▲" }));
        }
        // A space separates it from the rule.
        let title = fitting(&parts, ", ", width.saturating_sub(1));
        match title.is_empty() {
            true => title,
            false => title + " ",
        }
    }
}

/// The columns that fit, in order, and the width of names.
struct Room {
    columns: Vec<usize>,
    name: usize,
    gap: u16,
}

impl Room {
    fn new(table: &Table, rows: &[&Row], width: usize, sort: Option<usize>) -> Self {
        let longest = rows.iter().map(|row| row.name.chars().count());
        let longest = longest.max().unwrap_or(0);
        // The sort column must be visible; an empty column need not be.
        let says_nothing = |column: usize| {
            let mut figures = rows.iter().map(|row| &row.figures[column]);
            !rows.is_empty() && figures.all(|figure| figure.number < 0.0)
        };
        let columns = (0..table.columns.len()).filter(|column| {
            sort == Some(*column) || table.columns[*column].rank == 0 || !says_nothing(*column)
        });
        let mut ranked: Vec<_> = columns.collect();
        let rank = |column: usize| match sort == Some(column) {
            true => 0,
            false => table.columns[column].rank,
        };
        ranked.sort_by_key(|column| (rank(*column), Some(*column) != sort));
        let mut columns = Vec::new();
        let mut taken = 0;
        for column in ranked {
            let name = match rank(column) {
                0 => longest.min(SHORTEST_NAME),
                _ => longest,
            };
            let more = usize::from(table.columns[column].width) + 1;
            if name + taken + more > width {
                break;
            }
            taken += more;
            columns.push(column);
        }
        columns.sort_unstable();
        let name = longest.min(width - taken);
        let gaps = columns.len().max(1);
        let gap = (1 + (width - taken - name) / gaps).min(WIDEST_GAP);
        Self {
            columns,
            name,
            gap: gap as u16,
        }
    }
}

/// As many of these as fit side by side; the first one is shortened if needed.
pub(crate) fn fitting(parts: &[String], between: &str, room: usize) -> String {
    let mut all = String::new();
    for part in parts {
        if all.is_empty() {
            all = shortened(part, room);
            continue;
        }
        let longer = format!("{all}{between}{part}");
        if longer.chars().count() <= room {
            all = longer;
        }
    }
    all
}

/// A name shortened to a width. It loses the part after its first quarter, because addresses of a
/// network begin alike, and port and protocol are at the end.
pub(crate) fn shortened(name: &str, room: usize) -> String {
    let length = name.chars().count();
    if length <= room {
        return name.to_owned();
    }
    let Some(kept) = room.checked_sub(1) else {
        return String::new();
    };
    let head = kept / 4;
    let first: String = name.chars().take(head).collect();
    let last: String = name.chars().skip(length - (kept - head)).collect();
    format!("{first}…{last}")
}

/// A name, and figures aligned to the right.
fn cells(
    name: String,
    figures: impl Iterator<Item = String>,
    style: impl Fn(usize) -> Style,
) -> ratatui::widgets::Row<'static> {
    let figures = figures.enumerate().map(|(at, figure)| {
        let line = Line::styled(figure, style(at));
        Cell::from(line.right_aligned())
    });
    ratatui::widgets::Row::new([Cell::from(name)].into_iter().chain(figures))
}
