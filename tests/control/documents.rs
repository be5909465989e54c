//! Mutated documents for a running balancer: each is applied as a whole, or refused without a
//! change. `KATRAN_SEED` chooses them; a failure prints it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use fastrand::Rng;
use katran::DecapMode;
use katran::Error;
use katran::HashFunction;
use katran::Katran;
use katran::Real;
use katran::RealFlags;
use katran::ServerId;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::DecapState;
use katran::state::MarkState;
use katran::state::ServerIdState;
use katran::state::VipState;

use super::apply::from_state;
use super::apply_names::WHOLE;
use crate::common::bpf;
use crate::common::seed::seeded;

const CASES: u32 = 250;

/// Two VIPs beyond the other tests' document, which share a real.
const VIPS: &str = r#"
[[vip]]
address = "203.0.113.2"
port = 80
protocol = "tcp"
hash = "maglev"
reals = [ { address = "198.51.100.2", weight = 3 }, { address = "2001:db8:2::1", weight = 0 } ]

[[vip]]
address = "2001:db8:1::"
prefix_length = 64
port = 0
protocol = "udp"
flags = ["no-src-port"]
reals = [ { address = "2001:db8:2::1", weight = 2 } ]
"#;

/// Replacement values: valid ones, and ones that only the balancer refuses.
const VALUES: [&str; 44] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "7",
    "80",
    "443",
    "1000",
    "1009",
    "65535",
    "4294967295",
    "16777215",
    "16777216",
    "true",
    "false",
    "[]",
    "[\"quic\"]",
    "[\"src-routing\", \"no-src-port\"]",
    "[\"udp-stable-routing\"]",
    "[\"local-vip\"]",
    "[\"source-routing\"]",
    "[\"source-routing\", \"inline-decap\", \"tcp-server-id\", \"icmp-too-big\"]",
    "[\"inline-decap\", \"tcp-server-id\", \"local-delivery\", \"introspection\"]",
    "\"tcp\"",
    "\"udp\"",
    "\"maglev\"",
    "\"maglev-v2\"",
    "\"inline\"",
    "\"egress\"",
    "\"auto\"",
    "\"0a:00:00:00:00:01\"",
    "\"01:00:00:00:00:01\"",
    "\"10.10.10.11\"",
    "\"203.0.113.1\"",
    "\"203.0.113.9\"",
    "\"198.51.100.1\"",
    "\"198.51.100.7\"",
    "\"2001:db8:2::7\"",
    "\"fe80::1\"",
    "\"127.0.0.1\"",
    "\"0.0.0.0\"",
    "\"100.64.0.0/11\"",
    "\"2001:db8:d::/48\"",
];

pub(super) fn one_of<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())].clone()
}

/// The places of values, with their keys.
fn values(text: &str) -> Vec<(&str, Range<usize>)> {
    let found = text.match_indices(" = ").map(|(at, _)| {
        let key = text[..at].rfind(['\n', ' ', '{']).map_or(0, |at| at + 1);
        let rest = &text[at + 3..];
        let end = match rest.as_bytes()[0] {
            b'"' => rest[1..].find('"').unwrap() + 2,
            b'[' => rest.find(']').unwrap() + 1,
            _ => rest.find([',', ' ', '\n', '}']).unwrap(),
        };
        (&text[key..at], at + 3..at + 3 + end)
    });
    found.collect()
}

fn is_like(one: &str, other: &str) -> bool {
    let look = |text: &str| {
        let digit = text.as_bytes()[0].is_ascii_digit();
        (
            digit,
            text.as_bytes()[0] == b'"',
            text.contains(':'),
            text.contains('.'),
            text.contains('/'),
        )
    };
    look(one) == look(other)
}

fn mutate(rng: &mut Rng, text: &mut String) {
    let of = values(text);
    match rng.u32(0..4) {
        // A similar value; most of [balancer] is fixed, so usually outside of it.
        0 | 1 => {
            let balancer = text.find("\n[[").unwrap();
            let of: Vec<_> = match rng.u32(0..6) {
                0 => of,
                _ => of
                    .into_iter()
                    .filter(|(_, place)| place.start > balancer)
                    .collect(),
            };
            let (_, place) = one_of(rng, &of);
            let alike: Vec<_> = VALUES
                .into_iter()
                .filter(|value| is_like(value, &text[place.clone()]))
                .collect();
            if !alike.is_empty() {
                let other = one_of(rng, &alike);
                text.replace_range(place, other);
            }
        }
        // The value of the same key in another table.
        2 => {
            let (key, from) = one_of(rng, &of);
            let same: Vec<_> = of.iter().filter(|(of, _)| *of == key).collect();
            let (_, to) = one_of(rng, &same).clone();
            let other = text[from].to_owned();
            text.replace_range(to, &other);
        }
        // A table removed, duplicated or moved.
        _ => {
            let mut tables: Vec<_> = text.split("\n[[").map(str::to_owned).collect();
            let (from, to) = (rng.usize(1..tables.len()), rng.usize(1..tables.len()));
            match rng.u32(0..4) {
                0 => tables.insert(to, tables[from].clone()),
                1 => tables.swap(from, to),
                _ if tables.len() > 2 => drop(tables.remove(from)),
                _ => {}
            }
            *text = tables.join("\n[[");
        }
    }
}

