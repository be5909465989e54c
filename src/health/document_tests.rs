//! Documents with health checks: their settings, and errors with places.

use std::net::IpAddr;
use std::time::Duration;

use super::check::Answer;
use super::check::Check;
use super::check::Command;
use super::check::Dns;
use super::check::Http;
use super::check::Method;
use super::check::Quic;
use super::check::Tls;
use super::check::Trust;
use super::check::Udp;
use super::document::Document;
use super::keys::SECTIONS;
use super::policy::Policy;
use super::policy::Via;
use super::settings::Settings;
use crate::document::State;
use crate::mutate;
use crate::types::Protocol;
use crate::types::Vip;

/// Every key.
const ALL: &str = r#"
[[vip]]
address = "203.0.113.1"
port = 443
protocol = "tcp"
reals = [
    { address = "198.51.100.1" },
    { address = "198.51.100.2", health = { check = "none" } },
    { address = "198.51.100.3", health = { check = { kind = "syn" }, port = 8080, interval = 5, timeout = 4, rise = 6, fall = 7 } },
]
[vip.health]
port = 8443
via = "direct"
interval = 0.5
timeout = 0.25
rise = 3
fall = 4
jitter = 20
panic_threshold = 30
drained_fallback = false
slow_start = 60
slow_start_steps = 4
[vip.health.check]
kind = "https"
path = "/healthz?full"
method = "get"
host = "www.example.com:8443"
headers = ["Accept: text/plain", "X-A:b"]
statuses = [204, "200-202"]
answer_header = "X-State: ready"
answer_body = "all green"
max_body = 1000
server_name = "www.example.com"
authorities = "/etc/katran/ca.pem"

[health]
tcp_check = { kind = "http", path = "/", method = "head", host = "a", headers = [], statuses = [200], answer_header = "A:b", max_body = 9 }
udp_check = "quic"
port = 9000
via = "tunnel"
interval = 1
timeout = 2
rise = 5
fall = 6
jitter = 0
panic_threshold = 50
drained_fallback = true
slow_start = 10
slow_start_steps = 5
first_mark = 1000
concurrency = 100
threads = 4
history = 8
pause = 0.2

[[vip]]
address = "203.0.113.1"
port = 53
protocol = "udp"
health = { check = { kind = "dns", name = "www.example.com", record_type = 28, protocol = "tcp", codes = [0, 3], address = "2001:db8::1" } }

[[vip]]
address = "203.0.113.2"
port = 5000
protocol = "udp"
health = { check = { kind = "udp", payload = 'ping\x00', answer_contains = 'po\\ng' } }

[[vip]]
address = "203.0.113.3"
port = 443
protocol = "udp"
health = { check = { kind = "quic", alpn = ["hq"], server_name = "a.example", verify = false } }

[[vip]]
address = "203.0.113.4"
port = 5001
protocol = "udp"
health = { check = { kind = "udp", payload = "", answer = "echo" } }

[[vip]]
address = "203.0.113.5"
port = 5001
protocol = "udp"
health = { check = { kind = "udp", payload = "", answer_exactly = "!" } }

[[vip]]
address = "203.0.113.6"
port = 80
protocol = "tcp"
health = { check = { kind = "command", program = "/usr/bin/true", arguments = ["-a", "b"] } }

[[vip]]
address = "203.0.113.7"
port = 80
protocol = "tcp"
health = { check = { kind = "tcp" } }

[[vip]]
address = "203.0.113.8"
port = 80
protocol = "tcp"
"#;

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

fn real(last: u8) -> IpAddr {
    [198, 51, 100, last].into()
}

fn settings(text: &str) -> Settings {
    Document::from_toml(text).unwrap().settings.unwrap()
}

