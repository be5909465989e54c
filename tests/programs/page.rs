//! The page of `run --listen`, and its JSON: what it shows of known traffic, who may change things,
//! and what a browser displays.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::eventually;
use katran_lab::http_get;
use katran_lab::require_root;
use serde_json::Value;
use serde_json::json;

use crate::exporter::PATIENCE;
use crate::exporter::configuration;
use crate::exporter::send;
use crate::program::Commanded;
use crate::program::Scratch;

const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9957);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn get(host: &Host, path: &str) -> (u16, String) {
    let answer = http_get(host, PAGE, path, PATIENCE).unwrap();
    (answer.status, answer.text())
}

fn json_of(host: &Host, path: &str) -> Value {
    let (status, text) = get(host, path);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn post(host: &Host, token: Option<&str>, body: &str) -> (u16, Value) {
    let mut stream = host.run(|| TcpStream::connect(PAGE)).unwrap();
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    write!(
        stream,
        "POST /api/commands HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{body}",
        body.len(),
        token.unwrap_or_default()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn start(name: &str, lab: &Lab, text: &str, options: &[&str]) -> (Scratch, Commanded) {
    let file = Scratch::new(&format!("{name}.toml"));
    file.write(text);
    let host = &lab.balancers[0].host;
    let options = [&["--interface", "eth0", "--listen"], options].concat();
    let balancer = Commanded::start(host, &file, &options);
    (file, balancer)
}

#[test]
fn the_json_reports_traffic_and_readiness() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let (_file, _balancer) = start("page_json", &lab, &configuration(&lab), &[]);

    send(&lab, (lab.vip4(), 53), 10, 3, 100);
    eventually("30 datagrams are counted", || {
        let status = json_of(host, "/api/status");
        let vips = status["vips"].as_array().unwrap();
        let vip = vips
            .iter()
            .find(|of| of["vip"] == "203.0.113.1:53/udp")
            .unwrap();
        assert_eq!((&vip["reals"], &vip["serving"]), (&json!(2), &json!(2)));
        vip["packets"] == 30
            && vip["bytes"] == 30 * 128
            && status["attachments"][0]["state"] == "attached"
    });
    let reals = json_of(host, "/api/reals?vip=203.0.113.1:53/udp");
    let reals = reals["reals"].as_array().unwrap();
    let packets: u64 = reals.iter().map(|of| of["packets"].as_u64().unwrap()).sum();
    assert_eq!(packets, 30, "{reals:?}");
    let weights: Vec<_> = reals.iter().map(|of| of["weight"].clone()).collect();
    assert_eq!(weights, [1, 2]);
    assert_eq!(
        json_of(host, "/api/reals?vip=%5B2001:db8:1::1%5D:53/udp")["reals"][0]["packets"],
        0
    );
    assert_eq!(get(host, "/api/reals?vip=203.0.113.1:55/udp").0, 404);

    assert_eq!(get(host, "/healthz"), (200, "ok".to_owned()));
    // One of the document's VIPs has no real.
    let (status, why) = get(host, "/readyz");
    assert_eq!(
        (status, &*why),
        (503, "203.0.113.1:54/udp: no real gets new flows")
    );
}

#[test]
fn only_the_token_gives_commands() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let real = lab.backends[0].v4.to_string();
    let drain = json!({ "command": "drain", "real": real }).to_string();
    let configuration = configuration(&lab);
    {
        let (_file, _balancer) = start("page_closed", &lab, &configuration, &[]);
        let (status, answer) = post(host, Some(TOKEN), &drain);
        assert_eq!(status, 403, "{answer}");
    }
    let token = secret("page.token");
    let path = token.0.to_str().unwrap();
    let (_file, balancer) = start("page_token", &lab, &configuration, &["--token-file", path]);
    for wrong in [
        None,
        Some(""),
        Some("0123456789abcdef0123456789abcdee"),
        Some(&TOKEN[1..]),
    ] {
        let (status, answer) = post(host, wrong, &drain);
        assert_eq!(status, 401, "{answer}");
    }
    assert_eq!(json_of(host, "/api/status")["drains"], json!([]));
    let (status, answer) = post(host, Some(TOKEN), &drain);
    assert_eq!(
        (status, &answer["ok"]),
        (200, &json!(["203.0.113.1:53/udp"])),
        "{answer}"
    );
    let drains = json_of(host, "/api/status");
    assert_eq!(drains["drains"][0]["real"], real, "{drains}");
    for (body, status) in [
        ("{", 400),
        ("{\"command\": \"leave\"}", 400),
        (r#"{"command": "drain", "real": "192.0.2.99"}"#, 422),
        (r#"{"command": "apply", "document": "x = "}"#, 422),
        (
            r#"{"command": "monitor", "rate_limit": 1, "snap_length": 64}"#,
            422,
        ),
    ] {
        let (is, answer) = post(host, Some(TOKEN), body);
        assert_eq!(is, status, "{body}: {answer}");
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|why| why.contains(' ')),
            "{answer}"
        );
    }
    drop(balancer);
    // A token file that others can read is refused.
    std::fs::set_permissions(&token.0, PermissionsExt::from_mode(0o640)).unwrap();
    let file = Scratch::new("page_open.toml");
    file.write(&configuration);
    let mut command = crate::program::katran("run");
    command
        .arg("--config")
        .arg(&file.0)
        .args(["--interface", "eth0", "--listen"]);
    command.args(["--token-file", path]);
    let output = host.output(command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("chmod 600"),
        "{said}"
    );
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let page = include_str!("../../examples/katran/page/page.html");
    let script = include_str!("../../examples/katran/page/page.js");
    let style = include_str!("../../examples/katran/page/page.css");
    for text in [page, script, style] {
        assert!(!text.contains("//cdn") && !text.contains("http:") && !text.contains("https:"));
    }
    assert!(
        !page.contains("style=") && !page.contains("onclick"),
        "the policy forbids it"
    );
    // The elements that the script looks for exist.
    for id in script.split("$(\"").skip(1) {
        let (id, _) = id.split_once('"').unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
    for labelled in page.split("aria-labelledby=\"").skip(1) {
        let (id, _) = labelled.split_once('"').unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

/// A client that sends only the head of a command.
fn head(host: &Host, token: &str, length: usize) -> TcpStream {
    head_with(host, token, length, "")
}

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

fn head_with(host: &Host, token: &str, length: usize, more: &str) -> TcpStream {
    let mut stream = host.run(|| TcpStream::connect(PAGE)).unwrap();
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    write!(
        stream,
        "POST /api/commands HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\nAuthorization: Bearer {token}\r\n{more}\r\n",
    )
    .unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn secret(name: &str) -> Scratch {
    let token = Scratch::new(name);
    token.write(&format!("{TOKEN}\n"));
    std::fs::set_permissions(&token.0, PermissionsExt::from_mode(0o600)).unwrap();
    token
}

#[test]
fn nothing_is_read_without_the_token_and_one_command_at_a_time() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let configuration = configuration(&lab);
    {
        let (_file, _balancer) = start("page_unread_closed", &lab, &configuration, &[]);
        let refused = answer(head(host, TOKEN, 60 << 20));
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    }
    let token = secret("page_unread.token");
    let options = ["--token-file", token.0.to_str().unwrap()];
    let (_file, _balancer) = start("page_unread", &lab, &configuration, &options);
    let refused = answer(head(host, "0123456789abcdef0123456789abcdee", 60 << 20));
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let refused = answer(head(host, TOKEN, (64 << 20) + 1));
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");

    // A silent client gets its time; only then is it another's turn. It has begun when the server
    // wants the body.
    let began = Instant::now();
    let mut slow = head_with(host, TOKEN, 60 << 20, "Expect: 100-continue\r\n");
    let mut goes_on = [0; CONTINUE.len()];
    slow.read_exact(&mut goes_on).unwrap();
    assert_eq!(str::from_utf8(&goes_on).unwrap(), CONTINUE);
    let status = json!({ "command": "status" }).to_string();
    let (taken, _) = post(host, Some(TOKEN), &status);
    assert_eq!(taken, 200);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9), "{took:?}");
    let late = answer(slow);
    assert!(late.starts_with("HTTP/1.1 408"), "{late}");
}

#[test]
fn scrapes_are_answered_while_a_command_takes_long() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let token = secret("page_long.token");
    let options = ["--token-file", token.0.to_str().unwrap()];
    let (_file, _balancer) = start("page_long", &lab, &configuration(&lab), &options);
    // It takes seconds to parse, and is refused.
    let document = format!("x = [{}]", "1,".repeat(4 << 20));
    let long = json!({ "command": "apply", "document": document }).to_string();
    let answered = std::thread::scope(|scope| {
        let command = scope.spawn(|| post(host, Some(TOKEN), &long));
        let mut answered = 0;
        while !command.is_finished() {
            for path in ["/metrics", "/api/status", "/readyz"] {
                get(host, path);
            }
            answered += u32::from(!command.is_finished());
        }
        assert_eq!(command.join().unwrap().0, 422);
        answered
    });
    assert!(answered >= 5, "{answered} rounds");
}

/// Silent clients take a bounded number of descriptors, and give them back.
#[test]
fn silent_connections_keep_nobody_out() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let (_file, balancer) = start("page_silent", &lab, &configuration(&lab), &[]);
    let descriptors = || {
        let directory = format!("/proc/{}/fd", balancer.balancer.process.id());
        std::fs::read_dir(directory).unwrap().count()
    };
    let before = descriptors();
    let silent: Vec<_> = (0..200)
        .map(|_| host.run(|| TcpStream::connect(PAGE)).unwrap())
        .collect();
    assert_eq!(get(host, "/healthz"), (200, "ok".to_owned()));
    let held = descriptors() - before;
    assert!((32..=100).contains(&held), "{held} descriptors");
    // After 10 s of silence the others are closed as well.
    eventually("all are closed", || descriptors() <= before + 1);
    drop(silent);
}

