//! The kernel's answers about a made-up host (`tests/netlink/record`), mutated, and compared with
//! iproute2's reading (`recorded.rs`); and a host on which others have made things that the parser
//! does not know.

mod recorded;

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use fastrand::Rng;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sched::unshare;

use super::Notice;
use super::Requests;
use super::answers::interface_of;
use super::answers::mac_of;
use super::answers::metric;
use super::answers::route_of;
use super::answers::table;
use super::filters::is_clsact;
use super::filters::program_of;
use super::frames::frames;
use super::notices;
use super::notices::tests::attribute;
use super::requests::default_routes_in;
use super::requests::has_rules_by_interface_in;
use super::tunnels::tunnel_of;
use crate::mutate;
use crate::types::Family;

const RECORDED: [&str; 8] = [
    "links",
    "routes4",
    "routes6",
    "neighbours",
    "rules",
    "qdiscs",
    "ingress",
    "egress",
];

fn file(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netlink");
    fs::read_to_string(directory.join(name)).unwrap()
}

/// Datagrams.
fn recorded(name: &str) -> Vec<Vec<u8>> {
    let text = file(&format!("{name}.hex"));
    let bytes = |line: &str| {
        let digits = line.as_bytes().chunks(2);
        let digits = digits.map(|two| std::str::from_utf8(two).unwrap());
        digits
            .map(|two| u8::from_str_radix(two, 16).unwrap())
            .collect()
    };
    text.lines().map(bytes).collect()
}

/// The messages with content, one by one.
fn messages(name: &str) -> Vec<Vec<u8>> {
    let datagrams = recorded(name);
    let mut messages = Vec::new();
    for mut rest in datagrams.iter().map(|of| &of[..]) {
        while let Some(length) = rest.first_chunk::<4>() {
            let (message, next) = rest.split_at(u32::from_ne_bytes(*length) as usize);
            if message[4] > 3 {
                messages.push(message.to_vec());
            }
            rest = next;
        }
    }
    messages
}

fn answers(name: &str) -> Vec<RouteNetlinkMessage> {
    let messages = messages(name).into_iter();
    let parsed = messages.map(|bytes| {
        let mut frames: Vec<_> = frames(&bytes).map(Result::unwrap).collect();
        assert_eq!((frames.len(), frames[0].sequence()), (1, 1));
        match frames.remove(0).parse().unwrap().payload {
            NetlinkPayload::InnerMessage(message) => message,
            other => panic!("{other:?}"),
        }
    });
    parsed.collect()
}

/// Everything read from a datagram, in words, and its errors.
fn read(datagram: &[u8]) -> Vec<Result<String, String>> {
    let mut notices = Vec::new();
    notices::parse(datagram, &mut notices);
    let read = frames(datagram).map(|frame| -> Result<String, String> {
        let message = frame.and_then(|frame| frame.parse());
        match message.map_err(|error| error.to_string())?.payload {
            NetlinkPayload::InnerMessage(message) => Ok(in_words(&message)),
            other => Ok(format!("{other:?}")),
        }
    });
    let read: Vec<_> = read.collect();
    assert!(notices.len() <= read.len());
    assert!(read.len() <= datagram.len().div_ceil(16));
    let mut wrong = read.iter().filter_map(|of| of.as_ref().err());
    assert!(wrong.all(|error| error.contains(' ')), "{read:?}");
    read
}

fn in_words(message: &RouteNetlinkMessage) -> String {
    use RouteNetlinkMessage as Message;

    match message {
        Message::NewLink(link) => {
            let tunnel = tunnel_of(link).map_or_else(String::new, |of| format!(" {of:?}"));
            format!("{} {:?}{tunnel}", link.header.index, interface_of(link))
        }
        Message::NewRoute(route) => {
            let of = |interface| route_of(route, interface);
            let default = default_routes_in(&[Message::NewRoute(route.clone())]);
            format!(
                "{} {} {:?} {:?} {default:?}",
                metric(route),
                table(route),
                of(None),
                of(Some(2))
            )
        }
        Message::NewNeighbour(neighbour) => {
            format!("{} {:?}", neighbour.header.ifindex, mac_of(neighbour))
        }
        Message::NewRule(rule) => {
            has_rules_by_interface_in(&[Message::NewRule(rule.clone())]).to_string()
        }
        Message::NewQueueDiscipline(discipline) => is_clsact(discipline).to_string(),
        Message::NewTrafficFilter(filter) => format!("{:?}", program_of(filter)),
        _ => String::new(),
    }
}

/// Attributes as a reader of rtnetlink(7) would write the parser; `None`: they are incomplete.
fn attributes(mut bytes: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut attributes = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        attributes.push((kind & 0x3fff, bytes.get(4..length)?.to_vec()));
        bytes = &bytes[bytes.len().min(length.div_ceil(4) * 4)..];
    }
    Some(attributes)
}

