//! The exact messages for wrong documents: each says where, what is wrong and, where possible, what
//! to write instead.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::state::State;

/// `@` stands for a VIP's first lines, `&` for a real of its list.
const VIP: &str = "[[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n";
const REAL: &str = "{ address = \"198.51.100.1\" }";

/// Wrong documents and their messages.
const WRONG: &[(&str, &str)] = &[
    // What the TOML parser explains too briefly.
    (
        "[balancer]\nmax_vips 1\n",
        "line 2, column 10: key with no value, expected `=`",
    ),
    (
        "@hash = maglev\n",
        "line 5, column 8: maglev must be in quotes: \"maglev\"",
    ),
    (
        "[[vip]]\naddress = 203.0.113.1\n",
        "line 2, column 11: 203.0.113.1 must be in quotes: \"203.0.113.1\"",
    ),
    (
        "@reals = [ &, & \n[[server_id]]\nid = 1\n",
        "line 5, column 69: unclosed array, expected `]`",
    ),
    (
        "@port = 80\n",
        "line 5, column 1: port is given twice in this table",
    ),
    (
        "[balancer]\ngateway_mac = 0a:00:00:00:00:fe # the router\n",
        "line 2, column 15: 0a:00:00:00:00:fe must be in quotes: \"0a:00:00:00:00:fe\"",
    ),
    (
        "@flags = [\"quic]\n",
        "line 5, column 16: unclosed array, expected `]`",
    ),
    // Keys and sections.
    (
        "\n[balance]\n",
        "line 2, column 2: a document has no key balance; did you mean balancer?",
    ),
    (
        "max_vips = 512\n",
        "line 1, column 1: a document has no key max_vips; it belongs to [balancer]",
    ),
    (
        "[balancer]\ngatewaymac = \"auto\"\n",
        "line 2, column 1: [balancer] has no key gatewaymac; did you mean gateway_mac?",
    ),
    (
        "[balancer]\ncolour = 1\n",
        "line 2, column 1: [balancer] has no key colour (docs/configuration.md has them all)",
    ),
    (
        "[balancer]\nweight = 1\n",
        "line 2, column 1: [balancer] has no key weight; it belongs to a real",
    ),
    (
        "[balancer]\nfrags = true\n\n[balancer]\n",
        "line 4, column 2: [balancer] is already in line 1",
    ),
    (
        "[[balancer]]\n",
        "line 1, column 3: [balancer] may occur only once: write [balancer], with single brackets",
    ),
    (
        "[vip]\naddress = \"203.0.113.1\"\n",
        "line 1, column 2: vip is a section that may occur many times: write [[vip]], followed by its keys",
    ),
    (
        "vip = []\n\n@",
        "line 3, column 3: vip = [ ... ] in line 1 already lists them all: write [[vip]] for each instead",
    ),
    (
        "@\n[[mark]]\nmark = 1\nreal = \"198.51.100.1\"\n\n[[vip.reals]]\naddress = \"198.51.100.1\"\n",
        "line 10, column 3: vip is a section that may occur many times: write [[vip]], followed by its keys",
    ),
    (
        "@weigth = 1\n",
        "line 5, column 1: [[vip]] has no key weigth; did you mean weight? (it has address, prefix_length, port, protocol, flags, hash, reals, health)",
    ),
    (
        "@weight = 1\n",
        "line 5, column 1: [[vip]] has no key weight; it belongs to a real",
    ),
    (
        "@real = &\n",
        "line 5, column 1: [[vip]] has no key real; did you mean reals?",
    ),
    (
        "@max_vips = 1\n",
        "line 5, column 1: [[vip]] has no key max_vips; it belongs to [balancer]",
    ),
    (
        "@reals = [\n  { address = \"198.51.100.1\", wieght = 1 },\n]\n",
        "line 6, column 31: a real has no key wieght; did you mean weight?",
    ),
    (
        "@reals = &\n",
        "line 5, column 1: reals must be a list of tables: [ { address = \"198.51.100.1\" } ]",
    ),
    (
        "@reals = [ \"198.51.100.1\" ]\n",
        "line 5, column 11: \"198.51.100.1\" is not a real: write a table such as { address = \"198.51.100.1\" }",
    ),
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nprotocol = \"tcp\"\n",
        "line 1, column 1: [[vip]] needs the key port (0 to 65,535, 0 for any)",
    ),
    (
        "@reals = [ { weight = 2 } ]\n",
        "line 5, column 11: a real needs the key address (an IPv4 or IPv6 address; not unspecified, multicast, broadcast, loopback or link-local)",
    ),
    (
        "[[mark]]\nmark = 1\n",
        "line 1, column 1: [[mark]] needs the key real (the address of a real)",
    ),
    // Addresses.
    (
        "[[vip]]\naddress = \"203.0.113.0/24\"\nport = 443\nprotocol = \"tcp\"\n",
        "line 2, column 11: address = \"203.0.113.0/24\": write the address alone, and add prefix_length = 24",
    ),
    (
        "[[vip]]\naddress = \"203.0.113.1:443\"\nprotocol = \"tcp\"\n",
        "line 2, column 11: address = \"203.0.113.1:443\": write the port as a key: port = 443",
    ),
    (
        "[[vip]]\naddress = \"[2001:db8::1]:443\"\nprotocol = \"tcp\"\n",
        "line 2, column 11: address = \"[2001:db8::1]:443\": write the port as a key: port = 443",
    ),
    (
        "[[vip]]\naddress = \"[2001:db8::1]\"\nport = 443\nprotocol = \"tcp\"\n",
        "line 2, column 11: address = \"[2001:db8::1]\": must be an IPv4 or IPv6 address: leave out the brackets",
    ),
    (
        "[[vip]]\naddress = \"127.0.0.1\"\nport = 443\nprotocol = \"tcp\"\n",
        "line 2, column 11: address = \"127.0.0.1\": a loopback address never arrives from the wire",
    ),
    (
        "@prefix_length = 33\n",
        "line 5, column 17: prefix_length = 33: the longest prefix of this family is 32",
    ),
    (
        "@prefix_length = 24\n",
        "line 5, column 17: prefix_length = 24: bits beyond the prefix are set; the prefix would \
        be 203.0.113.0/24",
    ),
    (
        "@reals = [ { address = \"198.51.100.1/32\" } ]\n",
        "line 5, column 23: address = \"198.51.100.1/32\": a real is one host: leave out /32",
    ),
    (
        "@reals = [ { address = \"198.51.100.1:8443\" } ]\n",
        "line 5, column 23: address = \"198.51.100.1:8443\": packets reach a real at the VIP's port: leave out :8443",
    ),
    (
        "@reals = [ { address = \"backend-1.example.com\" } ]\n",
        "line 5, column 23: address = \"backend-1.example.com\": must be an IPv4 or IPv6 address, not a name",
    ),
    (
        "@reals = [ { address = \"198.51.100\" } ]\n",
        "line 5, column 23: address = \"198.51.100\": must be an IPv4 or IPv6 address",
    ),
    (
        "@reals = [ { address = \"198.51.100.01\" } ]\n",
        "line 5, column 23: address = \"198.51.100.01\": must be an IPv4 or IPv6 address, without leading zeros: 198.51.100.1",
    ),
    (
        "@reals = [ { address = \"198.51.100.1 \" } ]\n",
        "line 5, column 23: address = \"198.51.100.1 \": must be an IPv4 or IPv6 address: leave out the spaces",
    ),
    (
        "@reals = [ { address = 3325256705 } ]\n",
        "line 5, column 23: address = 3325256705: must be an IPv4 or IPv6 address in quotes",
    ),
    (
        "@reals = [ { address = \"fe80::1%eth0\" } ]\n",
        "line 5, column 23: address = \"fe80::1%eth0\": must be an IPv4 or IPv6 address, without the interface %eth0",
    ),
    (
        "@reals = [ { address = \"fe80::1\" } ]\n",
        "line 5, column 23: address = \"fe80::1\": a link-local address cannot be reached through the gateway",
    ),
    (
        "[balancer]\nsource_v4 = \"2001:db8::1\"\n",
        "line 2, column 13: source_v4 = \"2001:db8::1\": must be an IPv4 address",
    ),
    (
        "[balancer]\nsource_v6 = \"::1\"\n",
        "line 2, column 13: source_v6 = \"::1\": a loopback address never arrives from the wire",
    ),
    (
        "[balancer]\ngateway_mac = \"192.0.2.1\"\n",
        "line 2, column 15: gateway_mac = \"192.0.2.1\": this is not a MAC address such as 0a:00:00:00:00:fe, or `auto`",
    ),
    (
        "[balancer]\ngateway_mac = \"01:00:5e:00:00:01\"\n",
        "line 2, column 15: gateway_mac = \"01:00:5e:00:00:01\": must be a unicast address, and not zero",
    ),
    (
        "[balancer]\nipip_source_v4 = \"10.0.0.0/8\"\n",
        "line 2, column 18: ipip_source_v4 = \"10.0.0.0/8\": must be an IPv4 prefix of length 16",
    ),
    (
        "[balancer]\nipip_source_v4 = \"10.20.0.0\"\n",
        "line 2, column 18: ipip_source_v4 = \"10.20.0.0\": must be an IPv4 prefix of length 16: add the length: 10.20.0.0/16",
    ),
    (
        "[balancer]\nallow_sources = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\n",
        "line 2, column 32: \"10.0.0.1/8\" in allow_sources: bits beyond the prefix are set; the \
        prefix would be 10.0.0.0/8",
    ),
    (
        "[balancer]\nallow_sources = [\"10.0.0.0/33\"]\n",
        "line 2, column 18: \"10.0.0.0/33\" in allow_sources: the longest prefix of this family is 32",
    ),
    (
        "[balancer]\nallow_sources = [\"lb.example.com\"]\n",
        "line 2, column 18: \"lb.example.com\" in allow_sources: must be a prefix such as 100.64.0.0/10, not a name",
    ),
    (
        "[balancer]\nallow_sources = \"10.0.0.0/8\"\n",
        "line 2, column 17: allow_sources = \"10.0.0.0/8\": must be a list: put it in [ ]",
    ),
    (
        "[[source_route]]\nprefix = \"100.64.0.1/10\"\nreal = \"198.51.100.1\"\n",
        "line 2, column 10: prefix = \"100.64.0.1/10\": bits beyond the prefix are set; the \
        prefix would be 100.64.0.0/10",
    ),
    // Numbers.
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nport = \"443\"\nprotocol = \"tcp\"\n",
        "line 3, column 8: port = \"443\": must be a whole number: leave out the quotes",
    ),
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nport = 65536\nprotocol = \"tcp\"\n",
        "line 3, column 8: port = 65536: must be 0 to 65535, 0 for any",
    ),
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nport = \"https\"\nprotocol = \"tcp\"\n",
        "line 3, column 8: port = \"https\": must be a whole number",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", weight = -1 } ]\n",
        "line 5, column 48: weight = -1: must be 0 to 4294967295",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", weight = 1.5 } ]\n",
        "line 5, column 48: weight = 1.5: must be a whole number",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", application_flags = 2 } ]\n",
        "line 5, column 59: application_flags = 2: bits 0 and 1 are reserved: use a multiple of 4, up to 252",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", application_flags = 256 } ]\n",
        "line 5, column 59: application_flags = 256: must be a multiple of 4, 0 to 252",
    ),
    (
        "@reals = [ { address = \"198.51.100.1\", down = \"true\" } ]\n",
        "line 5, column 46: down = \"true\": must be true or false: leave out the quotes",
    ),
    (
        "[balancer]\nmax_vips = 0\n",
        "line 2, column 12: max_vips = 0: must be 1 to 65535",
    ),
    (
        "[balancer]\nmax_vips = -1\n",
        "line 2, column 12: max_vips = -1: must be 1 to 65535",
    ),
    (
        "[balancer]\nmax_vips = \"512\"\n",
        "line 2, column 12: max_vips = \"512\": must be a whole number: leave out the quotes",
    ),
    (
        "[balancer]\nring_size = 65536\n",
        "line 2, column 13: ring_size = 65536: must be a prime from 3 to 16777213, such as 65537",
    ),
    (
        "[balancer]\nudp_timeout = -1\n",
        "line 2, column 15: udp_timeout = -1: must be 1 second to 1 day",
    ),
    (
        "[balancer]\nudp_timeout = \"30 s\"\n",
        "line 2, column 15: udp_timeout = \"30 s\": must be a number of seconds",
    ),
    (
        "[balancer]\nudp_timeout = 0.5\n",
        "line 2, column 15: udp_timeout = 0.5: must be 1 second to 1 day",
    ),
    (
        "[balancer]\nhash_seed = 9223372036854775808\n",
        "line 2, column 13: hash_seed = 9223372036854775808: must be at most 2^63 - 1, the largest number in a document",
    ),
    (
        "[balancer]\nmax_frame = \"large\"\n",
        "line 2, column 13: max_frame = \"large\": must be a whole number of bytes, or \"auto\"",
    ),
    (
        "[balancer]\nfrags = \"yes\"\n",
        "line 2, column 9: frags = \"yes\": must be true or false",
    ),
    (
        "[balancer]\nforwarding_cpus = 2\n",
        "line 2, column 19: forwarding_cpus = 2: must be a list: put it in [ ]",
    ),
    (
        "[balancer]\nhealthcheck_interface = \"a/b\"\n",
        "line 2, column 25: healthcheck_interface = \"a/b\": must be an interface name: 1 to 15 bytes without `/`, `:` and spaces",
    ),
    (
        "[[server_id]]\nid = 0\nreal = \"198.51.100.1\"\n",
        "line 2, column 6: id = 0: 0 means no id: use 1 to 4294967295",
    ),
    (
        "[[mark]]\nmark = 4294967296\nreal = \"198.51.100.1\"\n",
        "line 2, column 8: mark = 4294967296: must be 1 to 4294967295",
    ),
    // Words.
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"TCP\"\n",
        "line 4, column 12: protocol = \"TCP\": this is not a protocol (`tcp` or `udp`); did you mean tcp?",
    ),
    (
        "[[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = 6\n",
        "line 4, column 12: protocol = 6: must be text in quotes",
    ),
    (
        "@flags = [\"no-src-port\", \"quick\"]\n",
        "line 5, column 25: \"quick\" in flags: unknown; did you mean quic? (known: no-src-port, lru-bypass, quic, dport-hash, src-routing, local-vip, global-lru, src-dst-port, udp-stable-routing, udp-flow-migration)",
    ),
    (
        "@flags = \"quic\"\n",
        "line 5, column 9: flags = \"quic\": must be a list: put it in [ ]",
    ),
    (
        "@flags = [\"quic\"]\n",
        "line 5, column 9: flags = [\"quic\"]: QUIC runs over UDP: leave quic out for a TCP VIP",
    ),
    (
        "@hash = \"maglev-v3\"\n",
        "line 5, column 8: hash = \"maglev-v3\": this is not a hash function (`maglev` or `maglev-v2`); did you mean maglev-v2?",
    ),
    (
        "[balancer]\nencapsulation = \"vxlan\"\n",
        "line 2, column 17: encapsulation = \"vxlan\": this is not an encapsulation (`ipip` or `gue`)",
    ),
    (
        "[balancer]\nfeatures = [\"inline_decap\"]\n",
        "line 2, column 13: \"inline_decap\" in features: unknown; did you mean inline-decap? (known: source-routing, inline-decap, strict-destination, icmp-too-big, tcp-server-id, udp-stable-routing, global-flow-table, local-delivery, introspection, flow-debug)",
    ),
    (
        "[balancer]\nfeatures = [\"flow-debug\"]\n",
        "line 2, column 12: features = [\"flow-debug\"]: this version has no flow-debug: leave it out",
    ),
    (
        "[[decap]]\naddress = \"192.0.2.200\"\nmode = \"outline\"\n",
        "line 3, column 8: mode = \"outline\": this is not a decapsulation mode (`inline` or `egress`)",
    ),
    // Duplicates, and things without room.
    (
        "@\n@",
        "line 6, column 1: VIP 203.0.113.1:443/tcp is listed twice; the other is in line 1",
    ),
    (
        "@reals = [\n  &,\n  { address = \"::ffff:198.51.100.1\" },\n]\n",
        "line 7, column 3: real 198.51.100.1 is listed twice in VIP 203.0.113.1:443/tcp; the other is in line 6",
    ),
    (
        "@reals = [ & ]\n\n[[vip]]\naddress = \"203.0.113.2\"\nport = 443\nprotocol = \"tcp\"\n\
         reals = [ { address = \"198.51.100.1\", local = true } ]\n",
        "line 11, column 11: real 198.51.100.1 has different flags in VIP 203.0.113.2:443/tcp and in VIP 203.0.113.1:443/tcp: give it the same flags in all VIPs; the other is in line 5",
    ),
    (
        "[[server_id]]\nid = 7\nreal = \"198.51.100.1\"\n\n[[server_id]]\nid = 7\nreal = \"198.51.100.2\"\n",
        "line 5, column 1: server id 7 is listed twice; the other is in line 1",
    ),
    (
        "[[probe_destination]]\naddress = \"203.0.113.1\"\nreal = \"198.51.100.1\"\n\n[[probe_source]]\n\
         address = \"203.0.113.1\"\nreal = \"198.51.100.1\"\n\n[[probe_source]]\naddress = \"203.0.113.1\"\n\
         real = \"198.51.100.2\"\n",
        "line 9, column 1: probe match from 203.0.113.1:0 is listed twice; the other is in line 5",
    ),
    (
        "[balancer]\nmax_vips = 1\n\n@\n[[vip]]\naddress = \"203.0.113.2\"\nport = 443\nprotocol = \"tcp\"\n",
        "line 9, column 1: max_vips = 1 in [balancer] leaves no room for this VIP",
    ),
    (
        "[balancer]\nmax_reals = 1\n\n@reals = [ & ]\n\n[[server_id]]\nid = 7\nreal = \"198.51.100.2\"\n",
        "line 10, column 1: max_reals = 1 in [balancer] leaves no room for the real 198.51.100.2",
    ),
    (
        "[balancer]\nfeatures = []\n\n[[source_route]]\nprefix = \"100.64.0.0/10\"\nreal = \"198.51.100.1\"\n",
        "line 4, column 1: a source route needs \"source-routing\" in the features of [balancer]",
    ),
    (
        "[balancer]\nfeatures = []\n\n[[decap]]\naddress = \"192.0.2.200\"\nmode = \"inline\"\n",
        "line 4, column 1: a decap address needs \"inline-decap\" in the features of [balancer]",
    ),
];