#[test]
fn every_key_is_read() {
    let document = Document::from_toml(ALL).unwrap();
    let settings = document.settings.as_ref().unwrap();
    let all = [
        u64::from(settings.first_mark),
        settings.concurrency.into(),
        settings.threads.into(),
        settings.history.into(),
        settings.pause.as_millis() as u64,
    ];
    assert_eq!(all, [1000, 100, 4, 8, 200]);
    let mut usual = Policy::none();
    usual.port = Some(9000);
    usual.interval = Duration::from_secs(1);
    usual.timeout = Duration::from_secs(2);
    (usual.rise, usual.fall, usual.jitter) = (5, 6, 0);
    (usual.panic_threshold, usual.slow_start_steps) = (50, 5);
    usual.slow_start = Duration::from_secs(10);
    let mut head = Http::new("/");
    (head.method, head.host) = (Method::Head, Some("a".to_owned()));
    (head.statuses, head.max_body) = (vec![200..=200], 9);
    head.answer_header = Some(("A".to_owned(), "b".to_owned()));
    let asked = |check: Check| Policy {
        check: Some(check),
        ..usual.clone()
    };
    assert_eq!(settings.tcp, asked(head.into()));
    let system = Tls {
        server_name: None,
        trust: Trust::System,
    };
    assert_eq!(settings.udp, asked(Quic::new(system).into()));

    let secure = &settings.vips[&vip("203.0.113.1:443/tcp")];
    let mut https = Http::new("/healthz?full");
    https.host = Some("www.example.com:8443".to_owned());
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    https.headers = vec![header("Accept", "text/plain"), header("X-A", "b")];
    https.statuses = vec![204..=204, 200..=202];
    https.answer_header = Some(header("X-State", "ready"));
    (https.answer_body, https.max_body) = (Some("all green".to_owned()), 1000);
    https.tls = Some(Tls {
        server_name: Some("www.example.com".to_owned()),
        trust: Trust::File("/etc/katran/ca.pem".into()),
    });
    assert_eq!(secure.check, Some(https.into()));
    assert_eq!((secure.port, secure.via), (Some(8443), Via::Direct));
    assert_eq!(secure.interval, Duration::from_millis(500));
    assert_eq!(secure.timeout, Duration::from_millis(250));
    assert_eq!((secure.rise, secure.fall, secure.jitter), (3, 4, 20));
    assert_eq!((secure.panic_threshold, secure.slow_start_steps), (30, 4));
    assert_eq!(secure.slow_start, Duration::from_secs(60));
    assert!(!secure.drained_fallback);
    assert!(!secure.reals.contains_key(&real(1)));
    assert!(!secure.reals[&real(2)].probed);
    let third = &secure.reals[&real(3)];
    assert_eq!((&third.check, third.port), (&Some(Check::Syn), Some(8080)));
    assert_eq!(third.interval, Some(Duration::from_secs(5)));
    assert_eq!(third.timeout, Some(Duration::from_secs(4)));
    assert_eq!((third.rise, third.fall), (Some(6), Some(7)));

    let check_of = |text: &str| settings.vips[&vip(text)].check.clone().unwrap();
    let mut dns = Dns::new("www.example.com");
    (dns.record_type, dns.protocol, dns.codes) = (28, Protocol::Tcp, vec![0, 3]);
    dns.address = Some("2001:db8::1".parse().unwrap());
    assert_eq!(check_of("203.0.113.1:53/udp"), dns.into());
    let udp = |payload: &[u8], answer| {
        let mut udp = Udp::new(payload);
        udp.answer = answer;
        Check::from(udp)
    };
    let contains = Answer::Contains(b"po\\ng".to_vec());
    assert_eq!(check_of("203.0.113.2:5000/udp"), udp(b"ping\0", contains));
    let mut any = Tls::any();
    any.server_name = Some("a.example".to_owned());
    let mut quic = Quic::new(any);
    quic.alpn = vec!["hq".to_owned()];
    assert_eq!(check_of("203.0.113.3:443/udp"), quic.into());
    assert_eq!(check_of("203.0.113.4:5001/udp"), udp(b"", Answer::Echo));
    let exactly = Answer::Exactly(b"!".to_vec());
    assert_eq!(check_of("203.0.113.5:5001/udp"), udp(b"", exactly));
    let mut command = Command::new("/usr/bin/true");
    command.arguments = vec!["-a".to_owned(), "b".to_owned()];
    assert_eq!(document.commands().collect::<Vec<_>>(), [&command]);
    assert_eq!(check_of("203.0.113.7:80/tcp"), Check::Tcp);
    // A missing key has the general value.
    assert_eq!(
        settings.vips[&vip("203.0.113.6:80/tcp")],
        asked(command.into())
    );
    assert!(!settings.vips.contains_key(&vip("203.0.113.8:80/tcp")));
    for key in SECTIONS.iter().flat_map(|section| section.key_names()) {
        let is_there = ALL.contains(&format!("{key} = "));
        assert!(is_there, "{key}");
    }
}

