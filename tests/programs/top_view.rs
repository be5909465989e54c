//! The arithmetic of `top`, and its drawing.

#[path = "../../examples/katran/top/keys.rs"]
pub(super) mod keys;
#[path = "../../examples/katran/top/panes.rs"]
pub(super) mod panes;
#[path = "../../examples/katran/top/rates.rs"]
pub(super) mod rates;
#[allow(dead_code, reason = "reports are made up here, not taken")]
#[path = "../../examples/katran/report.rs"]
pub(super) mod report;
#[allow(dead_code, reason = "nothing is suspended here")]
#[path = "../../examples/katran/top/screen.rs"]
pub(super) mod screen;
#[path = "../../examples/katran/top/table.rs"]
pub(super) mod table;
#[path = "../../examples/katran/top/view.rs"]
pub(super) mod view;

use std::time::Duration;

use keys::View;
use nix::time::ClockId;
use panes::Pane;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use rates::Rates;
use rates::Traffic;
use report::Count;
use report::Cpu;
use report::FlowTable;
use report::Frames;
use report::OfVip;
use report::Rate;
use report::Real;
use report::Report;
use report::Slots;
use report::Vip;
use view::Status;

#[test]
fn many_reals_of_a_vip_are_shown_at_once() {
    let address = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
    let named = |name: String, reals: Vec<OfVip>| Traffic {
        name,
        place: 0,
        rate: Rate::default(),
        packets: 0,
        down: None,
        reals,
        slots: None,
        entries: None,
    };
    let reals = (0..30_000).map(|number| of_vip(&address(number), false));
    let vip = named("203.0.113.1:80/tcp".to_owned(), reals.collect());
    let mut rates = Rates {
        reals: (0..30_000)
            .map(|number| named(address(number), Vec::new()))
            .collect(),
        ..Rates::default()
    };
    rates.reals[29_999].rate.packets = 7.0;
    // This thread's CPU time: a busy machine makes no difference.
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let began = clock.now().unwrap();
    let table = panes::reals_of(&rates, &vip, panes::plain);
    let took = Duration::from(clock.now().unwrap() - began);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(table.rows.len(), 30_000);
    assert_eq!(table.rows[29_999].figures[2].shown, "7");
    assert_eq!(table.rows[0].figures[2].shown, "0");
}

fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

fn of_vip(real: &str, down: bool) -> OfVip {
    OfVip {
        real: real.parse().unwrap(),
        weight: 1,
        down,
        health: report::Health::NotProbed,
        check: None,
        drain: None,
    }
}

/// A report after this many seconds, in which every event happened `times` times.
fn sample(running: f64, times: u64) -> Report {
    let (quiet, busy) = (
        count(20 * times, 1000 * times),
        count(60 * times, 3000 * times),
    );
    let vip = |name: &str, sent| Vip {
        vip: name.to_owned(),
        sent,
        ..Vip::default()
    };
    let mut vips = vec![
        vip("203.0.113.1:443/tcp", quiet),
        vip("[2001:db8:1::1]:443/tcp", busy),
    ];
    // As for several VIPs.
    vips[0].reals = vec![
        of_vip("198.51.100.1", true),
        of_vip("198.51.100.1", true),
        of_vip("2001:db8:2::1", true),
        of_vip("2001:db8:2::1", false),
        of_vip("2001:db8:2::1", false),
    ];
    let real = |address: &str, sent| Real {
        real: address.parse().unwrap(),
        sent,
        rate: None,
    };
    let cpu = |cpu, forwarded| Cpu {
        cpu,
        forwarded,
        under_flood: cpu == 2,
        forwards: cpu != 1,
    };
    let drops = [
        ("ipv4_fragment", times),
        ("ring_empty", 4 * times),
        ("too_big", 0),
    ];
    Report {
        running,
        frames: Frames {
            received: count(100 * times, 10_000 * times),
            sent: count(80 * times, 8000 * times),
            passed: count(15 * times, 1500 * times),
            dropped: count(5 * times, 500 * times),
        },
        flow_table: FlowTable {
            packets: 80 * times,
            settled: 400 * times,
            misses: 20 * times,
            by_base: 35 * times,
            by_entry: 25 * times,
            fallback: 0,
        },
        drops: drops
            .map(|(reason, frames)| (reason.to_owned(), frames))
            .into(),
        vips,
        reals: vec![real("198.51.100.1", quiet), real("2001:db8:2::1", busy)],
        cpus: vec![cpu(0, 20 * times), cpu(1, 0), cpu(2, 60 * times)],
        ..Report::default()
    }
}

