//! Faults made on purpose. An operator with the guide alone must find each within a minute: by
//! `katran status`, by the page's JSON, and by a metric. `--nocapture` prints what was reported for
//! each, and how soon.

use std::cell::Cell;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::eventually;
use katran_lab::http_get;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use serde_json::Value;

use crate::exporter::with_new_figures;
use crate::exposition::Dialect;
use crate::exposition::Page;
use crate::program::Commanded;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::example;
use crate::program::katran;

const PAGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9957);
const PATIENCE: Duration = Duration::from_secs(30);

/// A balancer that gets faults.
struct Site {
    lab: Lab,
    file: Scratch,
    running: Commanded,
}

/// An expected finding: its severity and subject, and words of its message and advice.
struct Said<'a> {
    severity: &'a str,
    subject: &'a str,
    words: &'a [&'a str],
}

fn warning<'a>(subject: &'a str, words: &'a [&'a str]) -> Said<'a> {
    Said {
        severity: "warning",
        subject,
        words,
    }
}

fn problem<'a>(subject: &'a str, words: &'a [&'a str]) -> Said<'a> {
    Said {
        severity: "PROBLEM",
        ..warning(subject, words)
    }
}

impl Site {
    fn start(name: &str, balancer: &str, options: &[&str]) -> Self {
        require_root();
        let lab = Lab::new(LabConfig::default()).unwrap();
        Self::in_lab(lab, name, balancer, options)
    }

    fn in_lab(lab: Lab, name: &str, balancer: &str, options: &[&str]) -> Self {
        // By default the kernel trusts a neighbour for 15 to 45 s and then asks for 8 s: reported
        // after 23 to 58 s.
        for (key, value) in [
            ("base_reachable_time_ms", 3000),
            ("delay_first_probe_time", 1),
        ] {
            let key = format!("net.ipv4.neigh.eth0.{key}");
            lab.balancers[0].host.sysctl(&key, value).unwrap();
        }
        let file = Scratch::new(&format!("{name}.toml"));
        file.write(&document(&lab, balancer, &reals(&lab)));
        let options = [&["--interface", "eth0", "--listen"], options].concat();
        let running = Commanded::start(&lab.balancers[0].host, &file, &options);
        Self { lab, file, running }
    }

    fn host(&self) -> &Host {
        &self.lab.balancers[0].host
    }

    fn get(&self, path: &str) -> String {
        let answer = http_get(self.host(), PAGE, path, PATIENCE).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        String::from_utf8(answer.body).unwrap()
    }

    fn metrics(&self) -> Page {
        with_new_figures(|| Page::parse(&self.get("/metrics"), Dialect::Plain))
    }

    /// The page's lines that report a fault.
    fn problems(&self) -> Vec<(String, String, String)> {
        let status: Value = serde_json::from_str(&self.get("/api/status")).unwrap();
        let problems = status["problems"].as_array().unwrap().clone();
        let text = |of: &Value, key: &str| of[key].as_str().unwrap().to_owned();
        let problems = problems.iter().map(|of| {
            let words = format!("{} -> {}", text(of, "message"), text(of, "advice"));
            (text(of, "severity"), text(of, "subject"), words)
        });
        problems.collect()
    }

    fn is_said(&self, said: &Said<'_>) -> Option<String> {
        let problems = self.problems().into_iter();
        let mut problems = problems
            .filter(|(severity, subject, _)| severity == said.severity && subject == said.subject);
        let found =
            problems.find(|(_, _, words)| said.words.iter().all(|word| words.contains(word)));
        found.map(|(_, _, words)| words)
    }

    /// Checks that the page, the text and a metric report it within a minute.
    fn tells(&self, fault: &str, said: &Said<'_>) {
        let began = Instant::now();
        let mut words = None;
        eventually(format!("{fault}: {:?}", said.words), || {
            words = self.is_said(said);
            words.is_some()
                || (began.elapsed() > Duration::from_secs(55) && {
                    panic!("{fault}: {:#?}", self.problems())
                })
        });
        let seconds = began.elapsed().as_secs_f64();
        let words = words.unwrap();
        let metrics = self.metrics();
        let severity = said.severity.to_lowercase();
        let labels = [("severity", severity.as_str()), ("subject", said.subject)];
        let count: f64 = metrics.sum("katran_problem", &labels);
        assert!(count >= 1.0, "{fault}: {labels:?}");
        let (_, text) = self.running.say(self.host(), "status", &["--over", "0.1"]);
        for word in said.words {
            assert!(text.contains(word), "{fault}: {word}: {text}");
        }
        println!(
            "{fault} | {seconds:.1} s | {severity} {}: {words}",
            said.subject
        );
    }

