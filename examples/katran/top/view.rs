//! The layout of `top` on the screen, and the same as text.
//!
//! A large screen shows everything; a small one shows one table, as does an open VIP or real.

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Style;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::text::Span;
use ratatui::widgets::Block;
use ratatui::widgets::Clear;
use ratatui::widgets::Gauge;
use ratatui::widgets::Paragraph;

use super::keys::KEYS;
use super::keys::Opened;
use super::keys::View;
use super::panes;
use super::panes::Pane;
use super::panes::percent;
use super::panes::plain;
use super::rates::Rates;
use super::report::counted;
use super::report::scaled;
use super::table::ABOVE;
use super::table::Look;
use super::table::Table;
use super::table::fitting;
use super::table::shortened;

/// From this size on, several tables are visible.
const MANY: (u16, u16) = (72, 20);
/// From this width on, VIPs and reals are side by side.
const WIDE: u16 = 160;
/// The lines of traffic by verdict.
const TRAFFIC_LINES: u16 = 4;
/// The width of traffic by verdict, and of the flow table, with names and figures.
const TRAFFIC: u16 = 37;
const FLOWS: u16 = 41;
/// The largest number of message lines.
const MESSAGE: usize = 3;

/// The text around the figures.
#[derive(Default)]
pub(crate) struct Status {
    /// The interfaces with their modes.
    pub(crate) title: String,
    /// The last event: a reload, a warning.
    pub(crate) message: String,
}

/// All tables as text, with plain numbers for other programs.
pub(crate) fn text(rates: &Rates) -> String {
    let mut text = String::new();
    for pane in [
        Pane::Traffic,
        Pane::Flows,
        Pane::Vips,
        Pane::Reals,
        Pane::Drops,
        Pane::Cpus,
    ] {
        let table = pane.table(rates, plain);
        let headings = table.columns.iter().map(|column| column.heading);
        text += &line(&table.title, headings);
        for row in &table.rows {
            let values = row.figures.iter().map(|figure| figure.shown.as_str());
            text += &line(&format!("  {}", row.name), values);
        }
    }
    text
}

fn line<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> String {
    let line = values.fold(format!("{name:<32}"), |line, value| {
        format!("{line} {value:>14}")
    });
    format!("{}\n", line.trim_end())
}

/// The whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, status: &Status, view: &mut View, rates: &Rates) {
    let Rect { width, height, .. } = frame.area();
    // The help needs all lines.
    let message = match view.shows_keys {
        true => Vec::new(),
        false => lines(&status.message, usize::from(width)),
    };
    let [title, body, message_area, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(message.len() as u16),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let title_text = shortened(&status.title, usize::from(width));
    frame.render_widget(Line::from(title_text).bold(), title);
    view.has_one_table = view.is_zoomed || width < MANY.0 || height < MANY.1;
    if view.opened.is_some() {
        opened(frame, body, view, rates);
    } else if view.has_one_table {
        one_table(frame, body, view, rates);
    } else {
        // Traffic and the flow table are always visible here.
        view.focus_on_many();
        many_tables(frame, body, view, rates);
    }
    let message: Vec<_> = message.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(message).yellow(), message_area);
    frame.render_widget(bottom(view, usize::from(width)), keys);
    if view.shows_keys {
        all_keys(frame, body);
    }
}

/// Text in lines of a width; what does not fit is left out.
fn lines(text: &str, width: usize) -> Vec<String> {
    if width == 0 {
        return Vec::new();
    }
    let characters: Vec<_> = text.chars().collect();
    let mut lines: Vec<String> = characters.chunks(width).map(String::from_iter).collect();
    if lines.len() > MESSAGE {
        lines.truncate(MESSAGE);
        if let Some(last) = lines.last_mut() {
            last.pop();
            last.push('…');
        }
    }
    lines
}

/// The keys that fit, or what the user types.
fn bottom(view: &View, width: usize) -> Line<'static> {
    if view.is_typing {
        let parts = [
            format!("filter: {}_", view.filter()),
            "Enter keeps it".to_owned(),
            "Esc drops it".to_owned(),
        ];
        return Line::from(fitting(&parts, "  ", width));
    }
    let mut spans: Vec<Span<'static>> = Vec::new();
    let mut room = width;
    for (key, what) in view.hints() {
        let taken = key.chars().count() + what.chars().count() + 3;
        // Nothing follows the last one.
        if taken > room + 2 {
            break;
        }
        room = room.saturating_sub(taken);
        spans.push(key.bold());
        spans.push(Span::from(format!(" {what}  ")));
    }
    Line::from(spans)
}