/// Makes the state invalid in a way that no document can be: parsing would refuse it.
fn make_wrong(rng: &mut Rng, state: &mut State) {
    let nowhere: IpAddr = [127, 0, 0, 1].into();
    let vips = state.vips.len();
    match rng.u32(0..7) {
        0 if vips > 0 => state.vips[rng.usize(0..vips)]
            .reals
            .push(Real::new(nowhere)),
        1 if vips > 0 => state.vips[rng.usize(0..vips)].down.push(nowhere),
        2 if vips > 0 => {
            let flags = &mut state.vips[rng.usize(0..vips)].flags;
            *flags = VipFlags::from_bits_retain(flags.bits() | 1 << 30);
        }
        3 => state
            .server_ids
            .push(ServerIdState::new(ServerId::new(0, nowhere))),
        4 => state
            .marks
            .push(MarkState::new(0, [198, 51, 100, 1].into())),
        5 => state
            .decap
            .push(DecapState::new(nowhere, DecapMode::Inline)),
        _ => state
            .vips
            .push(VipState::new(Vip::tcp((nowhere, 80).into()))),
    }
}

type Reals = BTreeMap<IpAddr, (u32, RealFlags, bool)>;

/// VIPs in a comparable form, whatever their order.
fn vips(state: &State) -> BTreeMap<Vip, (VipFlags, HashFunction, Reals)> {
    let vips = state.vips.iter().map(|state| {
        let reals = state.reals.iter().map(|real| {
            let flags = real
                .get_flags()
                .unwrap_or_default()
                .difference(RealFlags::IPV6);
            let is_down = state.down.contains(&real.address());
            (real.address(), (real.get_weight(), flags, is_down))
        });
        (
            state.vip,
            (state.flags, state.hash.unwrap_or_default(), reals.collect()),
        )
    });
    vips.collect()
}

/// Everything else, sorted.
fn others(state: &State) -> String {
    let mut of = state.clone();
    of.vips.clear();
    of.balancer = None;
    of.server_ids.sort();
    of.source_routes
        .sort_by_key(|route| (route.prefix(), route.real()));
    of.decap.sort();
    of.marks.sort();
    of.probe_matches.sort();
    of.probes.sort();
    format!("{of:?}")
}

/// Checks that the balancer has what the document says.
fn check(katran: &mut Katran, wanted: &State, text: &str) {
    let state = katran.state();
    assert_eq!(vips(&state), vips(wanted), "{text}");
    assert_eq!(others(&state), others(wanted), "{text}");
    for again in [wanted, &state] {
        let changes = katran.apply(again).unwrap();
        assert!(changes.is_empty(), "{changes}\n{text}");
    }
}

/// The size of `struct vip_info`, and the offset of its flags.
const VIP_INFO: usize = 32;
const FLAGS: usize = 24;

/// What packets see of VIPs, source routes and tunnel ends.
fn kernel(katran: &Katran) -> Vec<BTreeMap<Vec<u8>, Vec<u8>>> {
    let maps = [
        ".data.vip_heads",
        ".data.vip_infos",
        "prefix_vips",
        "source_routes_v4",
        "source_routes_v6",
        "decap_destinations",
    ];
    let mut maps = maps.map(|map| bpf::dump(katran.map_fd(map).unwrap()));
    // The bit for void flows (bit 29 of the flags, behind the key) clears itself once they are
    // removed.
    for info in maps[1]
        .values_mut()
        .flat_map(|all| all.chunks_exact_mut(VIP_INFO))
    {
        info[FLAGS + 3] &= !0x20;
    }
    maps.into()
}

#[test]
fn a_mutated_document_is_applied_whole_or_changes_nothing() {
    let (_seed, mut rng) = seeded();
    let first = format!("{WHOLE}{VIPS}");
    let document = State::from_toml(&first).unwrap();
    let mut katran = from_state(&document);
    check(&mut katran, &document, &first);
    let (mut applied, mut refused) = (0, 0);
    for _ in 0..CASES {
        let mut text = first.clone();
        for _ in 0..rng.u32(1..5) {
            mutate(&mut rng, &mut text);
        }
        let Ok(mut wanted) = State::from_toml(&text) else {
            continue;
        };
        if rng.u32(0..4) == 0 {
            make_wrong(&mut rng, &mut wanted);
        }
        let before = (katran.state(), kernel(&katran));
        match katran.apply(&wanted) {
            Ok(_) => {
                applied += 1;
                check(&mut katran, &wanted, &text);
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains(' '), "{error:?}\n{text}");
                assert_eq!(katran.state(), before.0, "{error}\n{text}");
                assert_eq!(kernel(&katran), before.1, "{error}\n{text}");
            }
        }
        // Half the time, go back to the first document.
        if rng.bool() {
            if let Err(error) = katran.apply(&document) {
                // While there was room for more VIPs, one got a number that is beyond the limit
                // now.
                assert!(matches!(error, Error::InUse { .. }), "{error}");
                let _ = katran.apply(&State::default()).unwrap();
                let _ = katran.apply(&document).unwrap();
            }
            check(&mut katran, &document, &first);
        }
    }
    eprintln!("{applied} applied, {refused} refused");
    assert!(
        applied > CASES / 20 && refused > CASES / 50,
        "{applied} {refused}"
    );
}