#[test]
fn words_stand_for_checks_and_nothing_for_nothing() {
    let document = Document::from_toml("[balancer]\nmax_vips = 1\n").unwrap();
    assert_eq!(document.settings, None);
    assert_eq!(settings("[health]\n"), Settings::default());
    for (word, expected) in [
        ("none", None),
        ("tcp", Some(Check::Tcp)),
        ("syn", Some(Check::Syn)),
        ("http", Some(Http::new("/").into())),
    ] {
        let text = format!("[health]\ntcp_check = \"{word}\"\n");
        assert_eq!(settings(&text).tcp.check, expected);
    }
    // A reader without health checks refuses their keys.
    let error = State::from_toml("[health]\n").unwrap_err().to_string();
    assert!(
        error.contains("line 1") && error.contains("no health checks"),
        "{error}"
    );
    for text in [
        ALL,
        "vip = [ { address = \"203.0.113.1\", port = 1, protocol = \"tcp\", health = {} } ]",
    ] {
        assert!(
            State::from_toml(text)
                .unwrap_err()
                .to_string()
                .contains("no health checks")
        );
    }
}

/// Wrong documents (`@`: a VIP; `&`: a section of checks) and their messages.
const WRONG: &[(&str, &str)] = &[
    (
        "&intervall = 1\n",
        "line 2, column 1: [health] has no key intervall; did you mean interval?",
    ),
    (
        "&interval = 0\n",
        "line 2, column 12: interval = 0: must be 10 ms to 1 h",
    ),
    (
        "&interval = \"2s\"\n",
        "line 2, column 12: interval = \"2s\": must be a number of seconds",
    ),
    (
        "&rise = 101\n",
        "line 2, column 8: rise = 101: must be 1 to 100",
    ),
    (
        "&rise = -1\n",
        "line 2, column 8: rise = -1: must be 1 to 100",
    ),
    (
        "&via = \"tunel\"\n",
        "line 2, column 7: via = \"tunel\": must be tunnel or direct; did you mean tunnel?",
    ),
    (
        "&threads = 65\n",
        "line 2, column 11: threads = 65: must be 1 to 64",
    ),
    (
        "&check = \"tcp\"\n",
        "line 2, column 1: [health] has no key check",
    ),
    (
        "&port = 0\n",
        "line 2, column 8: port = 0: must be 1 to 65,535",
    ),
    (
        "&\n[health]\n",
        "line 3, column 2: [health] is already in line 1",
    ),
    (
        "[[health]]\n",
        "line 1, column 3: [health] may occur only once: write [health], with single brackets",
    ),
    (
        "health = 1\n",
        "line 1, column 10: 1 is not [health]: write a table such as { interval = 2 }",
    ),
    (
        "@health = { threads = 2 }\n",
        "line 5, column 12: `health` of a VIP has no key threads",
    ),
    (
        "@check = \"tcp\"\n",
        "line 5, column 1: [[vip]] has no key check",
    ),
    (
        "@health = { check = \"tpc\" }\n",
        "line 5, column 20: check = \"tpc\": unknown (known: none, http, https, udp, dns, quic, command, tcp, syn)",
    ),
    (
        "@health = { check = \"udp\" }\n",
        "line 5, column 20: check = \"udp\": this check needs more keys: write { kind = \"udp\", payload = \"...\" }",
    ),
    (
        "@health = { check = 1 }\n",
        "line 5, column 20: check = 1: must be a check, such as \"tcp\" or { kind = \"http\", path = \"/healthz\" }",
    ),
    (
        "@health = { check = { path = \"/\" } }\n",
        "line 5, column 20: check = { path = \"/\" }: add its kind: { kind = \"http\", ... }",
    ),
    (
        "@health = { check = { kind = \"htp\" } }\n",
        "line 5, column 29: \"htp\" in check: unknown; did you mean http? (known",
    ),
    (
        "@health = { check = { kind = \"http\", pth = \"/\" } }\n",
        "line 5, column 37: `kind = \"http\"` has no key pth; did you mean path?",
    ),
    (
        "@health = { check = { kind = \"http\", server_name = \"a\" } }\n",
        "line 5, column 37: `kind = \"http\"` has no key server_name",
    ),
    (
        "@health = { check = { kind = \"http\", path = \"healthz\" } }\n",
        "line 5, column 44: path = \"healthz\": must begin with /, without spaces, #, < and >: write %20",
    ),
    (
        "@health = { check = { kind = \"http\", statuses = [200, \"99-200\"] } }\n",
        "line 5, column 54: \"99-200\" in statuses: must be a status from 100 to 999, or a range such as \"200-299\"",
    ),
    (
        "@health = { check = { kind = \"http\", headers = [\"Accept\"] } }\n",
        "line 5, column 48: \"Accept\" in headers: must be a line such as \"X-State: ready\"",
    ),
    (
        "@health = { check = { kind = \"http\", answer_header = \"X State: a\" } }\n",
        "line 5, column 53: answer_header = \"X State: a\": must begin with the name of a header",
    ),
    (
        "@health = { check = { kind = \"http\", method = \"head\", answer_body = \"a\" } }\n",
        "line 5, column 68: answer_body = \"a\": needs the method `get`, and a max_body above 0",
    ),
    (
        "@health = { check = { kind = \"https\", server_name = \"a b\" } }\n",
        "line 5, column 52: server_name = \"a b\": must be a DNS name or an address",
    ),
    (
        "@health = { check = { kind = \"https\", authorities = \"ca.pem\" } }\n",
        "line 5, column 52: authorities = \"ca.pem\": must be an absolute path",
    ),
    (
        "@health = { check = { kind = \"https\", authorities = \"/ca.pem\", verify = false } }\n",
        "line 5, column 52: authorities = \"/ca.pem\": verify = false accepts any certificate: remove one of the two keys",
    ),
    (
        "@health = { check = { kind = \"udp\" } }\n",
        "line 5, column 20: `kind = \"udp\"` needs the key payload (0 to 1,400 bytes)",
    ),
    (
        "@health = { check = { kind = \"udp\", payload = '\\n' } }\n",
        "line 5, column 46: payload = '\\n': a backslash must be followed by x and two hexadecimal digits",
    ),
    (
        "@health = { check = { kind = \"udp\", payload = \"\", answer = \"any\", answer_exactly = \"a\" } }\n",
        "line 5, column 83: answer_exactly = \"a\": another key sets the answer: remove one of them",
    ),
    (
        "@health = { check = { kind = \"dns\", name = \"\" } }\n",
        "line 5, column 43: name = \"\": must be a DNS name",
    ),
    (
        "@health = { check = { kind = \"dns\", name = \"a\", codes = [16] } }\n",
        "line 5, column 56: codes = [16]: must be one or more codes from 0 to 15",
    ),
    (
        "@health = { check = { kind = \"command\", program = \"true\" } }\n",
        "line 5, column 50: program = \"true\": must be an absolute path",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", health = { via = \"direct\" } } ]\n",
        "line 5, column 50: `health` of a real has no key via",
    ),
    (
        "&[[mark]]\nmark = 1795162112\nreal = \"198.51.100.1\"\n",
        "line 2, column 1: mark = 1795162112 in [[mark]] is used by the health checks",
    ),
    (
        "@hash = \"maglev\"\n[vip.health]\nslow_start = 30\n",
        "line 1, column 1: 203.0.113.1:80/tcp: slow_start needs the hash function maglev-v2",
    ),
    (
        "[balancer]\nhash_function = \"maglev\"\n&slow_start = 30\n@",
        "line 5, column 1: 203.0.113.1:80/tcp: slow_start needs",
    ),
    (
        "&tcp_check = \"none\"\nslow_start = 30\n@hash = \"maglev\"\nreals = [ { address = \"198.51.100.1\", health = { check = \"syn\" } } ]\n",
        "line 4, column 1: 203.0.113.1:80/tcp: slow_start needs",
    ),
];

