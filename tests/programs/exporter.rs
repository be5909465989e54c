//! What `exporter` serves, read as strictly as Prometheus could: values that known traffic must have
//! made, and that documentation and dashboard speak of what there is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::http_get;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use serde_json::Value;

use crate::exposition::Dialect;
use crate::exposition::Page;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// Where `exporter` listens unless it is told otherwise.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9957);
const PATIENCE: Duration = Duration::from_secs(10);

fn exporter(host: &Host, file: &Scratch, more: &[&str]) -> Running {
    let mut command = example("exporter");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0"]).args(more);
    let mut exporter = Running::start(host, command);
    exporter.says("/metrics");
    exporter
}

fn scrape(host: &Host) -> Page {
    let response = http_get(host, METRICS, "/metrics", PATIENCE).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    let kind = response.header("content-type").unwrap();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    Page::parse(std::str::from_utf8(&response.body).unwrap(), Dialect::Plain)
}

/// What somebody gets who asks for OpenMetrics, as Prometheus does.
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

/// Scrapes until it is so: packets are still under way when their sender is done.
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

/// VIPs of both families with two reals, the second one with twice the weight, and one without.
fn configuration(lab: &Lab) -> String {
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let mut text = format!(
        "[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\n\
         healthcheck_interface = \"eth0\"\n\
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

/// Sends so many datagrams from each of some ports, without an answer.
fn send(lab: &Lab, to: (IpAddr, u16), ports: usize, datagrams: usize, length: usize) {
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
    let mut exporter = exporter(host, &file, &["--watch-misses", VIP4]);

    let first = scrape(host);
    for vip in [VIP4, VIP6, "203.0.113.1:54/udp"] {
        assert_eq!(first.get("katran_vip_packets_total", &[("vip", vip)]), 0.0);
    }

    // 4 flows of 10 packets; 7 packets of IPv6; 3 packets to a VIP without reals; 2 fragments.
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
    });

    let of = |name: &str, labels: &[(&str, &str)]| page.get(name, labels);
    for (vip, packets, bytes) in [
        // The total length of IPv4 packets, the payload length of IPv6 packets.
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
    assert_eq!(page.sum("katran_cpu_packets_total", &[]), 47.0);
    // Every CPU that is meant to forward is there, also those that have had nothing to do.
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last = online.trim().rsplit(['-', ',']).next().unwrap().to_owned();
    let cpus = page.values_of("katran_cpu_packets_total", "cpu");
    assert!(cpus.contains("0") && cpus.contains(&last), "{cpus:?}");
    // Encapsulated, and answers to pings.
    assert_eq!(of("katran_frames_total", &[("verdict", "tx")]), 47.0 + 9.0);
    // Frames as they came in, without outer headers: datagrams, and pings of 56 bytes.
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
    // Packets of VIPs: those that the ring had no real for, too. At least one miss for each flow,
    // more if a packet came on another CPU.
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
    assert!((5.0..=20.0).contains(&map("katran_map_entries", "flows")));
    for (real, weight) in [("198.51.100.1", 1.0), ("198.51.100.2", 2.0)] {
        let labels = [("vip", VIP4), ("real", real)];
        assert_eq!(of("katran_vip_real_weight", &labels), weight);
        assert_eq!(of("katran_vip_real_down", &labels), 0.0);
    }
    assert!(of("katran_maps_memory_bytes", &[]) > 320_000.0);
    let labels = [("interface", "eth0"), ("mode", "native")];
    assert_eq!(of("katran_interface_info", &labels), 1.0);

    // Nothing counts backwards, and both formats say the same.
    send(&lab, (lab.vip4(), 53), 1, 10, 100);
    let later = scrape_until(host, "10 packets more", |page| {
        page.get("katran_vip_packets_total", &[("vip", VIP4)]) == 50.0
    });
    later.follows(&page);
    page.follows(&first);
    let open = scrape_open_metrics(host);
    assert_eq!(open.names(), later.names());
    open.follows(&later);

    // A VIP less, a real less; the rest counts on, and the watch as well.
    let text = configuration(&lab);
    let third = text.rfind("[[vip]]").unwrap();
    let text = text[..third].replace("{ address = \"2001:db8:2::1\" }, ", "");
    // And one that is down, with its weight.
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

    // Somebody who connects and asks for nothing keeps nobody waiting, nor it from ending.
    let _silent = host.run(|| TcpStream::connect(METRICS)).unwrap();
    scrape(host);
    exporter.end(SIGTERM);
    exporter.says("detached from eth0");
    assert!(http_get(host, METRICS, "/metrics", PATIENCE).is_err());
    assert!(!host.ip("link show eth0").unwrap().contains("xdp"));
}

/// A host with an exporter without traffic.
fn idle(name: &str) -> (Host, Scratch, Running) {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let file = Scratch::new(name);
    file.write(
        "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n\
         healthcheck_interface = \"eth0\"\n\
         [[probe]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         [[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         reals = [{ address = \"198.51.100.1\" }]\n",
    );
    let exporter = exporter(&host, &file, &["--mode", "generic"]);
    (host, file, exporter)
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Every number of a snapshot by its place, such as `icmp.echo_v4`.
fn fields(place: &str, value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| match place {
                // Their keys are VIPs, reals and reasons, which are labels.
                "vips" | "reals" => {
                    let of_one = value.as_object().unwrap().iter();
                    let of_one =
                        of_one.map(|(name, value)| fields(&format!("{place}.{name}"), value));
                    of_one.flatten().collect()
                }
                "drop_reasons" | "probes" => fields(place, value),
                "" => fields(name, value),
                _ => fields(&format!("{place}.{name}"), value),
            })
            .collect(),
        Value::Array(all) => all.iter().flat_map(|value| fields(place, value)).collect(),
        _ => BTreeSet::from([place.to_owned()]),
    }
}

