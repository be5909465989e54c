//! The whole screens of `top`, with few VIPs and with 500, in several terminal sizes; and its keys.
//!
//! They are in `screens/`; with `UPDATE_SCREENS` in the environment the test writes them there, for
//! review.

use std::env;
use std::fs;
use std::path::Path;

use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::event::KeyModifiers;

use super::top_view::drawn_in;
use super::top_view::keys::Opened;
use super::top_view::keys::Outcome;
use super::top_view::keys::View;
use super::top_view::panes;
use super::top_view::panes::Pane;
use super::top_view::rates;
use super::top_view::rates::Rates;
use super::top_view::report::Count;
use super::top_view::report::Cpu;
use super::top_view::report::Drain;
use super::top_view::report::Health;
use super::top_view::report::OfVip;
use super::top_view::report::Real;
use super::top_view::report::Report;
use super::top_view::report::Slots;
use super::top_view::report::Vip;
use super::top_view::report::scaled;

const SIZES: [(u16, u16); 3] = [(80, 24), (40, 12), (200, 50)];

fn count(packets: u64) -> Count {
    Count {
        packets,
        bytes: packets * 1400,
    }
}

/// 500 VIPs, every other one with the longest address, and 1,000 reals, of both families in each
/// VIP.
fn many(second: u64) -> Report {
    let real = |number: usize| match number % 2 {
        0 => format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{number:x}"),
        _ => format!("198.51.{}.{}", 100 + number / 256, number % 256),
    };
    let vips = (0..500).map(|number: usize| {
        let vip = match number % 2 {
            0 => format!("[2001:db8:1111:2222:3333:4444:5555:{number:x}]:65535/tcp"),
            _ => format!("203.0.{}.{}:443/udp", 113 + number / 256, number % 256),
        };
        let drain = |silent, done| {
            Some(Drain {
                by_command: true,
                silent,
                done,
            })
        };
        let kinds = [
            (100, false, Health::Up, None),
            (4_000_000, false, Health::NotProbed, None),
            (1, true, Health::Down, None),
            (0, false, Health::Up, drain(Some(34.7), false)),
            (0, false, Health::Unknown, drain(Some(90_000.0), true)),
        ];
        let reals = kinds.into_iter().enumerate();
        let reals = reals.map(|(index, (weight, down, health, drain))| OfVip {
            real: real((number * 2 + index) % 1000).parse().unwrap(),
            weight,
            down,
            health,
            check: None,
            drain,
        });
        Vip {
            vip,
            sent: count(second * ((number * 7919) % 500) as u64 * 977),
            flow_entries: (!number.is_multiple_of(3)).then_some(number as u64 * 1000),
            slots: Some(Slots {
                settled: 65_537 - number as u32 % 2,
                unsettled: number as u32 % 2,
                oldest: (number % 2 == 1).then_some(86_399.0),
            }),
            reals: reals.collect(),
            panics: false,
            falls_back: false,
            rate: None,
        }
    });
    let reals = (0..1000).map(|number| Real {
        real: real(number).parse().unwrap(),
        sent: count(second * number as u64 * 97),
        rate: None,
    });
    let reasons = (0..20).map(|number| (format!("a_reason_to_drop_{number}"), second * number));
    let cpus = (0..32).map(|cpu| Cpu {
        cpu,
        forwarded: second * u64::from(cpu) * 100_000,
        under_flood: cpu == 31,
        forwards: true,
    });
    let mut report = Report {
        running: second as f64,
        vips: vips.collect(),
        reals: reals.collect(),
        drops: reasons.collect(),
        cpus: cpus.collect(),
        ..Report::default()
    };
    report
        .drops
        .insert("not sent by eth0".to_owned(), second * 3);
    report.frames.received = count(second * 14_880_952);
    report.frames.sent = count(second * 14_880_000);
    report.frames.dropped = count(second * 952);
    report.flow_table.packets = second * 14_880_000;
    report.flow_table.misses = second * 999_000;
    report
}