fn document(short: &str) -> String {
    short.replace('@', VIP).replace('&', REAL)
}

#[test]
fn wrong_documents_are_answered_in_an_operators_words() {
    let mut others = Vec::new();
    for (short, message) in WRONG {
        let text = document(short);
        let error = match State::from_toml(&text) {
            Ok(state) => panic!("{state:?} is no error of\n{text}"),
            Err(error) => error.to_string(),
        };
        let said = error.strip_prefix("configuration document: ");
        let said = said.unwrap_or_else(|| panic!("{error}"));
        if said != *message {
            others.push(format!("{short:?}\n{said}\n"));
        }
    }
    assert!(others.is_empty(), "\n{}", others.join("\n"));
}

/// Operators know nothing of Rust, serde or the library's calls.
#[test]
fn no_message_has_rusts_words() {
    const WORDS: [&str; 13] = [
        "->", "struct ", "Builder", "Katran", "Error", "Option", "Features", "_mut", "u16", "u32",
        "i64", "field", "()",
    ];
    for (short, message) in WRONG {
        for word in WORDS {
            assert!(
                !message.contains(word),
                "{word} in {message:?} of {short:?}"
            );
        }
    }
}

/// The file's name comes before the place, as editors expect; unreadable files and bytes have a
/// message.
#[test]
fn errors_of_files_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lb.toml");
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        State::from_toml_file(&path).unwrap_err().to_string()
    };
    let place = path.display();
    assert_eq!(
        error(b"[balancer]\nmax_vips = 0\n"),
        format!("{place}:2:12: max_vips = 0: must be 1 to 65535")
    );
    assert_eq!(
        error(b"[balancer]\n# \xc3\xa9 \xe9\n"),
        format!("{place}:2:5: this is not UTF-8 text")
    );
    std::fs::write(&path, VIP).unwrap();
    assert_eq!(
        State::from_toml_file(&path).unwrap(),
        State::from_toml(VIP).unwrap()
    );
    std::fs::remove_file(&path).unwrap();
    let error = State::from_toml_file(&path).unwrap_err().to_string();
    assert!(
        error.contains("No such file") && error.contains("lb.toml"),
        "{error}"
    );
}