/// The rates over half a second.
pub(super) fn rates() -> Rates {
    Rates::between(&sample(0.0, 10), &sample(0.5, 11))
}

#[test]
fn rates_are_differences_by_time() {
    let rates = rates();
    let rate = |packets, bits| Rate { packets, bits };
    assert_eq!(rates.received, rate(200.0, 160_000.0));
    assert_eq!(rates.sent, rate(160.0, 128_000.0));
    assert_eq!(rates.passed, rate(30.0, 24_000.0));
    assert_eq!(rates.dropped, rate(10.0, 8000.0));
    assert_eq!((rates.to_vips, rates.new_flows), (960.0, 40.0));
    let by_slots = (rates.settled, rates.by_base, rates.by_entry);
    assert_eq!(by_slots, (800.0, 70.0, 50.0));
    assert_eq!(rates.hit_rate, Some(0.75));
    let busiest = Traffic {
        name: "[2001:db8:1::1]:443/tcp".to_owned(),
        place: 1,
        rate: rate(120.0, 48_000.0),
        packets: 660,
        down: None,
        reals: Vec::new(),
        slots: None,
        entries: None,
    };
    assert_eq!(rates.vips[0], busiest);
    assert_eq!(rates.reals[1].name, "198.51.100.1");
    assert_eq!(rates.reals[1].rate, rate(40.0, 16_000.0));
    let down: Vec<_> = rates.reals.iter().map(|real| real.down).collect();
    assert_eq!(down, [Some((1, 3)), Some((2, 2))]);
    let drops: Vec<_> = rates
        .drops
        .iter()
        .map(|d| (d.reason.as_str(), d.rate))
        .collect();
    assert_eq!(drops, [("ring_empty", 8.0), ("ipv4_fragment", 2.0)]);
    let cpus: Vec<_> = rates
        .cpus
        .iter()
        .map(|c| (c.cpu, c.packets, c.share))
        .collect();
    assert_eq!(cpus, [(0, 40.0, 0.25), (2, 120.0, 0.75)]);
    assert_eq!(rates.imbalance(), Some(1.5));
}

#[test]
fn rates_of_nothing_and_of_restarted_counters_are_zero() {
    // No time passed: no traffic.
    let still = Rates::between(&sample(0.0, 3), &sample(0.0, 3));
    assert_eq!((still.hit_rate, still.imbalance()), (None, None));
    assert_eq!(still.received, Rate::default());
    // Counters that went back, and VIPs that were missing.
    let mut before = sample(0.0, 3);
    before.vips.remove(0);
    let rates = Rates::between(&before, &sample(1.0, 1));
    assert_eq!(rates.received, Rate::default());
    let new = rates
        .vips
        .iter()
        .find(|vip| vip.name == "203.0.113.1:443/tcp");
    assert_eq!(new.unwrap().rate.packets, 20.0);
}

/// The screen's first lines.
pub(super) fn drawn(rates: &Rates, width: u16, height: u16) -> Vec<String> {
    drawn_in(&mut View::new(), rates, width, height)
}