fn all_keys(frame: &mut Frame<'_>, body: Rect) {
    let wide = KEYS.iter().map(|(keys, _)| keys.chars().count()).max();
    let wide = wide.unwrap_or(0);
    let lines = KEYS
        .iter()
        .map(|(keys, what)| Line::from(vec![format!("{keys:<wide$}  ").bold(), Span::from(*what)]));
    let lines: Vec<_> = lines.collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
    let height = lines.len() as u16;
    let has_room = body.height >= height + 2 && body.width >= width + 2;
    let (block, border) = match has_room {
        true => (Block::bordered().title("keys"), 2),
        false => (Block::new(), 0),
    };
    let area = body.centered(
        Constraint::Max(width + border),
        Constraint::Max(height + border),
    );
    // Clears what is below it.
    frame.render_widget(Clear, if has_room { area } else { body });
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn one_table(frame: &mut Frame<'_>, body: Rect, view: &mut View, rates: &Rates) {
    let [totals, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(body);
    frame.render_widget(Line::from(in_one_line(rates, totals.width)), totals);
    let table = view.focus.table(rates, scaled);
    view.look().draw(frame, body, &table, true);
}

/// The most important figures first.
fn in_one_line(rates: &Rates, width: u16) -> String {
    let per_second = |what: &str, rate: f64| format!("{what} {}/s", scaled(rate));
    let parts = [
        per_second("sent", rates.sent.packets),
        per_second("dropped", rates.dropped.packets),
        per_second("received", rates.received.packets),
        per_second("new flows", rates.new_flows),
        per_second("passed to the host", rates.passed.packets),
    ];
    fitting(&parts, "  ", usize::from(width))
}

fn opened(frame: &mut Frame<'_>, body: Rect, view: &mut View, rates: &Rates) {
    let [name, figures, body] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
    ])
    .areas(body);
    let Some(of) = &view.opened else { return };
    let (what, traffic, others) = match of {
        Opened::Vip(vip) => ("VIP", rates.vip(vip), "VIPs"),
        Opened::Real(real) => ("real", rates.real(real), "reals"),
    };
    let title = fitting(
        &[of.name().to_owned(), format!("({what})")],
        " ",
        usize::from(name.width),
    );
    frame.render_widget(Line::from(title).bold(), name);
    let parts = match traffic {
        Some(of) => {
            let mut parts = vec![
                format!("{} packets/s", scaled(of.rate.packets)),
                format!("{} bits/s", scaled(of.rate.bits)),
                format!("{} packets so far", scaled(of.packets as f64)),
            ];
            let unsettled = of.slots.filter(|slots| slots.unsettled > 0);
            parts.extend(unsettled.map(|slots| {
                let slots = counted(slots.unsettled, "slot");
                format!("{slots} unsettled")
            }));
            parts.push(format!("rates below are for all {others}"));
            parts
        }
        None => vec!["it is no longer there".to_owned()],
    };
    let line = fitting(&parts, "  ", usize::from(figures.width));
    frame.render_widget(Line::from(line), figures);
    let table = view.table(rates);
    view.look().draw(frame, body, &table, true);
}

