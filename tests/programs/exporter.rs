//! What `run --listen` serves, read as strictly as Prometheus might: with the values that known
//! traffic must produce.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::http_get;
use katran_lab::require_root;

use crate::exposition::Dialect;
use crate::exposition::Page;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::katran;

const SIGHUP: i32 = 1;

pub(super) const SIGINT: i32 = 2;

pub(super) const SIGTERM: i32 = 15;

/// The default address.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9957);

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn exporter(host: &Host, file: &Scratch, more: &[&str]) -> Running {
    let mut command = katran("run");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0", "--listen"]).args(more);
    let mut exporter = Running::start(host, command);
    exporter.says("/metrics");
    exporter
}

pub(super) fn scrape(host: &Host) -> Page {
    with_new_figures(|| {
        let response = http_get(host, METRICS, "/metrics", PATIENCE).unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        let kind = response.header("content-type").unwrap();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        Page::parse(std::str::from_utf8(&response.body).unwrap(), Dialect::Plain)
    })
}

/// Gets pages until the figures were taken after the first request: a busy balancer serves those
/// from before.
pub(super) fn with_new_figures(get: impl Fn() -> Page) -> Page {
    let asked = Instant::now();
    loop {
        let page = get();
        let waited = asked.elapsed();
        if page.get("katran_figures_age_seconds", &[]) <= waited.as_secs_f64() {
            return page;
        }
        assert!(waited < PATIENCE, "only old figures: {page:#?}");
    }
}

