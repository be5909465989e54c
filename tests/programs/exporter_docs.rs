//! The documentation and the dashboard use metrics that `run --listen` serves, and document all of
//! them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;

use katran::FlowTracking;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::http_get;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use serde_json::Value;

use super::exporter::PATIENCE;
use super::exporter::SIGINT;
use super::exporter::SIGTERM;
use super::exporter::idle;
use super::exporter::idle_with;
use super::exporter::scrape;
use crate::exposition::Dialect;
use crate::exposition::Page;
use crate::pages::read;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::program::katran;

/// The texts between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Every number of a snapshot by its path, such as `icmp.echo_v4`.
fn fields(place: &str, value: &Value) -> BTreeSet<String> {
    match value {
        // A duration is one value.
        Value::Object(object) if object.keys().eq(["nanos", "secs"]) => {
            BTreeSet::from([place.to_owned()])
        }
        Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| match place {
                // Maps whose keys are labels: VIPs, reals and reasons.
                "vips" | "vip_details" | "slots" | "reals" => {
                    let of_one = value.as_object().unwrap().iter();
                    let of_one =
                        of_one.map(|(name, value)| fields(&format!("{place}.{name}"), value));
                    of_one.flatten().collect()
                }
                "vip_reals" => {
                    let reals = value.as_object().unwrap().values();
                    let found = reals.flat_map(|of_real| {
                        let of_real = of_real.as_object().unwrap().iter();
                        of_real
                            .flat_map(|(name, value)| fields(&format!("{place}.{name}"), value))
                            .collect::<Vec<_>>()
                    });
                    found.collect()
                }
                "drop_reasons" | "probes" | "flow_entries" => fields(place, value),
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
    // Programs started from here on see this file system.
    let pins = private_bpf_fs().unwrap();
    let (host, file, mut exporter) = idle("documented.toml");
    let mut page = scrape(&host);
    // | metric | labels | meaning |
    let text = read("docs/metrics.md");
    let mut documented = BTreeMap::new();
    for row in text.lines().filter(|row| row.starts_with("| `katran_")) {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, labels, meaning] = columns[..] else {
            panic!("not three columns: {row}");
        };
        let name = name.trim_matches('`').to_owned();
        // As the page says of the names.
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        let says = (kind.to_owned(), quoted(labels), meaning.to_owned());
        assert!(documented.insert(name, says).is_none(), "twice: {row}");
    }
    // One exporter is attached directly, the other has an entry of a root program.
    let path = pins.join("documented").display().to_string();
    host.ip("link add eth2 type veth peer name eth3").unwrap();
    let root = |arguments: &[&str]| {
        let mut command = example("root");
        command.args(arguments).args(["--path", &path]);
        assert!(host.output(command).unwrap().status.success());
    };
    root(&["attach", "--interface", "eth2"]);
    let mut command = katran("run");
    // It looks for a route to the real, and finds none.
    let lost = Scratch::new("lost.toml");
    let document = fs::read_to_string(&file.0).unwrap();
    let given = "gateway_mac = \"02:00:00:00:00:01\"";
    let wanted = "gateway_mac = \"auto\"\nnext_hops = \"per-real\"";
    lost.write(&document.replacen(given, wanted, 1));
    command.arg("--config").arg(&lost.0);
    command.args(["--shared", &path, "--interface", "eth2"]);
    command.args(["--listen", "127.0.0.1:9958"]);
    let mut shared = Running::start(&host, command);
    shared.says("/metrics");
    let address = "127.0.0.1:9958".parse().unwrap();
    let page_of_shared = || {
        let response = http_get(&host, address, "/metrics", PATIENCE).unwrap();
        Page::parse(&String::from_utf8(response.body).unwrap(), Dialect::Plain)
    };
    eventually("it misses the way to the real", || {
        let silent = &page_of_shared().families["katran_next_hop_silent_seconds"];
        !silent.samples.is_empty()
    });
    let mut of_shared = page_of_shared();
    // The diagnosis of the root program's interface.
    assert!(
        of_shared
            .values_of("katran_problem", "interface")
            .contains("eth2")
    );
    let labels = [("path", path.as_str()), ("position", "2")];
    assert_eq!(of_shared.get("katran_shared_entry_info", &labels), 1.0);
    assert!(
        of_shared.families["katran_interface_info"]
            .samples
            .is_empty()
    );
    assert_eq!(of_shared.get("katran_shared_entry_attached", &labels), 1.0);
    for name in ["katran_shared_entry_attached", "katran_shared_entry_info"] {
        let entries = of_shared.families.remove(name).unwrap();
        assert!(page.families[name].samples.is_empty());
        page.families.insert(name.to_owned(), entries);
    }
    let name = "katran_next_hop_silent_seconds".to_owned();
    assert!(page.families[&name].samples.is_empty());
    let silent = of_shared.families.remove(&name).unwrap();
    let labels: Vec<_> = silent.samples.keys().flatten().collect();
    assert!(
        labels.contains(&(&"real".to_owned(), &"198.51.100.1".to_owned())),
        "{labels:?}"
    );
    page.families.insert(name, silent);
    // Only packets make these series: see exporter.rs.
    for name in ["packets", "bytes", "syn_packets"] {
        let name = format!("katran_vip_real_{name}_total");
        assert!(page.families[&name].samples.is_empty());
        documented.get_mut(&name).unwrap().1.clear();
    }
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

    // Every counter of the library is served.
    let mut katran = Katran::builder()
        .gateway_mac("02:00:00:00:00:01".parse().unwrap())
        .flow_table_size(10_000)
        .flow_tracking(FlowTracking::Changed)
        .healthcheck_interface("eth0")
        .max_vip_reals(1)
        .load()
        .unwrap();
    let vip: Vip = "203.0.113.1:443/tcp".parse().unwrap();
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    let real = Real::new("198.51.100.1".parse().unwrap());
    katran.add_real(vip, real).unwrap();
    katran.probes_mut().register(vip).unwrap();
    // A packet makes a pair.
    let _ = katran.simulate(&syn()).unwrap();
    let elsewhere = Host::new("elsewhere").unwrap();
    elsewhere
        .ip("link add eth0 type veth peer name eth1")
        .unwrap();
    let counters = elsewhere.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.counters().unwrap()
    });
    let metrics = counters.metrics().into_iter();
    let in_metrics: BTreeSet<String> = metrics.flat_map(|metric| metric.fields).collect();
    let counters = serde_json::to_value(counters).unwrap();
    assert_eq!(in_metrics, fields("", &counters));
    exporter.end(SIGINT);
}