fn many_rates() -> Rates {
    Rates::between(&many(100), &many(101))
}

fn key(name: &str) -> KeyEvent {
    let code = match name {
        "Up" => KeyCode::Up,
        "Down" => KeyCode::Down,
        "PgDn" => KeyCode::PageDown,
        "Home" => KeyCode::Home,
        "End" => KeyCode::End,
        "Left" => KeyCode::Left,
        "Right" => KeyCode::Right,
        "Tab" => KeyCode::Tab,
        "BackTab" => KeyCode::BackTab,
        "Enter" => KeyCode::Enter,
        "Esc" => KeyCode::Esc,
        _ => KeyCode::Char(name.chars().next().unwrap()),
    };
    KeyEvent::from(code)
}

fn press(view: &mut View, rates: &Rates, keys: &str) {
    for name in keys.split_whitespace() {
        assert_eq!(view.press(key(name), rates), Outcome::Redraw, "{name}");
    }
}

/// The screen after these keys.
fn screen(rates: &Rates, (width, height): (u16, u16), keys: &str) -> (View, Vec<String>) {
    let mut view = View::new();
    // Scrolling depends on what was drawn before.
    drawn_in(&mut view, rates, width, height);
    for key in keys.split_whitespace() {
        press(&mut view, rates, key);
        drawn_in(&mut view, rates, width, height);
    }
    let lines = drawn_in(&mut view, rates, width, height);
    (view, lines)
}