/// The page as a browser shows it after some seconds.
fn browse(host: &Host, options: &[&str], fragment: &str) -> String {
    let profile = Scratch::new("page_profile");
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--timeout=20000",
    ]);
    command.args(["--virtual-time-budget=15000", "--enable-logging=stderr"]);
    command.arg(format!("--user-data-dir={}", profile.0.display()));
    command
        .args(options)
        .arg(format!("http://{PAGE}/{fragment}"));
    let output = host.output(command).unwrap();
    let _ = std::fs::remove_dir_all(&profile.0);
    let errors = String::from_utf8_lossy(&output.stderr);
    for trouble in [
        "Uncaught",
        "Content Security Policy",
        "Failed to load resource",
    ] {
        assert!(!errors.contains(trouble), "{errors}");
    }
    String::from_utf8(output.stdout).unwrap()
}

/// 500 VIPs with the longest IPv6 addresses.
fn many(lab: &Lab) -> String {
    let mut text = configuration(lab);
    for number in 0..498 {
        text += &format!(
            "[[vip]]\naddress = \"2001:db8:1111:2222:3333:4444:5555:{:x}\"\nport = 443\nprotocol = \"tcp\"\n\
             reals = [{{ address = \"{}\" }}, {{ address = \"{}\", weight = 0 }}]\n",
            0x1000 + number,
            lab.backends[0].v6,
            lab.backends[1].v6
        );
    }
    text.replace("flow_table_size", "ring_size = 4099\nflow_table_size")
}

