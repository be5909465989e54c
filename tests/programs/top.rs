//! `top`: its arithmetic, what it draws, what it prints while traffic flows, and the terminal, which
//! must be as it was after every end.

#[allow(dead_code, reason = "samples are made up here, not taken")]
#[path = "../../examples/top/rates.rs"]
mod rates;
#[path = "../../examples/top/screen.rs"]
mod screen;
#[path = "../../examples/top/view.rs"]
mod view;

use std::collections::BTreeMap;
use std::env;
use std::io::Write;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::stats::Count;
use katran::stats::CpuCounters;
use katran::stats::FlowTableCounters;
use katran::stats::Totals;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::sys::termios::tcgetattr;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use rates::Rate;
use rates::Rates;
use rates::Sample;
use rates::Traffic;
use screen::Screen;
use screen::Wish;
use view::Status;

use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::terminal::OnTerminal;

const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;
const SIGHUP: i32 = 1;
const SIGUSR1: i32 = 10;
const PATIENCE: Duration = Duration::from_secs(30);

fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

/// A sample in which everything has happened so many times.
fn sample(time: Instant, times: u64) -> Sample {
    let mut totals = Totals::default();
    totals.tx = count(80 * times, 8000 * times);
    totals.pass = count(15 * times, 1500 * times);
    totals.drop = count(5 * times, 500 * times);
    totals.total = count(100 * times, 10_000 * times);
    let mut flow_table = FlowTableCounters::default();
    flow_table.packets = 80 * times;
    flow_table.misses = 20 * times;
    let cpu = |number, forwarded| {
        let mut cpu = CpuCounters::default();
        cpu.cpu = number;
        cpu.forwarded = forwarded;
        cpu.under_flood = number == 2;
        cpu
    };
    let both = |names: [&str; 2]| {
        let [quiet, busy] = names.map(str::to_owned);
        BTreeMap::from([
            (quiet, count(20 * times, 1000 * times)),
            (busy, count(60 * times, 3000 * times)),
        ])
    };
    Sample {
        time,
        totals,
        flow_table,
        drops: BTreeMap::from([
            ("ipv4_fragment", times),
            ("ring_empty", 4 * times),
            ("too_big", 0),
        ]),
        vips: both(["203.0.113.1:443/tcp", "[2001:db8:1::1]:443/tcp"]),
        reals: both(["198.51.100.1", "2001:db8:2::1"]),
        down: BTreeMap::from([
            ("198.51.100.1".to_owned(), (2, 2)),
            ("2001:db8:2::1".to_owned(), (1, 3)),
        ]),
        cpus: vec![cpu(0, 20 * times), cpu(1, 0), cpu(2, 60 * times)],
        forwarding: vec![0, 2],
    }
}

/// What went on in half a second.
fn rates() -> Rates {
    let start = Instant::now();
    let half = start + Duration::from_millis(500);
    Rates::between(&sample(start, 10), &sample(half, 11))
}