    /// Waits until what only counters show is a note, a minute after the repair, and the metric is
    /// 0.
    fn becomes_a_note(&self, fault: &str, said: &Said<'_>, words: &str) {
        let began = Instant::now();
        let is_noted = || {
            let problems = self.problems();
            let mut about = problems.iter().filter(|of| of.1 == said.subject).peekable();
            about.peek().is_some()
                && about.all(|(severity, _, message)| {
                    severity == "note"
                        && message.contains(words)
                        && message.contains("none in the last")
                })
        };
        while !is_noted() {
            let found = self.problems();
            assert!(
                began.elapsed() < Duration::from_secs(90),
                "{fault}: {found:#?}"
            );
            thread::sleep(Duration::from_secs(1));
        }
        let metrics = self.metrics();
        let count = metrics.sum("katran_problem", &[("subject", said.subject)]);
        assert_eq!(count, 0.0, "{fault}");
        let seconds = began.elapsed().as_secs_f64();
        println!("{fault} | a note after {seconds:.1} s");
    }

    /// Checks that it is no longer reported.
    fn is_well(&self, said: &Said<'_>) {
        eventually(format!("well again: {:?}", said.words), || {
            self.is_said(said).is_none()
        });
    }

    fn apply(&self, balancer: &str, reals: &str) {
        self.file.write(&document(&self.lab, balancer, reals));
        let file = self.file.0.to_str().unwrap();
        let (worked, text) = self.running.say(self.host(), "apply", &[file]);
        assert!(worked, "{text}");
    }

    /// Sends datagrams of this length to the VIP, `of_each` for each of `flows` flows.
    fn send(&self, flows: usize, of_each: usize, bytes: usize) {
        for _ in 0..flows {
            let client = self
                .lab
                .client
                .run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            for _ in 0..of_each {
                // May return the previous datagram's ICMP error.
                let _ = client.send_to(&vec![0; bytes], (self.lab.vip4(), 53));
            }
        }
    }
}

fn reals(lab: &Lab) -> String {
    let reals = lab
        .backends
        .iter()
        .map(|of| format!("{{ address = \"{}\" }}", of.v4));
    reals.collect::<Vec<_>>().join(", ")
}

fn document(lab: &Lab, balancer: &str, reals: &str) -> String {
    let vip = lab.vip4();
    let vips = [(80, "tcp"), (53, "udp")].map(|(port, protocol)| {
        format!(
            "[[vip]]\naddress = \"{vip}\"\nport = {port}\nprotocol = \"{protocol}\"\nreals = [{reals}]\n"
        )
    });
    format!(
        "[balancer]\ngateway_mac = \"auto\"\nsource_v4 = \"10.0.0.2\"\n{balancer}\n{}",
        vips.concat()
    )
}

#[test]
fn faults_of_the_host_are_reported() {
    let site = Site::start("place", "flow_table_size = 10_000", &["--mode", "native"]);
    let (host, router) = (site.host(), &site.lab.router);

    host.ip("link set eth0 mtu 1500").unwrap();
    // The balancer learns the MTU a moment later.
    eventually("a packet is too big", || {
        site.send(1, 1, 1472);
        let metrics = site.metrics();
        metrics.sum("katran_icmp_too_big_sent_total", &[]) > 0.0
    });
    let mtu = warning(
        "mtu",
        &[
            "above 1480 bytes are answered",
            "so far",
            "ip link set eth0 mtu 1520",
        ],
    );
    site.tells("MTU", &mtu);
    host.ip("link set eth0 mtu 1600").unwrap();
    site.is_well(&mtu);

    router.ip("link set bal0 arp off").unwrap();
    let silent = warning(
        "gateway",
        &[
            "the gateway: 10.0.0.1 does not answer",
            "check that it is up, in this segment and VLAN: ping 10.0.0.1",
        ],
    );
    site.tells("gateway silent", &silent);
    router.ip("link set bal0 arp on").unwrap();
    site.is_well(&silent);

    router.tag_leaving("bal0", &[(0x8100, 7)]).unwrap();
    let vlan = warning(
        "vlan",
        &[
            "tags of VLAN 7",
            "10.0.0.1 is a neighbour without one",
            "tcpdump -eni eth0",
        ],
    );
    // Frames for the host may have any tag.
    let passed = || {
        let metrics = site.metrics();
        metrics.get("katran_frames_total", &[("verdict", "pass")])
    };
    let before = passed();
    let socket = router.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.send_to(&[0; 100], ("10.0.0.2", 9)).unwrap();
    eventually("it has passed", || passed() > before);
    assert_eq!(site.is_said(&vlan), None);
    site.send(1, 1, 100);
    site.tells("wrong VLAN", &vlan);

    router.strip("bal0");
    let lost = problem(
        "sending",
        &[
            "has no XDP program: what is sent natively is lost",
            "generic mode",
        ],
    );
    site.tells("no peer XDP", &lost);

    host.ip("link del eth0").unwrap();
    let gone = problem(
        "interface",
        &[
            "eth0, where the program was attached, no longer exists",
            "create it again",
        ],
    );
    site.tells("interface gone", &gone);
    let (_, text) = site.running.say(host, "status", &["--over", "0.1"]);
    assert!(text.contains("gone eth0"), "{text}");
    let metrics = site.metrics();
    let attached = metrics.get("katran_attached", &[("interface", "eth0")]);
    assert_eq!(attached, 0.0);
}

