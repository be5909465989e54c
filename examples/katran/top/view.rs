//! What `top` shows: sections of rows, drawn on a terminal or printed as text.

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Style;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::Block;
use ratatui::widgets::Borders;
use ratatui::widgets::Cell;
use ratatui::widgets::Gauge;
use ratatui::widgets::Row;
use ratatui::widgets::Table;

use super::rates::Rates;
use super::rates::Traffic;
use super::report::NOT_SENT;
use super::report::Rate;
use super::report::scaled;

const TRAFFIC: &[(&str, u16)] = &[
    ("packets/s", 9),
    ("bits/s", 9),
    ("share", 7),
    ("packets", 9),
];
/// As [`TRAFFIC`], with the slots of the VIP's ring and its entries in the flow tables.
const WITH_SLOTS: &[(&str, u16)] = &[
    ("packets/s", 9),
    ("bits/s", 9),
    ("share", 7),
    ("packets", 9),
    ("settled", 7),
    ("unsettled", 9),
    ("for, s", 7),
    ("entries", 7),
];
/// Of these, what a screen has no room for beside names: the fourth.
const LEFT_OUT: usize = 3;
const ON_SCREEN: &[(&str, u16)] = &[
    WITH_SLOTS[0],
    WITH_SLOTS[1],
    WITH_SLOTS[2],
    WITH_SLOTS[4],
    WITH_SLOTS[5],
    WITH_SLOTS[6],
    WITH_SLOTS[7],
];
/// Lines above rows: a title in a rule, and the heading.
const ABOVE: u16 = 2;
/// A CPU that forwards everything has as many signs.
const BAR: usize = 5;

/// What stands around the figures.
pub(crate) struct Status {
    /// The interfaces with their modes.
    pub(crate) title: String,
    /// The last thing that happened: a reload, a warning.
    pub(crate) message: String,
}

/// A table: a column of names, and one for each of these headings, so wide.
struct Section {
    title: String,
    columns: &'static [(&'static str, u16)],
    rows: Vec<Vec<String>>,
}

/// How a number is written.
type Number = fn(f64) -> String;

/// All sections as text, with plain numbers that other programs can read.
pub(crate) fn text(rates: &Rates) -> String {
    let number: Number = |number| format!("{number:.0}");
    let mut text = String::new();
    for section in [
        traffic(rates, number),
        flow_table(rates, number),
        with_slots(many("VIPs", &rates.vips, number), &rates.vips, number),
        many("reals", &rates.reals, number),
        drops(rates, number),
        cpus(rates, number),
    ] {
        let headings = section.columns.iter().map(|(heading, _)| *heading);
        text += &line(&section.title, headings);
        for row in &section.rows {
            let values = row[1..].iter().map(String::as_str);
            text += &line(&format!("  {}", row[0]), values);
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

/// Everything on one screen; what does not fit is counted in the titles.
pub(crate) fn draw(frame: &mut Frame<'_>, status: &Status, rates: &Rates) {
    let few = u16::try_from(rates.drops.len().max(rates.cpus.len())).unwrap_or(u16::MAX);
    let [title, summary, vips, reals, lowest, message] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4 + ABOVE),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(few.clamp(1, 8) + ABOVE),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let halves = |area| {
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)])
            .spacing(2)
            .areas::<2>(area)
    };

    frame.render_widget(Line::from(status.title.as_str()).bold(), title);
    let [left, right] = halves(summary);
    table(frame, left, traffic(rates, scaled));
    hits(frame, right, rates);
    let mut of_vips = many("VIPs", &rates.vips, scaled);
    // Most of the time there is nothing to tell, and names are long.
    let is_unsettled = |vip: &Traffic| vip.slots.is_some_and(|slots| slots.unsettled > 0);
    if rates.vips.iter().any(is_unsettled) {
        of_vips = with_slots(of_vips, &rates.vips, scaled);
        of_vips.columns = ON_SCREEN;
        for row in &mut of_vips.rows {
            // Behind the name.
            row.remove(LEFT_OUT + 1);
        }
    }
    table(frame, vips, of_vips);
    table(frame, reals, many("reals", &rates.reals, scaled));
    let [left, right] = halves(lowest);
    table(frame, left, drops(rates, scaled));
    table(frame, right, cpus(rates, scaled));
    frame.render_widget(Line::from(status.message.as_str()).dim(), message);
}