#[test]
fn rates_are_differences_by_time() {
    let rates = rates();
    let rate = |packets, bits| Rate { packets, bits };
    assert_eq!(rates.received, rate(200.0, 160_000.0));
    assert_eq!(rates.sent, rate(160.0, 128_000.0));
    assert_eq!(rates.passed, rate(30.0, 24_000.0));
    assert_eq!(rates.dropped, rate(10.0, 8000.0));
    assert_eq!((rates.to_vips, rates.new_flows), (160.0, 40.0));
    assert_eq!(rates.hit_rate, Some(0.75));
    let busiest = Traffic {
        name: "[2001:db8:1::1]:443/tcp".to_owned(),
        rate: rate(120.0, 48_000.0),
        packets: 660,
        down: None,
    };
    assert_eq!(rates.vips[0], busiest);
    assert_eq!(rates.reals[1].name, "198.51.100.1");
    assert_eq!(rates.reals[1].rate, rate(40.0, 16_000.0));
    let down: Vec<_> = rates.reals.iter().map(|real| real.down).collect();
    assert_eq!(down, [Some((1, 3)), Some((2, 2))]);
    let drops: Vec<_> = rates.drops.iter().map(|d| (d.reason, d.rate)).collect();
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
fn rates_of_nothing_and_of_what_began_anew_are_zero() {
    let start = Instant::now();
    // No time, no traffic.
    let still = Rates::between(&sample(start, 3), &sample(start, 3));
    assert_eq!((still.hit_rate, still.imbalance()), (None, None));
    assert_eq!(still.received, Rate::default());
    // Counters that went back, VIPs that were not there.
    let mut before = sample(start, 3);
    before.vips.remove("203.0.113.1:443/tcp");
    let rates = Rates::between(&before, &sample(start + Duration::from_secs(1), 1));
    assert_eq!(rates.received, Rate::default());
    let new = rates
        .vips
        .iter()
        .find(|vip| vip.name == "203.0.113.1:443/tcp");
    assert_eq!(new.unwrap().rate.packets, 20.0);
}

/// The screen's lines.
fn drawn(rates: &Rates, width: u16, height: u16) -> Vec<String> {
    let status = Status {
        title: "katran on eth0 (native)".to_owned(),
        message: "1 real added".to_owned(),
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view::draw(frame, &status, rates))
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
        &["new", "flows/s", "40"],
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
        &["2", "reals,", "2", "down"],
        &[
            "2001:db8:2::1",
            "down",
            "for",
            "1",
            "of",
            "3",
            "120",
            "48.0",
            "k",
        ],
        &[
            "198.51.100.1",
            "down",
            "40",
            "16.0",
            "k",
            "25.0",
            "%",
            "220",
        ],
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
            rate: Rate::default(),
            packets: 0,
            down: None,
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
    let left_out = 102 - vips.count();
    let title = format!("102 VIPs ({left_out} more)");
    assert!(
        lines.iter().any(|line| line.contains(&title)),
        "{}",
        lines.join("\n")
    );
    // Large numbers keep to their columns.
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
fn one_cpu_that_does_everything_is_no_balance() {
    let cpus = |busy| {
        let cpu = |number| {
            let mut cpu = CpuCounters::default();
            cpu.cpu = number;
            cpu.forwarded = if number == 5 { busy } else { 0 };
            cpu
        };
        (0..40).map(cpu).collect()
    };
    let start = Instant::now();
    let [mut before, mut now] = [0, 1].map(|second| sample(start + Duration::from_secs(second), 3));
    (before.cpus, now.cpus) = (cpus(0), cpus(1000));
    // 8 of the 40 CPUs are not meant to forward, and do not.
    now.forwarding = (0..32).collect();
    let rates = Rates::between(&before, &now);
    assert_eq!(rates.cpus.len(), 32);
    assert_eq!(rates.imbalance(), Some(32.0));
    let lines = drawn(&rates, 80, 24);
    let text = lines.join("\n");
    assert!(text.contains("the busiest 32.0 x the mean"), "{text}");
    assert!(text.contains("24 more"), "{text}");
    assert!(
        has_line(&lines, &["cpu", "5", "1.0", "k", "100.0", "%"]),
        "{text}"
    );
    // One that is not meant to, and does.
    now.cpus[39].forwarded = 3000;
    let rates = Rates::between(&before, &now);
    assert_eq!((rates.cpus.len(), rates.cpus[32].cpu), (33, 39));
}

#[test]
fn port_and_protocol_of_long_names_are_shown() {
    let mut rates = rates();
    let name = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535/tcp";
    rates.vips[0].name = name.to_owned();
    let lines = drawn(&rates, 80, 24);
    let row = lines.iter().find(|line| line.contains(":65535/tcp"));
    let row = row.unwrap_or_else(|| panic!("{}", lines.join("\n")));
    assert!(
        row.starts_with("[2001:db8:1111:") && row.contains('…'),
        "{row}"
    );
    let lines = drawn(&rates, 100, 24);
    assert!(has_line(&lines, &[name]), "{}", lines.join("\n"));
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
        ],
        &["ring_empty", "8", "44"],
        &["cpu", "2", "flood", "120", "75.0", "%"],
    ] {
        assert!(has_line(&lines, words), "{words:?}:\n{text}");
    }
}