#[test]
fn faults_that_were_repaired_become_notes() {
    let balancer = "flow_table_size = 1000\nforwarding_cpus = [0]";
    let site = Site::start("repaired", balancer, &["--mode", "native"]);
    let router = &site.lab.router;

    // A packet that waited for the neighbour would leave on the CPU that the answer came on.
    router.tool("ping", "-c 1 -W 30 10.0.0.2").unwrap();
    router.receive_on_cpu("client", 1).unwrap();
    site.send(5, 1, 10);
    let cpu = warning("fallback table", &["5 of 5 packets in the last "]);
    site.tells("CPU without table", &cpu);
    router.receive_on_cpu("client", 0).unwrap();

    site.apply(balancer, "");
    site.send(3, 1, 10);
    let drops = warning("drops", &["ring_empty: 3 frames in the last "]);
    site.tells("no reals", &drops);
    site.apply(balancer, &reals(&site.lab));

    router.tag_leaving("bal0", &[(0x8100, 7)]).unwrap();
    site.send(1, 1, 100);
    let vlan = warning("vlan", &["tags of VLAN 7"]);
    site.tells("wrong VLAN", &vlan);

    // The tags go as well.
    router.strip("bal0");
    site.send(4, 1, 10);
    let lost = problem(
        "sending",
        &["eth0 has failed to send 4 frames in the last "],
    );
    site.tells("no peer XDP", &lost);
    let mut passes = Decap::builder().load().unwrap();
    let attach = || passes.attach("bal0", XdpMode::Native).map(drop);
    router.run(attach).unwrap();

    site.send(5, 1, 10);
    site.becomes_a_note(
        "CPU with table",
        &cpu,
        "packets since the balancer was loaded arrived on CPUs without",
    );
    site.becomes_a_note("reals again", &drops, "ring_empty: 3 frames since");
    site.becomes_a_note("right VLAN", &vlan, "tags of VLAN 7");
    site.becomes_a_note("peer XDP", &lost, "failed to send 4 frames since");
}

#[test]
fn faults_of_backends_are_reported() {
    let settings =
        "flow_table_size = 10_000\n[health]\ninterval = 0.2\nudp_check = \"tcp\"\nport = 80";
    let site = Site::start("backends", settings, &[]);
    let _servers = site.lab.serve_tcp(80).unwrap();
    let [first, second] = &site.lab.backends[..] else {
        panic!("two backends");
    };
    let _decaps: Vec<Running> = site.lab.backends.iter().map(decap).collect();
    let vip = site.lab.vip4().to_string();
    // The guide's check on a backend.
    let check = |host: &Host| {
        let mut check = katran("decap");
        check.args(["--interface", "eth0", "--check", "--vip", &vip]);
        String::from_utf8(host.output(check).unwrap().stdout).unwrap()
    };
    let silent = warning(
        "health",
        &[
            "real 198.51.100.2 does not answer probes of 203.0.113.1:53/udp and 1 more VIP",
            "no complete answer within 1 s",
            "decap --interface eth0 --check --vip 203.0.113.1",
        ],
    );
    let all_are_well = || {
        eventually("all reals answer", || {
            let (_, text) = site.running.say(site.host(), "status", &["--over", "0.1"]);
            text.matches("; up").count() == 4
        });
    };
    all_are_well();

    let (address, prefix) = (format!("{vip}/32"), "addr");
    second
        .host
        .ip(&format!("{prefix} del {address} dev lo"))
        .unwrap();
    site.tells("VIP not on lo", &silent);
    let text = check(&second.host);
    for words in [
        "PROBLEM  vip on lo",
        "203.0.113.1 is not an address of this host",
        "ip addr add 203.0.113.1/32 dev lo",
    ] {
        assert!(text.contains(words), "{text}");
    }
    second.host.ip("addr add 203.0.113.1/32 dev lo").unwrap();
    all_are_well();
    site.is_well(&silent);

    // Answers leave by another interface than clients' packets arrive on.
    second
        .host
        .ip("link add back type veth peer name there")
        .unwrap();
    second.host.ip("link set there up").unwrap();
    second.host.ip("link set back up").unwrap();
    second.host.ip("route replace default dev back").unwrap();
    second
        .host
        .sysctl("net.ipv4.conf.eth0.rp_filter", 1)
        .unwrap();
    site.tells("rp_filter", &silent);
    let text = check(&second.host);
    for words in [
        "PROBLEM  rp_filter",
        "the kernel drops their packets",
        "sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/eth0/rp_filter=0",
    ] {
        assert!(text.contains(words), "{text}");
    }
    second.host.ip("link del back").unwrap();
    second
        .host
        .sysctl("net.ipv4.conf.eth0.rp_filter", 0)
        .unwrap();
    second.set_route_mtu(1500).unwrap();
    all_are_well();

    for backend in [first, second] {
        backend.host.ip("addr del 203.0.113.1/32 dev lo").unwrap();
    }
    let dead = problem(
        "health",
        &[
            "no real of 203.0.113.1:53/udp and 1 more VIP answers probes",
            "decap --interface eth0 --check",
        ],
    );
    site.tells("all reals down", &dead);
}

