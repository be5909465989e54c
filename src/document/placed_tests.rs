//! Errors of load and `apply`, with the part of the document that they are about.

use std::io;

use super::placed::Document;
use super::state::State;
use crate::error::Error;

const GATEWAY: &str = "gateway_mac = \"0a:00:00:00:00:fe\"\n";
const VIP: &str =
    "[[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\nreals = [ & ]\n";
const REALS: &str = "{ address = \"198.51.100.1\" }, { address = \"2001:db8:2::1\" }";

fn document(short: &str) -> Document {
    let text = short
        .replace('@', VIP)
        .replace('&', REALS)
        .replace('%', GATEWAY);
    Document::from_toml(text).unwrap()
}

fn many(count: usize, table: impl Fn(usize) -> String) -> String {
    (0..count).map(table).collect()
}

/// What load would refuse is found earlier, with defaults where the document says nothing.
#[test]
fn a_document_is_checked_for_what_load_would_refuse() {
    for good in [
        "[balancer]\n%@[[vip]]\naddress = \"198.51.100.0\"\nprefix_length = 24\nport = 1\nprotocol = \"tcp\"\n",
        "[balancer]\n%@",
        "[balancer]\n%max_reals = 40000\nflow_tracking = \"all\"\n@",
        "[balancer]\n%encapsulation = \"gue\"\nsource_v4 = \"192.0.2.1\"\nsource_v6 = \"2001:db8::1\"\n@",
        "[balancer]\n%healthcheck_interface = \"eth0\"\nhealthcheck_source = \"made-up\"\n[[mark]]\nmark = 1\n\
         real = \"198.51.100.1\"\n",
    ] {
        document(good).check().unwrap();
    }
    let vips = many(513, |number| {
        format!("[[vip]]\naddress = \"203.0.113.1\"\nport = {number}\nprotocol = \"tcp\"\n")
    });
    let routes = many(3, |number| {
        format!("[[source_route]]\nprefix = \"10.{number}.0.0/16\"\nreal = \"198.51.100.1\"\n")
    });
    let reals = many(4097, |number| {
        let address = format!("10.0.{}.{}", number / 256, number % 256);
        format!("[[server_id]]\nid = {}\nreal = \"{address}\"\n", number + 1)
    });
    for (short, message) in [
        ("@", "line 1, column 1: gateway_mac is missing: set it to "),
        (
            "# here\n[balancer]\nmax_vips = 7\n@",
            "line 2, column 2: gateway_mac is missing: set it to ",
        ),
        (
            "[balancer]\n%max_reals = 40000\n@",
            "line 3, column 13: max_reals = 40000: must be 1 to 32767 with flow_tracking = \"changed\"",
        ),
        (
            &format!("[balancer]\n%{vips}"),
            "line 2051, column 1: max_vips = 512 leaves no room for this VIP: raise it in [balancer]",
        ),
        (
            &format!("[balancer]\n%{reals}"),
            "line 12291, column 1: max_reals = 4096 leaves no room for the real 10.0.16.0: raise it in [balancer]",
        ),
        (
            &format!("[balancer]\n%{routes}"),
            "line 3, column 1: a source route needs \"source-routing\" in the features of [balancer]",
        ),
        (
            "[balancer]\n%encapsulation = \"gue\"\nsource_v4 = \"192.0.2.1\"\n@",
            "line 9, column 41: GUE to the real 2001:db8:2::1 needs source_v6 in [balancer]",
        ),
        (
            "[balancer]\n%[[mark]]\nmark = 1\nreal = \"198.51.100.1\"\n",
            "line 3, column 1: a probe needs healthcheck_interface in [balancer], the interface through which it leaves",
        ),
        (
            "[balancer]\n%healthcheck_interface = \"eth0\"\nmax_vips = 9\n[[probe_source]]\n\
             address = \"192.0.2.1\"\nreal = \"198.51.100.1\"\n",
            "line 5, column 1: a probe of the real 198.51.100.1 needs source_v4 in [balancer]",
        ),
        (
            "[balancer]\n%@[[vip]]\naddress = \"198.51.100.1\"\nport = 1\nprotocol = \"tcp\"\n",
            "line 7, column 11: real 198.51.100.1 has the address of a VIP, so its packets come back to the \
             balancer: use the backend's own address; the other is in line 8",
        ),
        (
            "[balancer]\n%healthcheck_interface = \"eth0\"\nsource_v4 = \"192.0.2.1\"\nmax_vips = 1\nmax_reals = 1\n[[mark]]\nmark = 1\n\
             real = \"198.51.100.1\"\n[[probe]]\naddress = \"203.0.113.1\"\nport = 1\nprotocol = \"tcp\"\n",
            "",
        ),
    ] {
        let checked = document(short).check();
        match (checked, message) {
            (Ok(()), "") => {}
            (Ok(()), _) => panic!("{message} is not said of {short}"),
            (Err(error), _) => {
                let said = error.to_string();
                let said = said.strip_prefix("configuration document: ");
                let said = said.unwrap_or_else(|| panic!("{error}"));
                assert!(!message.is_empty() && said.starts_with(message), "{said}");
            }
        }
    }
}

