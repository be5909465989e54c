//! The tables of `top`: VIPs, reals, drops, CPUs, traffic and flow tables; and those of an open VIP
//! or real.

use std::collections::HashMap;
use std::net::IpAddr;

use super::rates::Rates;
use super::rates::Traffic;
use super::report::Health;
use super::report::NOT_SENT;
use super::report::OfVip;
use super::report::Rate;
use super::report::Slots;
use super::report::counted;
use super::table::Column;
use super::table::Figure;
use super::table::Row;
use super::table::Table;
use super::table::Tone;

/// The number of characters in the bar of a CPU that forwards everything.
const BAR: usize = 5;

/// The width of the widest rate with a prefix, such as `999.9 k`.
const FIGURE: u16 = 7;

const fn column(heading: &'static str, width: u16, rank: u8) -> Column {
    Column {
        heading,
        width,
        rank,
    }
}

const PACKETS_PER_SECOND: Column = column("packets/s", 9, 0);
const BITS_PER_SECOND: Column = column("bits/s", FIGURE, 0);
const VIP_COLUMNS: &[Column] = &[
    PACKETS_PER_SECOND,
    BITS_PER_SECOND,
    column("share", FIGURE, 1),
    column("packets", FIGURE, 4),
    column("settled", FIGURE, 4),
    column("unsettled", 9, 2),
    column("for, s", FIGURE, 2),
    column("entries", FIGURE, 3),
];
const REAL_COLUMNS: &[Column] = &[
    PACKETS_PER_SECOND,
    BITS_PER_SECOND,
    column("share", FIGURE, 2),
    column("packets", FIGURE, 3),
    column("down", 7, 1),
];
/// A real of a VIP: its weight, and its share of all weights.
const PAIR_COLUMNS: &[Column] = &[
    column("weight", 6, 0),
    column("flows", FIGURE, 4),
    PACKETS_PER_SECOND,
    column("bits/s", FIGURE, 3),
    column("state", 8, 0),
    column("probes", 9, 1),
    column("silent, s", 9, 2),
];

const DROP_COLUMNS: &[Column] = &[column("frames/s", 8, 0), column("frames", FIGURE, 0)];
const CPU_COLUMNS: &[Column] = &[
    PACKETS_PER_SECOND,
    column("share", FIGURE, 1),
    column("", BAR as u16, 2),
];
const FLOW_COLUMNS: &[Column] = &[column("", 9, 0)];

/// Beyond this many seconds, the exact number does not matter.
const LONG: f64 = 999_999_999.0;
/// Weights below this show all digits.
const LONG_WEIGHT: f64 = 1e6;

/// How to write a number.
pub(crate) type Number = fn(f64) -> String;

/// As text for programs.
pub(crate) fn plain(number: f64) -> String {
    format!("{number:.0}")
}

/// One of the tables on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pane {
    Vips,
    Reals,
    Drops,
    Cpus,
    Traffic,
    Flows,
}

impl Pane {
    /// In the order of Tab.
    pub(crate) const ALL: [Self; 6] = [
        Self::Vips,
        Self::Reals,
        Self::Drops,
        Self::Cpus,
        Self::Traffic,
        Self::Flows,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vips => "VIPs",
            Self::Reals => "reals",
            Self::Drops => "drops",
            Self::Cpus => "CPUs",
            Self::Traffic => "traffic",
            Self::Flows => "flow table",
        }
    }

    /// The first sort column.
    pub(crate) fn sort(self) -> Option<usize> {
        matches!(self, Self::Vips | Self::Reals | Self::Drops).then_some(0)
    }

    pub(crate) fn table(self, rates: &Rates, number: Number) -> Table {
        match self {
            Self::Vips => vips(rates, number),
            Self::Reals => reals(rates, number),
            Self::Drops => drops(rates, number),
            Self::Cpus => cpus(rates, number),
            Self::Traffic => traffic(rates, number),
            Self::Flows => flow_table(rates, number),
        }
    }
}

fn row(place: usize, name: impl Into<String>, figures: Vec<Figure>) -> Row {
    Row {
        name: name.into(),
        figures,
        tone: Tone::Plain,
        place,
    }
}

fn figure(shown: impl Into<String>, number: f64) -> Figure {
    Figure {
        shown: shown.into(),
        number,
    }
}