fn joined(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let bytes = attributes
        .iter()
        .map(|(kind, value)| attribute(*kind, value));
    bytes.collect::<Vec<_>>().concat()
}

/// A message with a part replaced.
fn rebuilt(message: &[u8], fixed: usize, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = message[..16 + fixed].to_vec();
    bytes.extend(attributes);
    let length = (bytes.len() as u32).to_ne_bytes();
    bytes[..4].copy_from_slice(&length);
    bytes
}

/// For a recorded type: bytes before the attributes, and the attributes that the crate reads.
fn shape(name: &str) -> (usize, &'static [u16]) {
    match name {
        "links" => (16, &[1, 3, 4, 5, 10, 18, 23, 37, 43]),
        "routes4" | "routes6" => (12, &[1, 4, 5, 6, 8, 9, 15, 18]),
        "neighbours" => (12, &[1, 2]),
        "rules" => (12, &[17, 19]),
        _ => (20, &[1, 2]),
    }
}

/// An attribute that the crate does not read, with random content.
fn foreign(rng: &mut Rng, read: &[u16]) -> (u16, Vec<u8>) {
    let kind = loop {
        let kind = rng.u16(1..100);
        if !read.contains(&kind) {
            break kind;
        }
    };
    let length = rng.usize(0..24);
    (kind, (0..length).map(|_| rng.u8(..)).collect())
}

fn insert(rng: &mut Rng, into: &mut Vec<(u16, Vec<u8>)>, read: &[u16]) {
    // Anywhere, because others' attributes may also come first.
    into.insert(rng.usize(0..=into.len()), foreign(rng, read));
}

/// Attributes that are not read may contain anything, at every level.
#[test]
fn attributes_that_are_not_read_change_nothing() {
    let all = RECORDED.map(|name| (name, messages(name)));
    mutate::cases(8_000, |rng| {
        let (name, messages) = &all[rng.usize(0..all.len())];
        if messages.is_empty() {
            return;
        }
        let (fixed, read_of) = shape(name);
        let message = mutate::one_of(rng, messages);
        let mut of = attributes(&message[16 + fixed..]).unwrap();
        for (kind, value) in &mut of {
            match (*name, *kind) {
                ("links", 18) => {
                    let mut nested = attributes(value).unwrap();
                    insert(rng, &mut nested, &[1, 2]);
                    // The crate knows this type's content, but it is not a VRF.
                    for (kind, value) in &mut nested {
                        if *kind != 1 && rng.bool() {
                            mutate::bytes(rng, value);
                        }
                    }
                    *value = joined(&nested);
                }
                ("routes4" | "routes6", 8) => {
                    let mut nested = attributes(value).unwrap();
                    insert(rng, &mut nested, &[2, 8]);
                    *value = joined(&nested);
                }
                ("routes4" | "routes6", 9) => {
                    // A path has eight bytes, and attributes.
                    let mut paths = Vec::new();
                    let mut rest = &value[..];
                    while let Some(length) = rest.first_chunk::<2>() {
                        let (path, next) = rest.split_at(usize::from(u16::from_ne_bytes(*length)));
                        let mut of = attributes(&path[8..]).unwrap();
                        insert(rng, &mut of, &[5, 18]);
                        let of = joined(&of);
                        paths.extend((8 + of.len() as u16).to_ne_bytes());
                        paths.extend(&path[2..8]);
                        paths.extend(of);
                        rest = next;
                    }
                    *value = paths;
                }
                (_, kind) if !read_of.contains(&kind) && rng.bool() => mutate::bytes(rng, value),
                // Filters of other types than ours.
                ("egress", 2) => mutate::bytes(rng, value),
                _ => {}
            }
        }
        for _ in 0..rng.u32(0..3) {
            insert(rng, &mut of, read_of);
        }
        let mutated = rebuilt(&message, fixed, &joined(&of));
        assert_eq!(read(&mutated), read(&message), "{name} {mutated:02x?}");
    });
}

/// Cut off anywhere, a datagram gives its whole messages, and an error for the rest.
#[test]
fn datagrams_may_end_anywhere() {
    for name in RECORDED {
        for datagram in recorded(name) {
            let whole = read(&datagram);
            let step = (datagram.len() / 1500).max(1);
            for end in (0..datagram.len()).step_by(step) {
                let cut = read(&datagram[..end]);
                let told: Vec<_> = cut.iter().take_while(|of| of.is_ok()).cloned().collect();
                assert_eq!(told, whole[..told.len()]);
                assert!(cut.len() <= told.len() + 1, "{name} {end}: {cut:?}");
            }
        }
    }
}