/// A word of megabytes is refused at once, in a short message.
#[test]
fn long_texts_are_refused_in_a_few_words() {
    for (text, wanted) in [
        ("[balancer]\n# = 1\n", "[balancer] has no key #"),
        ("# = 1\n", "a document has no key #"),
        ("[balancer]\nfeatures = [\"#\"]\n", "unknown (known: "),
        ("[balancer]\nsource_v4 = \"#\"\n", "must be an IPv4 address"),
        (
            "[balancer]\nipip_source_v4 = \"#\"\n",
            "must be an IPv4 prefix of length 16",
        ),
        (
            "[balancer]\nallow_sources = [\"#/#\"]\n",
            "must be a prefix such as 100.64.0.0/10",
        ),
        ("[balancer]\nnext_hops = #\n", "must be in quotes"),
        (
            "[[vip]]\naddress = \"#\"\n",
            "must be an IPv4 or IPv6 address",
        ),
    ] {
        for word in ["a", "1.", "é"] {
            let is_bare = !text.contains('"');
            if is_bare && word != "a" {
                continue;
            }
            let text = text.replace('#', &word.repeat(4 << 20));
            let began = Instant::now();
            let error = State::from_toml(&text).unwrap_err().to_string();
            let took = began.elapsed();
            let wanted = wanted.replace('#', &word.repeat(60));
            assert!(error.contains(&wanted), "{}", error.len());
            assert!(
                error.len() < 600,
                "{} bytes: {}",
                error.len(),
                &error[..200]
            );
            // In unoptimised builds too.
            assert!(took < Duration::from_secs(10), "{wanted}: {took:?}");
        }
    }
}