#[test]
fn documentation_lists_every_metric_and_every_counter() {
    require_root();
    // For whom is started from here on.
    let pins = private_bpf_fs().unwrap();
    let (host, file, mut exporter) = idle("documented.toml");
    let mut page = scrape(&host);
    // | metric | type | unit | labels | field of `Counters` | meaning |
    let text = read("docs/metrics.md");
    let (mut documented, mut described) = (BTreeMap::new(), BTreeSet::new());
    for row in text.lines().filter(|row| row.starts_with("| `katran_")) {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, unit, labels, fields, meaning] = columns[..] else {
            panic!("not six columns: {row}");
        };
        assert!(!unit.is_empty(), "{row}");
        let name = name.trim_matches('`').to_owned();
        let says = (kind.to_owned(), quoted(labels), meaning.to_owned());
        assert!(documented.insert(name, says).is_none(), "twice: {row}");
        described.extend(quoted(fields));
    }
    // An exporter is attached, or has an entry of a root program.
    let path = pins.join("documented").display().to_string();
    host.ip("link add eth2 type veth peer name eth3").unwrap();
    let root = |arguments: &[&str]| {
        let mut command = example("root");
        command.args(arguments).args(["--path", &path]);
        assert!(host.output(command).unwrap().status.success());
    };
    root(&["attach", "--interface", "eth2"]);
    let mut command = example("exporter");
    command.arg("--config").arg(&file.0);
    command.args(["--shared", &path, "--listen", "127.0.0.1:9958"]);
    let mut shared = Running::start(&host, command);
    shared.says("/metrics");
    let response = http_get(
        &host,
        "127.0.0.1:9958".parse().unwrap(),
        "/metrics",
        PATIENCE,
    );
    let answer = String::from_utf8(response.unwrap().body).unwrap();
    let mut of_shared = Page::parse(&answer, Dialect::Plain);
    let labels = [("path", path.as_str()), ("position", "2")];
    assert_eq!(of_shared.get("katran_shared_entry_info", &labels), 1.0);
    assert!(
        of_shared.families["katran_interface_info"]
            .samples
            .is_empty()
    );
    let entries = of_shared.families.remove("katran_shared_entry_info");
    let name = "katran_shared_entry_info".to_owned();
    assert!(page.families[&name].samples.is_empty());
    page.families.insert(name, entries.unwrap());
    shared.end(SIGTERM);
    root(&["remove"]);

    let served: BTreeMap<_, _> = page
        .families
        .iter()
        .map(|(name, family)| {
            let labels = family
                .samples
                .keys()
                .flat_map(|labels| labels.keys().cloned());
            let says = (family.kind.clone(), labels.collect(), family.help.clone());
            (name.clone(), says)
        })
        .collect();
    assert_eq!(documented, served);
    labels_are_documented(&text, &page);

    // The library has no counter that is not served.
    let mut katran = Katran::builder()
        .gateway_mac("02:00:00:00:00:01".parse().unwrap())
        .flow_table_size(10_000)
        .healthcheck_interface("eth0")
        .load()
        .unwrap();
    let vip: Vip = "203.0.113.1:443/tcp".parse().unwrap();
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    let real = Real::new("198.51.100.1".parse().unwrap());
    katran.add_real(vip, real).unwrap();
    katran.probes_mut().register(vip).unwrap();
    let counters = serde_json::to_value(katran.counters().unwrap()).unwrap();
    assert_eq!(described, fields("", &counters));
    exporter.end(SIGINT);
}