/// Every message is read or is an error; whole parts are read as written.
#[test]
fn mutated_messages_are_read_or_refused() {
    let all = RECORDED.map(|name| (name, messages(name)));
    mutate::cases(20_000, |rng| {
        let (name, messages) = &all[rng.usize(0..all.len())];
        if messages.is_empty() {
            return;
        }
        let (fixed, _) = shape(name);
        let mut message = mutate::one_of(rng, messages);
        match rng.u32(0..3) {
            // Anything.
            0 => mutate::bytes(rng, &mut message),
            // The frame is valid, its content is not.
            1 => {
                let mut of = message[16 + fixed..].to_vec();
                for _ in 0..rng.u32(1..4) {
                    mutate::bytes(rng, &mut of);
                }
                message = rebuilt(&message, fixed, &of);
            }
            // Attributes are whole; one is changed, repeated, or moved.
            _ => {
                let mut of = attributes(&message[16 + fixed..]).unwrap();
                let (from, to) = (rng.usize(0..of.len()), rng.usize(0..of.len()));
                match rng.u32(0..4) {
                    0 => mutate::bytes(rng, &mut of[from].1),
                    1 => of[from].0 = rng.u16(0..64),
                    2 => of.insert(to, of[from].clone()),
                    _ => of.swap(from, to),
                }
                message = rebuilt(&message, fixed, &joined(&of));
            }
        }
        let read = read(&message);
        if *name == "links" && message.len() >= 32 && message[4..6] == [16, 0] {
            compare_link(&message, &read);
        }
    });
}

/// Numbers of a link against the obvious reading of its attributes, the last of each type.
fn compare_link(message: &[u8], read: &[Result<String, String>]) {
    let length = u32::from_ne_bytes(*message.first_chunk().unwrap()) as usize;
    let Some(of) = attributes(message.get(32..length).unwrap_or(&[0])) else {
        assert!(read[0].is_err(), "{read:?}");
        return;
    };
    let number = |wanted: u16| {
        let mut values = of.iter().filter(|(kind, _)| *kind == wanted);
        let value = values
            .next_back()
            .map(|(_, value)| <[u8; 4]>::try_from(&value[..]));
        value.map(|bytes| bytes.map(u32::from_ne_bytes))
    };
    let numbers = of.iter().filter(|(kind, _)| [4, 5, 10, 37].contains(kind));
    let is_right = numbers.clone().all(|(_, value)| value.len() == 4);
    match &read[0] {
        Ok(words) => {
            assert!(is_right, "{words}");
            let mtu = number(4).map_or(0, Result::unwrap);
            assert!(words.contains(&format!("mtu: {mtu},")), "{words}");
            let controller = number(10).map(Result::unwrap);
            assert!(
                words.contains(&format!("controller: {controller:?},")),
                "{words}"
            );
        }
        // Only content of a known type can still be wrong.
        Err(error) => assert!(
            !is_right || of.iter().any(|(kind, _)| [18, 43].contains(kind)),
            "{error}"
        ),
    }
}