/// A VIP of each family with two reals, and one without any.
fn configuration(lab: &Lab) -> Scratch {
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let mut text = format!("[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\n");
    let [first, second] = [0, 1].map(|index| &lab.backends[index]);
    for (vip, reals) in [
        (lab.vip4(), [first.v4.to_string(), second.v4.to_string()]),
        (lab.vip6(), [first.v6.to_string(), second.v6.to_string()]),
    ] {
        text += &format!(
            "[[vip]]\naddress = \"{vip}\"\nport = 53\nprotocol = \"udp\"\n\
             reals = [{{ address = \"{}\" }}, {{ address = \"{}\" }}]\n",
            reals[0], reals[1]
        );
    }
    text += &format!(
        "[[vip]]\naddress = \"{}\"\nport = 54\nprotocol = \"udp\"\nreals = []\n",
        lab.vip4()
    );
    let file = Scratch::new("top.toml");
    file.write(&text);
    file
}

/// About 1,000 packets a second, until it is dropped.
struct Flood(Arc<AtomicBool>);

impl Flood {
    /// Three flows of IPv4, one of IPv6, and one to the VIP without reals.
    fn start(lab: &Lab) -> Self {
        let flows = [
            (lab.vip4(), 53),
            (lab.vip4(), 53),
            (lab.vip4(), 53),
            (lab.vip6(), 53),
            (lab.vip4(), 54),
        ];
        let sockets = flows.map(|to| {
            let any = if to.0.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = lab.client.run(|| UdpSocket::bind(any)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for socket in &sockets {
                    let _ = socket.send(&[0; 100]);
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self(stop)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The numbers in the next row that begins like this.
fn numbers(top: &mut Running, name: &str) -> Vec<f64> {
    let row = top.line(name, |line| line.trim_start().starts_with(name));
    let values = row.trim_start().strip_prefix(name).unwrap();
    let values = values.split_whitespace().filter(|word| *word != "%");
    values.map(|word| word.parse().unwrap_or(0.0)).collect()
}

#[test]
fn plain_top_shows_traffic() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = configuration(&lab);
    let host = &lab.balancers[0].host;
    let _traffic = Flood::start(&lab);
    let mut command = example("top");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0", "--interval", "0.5"]);
    let mut top = Running::start(host, command);
    top.says("balancing on eth0 in native mode");
    // The second one covers a whole interval.
    top.says("traffic");
    top.says("traffic");
    let received = numbers(&mut top, "received");
    let sent = numbers(&mut top, "sent");
    let dropped = numbers(&mut top, "dropped");
    let hit_rate = numbers(&mut top, "hit rate")[0];
    let to_vips = numbers(&mut top, "packets to VIPs/s")[0];
    let v4 = numbers(&mut top, "203.0.113.1:53/udp");
    let v6 = numbers(&mut top, "[2001:db8:1::1]:53/udp");
    top.says("4 reals");
    let reals = numbers(&mut top, "198.51.100.");
    let empty = numbers(&mut top, "ring_empty");
    let cpu = numbers(&mut top, "cpu ");
    // Three flows of four, at least 50 rounds a second on a machine that is busy.
    assert!(v4[0] > 50.0 && v6[0] > 15.0, "{v4:?} {v6:?}");
    // 128 bytes as IPv4 counts, 108 as IPv6 does.
    assert!((v4[1] / v4[0] / 8.0 - 128.0).abs() < 5.0, "{v4:?}");
    assert!((v6[1] / v6[0] / 8.0 - 108.0).abs() < 5.0, "{v6:?}");
    assert!((v4[2] + v6[2] - 100.0).abs() < 0.3, "{v4:?} {v6:?}");
    assert!(received[0] >= sent[0] && sent[0] > 65.0 && dropped[0] > 15.0);
    assert!(hit_rate > 90.0 && hit_rate <= 100.0, "{hit_rate}");
    assert!(to_vips >= v4[0], "{to_vips} {v4:?}");
    assert!(reals.len() >= 4 && empty[0] > 15.0, "{reals:?} {empty:?}");
    // Its number comes first.
    assert!(cpu[1] > 0.0 && cpu[2] > 0.0, "{cpu:?}");

    top.process.signal(SIGHUP).unwrap();
    top.says("applied: no changes");
    top.end(SIGTERM);
    top.says("detached from eth0");
    assert!(!host.ip("link show eth0").unwrap().contains("xdp"));
}

#[test]
fn top_ends_after_so_many_refreshes() {
    require_root();
    let (host, file) = idle("refreshes.toml");
    let mut command = example("top");
    command.arg("--config").arg(&file.0);
    command.args([
        "--interface",
        "eth0",
        "--interval",
        "0.1",
        "--refreshes",
        "3",
    ]);
    let output = host.output(command).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("traffic"))
            .count(),
        3
    );
    assert!(text.ends_with("detached from eth0\n"), "{text}");

    for bad in ["0", "0.01", "nan", "1e9", "soon"] {
        let mut command = example("top");
        command.arg("--config").arg(&file.0);
        command.args(["--interface", "eth0", "--interval", bad]);
        let output = host.output(command).unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}

fn idle(name: &str) -> (Host, Scratch) {
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let file = Scratch::new(name);
    file.write(
        "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n\
         [[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         reals = [{ address = \"198.51.100.1\" }]\n",
    );
    (host, file)
}

#[test]
fn the_title_names_a_shared_entry() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let (host, file) = idle("shared.toml");
    let path = pins.join("titled").display().to_string();
    let root = |arguments: &[&str]| {
        let mut command = example("root");
        command.args(arguments).args(["--path", &path]);
        assert!(host.output(command).unwrap().status.success());
    };
    root(&["attach", "--interface", "eth0"]);
    let mut command = example("top");
    command.arg("--config").arg(&file.0);
    command.args(["--shared", &path, "--interval", "0.1"]);
    let mut top = OnTerminal::start(&host, &command);
    top.shows(&format!("katran on entry 2 of {path}"));
    top.process.signal(SIGTERM).unwrap();
    top.ended(true);
    root(&["remove"]);
}

#[test]
fn the_terminal_is_as_before_after_every_end() {
    require_root();
    let (host, file) = idle("terminal.toml");
    let mut command = example("top");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0", "--interval", "0.1"]);
    for end in ["q", "\u{1b}", "\u{3}", "SIGTERM", "SIGINT"] {
        let mut top = OnTerminal::start(&host, &command);
        top.shows("203.0.113.1:443/tcp");
        top.shows("q quits");
        assert_ne!(top.before, tcgetattr(&top.terminal).unwrap(), "raw mode");
        match end {
            "SIGTERM" => top.process.signal(SIGTERM).unwrap(),
            "SIGINT" => top.process.signal(SIGINT).unwrap(),
            keys => {
                // A key without a meaning first; SIGHUP is told on the screen.
                top.keyboard.write_all(b"x").unwrap();
                top.process.signal(SIGHUP).unwrap();
                top.shows("nothing changed");
                top.process.signal(SIGUSR1).unwrap();
                // A word of the finding: what the screen has already is not drawn again.
                top.shows("down;");
                top.keyboard.write_all(keys.as_bytes()).unwrap();
            }
        }
        let rest = top.ended(true);
        assert!(rest.contains("detached from eth0"), "{end}: {rest:?}");
    }
    // A file that has become bad is told on the screen, too.
    let top = OnTerminal::start(&host, &command);
    top.shows("q quits");
    file.write("[[vip]");
    let mut top = top;
    top.process.signal(SIGHUP).unwrap();
    top.shows("nothing was changed");
    top.process.signal(SIGTERM).unwrap();
    top.ended(true);
}

const PANICS: &str = "KATRAN_TEST_PANICS_ON_SCREEN";

/// Runs itself again on a terminal, where it panics while the screen is in use.
#[test]
fn a_panic_leaves_the_terminal_as_before() {
    if env::var_os(PANICS).is_some() {
        let mut screen = Screen::enter().unwrap();
        let (sender, wishes) = mpsc::channel();
        screen::listen(sender, |wish| wish);
        screen
            .draw(|frame| view::draw(frame, &status(), &rates()))
            .unwrap();
        // The other end has typed.
        assert_eq!(wishes.recv_timeout(PATIENCE), Ok(Wish::Quit));
        panic!("a mistake");
    }
    require_root();
    let host = Host::new("host").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "top::a_panic_leaves_the_terminal_as_before",
        "--nocapture",
    ]);
    command.env(PANICS, "1");
    let mut screen = OnTerminal::start(&host, &command);
    screen.shows("203.0.113.1:443/tcp");
    screen.keyboard.write_all(b"q").unwrap();
    let rest = screen.ended(false);
    assert!(rest.contains("a mistake"), "{rest:?}");
}

fn status() -> Status {
    Status {
        title: "title".to_owned(),
        message: String::new(),
    }
}