/// A figure that may be missing.
fn some(number: Option<f64>, shown: impl Fn(f64) -> String) -> Figure {
    match number {
        Some(number) => figure(shown(number), number),
        None => figure("-", -1.0),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A VIP or a real: rates, its share of them, packets so far.
fn rates_of(traffic: &Traffic, all: f64, number: Number) -> Vec<Figure> {
    let Rate { packets, bits } = traffic.rate;
    vec![
        figure(number(packets), packets),
        figure(number(bits), bits),
        some((all > 0.0).then(|| packets / all), percent),
        figure(number(traffic.packets as f64), traffic.packets as f64),
    ]
}

fn sum(traffic: &[Traffic]) -> f64 {
    traffic.iter().map(|row| row.rate.packets).sum()
}

/// With the slots of their rings, the age of the oldest unsettled slot, and their entries in the
/// flow tables.
fn vips(rates: &Rates, number: Number) -> Table {
    let all = sum(&rates.vips);
    let rows = rates.vips.iter().map(|vip| {
        let mut figures = rates_of(vip, all, number);
        let slots = |of: fn(&Slots) -> f64| vip.slots.as_ref().map(of);
        figures.push(some(slots(|slots| slots.settled.into()), number));
        figures.push(some(slots(|slots| slots.unsettled.into()), number));
        let oldest = vip.slots.and_then(|slots| slots.oldest);
        figures.push(some(oldest, |oldest| plain(oldest.floor())));
        figures.push(some(vip.entries.map(|entries| entries as f64), number));
        row(vip.place, &vip.name, figures)
    });
    Table {
        title: counted(rates.vips.len(), "VIP"),
        columns: VIP_COLUMNS,
        rows: rows.collect(),
    }
}

fn reals(rates: &Rates, number: Number) -> Table {
    let all = sum(&rates.reals);
    let rows = rates.reals.iter().map(|real| {
        let mut figures = rates_of(real, all, number);
        figures.push(match real.down {
            Some((down, vips)) => figure(format!("{down}/{vips}"), down as f64 / vips as f64),
            None => figure("-", -1.0),
        });
        let tone = match real.down {
            Some((down, vips)) if down == vips => Tone::Bad,
            _ => Tone::Plain,
        };
        Row {
            tone,
            ..row(real.place, &real.name, figures)
        }
    });
    let down = rates.reals.iter();
    let down = down.filter(|real| real.down.is_some_and(|(down, _)| down > 0));
    let mut title = counted(rates.reals.len(), "real");
    match down.count() {
        0 => {}
        down => title += &format!(", {down} down"),
    }
    Table {
        title,
        columns: REAL_COLUMNS,
        rows: rows.collect(),
    }
}

/// The reals of a VIP. Their traffic is that of all their VIPs.
pub(crate) fn reals_of(rates: &Rates, vip: &Traffic, number: Number) -> Table {
    let weights = weights(vip);
    let all = rates.reals.iter();
    let all: HashMap<&str, &Traffic> = all.map(|real| (&*real.name, real)).collect();
    let rows = vip.reals.iter().enumerate().map(|(place, of)| {
        let name = of.real.to_string();
        let real = all.get(&*name).copied();
        pair(place, name, of, weights, real, number)
    });
    Table {
        title: counted(vip.reals.len(), "real"),
        columns: PAIR_COLUMNS,
        rows: rows.collect(),
    }
}

/// The VIPs of a real. Their traffic is that of all their reals.
pub(crate) fn vips_of(rates: &Rates, real: &str, number: Number) -> Table {
    let address = real.parse::<IpAddr>().ok();
    let rows = rates.vips.iter().filter_map(|vip| {
        let mut reals = vip.reals.iter();
        let of = reals.find(|of| Some(of.real) == address)?;
        let name = vip.name.clone();
        Some(pair(vip.place, name, of, weights(vip), Some(vip), number))
    });
    let rows: Vec<_> = rows.collect();
    Table {
        title: counted(rows.len(), "VIP"),
        columns: PAIR_COLUMNS,
        rows,
    }
}

/// The sum over reals that get flows.
fn weights(vip: &Traffic) -> f64 {
    let up = vip.reals.iter().filter(|of| !of.down);
    up.map(|of| f64::from(of.weight)).sum()
}

fn pair(
    place: usize,
    name: String,
    of: &OfVip,
    weights: f64,
    traffic: Option<&Traffic>,
    number: Number,
) -> Row {
    let weight = f64::from(of.weight);
    let part = match of.down {
        true => 0.0,
        false => weight,
    };
    let rate = traffic.map_or_else(Rate::default, |traffic| traffic.rate);
    let (probes, health) = match of.health {
        Health::NotProbed => ("-", 0.0),
        Health::Up => ("up", 1.0),
        Health::Unknown => ("not yet", 2.0),
        Health::Down => {
            let cause = of.check.as_ref().and_then(|check| check.cause.as_deref());
            (cause.unwrap_or("no answer"), 3.0)
        }
    };
    let (state, rank, tone) = match (of.down, &of.drain) {
        (true, _) => ("DOWN", 4.0, Tone::Bad),
        (_, Some(drain)) if drain.done => ("may go", 3.0, Tone::Faint),
        (_, Some(_)) => ("drains", 2.0, Tone::Faint),
        (_, None) if of.weight == 0 => ("weight 0", 1.0, Tone::Faint),
        (_, None) => ("serves", 0.0, Tone::Plain),
    };
    let silent = of.drain.and_then(|drain| drain.silent);
    let figures = vec![
        match weight < LONG_WEIGHT {
            true => figure(plain(weight), weight),
            false => figure(number(weight), weight),
        },
        some((weights > 0.0).then(|| part / weights), percent),
        figure(number(rate.packets), rate.packets),
        figure(number(rate.bits), rate.bits),
        figure(state, rank),
        figure(probes, health),
        some(silent, |silent| plain(silent.min(LONG))),
    ];
    Row {
        tone,
        ..row(place, name, figures)
    }
}

fn drops(rates: &Rates, number: Number) -> Table {
    let rows = rates.drops.iter().map(|drops| {
        let tone = match drops.reason.starts_with(NOT_SENT) {
            true => Tone::Bad,
            false => Tone::Plain,
        };
        let figures = vec![
            figure(number(drops.rate), drops.rate),
            figure(number(drops.frames as f64), drops.frames as f64),
        ];
        Row {
            tone,
            ..row(0, &drops.reason, figures)
        }
    });
    Table {
        title: "drops".to_owned(),
        columns: DROP_COLUMNS,
        rows: rows.collect(),
    }
}

fn cpus(rates: &Rates, number: Number) -> Table {
    let rows = rates.cpus.iter().map(|cpu| {
        let flood = if cpu.under_flood { " flood" } else { "" };
        let bar = "#".repeat((cpu.share * BAR as f64).round() as usize);
        let figures = vec![
            figure(number(cpu.packets), cpu.packets),
            figure(percent(cpu.share), cpu.share),
            figure(format!("{bar:<BAR$}"), cpu.share),
        ];
        row(cpu.cpu as usize, format!("cpu {}{flood}", cpu.cpu), figures)
    });
    Table {
        title: match rates.imbalance() {
            Some(times) => format!("CPUs: the busiest {times:.1} x the mean"),
            None => "CPUs".to_owned(),
        },
        columns: CPU_COLUMNS,
        rows: rows.collect(),
    }
}

fn traffic(rates: &Rates, number: Number) -> Table {
    let rows = [
        ("received", rates.received),
        ("sent", rates.sent),
        ("passed to the host", rates.passed),
        ("dropped", rates.dropped),
    ];
    let rows = rows.into_iter().enumerate().map(|(place, (name, rate))| {
        let figures = vec![
            figure(number(rate.packets), rate.packets),
            figure(number(rate.bits), rate.bits),
        ];
        row(place, name, figures)
    });
    Table {
        title: "traffic".to_owned(),
        columns: &[PACKETS_PER_SECOND, BITS_PER_SECOND],
        rows: rows.collect(),
    }
}

fn flow_table(rates: &Rates, number: Number) -> Table {
    let figures = [
        ("to VIPs", rates.to_vips),
        ("new flows", rates.new_flows),
        ("no table", rates.fallback),
        ("settled", rates.settled),
        ("by base", rates.by_base),
        ("by entry", rates.by_entry),
    ];
    let figures = figures.map(|(name, rate)| (format!("{name}/s"), figure(number(rate), rate)));
    let hits = ("hit rate".to_owned(), some(rates.hit_rate, percent));
    let rows = [hits].into_iter().chain(figures).enumerate();
    let rows = rows.map(|(place, (name, figure))| row(place, name, vec![figure]));
    Table {
        title: "flow table".to_owned(),
        columns: FLOW_COLUMNS,
        rows: rows.collect(),
    }
}