fn many_tables(frame: &mut Frame<'_>, body: Rect, view: &mut View, rates: &Rates) {
    let few = rates.drops.len().max(rates.cpus.len()).max(1) as u16;
    let most = (body.height / 6).max(2);
    if body.width >= WIDE {
        let above = Constraint::Length(few.min(most).max(TRAFFIC_LINES) + ABOVE);
        let [top, main] = Layout::vertical([above, Constraint::Fill(1)]).areas(body);
        let [traffic, flows, drops, cpus] = Layout::horizontal([
            Constraint::Length(TRAFFIC),
            Constraint::Length(FLOWS),
            Constraint::Fill(1),
            Constraint::Fill(1),
        ])
        .spacing(2)
        .areas(top);
        summary(frame, traffic, flows, rates);
        pane(frame, drops, view, Pane::Drops, rates);
        pane(frame, cpus, view, Pane::Cpus, rates);
        let [vips, reals] = beside(main);
        pane(frame, vips, view, Pane::Vips, rates);
        pane(frame, reals, view, Pane::Reals, rates);
        return;
    }
    let [top, main, lowest] = Layout::vertical([
        Constraint::Length(TRAFFIC_LINES + ABOVE),
        Constraint::Fill(1),
        Constraint::Length(few.min(most) + ABOVE),
    ])
    .areas(body);
    let [traffic, flows] = Layout::horizontal([Constraint::Length(TRAFFIC), Constraint::Fill(1)])
        .spacing(2)
        .areas(top);
    summary(
        frame,
        traffic,
        Rect {
            width: flows.width.min(FLOWS),
            ..flows
        },
        rates,
    );
    // Each gets half of the lines, and what the other does not need.
    let half = main.height / 2;
    let needed = |rows: usize| {
        u16::try_from(rows)
            .unwrap_or(u16::MAX)
            .saturating_add(ABOVE)
    };
    let (of_vips, of_reals) = (needed(rates.vips.len()), needed(rates.reals.len()));
    let of_vips = match of_reals < main.height - half {
        true => main.height - of_reals,
        false => half.min(of_vips),
    };
    let [vips, reals] =
        Layout::vertical([Constraint::Length(of_vips), Constraint::Fill(1)]).areas(main);
    pane(frame, vips, view, Pane::Vips, rates);
    pane(frame, reals, view, Pane::Reals, rates);
    let [drops, cpus] = beside(lowest);
    pane(frame, drops, view, Pane::Drops, rates);
    pane(frame, cpus, view, Pane::Cpus, rates);
}

fn beside(area: Rect) -> [Rect; 2] {
    Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)])
        .spacing(2)
        .areas(area)
}

fn pane(frame: &mut Frame<'_>, area: Rect, view: &mut View, pane: Pane, rates: &Rates) {
    let focus = view.focus == pane;
    let table = pane.table(rates, scaled);
    view.looks[pane as usize].draw(frame, area, &table, focus);
}

/// Traffic by verdict and, beside it, the flow table with its hit rate as a gauge.
fn summary(frame: &mut Frame<'_>, traffic: Rect, flows: Rect, rates: &Rates) {
    let fixed = |frame: &mut Frame<'_>, area, table: &Table| {
        Look::default().draw(frame, area, table, false);
    };
    fixed(frame, traffic, &Pane::Traffic.table(rates, scaled));
    let table = Pane::Flows.table(rates, scaled);
    let block = Block::new()
        .borders(ratatui::widgets::Borders::TOP)
        .border_style(Style::new().dim())
        .title(Line::from(format!("{} ", table.title)).style(Style::reset().bold()));
    let inside = block.inner(flows);
    frame.render_widget(block, flows);
    let [gauge, rest] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(inside);
    let ratio = rates.hit_rate.unwrap_or(0.0).clamp(0.0, 1.0);
    let label = match rates.hit_rate {
        Some(_) => format!(" hit rate {} ", percent(ratio)),
        None => " not asked ".to_owned(),
    };
    let bar = Gauge::default().ratio(ratio).label(label);
    frame.render_widget(bar.gauge_style(Style::new().fg(Color::Green)), gauge);
    // The gauge is the first row; the others are side by side in pairs.
    let rows = table.rows.iter().skip(1);
    let rows: Vec<_> = rows
        .map(|row| {
            let shown = &row.figures[0].shown;
            Line::from(format!("{:<11} {shown:>7}", row.name))
        })
        .collect();
    let (left, right) = rows.split_at(rows.len().div_ceil(2));
    let halves = Layout::horizontal([Constraint::Length(19), Constraint::Length(19)]).spacing(2);
    for (rows, area) in [left, right].into_iter().zip(halves.areas::<2>(rest)) {
        frame.render_widget(Paragraph::new(rows.to_vec()), area);
    }
}

/// The table of an open VIP or real.
pub(crate) fn opened_table(of: &Opened, rates: &Rates) -> Table {
    match of {
        Opened::Vip(vip) => match rates.vip(vip) {
            Some(vip) => panes::reals_of(rates, vip, scaled),
            None => panes::vips_of(&Rates::default(), vip, scaled),
        },
        Opened::Real(real) => panes::vips_of(rates, real, scaled),
    }
}