#[test]
fn faults_of_the_document_are_reported() {
    // Without its own threshold, a table this small would count as flooded.
    let own = "flow_table_size = 64\nflood_threshold = 100_000\nflow_tracking = \"all\"\nforwarding_cpus = [0]";
    let site = Site::start("document", own, &[]);
    site.send(600, 2, 10);
    let small = warning(
        "flow table",
        &[
            "too small: ",
            "of the places for 64 flows",
            "flow_table_size = 256 or more",
        ],
    );
    site.tells("table too small", &small);

    site.lab.router.receive_on_cpu("client", 1).unwrap();
    site.send(20, 1, 10);
    let cpu = warning(
        "fallback table",
        &[
            "arrived on CPUs without a flow table",
            "set forwarding_cpus",
        ],
    );
    site.tells("CPU without table", &cpu);

    site.apply(own, "{ address = \"10.0.0.2\" }");
    let itself = problem("vips", &["real 10.0.0.2 is this host", "or remove it"]);
    site.tells("real is self", &itself);
}

#[test]
fn a_taken_over_entry_is_reported() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let path = pins.join("root").display().to_string();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let mut root = example("root");
    root.args(["attach", "--interface", "eth0", "--path", &path]);
    assert!(host.output(root).unwrap().status.success());
    let site = Site::in_lab(lab, "entry", "flow_table_size = 1000", &["--shared", &path]);
    // The balancer that takes the entry reports whose it was.
    let start = |more: &[&str], former: u32| {
        let mut command = katran("run");
        command.arg("--config").arg(&site.file.0);
        command
            .args(["--interface", "eth0", "--shared", &path])
            .args(more);
        let mut running = Running::start(site.host(), command);
        let taken = format!("which process {former} still holds");
        let [warns, balances] = [Cell::new(false), Cell::new(false)];
        running.line("the entry, and whose it was", |line| {
            let warning = line.contains("took entry 2 of ") && line.contains(&taken);
            warns.set(warns.get() || warning);
            balances.set(balances.get() || line.contains("balancing as entry 2"));
            warns.get() && balances.get()
        });
        running
    };
    let has_entry = || {
        let metrics = site.metrics();
        let labels = [("path", path.as_str()), ("position", "2")];
        metrics.get("katran_shared_entry_attached", &labels)
    };
    assert_eq!(has_entry(), 1.0);
    let mut second = start(&["--lost", "exit"], site.running.balancer.process.id());
    let lost = problem(
        "program",
        &[
            "entry 2 of",
            "is no longer this balancer's",
            "stop one of the two",
        ],
    );
    site.tells("taken over by another", &lost);
    assert_eq!(has_entry(), 0.0);
    let (_, text) = site.running.say(site.host(), "status", &["--over", "0.1"]);
    assert!(
        text.contains("replaced by another program entry 2 of"),
        "{text}"
    );
    // A balancer that loses its entry ends, and names the program in it: the third one's.
    let mut third = start(&[], second.process.id());
    second.says("taken over: entry 2 of");
    assert_eq!(second.process.wait(PATIENCE).unwrap().code(), Some(1));
    assert!(
        second
            .said()
            .iter()
            .any(|line| line.contains("(katran) is there"))
    );
    third.end(15);
    let mut root = example("root");
    root.args(["remove", "--path", &path]);
    assert!(site.host().output(root).unwrap().status.success());
}