/// Types of messages that only some kernels send, made by hand.
#[test]
fn vrf_vlan_and_program_are_read_among_others() {
    let link = |of: &[(u16, Vec<u8>)]| {
        let mut message = vec![0; 32];
        message[4] = 16;
        message[20..24].copy_from_slice(&7_u32.to_ne_bytes());
        read(&rebuilt(&message, 16, &joined(of))).remove(0).unwrap()
    };
    let kind = |name: &str, data: &[(u16, Vec<u8>)]| {
        let of = [(1, name.as_bytes().to_vec()), (2, joined(data))];
        vec![
            (3, b"x\0".to_vec()),
            (18, joined(&of)),
            (5, vec![3, 0, 0, 0]),
        ]
    };
    let number = |number: u32| number.to_ne_bytes().to_vec();
    let vrf = link(&kind("vrf\0", &[(9, vec![1]), (1, number(700))]));
    assert!(vrf.contains("vrf_table: Some(700)"), "{vrf}");
    let vlan = link(&kind("vlan\0", &[(1, vec![7])]));
    assert!(
        vlan.contains("vlan: true") && vlan.contains("lower: Some(3)"),
        "{vlan}"
    );
    // Tunnels: from anywhere or not, and of which families.
    let any = vec![0; 16];
    let at: Ipv6Addr = "fd00::2".parse().unwrap();
    let local = (2, at.octets().to_vec());
    let any6 = link(&kind(
        "ip6tnl\0",
        &[(1, vec![9; 4]), local, (3, any.clone()), (9, vec![0])],
    ));
    assert!(
        any6.contains("outer: V6, inner: None, local: Some(fd00::2)"),
        "{any6}"
    );
    let v6_in_v4 = link(&kind(
        "sit\0",
        &[(2, vec![0; 4]), (3, vec![0; 4]), (9, vec![41])],
    ));
    assert!(
        v6_in_v4.contains("outer: V4, inner: Some(V6), local: None"),
        "{v6_in_v4}"
    );
    let v4_in_v4 = link(&kind("ipip\0", &[(9, vec![4])]));
    assert!(
        v4_in_v4.contains("outer: V4, inner: Some(V4)"),
        "{v4_in_v4}"
    );
    for data in [
        vec![(3, vec![192, 0, 2, 1]), (9, vec![4])],
        vec![(9, vec![4]), (19, vec![])],
    ] {
        let other = link(&kind("ipip\0", &data));
        assert!(!other.contains("TunnelDevice"), "{other}");
    }
    // A bridge port without a type: nothing that is read.
    let port = link(&[
        (3, b"x\0".to_vec()),
        (18, joined(&[(4, b"bridge\0".to_vec()), (5, vec![1])])),
    ]);
    assert!(
        port.contains("name: \"x\"") && port.contains("lower: None"),
        "{port}"
    );

    let filter = |kind: &str, options: &[(u16, Vec<u8>)]| {
        let mut message = vec![0; 36];
        message[4] = libc::RTM_NEWTFILTER as u8;
        let of = [(1, kind.as_bytes().to_vec()), (2, joined(options))];
        read(&rebuilt(&message, 20, &joined(&of)))
            .remove(0)
            .unwrap()
    };
    let options = [
        (8, vec![1]),
        (7, b"of_others\xff:[1]\0".to_vec()),
        (11, number(9)),
        (10, vec![2]),
    ];
    assert_eq!(
        filter("bpf\0", &options),
        "TcProgram { id: 9, name: \"of_others\u{fffd}\" }"
    );
    assert_eq!(
        filter("flower\0", &options),
        "TcProgram { id: 0, name: \"\" }"
    );
}

#[test]
fn an_mss_beyond_all_lengths_is_that() {
    let mss = joined(&[(8, u32::MAX.to_ne_bytes().to_vec())]);
    let of = [(4, vec![3, 0, 0, 0]), (8, mss)];
    let header = [&[0; 16][..], &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]].concat();
    let mut message = rebuilt(&header, 12, &joined(&of));
    message[4] = libc::RTM_NEWROUTE as u8;
    let route = read(&message).remove(0).unwrap();
    assert!(route.contains("mtu: Some(4294967295)"), "{route}");
}

/// Others on the host have given a name that is not UTF-8, and a route a congestion algorithm.
#[test]
fn what_others_have_made_hides_nothing() {
    let host = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let ip = |arguments: &str| {
            let words = arguments.split(' ').map(str::as_bytes);
            // Arguments of the command may be any bytes.
            let words = words.map(|word| if word == b"ODD" { b"n\xff\xfe" } else { word });
            let status = Command::new("ip")
                .args(words.map(OsStr::from_bytes))
                .status();
            assert!(status.unwrap().success(), "ip {arguments}");
        };
        let mut told = notices::Notices::new().unwrap();
        told.listen().unwrap();
        ip("link add eth0 type veth peer name odd0");
        ip("link set odd0 name ODD");
        for command in [
            "link set eth0 up",
            "link set ODD up",
            "addr add 192.0.2.1/24 dev eth0",
            "route add default via 192.0.2.254 congctl reno",
            "rule add iif ODD lookup 700",
        ] {
            ip(command);
        }
        let mut requests = Requests::new().unwrap();
        let interfaces = requests.interfaces().unwrap();
        let names: Vec<_> = interfaces.values().map(|of| of.name.as_str()).collect();
        assert!(
            names.contains(&"eth0") && names.contains(&"n\u{fffd}\u{fffd}"),
            "{names:?}"
        );
        let (index, _) = interfaces
            .iter()
            .find(|(_, of)| of.name != "eth0" && of.name != "lo")
            .unwrap();
        assert!(requests.interface(*index).unwrap().is_some());
        let gateway = "192.0.2.254".parse().unwrap();
        let routes = requests.default_routes(Family::V4).unwrap();
        assert_eq!(routes[0].gateway, Some(gateway));
        let route = requests.route("198.51.100.1".parse().unwrap()).unwrap();
        assert_eq!(route.unwrap().gateway, Some(gateway));
        assert!(!requests.has_rules_by_interface().unwrap());
        let told: Vec<_> = told.take().into_iter().collect();
        assert!(told.contains(&Notice::Link { index: *index }), "{told:?}");
        let everything = told.iter().filter(|of| **of == Notice::Anything).count();
        assert_eq!(everything, 1, "that is the rule: {told:?}");
    });
    host.join().unwrap();
}