pub(super) fn drawn_in(view: &mut View, rates: &Rates, width: u16, height: u16) -> Vec<String> {
    let status = Status {
        title: "katran on eth0 (native)".to_owned(),
        message: "1 real added".to_owned(),
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view::draw(frame, &status, view, rates))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let symbols = (0..width).map(|x| buffer[(x, y)].symbol());
        symbols.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

fn has_line(lines: &[String], words: &[&str]) -> bool {
    let words_of = |line: &String| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    lines.iter().any(|line| {
        let found = words_of(line);
        found.windows(words.len()).any(|some| some == words)
    })
}

#[test]
fn the_view_shows_everything_on_an_ordinary_terminal() {
    let lines = drawn(&rates(), 80, 24);
    let text = lines.join("\n");
    for words in [
        &["katran", "on", "eth0", "(native)"][..],
        &["sent", "160", "128.0", "k"],
        &["dropped", "10", "8.0", "k"],
        &["hit", "rate", "75.0", "%"],
        &["to", "VIPs/s", "960", "settled/s", "800"],
        &["new", "flows/s", "40", "by", "base/s", "70"],
        &["no", "table/s", "0", "by", "entry/s", "50"],
        &[
            "[2001:db8:1::1]:443/tcp",
            "120",
            "48.0",
            "k",
            "75.0",
            "%",
            "660",
        ],
        &["203.0.113.1:443/tcp", "40", "16.0", "k", "25.0", "%", "220"],
        &["2", "reals,", "2", "down,"],
        &[
            "2001:db8:2::1",
            "120",
            "48.0",
            "k",
            "75.0",
            "%",
            "660",
            "1/3",
        ],
        &["198.51.100.1", "40", "16.0", "k", "25.0", "%", "220", "2/2"],
        &["ring_empty", "8", "44"],
        &["ipv4_fragment", "2", "11"],
        &["cpu", "0", "40", "25.0", "%", "#"],
        &["cpu", "2", "flood", "120", "75.0", "%", "####"],
        &["1", "real", "added"],
    ] {
        assert!(has_line(&lines, words), "{words:?}:\n{text}");
    }
    assert!(text.contains("the busiest 1.5 x the mean"), "{text}");
    assert!(!text.contains("too_big"), "{text}");
    let place = |what: &str| text.find(what).unwrap();
    assert!(place("[2001:db8:1::1]:443/tcp") < place("203.0.113.1:443/tcp"));
}

#[test]
fn the_view_fits_any_terminal_and_says_what_it_leaves_out() {
    let mut rates = rates();
    for number in 0..100 {
        rates.vips.push(Traffic {
            name: format!("203.0.113.2:{number}/udp"),
            place: 2 + number,
            rate: Rate::default(),
            packets: 0,
            down: None,
            reals: Vec::new(),
            slots: None,
            entries: None,
        });
    }
    for width in [1, 10, 39, 80, 200] {
        for height in [1, 2, 4, 8, 13, 24, 60] {
            drawn(&rates, width, height);
            drawn(&Rates::default(), width, height);
        }
    }
    let lines = drawn(&rates, 80, 24);
    let vips = lines
        .iter()
        .filter(|line| line.contains("/udp") || line.contains("/tcp"));
    let title = format!("102 VIPs, 1 to {}, by packets/s ▼", vips.count());
    assert!(
        lines.iter().any(|line| line.contains(&title)),
        "{}",
        lines.join("\n")
    );
    // Large numbers stay within their columns.
    rates.vips[0].rate = Rate {
        packets: 14_880_952.0,
        bits: 999_960_000_000.0,
    };
    let lines = drawn(&rates, 80, 24);
    assert!(
        has_line(&lines, &["14.9", "M", "1.0", "T", "100.0", "%"]),
        "{}",
        lines.join("\n")
    );
}

#[test]
fn one_busy_cpu_is_an_imbalance() {
    let cpus = |busy| {
        // 8 CPUs are not meant to forward, and do not.
        let cpu = |cpu| Cpu {
            cpu,
            forwarded: if cpu == 5 { busy } else { 0 },
            under_flood: false,
            forwards: cpu < 32,
        };
        (0..40).map(cpu).collect()
    };
    let [mut before, mut now] = [0.0, 1.0].map(|second| sample(second, 3));
    (before.cpus, now.cpus) = (cpus(0), cpus(1000));
    let rates = Rates::between(&before, &now);
    assert_eq!(rates.cpus.len(), 32);
    assert_eq!(rates.imbalance(), Some(32.0));
    let lines = drawn(&rates, 80, 24);
    let text = lines.join("\n");
    assert!(text.contains("the busiest 32.0 x the mean"), "{text}");
    // More rows follow.
    assert!(text.contains('║'), "{text}");
    let mut view = View::new();
    view.focus = Pane::Cpus;
    view.look().sort = Some(0);
    let lines = drawn_in(&mut view, &rates, 80, 24);
    assert!(
        has_line(&lines, &["cpu", "5", "1.0", "k", "100.0", "%"]),
        "{}",
        lines.join("\n")
    );
    // A CPU that is not meant to forward, and does.
    now.cpus[39].forwarded = 3000;
    let rates = Rates::between(&before, &now);
    assert_eq!((rates.cpus.len(), rates.cpus[32].cpu), (33, 39));
}

/// All slots of the second VIP are settled; the first one changed three quarters of a minute ago.
fn unsettled() -> Rates {
    let [before, mut now] = [0.0, 1.0].map(|second| sample(second, 3));
    now.vips[0].slots = Some(Slots {
        settled: 63_000,
        unsettled: 2537,
        oldest: Some(45.9),
    });
    now.vips[1].slots = Some(Slots {
        settled: 65_537,
        unsettled: 0,
        oldest: None,
    });
    // The other VIP is newer than the count.
    now.vips[0].flow_entries = Some(31_400);
    Rates::between(&before, &now)
}

#[test]
fn slots_are_shown() {
    let lines = drawn(&unsettled(), 100, 24);
    let text = lines.join("\n");
    for words in [
        &["packets", "settled", "unsettled", "for,", "s", "entries"][..],
        &["60", "63.0", "k", "2.5", "k", "45", "31.4", "k"],
        &["180", "65.5", "k", "0", "-", "-"],
    ] {
        assert!(has_line(&lines, words), "{words:?}:\n{text}");
    }
    let text = view::text(&unsettled());
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for words in [
        &[
            "203.0.113.1:443/tcp",
            "0",
            "0",
            "-",
            "60",
            "63000",
            "2537",
            "45",
            "31400",
        ][..],
        &[
            "[2001:db8:1::1]:443/tcp",
            "0",
            "0",
            "-",
            "180",
            "65537",
            "0",
            "-",
            "-",
        ],
    ] {
        assert!(has_line(&lines, words), "{words:?}:\n{text}");
    }
}

#[test]
fn text_has_plain_numbers() {
    let text = view::text(&rates());
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for words in [
        &["received", "200", "160000"][..],
        &["hit", "rate", "75.0", "%"],
        &[
            "[2001:db8:1::1]:443/tcp",
            "120",
            "48000",
            "75.0",
            "%",
            "660",
            "-",
            "-",
            "-",
            "-",
        ],
        &["settled/s", "800"],
        &["by", "base/s", "70"],
        &["by", "entry/s", "50"],
        &["ring_empty", "8", "44"],
        &["cpu", "2", "flood", "120", "75.0", "%"],
    ] {
        assert!(has_line(&lines, words), "{words:?}:\n{text}");
    }
}

/// Frames that an interface did not send are shown in red, among the drops.
#[test]
fn unsent_frames_are_red() {
    let mut samples = [0.0, 1.0].map(|second| sample(second, 3));
    for (sample, unsent) in samples.iter_mut().zip([500, 1200]) {
        sample.drops.insert("not sent by eth0".to_owned(), unsent);
    }
    let rates = Rates::between(&samples[0], &samples[1]);
    let text = view::text(&rates);
    assert!(text.contains("  not sent by eth0"), "{text}");
    let status = Status {
        title: String::new(),
        message: String::new(),
    };
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal
        .draw(|frame| view::draw(frame, &status, &mut View::new(), &rates))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(80);
    let mut found = rows.filter(|row| {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        text.contains("not sent by eth0")
    });
    let row = found.next().expect("it is drawn");
    let red = row
        .iter()
        .filter(|cell| cell.fg == ratatui::style::Color::Red);
    let red: String = red.map(|cell| cell.symbol()).collect();
    assert!(
        red.contains("not sent by eth0") && red.contains("700"),
        "{red}"
    );
    assert!(!red.contains("cpu"), "{red}");
}