#[test]
fn screens_match_the_reviewed_ones() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/screens");
    let mut others = Vec::new();
    for (name, rates, keys) in [
        ("few", rates(), ""),
        ("many", many_rates(), "Down Down PgDn"),
        ("reals", many_rates(), "Tab Right Right"),
        ("vip", many_rates(), "Down Enter"),
        ("filter", many_rates(), "z / 2 0 3 ."),
        ("keys", rates(), "?"),
    ] {
        for size in SIZES {
            let (_, lines) = screen(&rates, size, keys);
            let text = lines.join("\n") + "\n";
            let path = directory.join(format!("{name}_{}x{}.txt", size.0, size.1));
            if env::var_os("UPDATE_SCREENS").is_some() {
                fs::write(&path, &text).unwrap();
            }
            let known = fs::read_to_string(&path).unwrap_or_default();
            if known != text {
                others.push(format!("{}:\n{text}", path.display()));
            }
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

#[test]
fn figures_are_never_cut_and_gaps_stay_small() {
    let many = many_rates();
    for rates in [&rates(), &many, &Rates::default()] {
        for pane in Pane::ALL {
            for is_zoomed in [false, true] {
                for width in (30..=250).step_by(11) {
                    let mut view = View::new();
                    (view.focus, view.is_zoomed) = (pane, is_zoomed);
                    let lines = drawn_in(&mut view, rates, width, 30);
                    for line in &lines {
                        // Where VIPs and reals are side by side.
                        let half = usize::from(width) / 2;
                        let left: String = line.chars().take(half).collect();
                        let right: String = line.chars().skip(half).collect();
                        match width >= 160 && !is_zoomed {
                            true => [left, right]
                                .iter()
                                .for_each(|half| is_whole(half, pane, width)),
                            false => is_whole(line, pane, width),
                        }
                    }
                }
            }
        }
    }
}

fn is_whole(line: &str, pane: Pane, width: u16) {
    // The name column may be empty in a heading, and a pane below its last row.
    let blank = line.trim().split(|c| c != ' ').map(str::len).max();
    let is_heading = line.contains("s/s ");
    assert!(
        blank < Some(60) || is_heading,
        "{pane:?} at {width}: {line}"
    );
    for word in ["packets/", "bits/", "unset"] {
        let cut = line
            .split(word)
            .skip(1)
            .any(|rest| !rest.starts_with('s') && !rest.starts_with("tled"));
        assert!(!cut, "{pane:?} at {width}: {line}");
    }
}

/// No number is wider than its column, however large.
#[test]
fn columns_have_room_for_the_largest_figures() {
    let mut most = many(0);
    let mut now = many(1);
    for report in [&mut most, &mut now] {
        report.reals.truncate(10);
        report.vips.truncate(10);
    }
    let huge = Count {
        packets: u64::MAX / 2,
        bytes: u64::MAX / 2,
    };
    for vip in &mut now.vips {
        vip.sent = huge;
        vip.flow_entries = Some(u64::MAX);
        vip.slots = Some(Slots {
            settled: u32::MAX,
            unsettled: u32::MAX,
            oldest: Some(9_999_999.0),
        });
        for of in &mut vip.reals {
            of.weight = u32::MAX;
            if let Some(drain) = &mut of.drain {
                drain.silent = Some(1e12);
            }
        }
    }
    for real in &mut now.reals {
        real.sent = huge;
    }
    (now.frames.received, now.frames.dropped) = (huge, huge);
    for frames in now.drops.values_mut() {
        *frames = u64::MAX;
    }
    let rates = Rates::between(&most, &now);
    let vip = &rates.vips[0];
    let panes = Pane::ALL.map(|pane| pane.table(&rates, scaled));
    let closer = [
        panes::reals_of(&rates, vip, scaled),
        panes::vips_of(&rates, &vip.reals[0].real.to_string(), scaled),
    ];
    for table in panes.iter().chain(&closer) {
        for row in &table.rows {
            for (column, figure) in table.columns.iter().zip(&row.figures) {
                let width = usize::from(column.width);
                let (heading, shown) = (column.heading, &figure.shown);
                assert!(
                    heading.len() <= width && shown.len() <= width,
                    "{heading}: {shown}"
                );
            }
        }
    }
}

#[test]
fn the_selection_stays_with_its_row() {
    let rates = many_rates();
    let (mut view, _) = screen(&rates, (80, 24), "Down Down Down");
    let selected = |view: &mut View, rates: &Rates| {
        let table = view.table(rates);
        view.look().selected(&table).map(|row| row.name.clone())
    };
    let name = selected(&mut view, &rates).unwrap();
    // The others overtake the selected VIP.
    let mut later = rates.clone();
    for vip in &mut later.vips {
        if vip.name == name {
            vip.rate.packets = 0.0;
        }
    }
    assert_eq!(selected(&mut view, &later), Some(name.clone()));
    press(&mut view, &later, "Enter");
    assert_eq!(view.opened, Some(Opened::Vip(name.clone())));
    // It is removed while selected.
    later.vips.retain(|vip| vip.name != name);
    let lines = drawn_in(&mut view, &later, 80, 24);
    assert!(
        lines.iter().any(|line| line.contains("no longer there")),
        "{lines:?}"
    );
    press(&mut view, &later, "Enter Down Esc");
    assert_eq!(view.opened, None);
    assert!(selected(&mut view, &later).is_some_and(|other| other != name));
    // The selection returns to the top row.
    press(&mut view, &later, "Home");
    assert_eq!(
        selected(&mut view, &later),
        Some(later.vips[0].name.clone())
    );
    press(&mut view, &later, "End Down");
    assert_eq!(
        selected(&mut view, &later).as_deref(),
        Some(later.vips.last().unwrap().name.as_str())
    );
}

#[test]
fn tables_are_sorted_by_each_column_and_turned() {
    let rates = many_rates();
    let first = |keys: &str| {
        let (mut view, lines) = screen(&rates, (200, 50), keys);
        let table = view.table(&rates);
        let row = view.look().selected(&table).unwrap();
        let text = lines.join("\n");
        assert!(
            text.contains(&row.name),
            "{keys}: {} is first in\n{text}",
            row.name
        );
        row.name.clone()
    };
    let name = |number: usize| many(0).vips[number].vip.clone();
    assert_eq!(first(""), rates.vips[0].name);
    assert_eq!(first("r"), rates.vips[499].name);
    // By name: in the order of addresses, not of their text.
    assert_eq!(first("Left"), name(0));
    assert_eq!(first("Left r"), name(499));
    // The last column is the entries; after it comes the name.
    assert_eq!(first("Left Left"), name(499));
    assert_eq!(first("Left Left Right"), name(0));
    // A column that a small screen leaves out is shown while rows are sorted by it.
    let (_, lines) = screen(&rates, (40, 12), "");
    assert!(!lines.join("\n").contains("entries"));
    let (_, lines) = screen(&rates, (40, 12), "Left Left");
    let text = lines.join("\n");
    assert!(
        text.contains("entries") && text.contains("499.0 k"),
        "{text}"
    );
}

#[test]
fn names_are_filtered_as_somebody_types() {
    let rates = many_rates();
    let (view, lines) = screen(&rates, (80, 24), "/ : 1 F 3 q");
    let text = lines.join("\n");
    assert!(view.is_typing && text.contains("filter: :1F3q_"), "{text}");
    assert!(text.contains("500 VIPs, 0 with \":1F3q\""), "{text}");
    let mut view = view;
    view.press(KeyEvent::from(KeyCode::Backspace), &rates);
    press(&mut view, &rates, "Enter");
    let text = drawn_in(&mut view, &rates, 80, 24).join("\n");
    assert!(!view.is_typing && text.contains("0 with"), "{text}");
    press(&mut view, &rates, "Esc / : 1 f 2 Enter");
    let text = drawn_in(&mut view, &rates, 80, 24).join("\n");
    assert!(text.contains("500 VIPs, 1 with \":1f2\""), "{text}");
    assert!(
        text.contains("[2001:db8:1111:2222:3333:4444:5555:1f2]:65535/tcp"),
        "{text}"
    );
    press(&mut view, &rates, "Esc");
    let text = drawn_in(&mut view, &rates, 80, 24).join("\n");
    assert!(!text.contains("with \""), "{text}");
    // Abandoned while typing.
    press(&mut view, &rates, "/ x Esc");
    assert!(view.filter().is_empty() && !view.is_typing);
}

#[test]
fn a_vip_opens_its_reals_and_a_real_its_vips() {
    let rates = many_rates();
    let (mut view, _) = screen(&rates, (80, 24), "/ : 1 f 2 Enter Enter");
    let vip = "[2001:db8:1111:2222:3333:4444:5555:1f2]:65535/tcp";
    assert_eq!(view.opened, Some(Opened::Vip(vip.to_owned())));
    press(&mut view, &rates, "End Enter");
    let real = view.opened.clone().unwrap();
    // Its fifth real is also the first of the VIP after the next.
    assert_eq!(
        real,
        Opened::Real("2001:db8:ffff:ffff:ffff:ffff:ffff:0".to_owned())
    );
    let text = drawn_in(&mut view, &rates, 80, 24).join("\n");
    assert!(text.contains("3 VIPs") && text.contains(vip), "{text}");
    press(&mut view, &rates, "Esc Tab Enter");
    assert!(matches!(view.opened, Some(Opened::Real(_))));
    // The other panes have nothing to open.
    press(&mut view, &rates, "Esc Tab Enter Tab Enter");
    assert_eq!((view.focus, &view.opened), (Pane::Cpus, &None));
    press(&mut view, &rates, "Tab");
    assert_eq!(view.focus, Pane::Vips);
    press(&mut view, &rates, "z BackTab");
    drawn_in(&mut view, &rates, 80, 24);
    press(&mut view, &rates, "BackTab");
    assert_eq!(view.focus, Pane::Drops);
}

#[test]
fn keys_end_and_suspend() {
    let rates = rates();
    let mut view = View::new();
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert_eq!(view.press(key("q"), &rates), Outcome::Quit);
    assert_eq!(view.press(control('z'), &rates), Outcome::Suspend);
    press(&mut view, &rates, "? Esc Esc Esc x /");
    // While typing, a letter is only a letter.
    assert_eq!(view.press(key("q"), &rates), Outcome::Redraw);
    assert_eq!(view.press(control('c'), &rates), Outcome::Quit);
}