/// A recursive parser would overflow its stack.
#[test]
fn deep_documents_are_refused() {
    let depth = 1 << 18;
    for text in [
        format!("[balancer]\nfeatures = {}", "[".repeat(depth)),
        format!("[balancer]\nfeatures = {}", "{ a = ".repeat(depth)),
        format!("[balancer]\n{}a = 1\n", "a.".repeat(depth)),
        format!("[{}a]\n", "a.".repeat(depth)),
        format!("[[{}a]]\n", "vip.".repeat(depth)),
        format!("[[vip]]\nreals = [{{ {}a = 1 }}]\n", "a.".repeat(depth)),
    ] {
        // As small as any thread's.
        let read = move || State::from_toml(&text).unwrap_err().to_string();
        let reader = thread::Builder::new().stack_size(2 << 20).spawn(read);
        let error = reader.unwrap().join().unwrap();
        assert!(error.len() < 600, "{} bytes", error.len());
    }
}

/// Some editors begin a file with a byte order mark.
#[test]
fn a_mark_of_byte_order_is_no_key() {
    let text = format!("\u{feff}[balancer]\nmax_vips = 7\n{VIP}");
    let state = State::from_toml(&text).unwrap();
    assert_eq!(state.balancer.unwrap().max_vips, Some(7));
    assert_eq!(state.vips.len(), 1);
}

/// The line number counts in the whole document, however many pieces it is read in.
#[test]
fn places_are_those_of_the_whole_document() {
    let mut text = String::new();
    for id in 1..=10_000 {
        text += &format!("[[server_id]]\nid = {id}\nreal = \"198.51.100.1\"\n\n");
    }
    assert_eq!(State::from_toml(&text).unwrap().server_ids.len(), 10_000);
    let message = |more: &str| {
        State::from_toml(&format!("{text}{more}"))
            .unwrap_err()
            .to_string()
    };
    let of = |more: &str, wanted: &str| {
        assert_eq!(message(more), format!("configuration document: {wanted}"));
    };
    of(
        "[[mark]]\nmark = 0\n",
        "line 40002, column 8: mark = 0: packets without a mark have this one: choose another",
    );
    of(
        "[[mark]\n",
        "line 40001, column 8: unclosed array table, expected `]`",
    );
    of(
        "[[server_id]]\nid = 5000\nreal = \"198.51.100.2\"\n",
        "line 40001, column 1: server id 5000 is listed twice; the other is in line 19997",
    );
}