/// A scrape that asks for OpenMetrics, as Prometheus does.
fn scrape_open_metrics(host: &Host) -> Page {
    let mut stream = host.run(|| TcpStream::connect(METRICS)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    write!(
        stream,
        "GET /metrics HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(kind), "{head}");
    Page::parse(body, Dialect::OpenMetrics)
}

/// Scrapes until the condition holds: packets may still be on their way when their sender is done.
fn scrape_until(host: &Host, what: &str, is: impl Fn(&Page) -> bool) -> Page {
    let end = Instant::now() + PATIENCE;
    loop {
        let page = scrape(host);
        if is(&page) {
            return page;
        }
        assert!(Instant::now() < end, "never: {what}\n{page:#?}");
    }
}

/// VIPs of both families with two reals, the second of twice the weight, and one without reals.
pub(super) fn configuration(lab: &Lab) -> String {
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let mut text = format!(
        "[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\nflow_tracking = \"all\"\n\
         max_vip_reals = 100\nhealthcheck_interface = \"eth0\"\n\
         [[probe]]\naddress = \"203.0.113.1\"\nport = 80\nprotocol = \"tcp\"\n"
    );
    let [first, second] = [0, 1].map(|index| &lab.backends[index]);
    for (vip, port, reals) in [
        (
            lab.vip4(),
            53,
            [first.v4.to_string(), second.v4.to_string()],
        ),
        (
            lab.vip6(),
            53,
            [first.v6.to_string(), second.v6.to_string()],
        ),
    ] {
        text += &format!(
            "[[vip]]\naddress = \"{vip}\"\nport = {port}\nprotocol = \"udp\"\nreals = [\
             {{ address = \"{}\" }}, {{ address = \"{}\", weight = 2 }}]\n",
            reals[0], reals[1]
        );
    }
    text + &format!(
        "[[vip]]\naddress = \"{}\"\nport = 54\nprotocol = \"udp\"\nreals = []\n",
        lab.vip4()
    )
}

/// Sends this many datagrams from each of several ports, without an answer.
pub(super) fn send(lab: &Lab, to: (IpAddr, u16), ports: usize, datagrams: usize, length: usize) {
    for _ in 0..ports {
        let any = match to.0 {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        let socket = lab.client.run(|| UdpSocket::bind(any)).unwrap();
        for _ in 0..datagrams {
            assert_eq!(socket.send_to(&vec![0; length], to).unwrap(), length);
        }
    }
}

const VIP4: &str = "203.0.113.1:53/udp";
const VIP6: &str = "[2001:db8:1::1]:53/udp";

const REALS: [&str; 4] = [
    "198.51.100.1",
    "198.51.100.2",
    "2001:db8:2::1",
    "2001:db8:2::2",
];

#[test]
fn exporter_counts_what_the_traffic_made() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = Scratch::new("exporter.toml");
    file.write(&configuration(&lab));
    let host = &lab.balancers[0].host;
    let more = ["--watch-misses", VIP4, "--recount", "1"];
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut exporter = exporter(host, &file, &more);

    let first = scrape(host);
    for vip in [VIP4, VIP6, "203.0.113.1:54/udp"] {
        assert_eq!(first.get("katran_vip_packets_total", &[("vip", vip)]), 0.0);
    }

    // 4 flows of 10 packets; 7 IPv6 packets; 3 packets to a VIP without reals; 2 fragments.
    send(&lab, (lab.vip4(), 53), 4, 10, 100);
    send(&lab, (lab.vip6(), 53), 1, 7, 50);
    send(&lab, (lab.vip4(), 54), 1, 3, 10);
    send(&lab, (lab.vip4(), 53), 1, 1, 2000);
    lab.client.tool("ping", "-c 5 -i 0.01 203.0.113.1").unwrap();
    lab.client
        .tool("ping", "-c 4 -i 0.01 2001:db8:1::1")
        .unwrap();
    let page = scrape_until(host, "all packets have arrived", |page| {
        page.sum("katran_frames_total", &[("verdict", "drop")]) >= 5.0
            && page.sum("katran_cpu_packets_total", &[]) >= 47.0
            // The entries have been counted.
            && page.get("katran_vip_flow_entries", &[("vip", VIP4)]) >= 4.0
            && page.get("katran_vip_flow_entries", &[("vip", VIP6)]) >= 1.0
            // Whole seconds; the count runs every second, later on a busy machine.
            && page.get("katran_flow_entries_age_seconds", &[]) < 5.0
    });

    let of = |name: &str, labels: &[(&str, &str)]| page.get(name, labels);
    for (vip, packets, bytes) in [
        // The total length of IPv4 packets, the payload length of IPv6 ones.
        (VIP4, 40.0, 40.0 * (20.0 + 8.0 + 100.0)),
        (VIP6, 7.0, 7.0 * (8.0 + 50.0)),
        ("203.0.113.1:54/udp", 0.0, 0.0),
    ] {
        assert_eq!(of("katran_vip_packets_total", &[("vip", vip)]), packets);
        assert_eq!(of("katran_vip_bytes_total", &[("vip", vip)]), bytes);
    }
    let of_reals = |name, reals: &[&str]| -> f64 {
        reals.iter().map(|real| of(name, &[("real", real)])).sum()
    };
    assert_eq!(of_reals("katran_real_packets_total", &REALS[..2]), 40.0);
    assert_eq!(of_reals("katran_real_packets_total", &REALS[2..]), 7.0);
    assert_eq!(of_reals("katran_real_bytes_total", &REALS[..2]), 5120.0);
    assert_eq!(of_reals("katran_real_bytes_total", &REALS[2..]), 406.0);
    let of_pairs = |vip| page.sum("katran_vip_real_packets_total", &[("vip", vip)]);
    assert_eq!((of_pairs(VIP4), of_pairs(VIP6)), (40.0, 7.0));
    // Each VIP only has pairs with its own reals.
    for (vip, reals) in [(VIP4, &REALS[..2]), (VIP6, &REALS[2..])] {
        let pairs = page.families["katran_vip_real_bytes_total"].samples.keys();
        let mut of_vip = pairs.filter(|pair| pair["vip"] == vip);
        assert!(of_vip.all(|pair| pair.len() == 2 && reals.contains(&pair["real"].as_str())));
    }
    assert_eq!(
        page.sum("katran_vip_real_bytes_total", &[("vip", VIP6)]),
        406.0
    );
    // Datagrams have no SYN.
    assert_eq!(page.sum("katran_vip_real_syn_packets_total", &[]), 0.0);
    assert_eq!(of("katran_vip_syn_packets_total", &[("vip", VIP4)]), 0.0);
    assert_eq!(
        of("katran_vip_unpaired_packets_total", &[("vip", VIP4)]),
        0.0
    );
    assert_eq!(of("katran_apply_success", &[]), 1.0);
    assert_eq!(of("katran_applies_total", &[("outcome", "applied")]), 1.0);
    let source = file.0.display().to_string();
    assert_eq!(of("katran_document_info", &[("source", &source)]), 1.0);
    let owned = of("katran_owned_time_seconds", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(
        (began.as_secs_f64() - 1.0..now.as_secs_f64()).contains(&owned),
        "{owned}"
    );
    assert_eq!(of("katran_loaded_time_seconds", &[]), owned);
    assert_eq!(page.sum("katran_cpu_packets_total", &[]), 47.0);
    // Every forwarding CPU is listed, even if it was idle.
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last = online.trim().rsplit(['-', ',']).next().unwrap().to_owned();
    let cpus = page.values_of("katran_cpu_packets_total", "cpu");
    assert!(cpus.contains("0") && cpus.contains(&last), "{cpus:?}");
    // Encapsulated packets, and answers to pings.
    assert_eq!(of("katran_frames_total", &[("verdict", "tx")]), 47.0 + 9.0);
    // Frames as received, without outer headers: datagrams, and pings of 56 bytes.
    let datagrams = 40.0 * (14.0 + 128.0) + 7.0 * (14.0 + 40.0 + 58.0);
    let pings = 5.0 * (14.0 + 20.0 + 64.0) + 4.0 * (14.0 + 40.0 + 64.0);
    assert_eq!(
        of("katran_frame_bytes_total", &[("verdict", "tx")]),
        datagrams + pings
    );
    for (reason, frames) in [
        ("ring_empty", 3.0),
        ("ipv4_fragment", 2.0),
        ("too_big", 0.0),
    ] {
        let dropped = of("katran_dropped_frames_total", &[("reason", reason)]);
        assert_eq!(dropped, frames, "{reason}");
    }
    assert_eq!(of("katran_frames_total", &[("verdict", "drop")]), 5.0);
    assert_eq!(
        of("katran_ring_dropped_packets_total", &[("reason", "empty")]),
        3.0
    );
    assert_eq!(
        of("katran_icmp_echo_replies_total", &[("family", "ipv4")]),
        5.0
    );
    assert_eq!(
        of("katran_icmp_echo_replies_total", &[("family", "ipv6")]),
        4.0
    );
    // Packets to VIPs, including those without a real. At least one miss per flow, more if a packet
    // arrived on another CPU.
    assert_eq!(of("katran_flow_table_packets_total", &[]), 50.0);
    let misses = of("katran_flow_table_misses_total", &[]);
    assert!((5.0..=20.0).contains(&misses), "{misses}");
    let watched = of_reals("katran_real_watched_misses_total", &REALS);
    assert!((4.0..=misses).contains(&watched), "{watched} of {misses}");
    assert_eq!(
        of_reals("katran_real_watched_misses_total", &REALS[2..]),
        0.0
    );
    let map = |name, map| of(name, &[("map", map)]);
    assert_eq!(map("katran_map_entries", "vips"), 3.0);
    assert_eq!(map("katran_map_entries", "reals"), 4.0);
    assert_eq!(map("katran_map_capacity", "flows"), 10_000.0);
    let entries = map("katran_map_entries", "flows");
    assert!((5.0..=20.0).contains(&entries));
    let of_vip = |vip| of("katran_vip_flow_entries", &[("vip", vip)]);
    assert_eq!(of_vip(VIP4) + of_vip(VIP6), entries);
    assert_eq!(of_vip("203.0.113.1:54/udp"), 0.0);
    for (real, weight) in [("198.51.100.1", 1.0), ("198.51.100.2", 2.0)] {
        let labels = [("vip", VIP4), ("real", real)];
        assert_eq!(of("katran_vip_real_weight", &labels), weight);
        assert_eq!(of("katran_vip_real_down", &labels), 0.0);
    }
    assert!(of("katran_maps_memory_bytes", &[]) > 320_000.0);
    let labels = [("interface", "eth0"), ("mode", "native")];
    assert_eq!(of("katran_interface_info", &labels), 1.0);

    // Counters never go back, and both formats agree.
    send(&lab, (lab.vip4(), 53), 1, 10, 100);
    let later = scrape_until(host, "10 packets more", |page| {
        page.get("katran_vip_packets_total", &[("vip", VIP4)]) == 50.0
    });
    later.follows(&page);
    page.follows(&first);
    let open = scrape_open_metrics(host);
    assert_eq!(open.names(), later.names());
    open.follows(&later);

    // Without one VIP and one real; the other counters continue, and so does following the file.
    let text = configuration(&lab);
    let third = text.rfind("[[vip]]").unwrap();
    let text = text[..third].replace("{ address = \"2001:db8:2::1\" }, ", "");
    // A real that is down, with its weight.
    file.write(&text.replacen("weight = 2", "weight = 2, down = true", 1));
    exporter.process.signal(SIGHUP).unwrap();
    exporter.says("203.0.113.1:54/udp removed");
    let after = scrape(host);
    for (real, down) in [(REALS[0], 0.0), (REALS[1], 1.0)] {
        let labels = [("vip", VIP4), ("real", real)];
        assert_eq!(after.get("katran_vip_real_down", &labels), down, "{real}");
    }
    let labels = [("vip", VIP4), ("real", REALS[1])];
    assert_eq!(after.get("katran_vip_real_weight", &labels), 2.0);
    let vips = BTreeSet::from([VIP4.to_owned(), VIP6.to_owned()]);
    assert_eq!(after.values_of("katran_vip_packets_total", "vip"), vips);
    let reals = [REALS[0], REALS[1], REALS[3]].map(str::to_owned);
    assert_eq!(
        after.values_of("katran_real_packets_total", "real"),
        BTreeSet::from(reals)
    );
    assert_eq!(
        after.get("katran_vip_packets_total", &[("vip", VIP4)]),
        50.0
    );
    assert!(after.sum("katran_real_watched_misses_total", &[]) >= watched);

    // A refused document is reported beside the current one.
    let time = after.get("katran_apply_time_seconds", &[]);
    assert_eq!(after.get("katran_apply_success_time_seconds", &[]), time);
    assert!(after.get("katran_apply_duration_seconds", &[]) > 0.0);
    file.write("[balancer]\nmax_vips = -1\n");
    exporter.process.signal(SIGHUP).unwrap();
    let refused = scrape_until(host, "a document is refused", |page| {
        page.get("katran_apply_success", &[]) == 0.0
    });
    assert_eq!(
        refused.get("katran_applies_total", &[("outcome", "applied")]),
        2.0
    );
    assert_eq!(
        refused.get("katran_applies_total", &[("outcome", "refused")]),
        1.0
    );
    assert_eq!(refused.get("katran_apply_success_time_seconds", &[]), time);
    assert!(refused.get("katran_apply_time_seconds", &[]) > time);

    // A client that connects and is silent delays neither others nor the program's end.
    let _silent = host.run(|| TcpStream::connect(METRICS)).unwrap();
    scrape(host);
    exporter.end(SIGTERM);
    exporter.says("detached from eth0");
    assert!(http_get(host, METRICS, "/metrics", PATIENCE).is_err());
    assert!(!host.ip("link show eth0").unwrap().contains("xdp"));
}

/// A host with an exporter, without traffic.
pub(super) fn idle(name: &str) -> (Host, Scratch, Running) {
    idle_with(name, "", &[])
}

/// The same with more settings, and more options.
pub(super) fn idle_with(name: &str, settings: &str, options: &[&str]) -> (Host, Scratch, Running) {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let file = Scratch::new(name);
    file.write(&format!(
        "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\nflow_tracking = \"changed\"\n\
         count_syns = true\nhealthcheck_interface = \"eth0\"\n{settings}\
         [[probe]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         [[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         reals = [{{ address = \"198.51.100.1\" }}]\n",
    ));
    let options = [&["--mode", "generic"], options].concat();
    let exporter = exporter(&host, &file, &options);
    (host, file, exporter)
}

/// A scrape shows the last count and does not start one: for a minute, however often it asks, the
/// figures are those of the start.
#[test]
fn scrapes_do_not_count_entries() {
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = Scratch::new("uncounted.toml");
    file.write(&configuration(&lab));
    let host = &lab.balancers[0].host;
    let started = Instant::now();
    let mut exporter = exporter(host, &file, &[]);
    send(&lab, (lab.vip4(), 53), 4, 10, 100);
    let page = scrape_until(host, "all packets have arrived", |page| {
        page.sum("katran_cpu_packets_total", &[]) >= 40.0
    });
    let entries = page.get("katran_vip_flow_entries", &[("vip", VIP4)]);
    let in_maps = page.get("katran_map_entries", &[("map", "flows")]);
    let age = page.get("katran_flow_entries_age_seconds", &[]);
    // Unless the machine was so busy that a minute passed.
    if started.elapsed() < Duration::from_secs(50) {
        assert_eq!((entries, in_maps), (0.0, 0.0));
    }
    let later = scrape_until(host, "older figures", |page| {
        page.get("katran_flow_entries_age_seconds", &[]) > age
    });
    assert!(later.get("katran_flow_entries_age_seconds", &[]) <= started.elapsed().as_secs_f64());
    exporter.end(SIGTERM);

    for bad in ["0", "1.5", "86401", "soon"] {
        let mut command = katran("run");
        command.arg("--config").arg(&file.0);
        command.args(["--interface", "eth0", "--recount", bad]);
        let output = host.output(command).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("seconds from 1 to 86400"), "{stderr}");
    }
}

#[test]
fn exporter_that_cannot_listen_or_watch_touches_no_traffic() {
    let (host, file, mut exporter) = idle("refused.toml");
    let config = file.0.to_str().unwrap();
    host.ip("link add eth2 type veth peer name eth3").unwrap();
    for (more, complaint) in [
        (&["--listen"][..], "cannot listen on 127.0.0.1:9957"),
        (
            &["--listen", "192.0.2.9:80"],
            "cannot listen on 192.0.2.9:80",
        ),
        (
            &[
                "--listen",
                "127.0.0.1:0",
                "--watch-misses",
                "203.0.113.9:1/tcp",
            ],
            "203.0.113.9:1/tcp",
        ),
    ] {
        let mut command = katran("run");
        command
            .args(["--config", config, "--interface", "eth2"])
            .args(more);
        let output = host.output(command).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(complaint), "{stderr}");
        // Not attached even for a moment.
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(!stdout.contains("balancing on"), "{stdout}");
        assert!(!host.ip("link show eth2").unwrap().contains("xdp"));
    }
    // The first exporter is not affected.
    assert_eq!(http_get(&host, METRICS, "/", PATIENCE).unwrap().status, 200);
    assert_eq!(
        http_get(&host, METRICS, "/no", PATIENCE).unwrap().status,
        404
    );
    scrape(&host);
    exporter.end(SIGINT);
}