/// A SYN to the VIP.
fn syn() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    frame.extend([192, 0, 2, 7, 203, 0, 113, 1]);
    frame.extend([0x9c, 0x41, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
    frame.extend([0; 6]);
    frame
}

/// The tables of labels have every label, and all values of those with few.
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
        // The metrics that have the label.
        values.retain(|value| !value.starts_with("katran_"));
        if label == "reason" {
            values.extend(drop_reasons(text));
        }
        assert_eq!(values, of_labels[label], "{label}");
    }
}

/// The names in the tables of drop reasons.
fn drop_reasons(text: &str) -> impl Iterator<Item = &str> {
    let (_, rest) = text.split_once("### Drop reasons\n").unwrap();
    let (tables, _) = rest.split_once("\n## ").unwrap();
    let rows = tables.lines().filter_map(|row| row.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0))
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
    // The guide's configuration can be read, checked, and written again.
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (document, _) = rest.split_once("```").unwrap();
    let state = katran::State::from_toml(document).unwrap();
    assert_eq!(state.vips[0].reals.len(), 2);
    let mut balancer = state.balancer.clone().unwrap();
    // This machine may have fewer CPUs than the guide's.
    balancer.forwarding_cpus = None;
    let mut here = state;
    here.balancer = Some(balancer);
    here.builder().unwrap().memory_estimate().unwrap();
}

/// The metrics in a query, each with the labels that the query names.
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
    let probing = "source_v4 = \"10.0.0.1\"\n";
    let (host, _file, mut exporter) = idle_with("dashboard.toml", probing, &["--probe"]);
    let page = scrape(&host);
    let documented = read("docs/metrics.md") + &read("docs/health.md");
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
    for metric in [
        "slot_packets_total",
        "vip_settled_slots",
        "vip_unsettled_slots",
        "vip_oldest_unsettled_slot_seconds",
        "vip_flow_entries",
        "health_reals",
        "health_failures_total",
    ] {
        let name = format!("katran_{metric}{{");
        assert!(
            queries.iter().any(|(query, ..)| query.contains(&name)),
            "{metric}"
        );
    }
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
            // A metric without series at the moment: the documentation says which labels it has.
            let row = documented
                .lines()
                .find(|row| row.starts_with(&format!("| `{name}` |")));
            let row = quoted(row.unwrap_or_else(|| panic!("{title}: {name}")));
            let has = |label: &str| {
                label == "instance"
                    || labels.map_or(row.contains(label), |labels| labels.contains_key(label))
            };
            assert!(asked.iter().all(|label| has(label)), "{title}: {query}");
            // The rate of a gauge is a mistake, and so is a plain counter.
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