/// The flow table's section, with its hit rate as a gauge.
fn hits(frame: &mut Frame<'_>, area: Rect, rates: &Rates) {
    let section = flow_table(rates, scaled);
    let block = block(section.title);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let [gauge, rest] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(inside);
    let ratio = rates.hit_rate.unwrap_or(0.0).clamp(0.0, 1.0);
    let label = match rates.hit_rate {
        Some(_) => format!(" hit rate {} ", percent(ratio)),
        None => " not asked ".to_owned(),
    };
    let bar = Gauge::default().ratio(ratio).label(label);
    frame.render_widget(bar.gauge_style(Style::new().fg(Color::Green)), gauge);
    // The gauge is the first row; the others stand beside each other, by two.
    let mut left = section
        .rows
        .into_iter()
        .skip(1)
        .map(cells)
        .collect::<Vec<_>>();
    let right = left.split_off(left.len().div_ceil(2));
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1);
    let widths = [Constraint::Fill(1), Constraint::Length(7)];
    for (rows, area) in [left, right].into_iter().zip(halves.areas::<2>(rest)) {
        frame.render_widget(Table::new(rows, widths), area);
    }
}

fn table(frame: &mut Frame<'_>, area: Rect, section: Section) {
    let room = usize::from(area.height.saturating_sub(ABOVE));
    let hidden = section.rows.len().saturating_sub(room);
    let more = format!("{hidden} more");
    let mut title = section.title;
    let mut over_names = String::new();
    match title.chars().count() + more.len() + 3 < usize::from(area.width) {
        _ if hidden == 0 => {}
        true => title += &format!(" ({more})"),
        // A title that has no room left for it.
        false => over_names = more,
    }
    // A space between columns.
    let values: u16 = section.columns.iter().map(|(_, width)| width + 1).sum();
    let names = usize::from(area.width.saturating_sub(values));
    let rows = section.rows.into_iter().take(room).map(|mut row| {
        let is_lost = row[0].starts_with(NOT_SENT);
        row[0] = shortened(&row[0], names);
        match is_lost {
            true => cells(row).style(Style::new().fg(Color::Red).bold()),
            false => cells(row),
        }
    });
    let widths = section.columns.iter();
    let widths = [Constraint::Fill(1)]
        .into_iter()
        .chain(widths.map(|(_, width)| Constraint::Length(*width)));
    let headings = section.columns.iter().map(|(heading, _)| *heading);
    let heading = [over_names.as_str()]
        .into_iter()
        .chain(headings)
        .map(str::to_owned)
        .collect();
    let table = Table::new(rows, widths)
        .header(cells(heading).bold())
        .block(block(title));
    frame.render_widget(table, area);
}

/// A name in so many columns: the middle of one that is too long is left out, as the beginning of an
/// address and its port and protocol tell more.
fn shortened(name: &str, room: usize) -> String {
    let length = name.chars().count();
    if length <= room || room < 3 {
        return name.to_owned();
    }
    let tail = (room - 1) / 2;
    let head: String = name.chars().take(room - 1 - tail).collect();
    let tail: String = name.chars().skip(length - tail).collect();
    format!("{head}…{tail}")
}

/// A name, and numbers that end below each other.
fn cells(row: Vec<String>) -> Row<'static> {
    let cells = row
        .into_iter()
        .enumerate()
        .map(|(column, value)| match column {
            0 => Cell::from(value),
            _ => Cell::from(Line::from(value).right_aligned()),
        });
    Row::new(cells.collect::<Vec<_>>())
}

fn block(title: String) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .title(format!("{title} "))
}

