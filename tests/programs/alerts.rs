//! The alert rules are valid, each fires in its own case, and all query metrics that are
//! served.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::pages::read;

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prometheus")
}

fn promtool(arguments: &[&str]) {
    let ran = Command::new("promtool")
        .args(arguments)
        .current_dir(place())
        .output();
    let ran = ran.unwrap_or_else(|error| panic!("promtool: {error}: run `scripts/setup test`"));
    assert!(
        ran.status.success(),
        "{arguments:?}: {}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[test]
fn each_alert_fires_when_it_should() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let (rules, cases) = (
        read("examples/prometheus/alerts.yml"),
        read("examples/prometheus/alerts_test.yml"),
    );
    let names: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        assert!(cases.contains(&format!("alertname=\"{name}\"")), "{name}");
    }
}

#[test]
fn alerts_ask_for_what_is_served() {
    let documented = read("docs/metrics.md") + &read("docs/health.md");
    let mut names = BTreeSet::new();
    for file in ["alerts.yml", "alerts_test.yml"] {
        let text = read(&format!("examples/prometheus/{file}"));
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics = words.filter(|word| word.starts_with("katran_"));
        names.extend(metrics.map(str::to_owned));
    }
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        assert!(documented.contains(&format!("| `{name}` |")), "{name}");
    }
}