/// The tables of labels: they have each label, and all values of those that have a few.
fn labels_are_documented(text: &str, page: &Page) {
    let (_, rest) = text.split_once("## Labels\n").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let rows = table.lines().filter(|row| row.starts_with("| `"));
    let rows: Vec<(BTreeSet<String>, BTreeSet<String>)> = rows
        .map(|row| {
            let (labels, values) = row.trim_matches('|').split_once(" | ").unwrap();
            (quoted(labels), quoted(values))
        })
        .collect();
    let samples = |name: &str| page.families[name].samples.keys();
    let mut of_labels = BTreeMap::<&str, BTreeSet<&str>>::new();
    for name in page.families.keys() {
        for (label, value) in samples(name).flatten() {
            of_labels.entry(label).or_default().insert(value);
        }
    }
    let named: BTreeSet<&str> = rows
        .iter()
        .flat_map(|(labels, _)| labels)
        .map(String::as_str)
        .collect();
    let served: BTreeSet<&str> = of_labels.keys().copied().collect();
    assert_eq!(named, served);
    for label in [
        "verdict", "kind", "family", "result", "event", "by", "reason",
    ] {
        let (_, values) = rows
            .iter()
            .find(|(labels, _)| labels.contains(label))
            .unwrap();
        let mut values: BTreeSet<&str> = values.iter().map(String::as_str).collect();
        // The metrics that have them.
        values.retain(|value| !value.starts_with("katran_"));
        assert_eq!(values, of_labels[label], "{label}");
    }
}

#[test]
fn operations_guide_names_what_there_is() {
    let guide = read("docs/operations.md");
    let documented = read("docs/metrics.md");
    let mut names = 0;
    for part in guide.split('`') {
        if part.starts_with("katran_") && !part.contains('/') {
            assert!(documented.contains(&format!("| `{part}` |")), "{part}");
            names += 1;
        }
    }
    assert!(names >= 4, "{names}");
    // Its configuration is one that can be read, checked, and written again.
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (document, _) = rest.split_once("```").unwrap();
    let state = katran::State::from_toml(document).unwrap();
    assert_eq!(state.vips[0].reals.len(), 2);
    let mut balancer = state.balancer.clone().unwrap();
    // This machine may have fewer CPUs than that of the guide.
    balancer.forwarding_cpus = None;
    let mut here = state;
    here.balancer = Some(balancer);
    here.builder().unwrap().memory_estimate().unwrap();
}