fn traffic(rates: &Rates, number: Number) -> Section {
    let row =
        |name: &str, rate: Rate| vec![name.to_owned(), number(rate.packets), number(rate.bits)];
    Section {
        title: "traffic".to_owned(),
        columns: &[("packets/s", 9), ("bits/s", 9)],
        rows: vec![
            row("received", rates.received),
            row("sent", rates.sent),
            row("passed to the host", rates.passed),
            row("dropped", rates.dropped),
        ],
    }
}

fn flow_table(rates: &Rates, number: Number) -> Section {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    Section {
        title: "flow table".to_owned(),
        columns: &[("", 9)],
        rows: vec![
            row("hit rate", rates.hit_rate.map_or("-".to_owned(), percent)),
            row("to VIPs/s", number(rates.to_vips)),
            row("new flows/s", number(rates.new_flows)),
            row("no table/s", number(rates.fallback)),
            row("settled/s", number(rates.settled)),
            row("by base/s", number(rates.by_base)),
            row("by entry/s", number(rates.by_entry)),
        ],
    }
}

fn many(what: &str, traffic: &[Traffic], number: Number) -> Section {
    let all: f64 = traffic.iter().map(|row| row.rate.packets).sum();
    let share = |packets: f64| match all {
        0.0 => "-".to_owned(),
        all => percent(packets / all),
    };
    let name = |row: &Traffic| match row.down {
        None => row.name.clone(),
        Some((down, all)) if down == all => format!("{} down", row.name),
        Some((down, all)) => format!("{} down for {down} of {all}", row.name),
    };
    let down = traffic.iter().filter(|row| row.down.is_some()).count();
    Section {
        title: match down {
            0 => format!("{} {what}", traffic.len()),
            down => format!("{} {what}, {down} down", traffic.len()),
        },
        columns: TRAFFIC,
        rows: traffic
            .iter()
            .map(|row| {
                vec![
                    name(row),
                    number(row.rate.packets),
                    number(row.rate.bits),
                    share(row.rate.packets),
                    number(row.packets as f64),
                ]
            })
            .collect(),
    }
}

/// VIPs with the slots of their rings, settled and unsettled ones, for how long the oldest of these has been, and with
/// their entries in the flow tables.
fn with_slots(mut vips: Section, traffic: &[Traffic], number: Number) -> Section {
    vips.columns = WITH_SLOTS;
    for (row, vip) in vips.rows.iter_mut().zip(traffic) {
        let slots = vip.slots.unwrap_or_default();
        row.push(number(slots.settled.into()));
        row.push(number(slots.unsettled.into()));
        row.push(match slots.oldest {
            Some(oldest) => format!("{:.0}", oldest.floor()),
            None => "-".to_owned(),
        });
        row.push(
            vip.entries
                .map_or("-".to_owned(), |entries| number(entries as f64)),
        );
    }
    vips
}

fn drops(rates: &Rates, number: Number) -> Section {
    Section {
        title: "drops".to_owned(),
        columns: &[("frames/s", 9), ("frames", 9)],
        rows: rates
            .drops
            .iter()
            .map(|drops| {
                let name = drops.reason.clone();
                vec![name, number(drops.rate), number(drops.frames as f64)]
            })
            .collect(),
    }
}

fn cpus(rates: &Rates, number: Number) -> Section {
    Section {
        title: match rates.imbalance() {
            Some(times) => format!("CPUs: the busiest {times:.1} x the mean"),
            None => "CPUs".to_owned(),
        },
        columns: &[("packets/s", 9), ("share", 7), ("", BAR as u16)],
        rows: rates
            .cpus
            .iter()
            .map(|cpu| {
                let flood = if cpu.under_flood { " flood" } else { "" };
                let bar = "#".repeat((cpu.share * BAR as f64).round() as usize);
                vec![
                    format!("cpu {}{flood}", cpu.cpu),
                    number(cpu.packets),
                    percent(cpu.share),
                    format!("{bar:<BAR$}"),
                ]
            })
            .collect(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