#[test]
#[ignore = "needs chromium: make page"]
fn a_browser_shows_500_vips_and_the_reals_of_one() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let (_file, _balancer) = start("page_many", &lab, &many(&lab), &[]);
    send(&lab, (lab.vip4(), 53), 10, 3, 100);
    let shown = browse(host, &["--dump-dom"], "");
    assert!(shown.contains("501 of 501"), "{shown}");
    assert!(shown.contains("[2001:db8:1111:2222:3333:4444:5555:1000]:443/tcp"));
    assert!(shown.contains("0 of 0"), "the VIP without reals");
    // One real is drained for all of them.
    assert!(shown.contains("5555:1000]:443/tcp and 497 more"), "{shown}");
    assert_eq!(shown.matches("<canvas").count(), 501);
    assert!(shown.contains("aria-sort=\"descending\""));
    let shown = browse(host, &["--dump-dom"], "#203.0.113.1:53/udp");
    assert!(
        shown.contains("1 of 501") && shown.contains("aria-expanded=\"true\""),
        "{shown}"
    );
    assert!(shown.contains("Reals of 203.0.113.1:53/udp"), "{shown}");
    // Pictures for people to look at.
    if let Ok(directory) = std::env::var("KATRAN_SCREENSHOTS") {
        for (name, size, more, fragment) in [
            ("wide", "1280,900", "--force-color-profile=srgb", ""),
            (
                "vip",
                "1280,900",
                "--force-color-profile=srgb",
                "#203.0.113.1:53/udp",
            ),
            (
                "dark",
                "1280,900",
                "--blink-settings=preferredColorScheme=0",
                "",
            ),
            ("narrow", "400,900", "--force-color-profile=srgb", ""),
        ] {
            let picture = format!("--screenshot={directory}/page-{name}.png");
            browse(
                host,
                &[&format!("--window-size={size}"), more, &picture],
                fragment,
            );
        }
    }
}