/// Metrics in a query, each with the labels that are asked of it.
fn metrics_of(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (start, _) in query.match_indices("katran_") {
        let rest = &query[start..];
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        let matchers = rest[name.len()..].strip_prefix('{');
        let matchers = matchers.and_then(|rest| rest.split_once('}'));
        let labels = matchers.map_or("", |(matchers, _)| matchers).split(", ");
        let labels = labels.filter_map(|matcher| matcher.split_once('='));
        found.push((
            name.to_owned(),
            labels.map(|(label, _)| label.to_owned()).collect(),
        ));
    }
    found
}

#[test]
fn dashboard_asks_for_what_is_served() {
    let (host, _file, mut exporter) = idle("dashboard.toml");
    let page = scrape(&host);
    let dashboard: Value = serde_json::from_str(&read("examples/grafana/katran.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "instance", "vip", "real"]);

    let mut queries: Vec<(String, String, String)> = variables[1..]
        .iter()
        .map(|variable| {
            let query = variable["query"]["query"].as_str().unwrap();
            (query.to_owned(), "variable".to_owned(), String::new())
        })
        .collect();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{}",
            panel["title"]
        );
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24);
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            queries.push((
                target["expr"].as_str().unwrap().to_owned(),
                panel["title"].as_str().unwrap().to_owned(),
                target["legendFormat"].as_str().unwrap().to_owned(),
            ));
        }
    }
    assert!(queries.len() > 30);
    for (query, title, legend) in &queries {
        let depth = |open, close| query.matches(open).count() == query.matches(close).count();
        assert!(
            depth('(', ')') && depth('{', '}') && depth('[', ']'),
            "{query}"
        );
        let metrics = metrics_of(query);
        assert!(!metrics.is_empty(), "{title}: {query}");
        for (name, asked) in metrics {
            let family = page.families.get(&name);
            let family = family.unwrap_or_else(|| panic!("{title}: no metric {name}"));
            let labels = family.samples.keys().next();
            let has = |label: &str| {
                label == "instance" || labels.is_some_and(|labels| labels.contains_key(label))
            };
            assert!(asked.iter().all(|label| has(label)), "{title}: {query}");
            // A rate of a gauge, or a counter that is drawn as it is, are mistakes.
            let counter = family.kind == "counter";
            let rated = query.contains("rate(") || query.contains("increase(");
            let drawn = title == "Failed kernel calls" || title == "variable";
            assert_eq!(counter, rated || counter && drawn, "{title}: {query}");
            // Labels in `by (...)` and in the legend.
            let by = query
                .split("by (")
                .skip(1)
                .filter_map(|rest| rest.split_once(')'));
            let by: Vec<&str> = by.flat_map(|(labels, _)| labels.split(", ")).collect();
            assert!(by.iter().all(|label| has(label)), "{title}: {query}");
            for (shown, _) in legend
                .split("{{")
                .skip(1)
                .filter_map(|rest| rest.split_once("}}"))
            {
                assert!(has(shown), "{title}: {legend}");
                assert!(by.is_empty() || by.contains(&shown), "{title}: {legend}");
            }
        }
    }
    exporter.end(SIGINT);
}

#[test]
fn exporter_that_cannot_listen_or_watch_touches_no_traffic() {
    let (host, file, mut exporter) = idle("refused.toml");
    let config = file.0.to_str().unwrap();
    host.ip("link add eth2 type veth peer name eth3").unwrap();
    for (more, complaint) in [
        (&[][..], "cannot listen on 127.0.0.1:9957"),
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
        let mut command = example("exporter");
        command
            .args(["--config", config, "--interface", "eth2"])
            .args(more);
        let output = host.output(command).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(complaint), "{stderr}");
        // Not even for a moment.
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(!stdout.contains("balancing on"), "{stdout}");
        assert!(!host.ip("link show eth2").unwrap().contains("xdp"));
    }
    // The first one has seen nothing of it.
    assert_eq!(http_get(&host, METRICS, "/", PATIENCE).unwrap().status, 200);
    assert_eq!(
        http_get(&host, METRICS, "/no", PATIENCE).unwrap().status,
        404
    );
    scrape(&host);
    exporter.end(SIGINT);
}
