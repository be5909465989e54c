//! A running `katran top`: its output during traffic, and the terminal, which every end must
//! restore.

use std::env;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::sys::termios::tcgetattr;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEvent;

use super::top_view::keys::View;
use super::top_view::rates;
use super::top_view::screen;
use super::top_view::screen::Screen;
use super::top_view::screen::Wish;
use super::top_view::view;
use super::top_view::view::Status;
use crate::program::Commanded;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::terminal::OnTerminal;

const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;
const SIGHUP: i32 = 1;
const SIGQUIT: i32 = 3;
const SIGCONT: i32 = 18;
const SIGTSTP: i32 = 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A VIP of each family with two reals, and one without reals.
fn configuration(lab: &Lab, tracking: &str) -> Scratch {
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let mut text = format!(
        "[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\nflow_tracking = \"{tracking}\"\n"
    );
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

/// About 1,000 packets a second until dropped.
struct Flood(Arc<AtomicBool>);

impl Flood {
    /// Three IPv4 flows, one IPv6 flow, and one to the VIP without reals.
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

/// The numbers in the next row that begins with `name`.
pub(super) fn numbers(top: &mut Running, name: &str) -> Vec<f64> {
    let row = top.line(name, |line| line.trim_start().starts_with(name));
    let values = row.trim_start().strip_prefix(name).unwrap();
    let values = values.split_whitespace().filter(|word| *word != "%");
    values.map(|word| word.parse().unwrap_or(0.0)).collect()
}

#[test]
fn plain_top_shows_traffic() {
    require_root();
    for tracking in ["all", "changed"] {
        plain_top_shows_traffic_with(tracking);
    }
}

fn plain_top_shows_traffic_with(tracking: &str) {
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = configuration(&lab, tracking);
    let host = &lab.balancers[0].host;
    /// Packets a second, of 1,000 that are meant: enough for the bounds below.
    const BUSY: f64 = 110.0;
    let _traffic = Flood::start(&lab);
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    let mut command = running.command("top");
    command.args(["--interval", "0.5"]);
    let mut top = Running::start(host, command);
    // The second sample covers a whole interval. A busy machine may have let the client rest.
    top.says("traffic");
    let mut received;
    let end = Instant::now() + PATIENCE;
    loop {
        top.says("traffic");
        received = numbers(&mut top, "received");
        if received[0] > BUSY {
            break;
        }
        assert!(Instant::now() < end, "{received:?}");
    }
    let sent = numbers(&mut top, "sent");
    let dropped = numbers(&mut top, "dropped");
    let hit_rate = numbers(&mut top, "hit rate")[0];
    let to_vips = numbers(&mut top, "to VIPs/s")[0];
    let settled = numbers(&mut top, "settled/s")[0];
    let v4 = numbers(&mut top, "203.0.113.1:53/udp");
    let v6 = numbers(&mut top, "[2001:db8:1::1]:53/udp");
    top.says("4 reals");
    let reals = numbers(&mut top, "198.51.100.");
    let empty = numbers(&mut top, "ring_empty");
    let cpu = numbers(&mut top, "cpu ");
    // Three flows of five to the first VIP, and one to each of the others.
    assert!(v4[0] > 50.0 && v6[0] > 15.0, "{v4:?} {v6:?}");
    // 128 bytes by IPv4's length, 108 by IPv6's.
    assert!((v4[1] / v4[0] / 8.0 - 128.0).abs() < 5.0, "{v4:?}");
    assert!((v6[1] / v6[0] / 8.0 - 108.0).abs() < 5.0, "{v6:?}");
    assert!((v4[2] + v6[2] - 100.0).abs() < 0.3, "{v4:?} {v6:?}");
    assert!(received[0] >= sent[0] && sent[0] > 65.0 && dropped[0] > 15.0);
    assert!(to_vips >= v4[0], "{to_vips} {v4:?}");
    match tracking {
        // Every slot is settled, so packets skip the table.
        "changed" => assert!(settled >= v4[0] && hit_rate == 0.0, "{settled} {hit_rate}"),
        _ => assert!(
            settled == 0.0 && hit_rate > 90.0 && hit_rate <= 100.0,
            "{settled} {hit_rate}"
        ),
    }
    assert!(reals.len() >= 4 && empty[0] > 15.0, "{reals:?} {empty:?}");
    // The CPU's number is first.
    assert!(cpu[1] > 0.0 && cpu[2] > 0.0, "{cpu:?}");

    top.end(SIGTERM);
    running.balancer.end(SIGTERM);
    running.balancer.says("detached from eth0");
    assert!(!host.ip("link show eth0").unwrap().contains("xdp"));
}

#[test]
fn plain_top_shows_entries_of_the_flow_tables() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let file = Scratch::new("entries.toml");
    file.write(&format!(
        "[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\nflow_tracking = \"all\"\n\
         [[vip]]\naddress = \"{}\"\nport = 53\nprotocol = \"udp\"\nreals = [{{ address = \"{}\" }}]\n\
         [[vip]]\naddress = \"{}\"\nport = 53\nprotocol = \"udp\"\nreals = []\n",
        lab.vip4(),
        lab.backends[0].v4,
        lab.vip6(),
    ));
    let _traffic = Flood::start(&lab);
    let host = &lab.balancers[0].host;
    let options = ["--interface", "eth0", "--recount", "1"];
    let mut running = Commanded::start(host, &file, &options);
    let mut command = running.command("top");
    command.args(["--interval", "0.5"]);
    let mut top = Running::start(host, command);
    let mut entries = |vip| numbers(&mut top, vip).last().copied().unwrap();
    // Three flows, each with an entry for every CPU that its packets arrived on.
    let mut seen = 0.0;
    for _ in 0..20 {
        seen = entries("203.0.113.1:53/udp");
        if seen >= 3.0 {
            break;
        }
    }
    assert!((3.0..=192.0).contains(&seen), "{seen}");
    assert_eq!(entries("[2001:db8:1::1]:53/udp"), 0.0);
    top.end(SIGTERM);
    running.balancer.end(SIGTERM);
}

#[test]
fn top_ends_after_so_many_refreshes() {
    require_root();
    let (host, file) = idle("refreshes.toml");
    let mut running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    let (worked, text) = running.say(&host, "top", &["--interval", "0.1", "--refreshes", "3"]);
    assert!(worked, "{text}");
    let headings = text.lines().filter(|line| line.starts_with("traffic"));
    assert_eq!(headings.count(), 3);
    let (worked, text) = running.say(&host, "top", &["--interval", "0.1", "--once"]);
    assert!(worked && text.matches("traffic").count() == 1, "{text}");
    for bad in ["0", "0.01", "nan", "1e9", "soon"] {
        let mut command = running.command("top");
        command.args(["--interval", bad]);
        let output = host.output(command).unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
    running.balancer.end(SIGTERM);
    let (worked, text) = running.say(&host, "top", &["--once"]);
    assert!(!worked && text.contains("start `katran run`"), "{text}");
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
    let mut running = Commanded::start(&host, &file, &["--shared", &path]);
    let mut command = running.command("top");
    command.args(["--interval", "0.1"]);
    let mut top = OnTerminal::start(&host, &command);
    top.shows(&format!("katran on entry 2 of {path}"));
    top.process.signal(SIGTERM).unwrap();
    top.ended(true);
    running.balancer.end(SIGTERM);
    root(&["remove"]);
}

#[test]
fn every_end_restores_the_terminal() {
    require_root();
    let (host, file) = idle("terminal.toml");
    let mut running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    let mut command = running.command("top");
    command.args(["--interval", "0.1"]);
    for end in ["q", "\u{3}", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] {
        let mut top = OnTerminal::start(&host, &command);
        top.shows("203.0.113.1:443/tcp");
        top.shows("Left Right");
        assert_ne!(top.before, tcgetattr(&top.terminal).unwrap(), "raw mode");
        match end {
            "SIGTERM" => top.process.signal(SIGTERM).unwrap(),
            "SIGINT" => top.process.signal(SIGINT).unwrap(),
            "SIGHUP" => top.process.signal(SIGHUP).unwrap(),
            "SIGQUIT" => top.process.signal(SIGQUIT).unwrap(),
            keys => {
                // First a key without a function.
                top.type_keys("x");
                top.type_keys(keys);
            }
        }
        top.ended(true);
    }
    // The screen reports a bad file, and the balancer's end.
    let top = OnTerminal::start(&host, &command);
    top.shows("Left Right");
    file.write("[[vip]");
    running.balancer.process.signal(SIGHUP).unwrap();
    top.shows("a document was refused");
    running.balancer.end(SIGTERM);
    top.shows("no balancer");
    let mut top = top;
    top.process.signal(SIGTERM).unwrap();
    top.ended(true);
}

/// Ctrl-Z and the signal: the shell finds its terminal restored.
#[test]
fn suspending_top_restores_the_terminal() {
    require_root();
    let (host, file) = idle("suspended.toml");
    let mut running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    let mut top = OnTerminal::start(&host, &running.command("top"));
    for by_key in [true, false] {
        top.stands("a VIP", |lines| {
            lines.join("").contains("203.0.113.1:443/tcp")
        });
        match by_key {
            true => top.type_keys("\u{1a}"),
            false => top.process.signal(SIGTSTP).unwrap(),
        }
        let stat = format!("/proc/{}/stat", top.process.id());
        eventually("it is stopped", || {
            fs::read_to_string(&stat).unwrap().contains(") T ")
        });
        eventually("the terminal is put back", || top.is_put_back());
        top.process.signal(SIGCONT).unwrap();
    }
    top.stands("a VIP", |lines| {
        lines.join("").contains("203.0.113.1:443/tcp")
    });
    top.type_keys("q");
    top.ended(true);
    running.balancer.end(SIGTERM);
}

/// The real program with 500 VIPs of long addresses, under key presses and window size changes.
#[test]
fn keys_work_on_terminals_of_all_sizes() {
    require_root();
    let (host, _) = idle("unused.toml");
    let file = Scratch::new("many.toml");
    let mut text = "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\nring_size = 1009\n".to_owned();
    for number in 0..500 {
        text += &format!(
            "[[vip]]\naddress = \"2001:db8:1111:2222:3333:4444:5555:{number:x}\"\nport = 65535\nprotocol = \"tcp\"\n\
             reals = [{{ address = \"2001:db8:ffff:ffff:ffff:ffff:ffff:{number:x}\", weight = {} }}, \
             {{ address = \"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff\", down = true }}]\n",
            number + 1
        );
    }
    file.write(&text);
    let mut running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    let mut top = OnTerminal::start(&host, &running.command("top"));
    let has = |lines: &[String], text: &str| lines.iter().any(|line| line.contains(text));
    let name = |number: u32| format!("[2001:db8:1111:2222:3333:4444:5555:{number:x}]:65535/tcp");
    top.stands("all", |lines| {
        has(lines, "500 VIPs, 1 to") && has(lines, "501 reals, 1 down") && has(lines, &name(0))
    });
    // The last VIP and its reals.
    top.type_keys("\u{1b}[F");
    top.stands("the last VIP", |lines| {
        has(lines, "to 500") && has(lines, &name(499))
    });
    top.type_keys("\r");
    let real = "2001:db8:ffff:ffff:ffff:ffff:ffff:1f3";
    top.stands("its reals", |lines| {
        let is_row = |line: &String, words: [&str; 2]| words.iter().all(|word| line.contains(word));
        lines[1].starts_with(&name(499))
            && has(lines, "2 reals")
            && lines.iter().any(|line| is_row(line, [real, " 500 "]))
            && lines
                .iter()
                .any(|line| is_row(line, ["ffff:ffff:ffff:ffff ", "DOWN"]))
    });
    top.resize(40, 12);
    top.stands("a small screen", |lines| {
        lines.len() == 12
            && has(lines, "DOWN")
            && has(lines, "500")
            && lines[11].starts_with("q quit")
    });
    top.type_keys("\u{1b}");
    // A frame may be drawn half.
    top.stands("one table", |lines| {
        has(lines, "500 VIPs, 494 to 500") && !has(lines, "reals,")
    });
    top.resize(200, 50);
    top.stands("a large screen", |lines| {
        lines.len() == 50
            && has(lines, "traffic")
            && has(lines, "flow table")
            && has(lines, "501 reals")
    });
    top.type_keys("/:1f3");
    top.stands("what is typed", |lines| has(lines, "filter: :1f3_"));
    top.type_keys("\r");
    top.stands("one VIP", |lines| {
        has(lines, "500 VIPs, 1 with \":1f3\"") && has(lines, &name(499)) && !has(lines, &name(498))
    });
    // The smallest window there can be.
    top.resize(1, 1);
    top.resize(80, 24);
    top.stands("it goes on", |lines| {
        has(lines, "1 with") && lines[23].starts_with("q quit")
    });
    top.type_keys("q");
    top.ended(true);
    running.balancer.end(SIGTERM);
}

const PANICS: &str = "KATRAN_TEST_PANICS_ON_SCREEN";

/// Runs itself again on a terminal, and panics while the screen is in use.
#[test]
fn a_panic_restores_the_terminal() {
    if env::var_os(PANICS).is_some() {
        let mut screen = Screen::enter().unwrap();
        let (sender, wishes) = mpsc::channel();
        screen::listen(sender, |wish| wish);
        screen
            .draw(|frame| view::draw(frame, &status(), &mut View::new(), &rates()))
            .unwrap();
        // The test types at the other end.
        let key = KeyEvent::from(KeyCode::Char('q'));
        assert_eq!(wishes.recv_timeout(PATIENCE), Ok(Wish::Key(key)));
        panic!("a mistake");
    }
    require_root();
    let host = Host::new("host").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "top::a_panic_restores_the_terminal",
        "--nocapture",
    ]);
    command.env(PANICS, "1");
    let mut screen = OnTerminal::start(&host, &command);
    screen.shows("203.0.113.1:443/tcp");
    screen.type_keys("q");
    let rest = screen.ended(false);
    assert!(rest.contains("a mistake"), "{rest:?}");
}

pub(super) fn status() -> Status {
    Status {
        title: "title".to_owned(),
        message: String::new(),
    }
}