#[test]
fn errors_of_load_and_apply_have_the_place_that_they_are_about() {
    let text = "[balancer]\n%healthcheck_interface = \"lan0\"\norphan_limit = 30\n@[[vip]]\naddress = \"203.0.113.2\"\nport = 0\n\
                protocol = \"udp\"\n[[source_route]]\nprefix = \"100.64.0.0/10\"\nreal = \"198.51.100.9\"\n[[decap]]\n\
                address = \"192.0.2.9\"\nmode = \"inline\"\n[[mark]]\nmark = 1\nreal = \"198.51.100.1\"\n[[probe]]\n\
                address = \"203.0.113.1\"\nport = 1\nprotocol = \"tcp\"\n";
    let document = document(text);
    let kernel = |object: &str| Error::Kernel {
        operation: "add",
        object: object.to_owned(),
        errno: io::Error::from_raw_os_error(28),
    };
    let exhausted = |what, limit| Error::Exhausted { what, limit };
    let unsupported = |what: &str| Error::Unsupported {
        what: what.to_owned(),
        reason: "switch it on",
    };
    let invalid = |setting| Error::InvalidConfig {
        setting,
        value: "30s".to_owned(),
        reason: "no".to_owned(),
    };
    for (error, place, words) in [
        (
            exhausted("VIPs (max_vips)", 1),
            (10, 1),
            "this VIP: raise it",
        ),
        (
            exhausted("reals (max_reals)", 2),
            (14, 1),
            "the real 198.51.100.9",
        ),
        (
            exhausted("decap addresses (max_decap)", 0),
            (17, 1),
            "this decap address",
        ),
        (exhausted("marks (max_reals)", 3), (0, 0), "marks"),
        (exhausted("probes (max_vips)", 2), (0, 0), "probes"),
        (exhausted("open files", 2), (0, 0), "open files"),
        (invalid("orphan_limit"), (4, 16), "orphan_limit = 30s: no"),
        (invalid("source_v4"), (1, 2), "source_v4 is missing: no"),
        (invalid("endpoint number"), (0, 0), "endpoint number"),
        (
            kernel("203.0.113.2:0/udp"),
            (10, 1),
            "cannot add 203.0.113.2:0/udp: No space",
        ),
        (kernel("192.0.2.9"), (17, 1), "cannot add 192.0.2.9: "),
        (kernel("rings"), (0, 0), "cannot add rings: "),
        (unsupported("a source route"), (14, 1), "switch it on"),
        (unsupported("a decap address"), (17, 1), "switch it on"),
        (
            unsupported("attaching health checks"),
            (20, 1),
            "switch it on",
        ),
        (unsupported("flow-debug"), (0, 0), "switch it on"),
        (
            Error::NoSuchInterface {
                interface: "lan0".to_owned(),
            },
            (3, 25),
            "lan0 does not exist",
        ),
        (
            Error::NoSuchInterface {
                interface: "eth0".to_owned(),
            },
            (0, 0),
            "eth0",
        ),
        (
            Error::InvalidAddress {
                address: "2001:db8:2::1".parse().unwrap(),
                reason: "not now",
            },
            (9, 41),
            "2001:db8:2::1: not now",
        ),
        (
            Error::InUse {
                what: "room for more than orphan_limit = 3".to_owned(),
                by: "reals",
            },
            (4, 16),
            "in use by reals",
        ),
        (Error::BpfUnavailable, (0, 0), "bpf(2)"),
    ] {
        let before = error.to_string();
        let placed = document.placed(error);
        assert!(placed.to_string().contains(words), "{placed}");
        match placed {
            Error::Document { at, file: None, .. } => assert_eq!(at, Some(place), "{before}"),
            other => {
                assert_eq!(other.to_string(), before);
                assert_eq!(place, (0, 0), "{before}");
            }
        }
    }
}

#[test]
fn a_document_is_its_state() {
    let read = document("[balancer]\n%@");
    let text = "[balancer]\n%@".replace('@', VIP).replace('&', REALS);
    let state = State::from_toml(&text.replace('%', GATEWAY)).unwrap();
    assert_eq!(*read.state(), state);
    assert_eq!(read.into_state(), state);
}