#[test]
fn slow_starts_are_refused_only_where_they_would_be_without_effect() {
    let document = |balancer: &str, health: &str, vip: &str| {
        let text = format!(
            "[balancer]\n{balancer}\n[health]\n{health}\n[[vip]]\naddress = \"203.0.113.1\"\nport = 80\n\
             protocol = \"tcp\"\n{vip}"
        );
        Document::from_toml(&text).map(drop)
    };
    let (slow, maglev) = ("slow_start = 30", "hash = \"maglev\"");
    document("", slow, "").unwrap();
    document("", "", maglev).unwrap();
    document("", slow, maglev).unwrap_err();
    document(
        "",
        slow,
        &format!("{maglev}\nhealth = {{ slow_start = 0 }}"),
    )
    .unwrap();
    document(
        "",
        slow,
        &format!("{maglev}\nhealth = {{ check = \"none\" }}"),
    )
    .unwrap();
    let usual = "hash_function = \"maglev\"";
    document(usual, slow, "hash = \"maglev-v2\"").unwrap();
    document(usual, slow, "").unwrap_err();
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let a_vip = "[[vip]]\naddress = \"203.0.113.1\"\nport = 80\nprotocol = \"tcp\"\n";
    let mut others = Vec::new();
    for (text, expected) in WRONG {
        let text = text.replacen('@', a_vip, 1).replacen('&', "[health]\n", 1);
        match Document::from_toml(&text) {
            Ok(_) => others.push(format!("{text}is taken, and not: {expected}")),
            Err(error) => {
                let error = error.to_string();
                if !error.contains(expected) {
                    others.push(format!("{text}{error}\nand not: {expected}"));
                }
            }
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n\n"));
}

#[test]
fn mutated_documents_are_refused_or_right() {
    mutate::cases(3_000, |rng| {
        let mut bytes = ALL.as_bytes().to_vec();
        for _ in 0..rng.u32(1..4) {
            mutate::text(rng, &mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(document) = Document::from_toml(&text) {
            let settings = document.settings.unwrap_or_default();
            settings.validate().unwrap();
        }
    });
}

#[test]
fn what_checks_need_of_this_host_is_checked() {
    let check = |balancer: &str, health: &str| {
        let text = format!(
            "[balancer]\ngateway_mac = \"0a:00:00:00:00:fe\"\n{balancer}\n{health}\n[[vip]]\naddress = \"203.0.113.1\"\nport = 443\n\
             protocol = \"tcp\"\nreals = [ {{ address = \"198.51.100.1\" }}, {{ address = \"2001:db8::1\" }} ]\n"
        );
        let checked = Document::from_toml(&text).unwrap().check();
        checked.map_err(|error| error.to_string())
    };
    let sources = "source_v4 = \"10.0.0.1\"\nsource_v6 = \"2001:db8::2\"";
    assert_eq!(check(sources, "[health]"), Ok(()));
    assert_eq!(check("", ""), Ok(()));
    assert_eq!(check("", "[health]\nvia = \"direct\""), Ok(()));
    assert_eq!(check("", "[health]\ntcp_check = \"none\""), Ok(()));
    assert_eq!(
        check("healthcheck_source = \"made-up\"", "[health]"),
        Ok(())
    );
    assert_eq!(
        check("source_v4 = \"10.0.0.1\"", "[health]").unwrap_err(),
        "configuration document: line 9, column 41: a probe of the real 2001:db8::1 needs source_v6 in [balancer]"
    );
    let missing = "[health]\nvia = \"direct\"\ntcp_check = { kind = \"https\", authorities = \"/nowhere/ca.pem\" }";
    let said = check("", missing).unwrap_err();
    let expected = "line 6, column 45: authorities = /nowhere/ca.pem: No such file";
    assert!(said.contains(expected), "{said}");
}
