//! A state as a TOML document, both ways.
//!
//! Every error says where: `line 12, column 9: ...`.

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;
use toml_edit::Item;
use toml_edit::Table;
use toml_edit::ser::to_document;

use super::state::DecapState;
use super::state::MarkState;
use super::state::Place;
use super::state::ProbeMatch;
use super::state::ProbeMatchState;
use super::state::ServerIdState;
use super::state::State;
use super::state::VipState;
use super::state::stated_flags;
use super::toml_keys::DecapKeys;
use super::toml_keys::Document;
use super::toml_keys::MarkKeys;
use super::toml_keys::ProbeKeys;
use super::toml_keys::ProbeMatchKeys;
use super::toml_keys::RealKeys;
use super::toml_keys::ServerIdKeys;
use super::toml_keys::SourceRouteKeys;
use super::toml_keys::VipKeys;
use crate::config::BalancerKeys;
use crate::config::BalancerState;
use crate::config::Set;
use crate::config::Text;
use crate::error::Error;
use crate::error::Result;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::Vip;

impl State {
    /// Reads a TOML document.
    ///
    /// ```
    /// # fn main() -> katran::Result<()> {
    /// let state = katran::State::from_toml(
    ///     r#"
    ///     [balancer]
    ///     gateway_mac = "0a:00:00:00:00:fe"
    ///
    ///     [[vip]]
    ///     address = "203.0.113.1"
    ///     port = 443
    ///     protocol = "tcp"
    ///     flags = ["no-src-port"]
    ///     reals = [ { address = "198.51.100.1", weight = 3 }, { address = "2001:db8:2::1" } ]
    ///     "#,
    /// )?;
    /// assert_eq!(state.vips[0].reals[0].get_weight(), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `[balancer]` has the settings of [`Builder`](crate::Builder) by their names; the two
    /// `ipip_source` prefixes are written with their length, `udp_timeout` is in seconds, and
    /// `features` lists exactly what is on. Each `[[vip]]` has `address`, `port` and `protocol`,
    /// and may have `prefix_length`, `flags`, `hash` (`maglev` or `maglev-v2`) and `reals`. A
    /// real has an `address`, and may have a `weight` (1), `local` (false) and
    /// `application_flags` (0; a multiple of 4 up to 252, as bits 0 and 1 are the library's) and
    /// `down` (false). Each `[[server_id]]` has `id` and `real`, and may have `valid` (true); each
    /// `[[source_route]]` has `prefix` and `real`; each `[[decap]]` has `address` and `mode`
    /// (`inline` or `egress`). Each `[[mark]]` has `mark` and `real`; each `[[probe_destination]]` and
    /// `[[probe_source]]` has `address` and `real`, and may have `port` (0, any); each `[[probe]]` has
    /// `address`, `port` and `protocol`.
    ///
    /// # Errors
    /// [`Error::Document`] with line and column if it is not TOML, has a key or a value that
    /// there is not, or contradicts itself.
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut document: Document = toml::from_str(text)
            .map_err(|error| refuse(text, error.span().unwrap_or_default(), error.message()))?;
        let balancer = document.balancer.take().map(BalancerState::from);
        let state = Self {
            balancer,
            vips: document
                .vip
                .iter()
                .map(|keys| vip_state(text, keys))
                .collect::<Result<_>>()?,
            server_ids: document
                .server_id
                .iter()
                .map(|keys| server_id(keys.get_ref()))
                .collect(),
            source_routes: document
                .source_route
                .iter()
                .map(Spanned::get_ref)
                .map(|keys| SourceRoute::new(keys.prefix.0, keys.real.0))
                .collect(),
            decap: document
                .decap
                .iter()
                .map(Spanned::get_ref)
                .map(|keys| DecapState::new(keys.address.0, keys.mode.0))
                .collect(),
            marks: document
                .mark
                .iter()
                .map(Spanned::get_ref)
                .map(|keys| MarkState::new(keys.mark, keys.real.0))
                .collect(),
            probe_matches: probe_matches(&document),
            probes: document
                .probe
                .iter()
                .map(Spanned::get_ref)
                .map(|keys| Vip::new((keys.address.0, keys.port).into(), keys.protocol.0))
                .collect(),
        };
        let Some(conflict) = state.conflict() else {
            return Ok(state);
        };
        let span = match conflict.place {
            Place::Vip(vip) => document.vip[vip].span(),
            Place::Real { vip, real } => document.vip[vip].get_ref().reals[real].span(),
            Place::ServerId(index) => document.server_id[index].span(),
            Place::SourceRoute(index) => document.source_route[index].span(),
            Place::Decap(index) => document.decap[index].span(),
            Place::Mark(index) => document.mark[index].span(),
            Place::ProbeMatch(index) => {
                let destinations = document.probe_destination.len();
                match index.checked_sub(destinations) {
                    None => document.probe_destination[index].span(),
                    Some(index) => document.probe_source[index].span(),
                }
            }
            Place::Probe(index) => document.probe[index].span(),
        };
        Err(refuse(text, span, &conflict.message))
    }

    /// Writes a TOML document, which [`from_toml`](Self::from_toml) reads to the same state.
    ///
    /// Settings that are `None` are left out; a VIP is written in full.
    ///
    /// # Errors
    /// [`Error::Document`] if a number is larger than TOML can hold (2^63 - 1).
    pub fn to_toml(&self) -> Result<String> {
        let refused = |error: &dyn fmt::Display| Error::Document {
            message: error.to_string(),
        };
        let mut keys = self.keys();
        // The rest has only flat tables, which need no layout: there may be very many of them.
        let laid_out = Document {
            balancer: keys.balancer.take(),
            vip: mem::take(&mut keys.vip),
            ..Document::default()
        };
        let rest = toml::to_string(&keys).map_err(|error| refused(&error))?;
        let mut document = to_document(&laid_out).map_err(|error| refused(&error))?;
        for (_, item) in document.iter_mut() {
            *item = match mem::take(item).into_array_of_tables() {
                Ok(tables) => Item::ArrayOfTables(tables),
                Err(item) => item.into_table().map_or_else(|item| item, Item::Table),
            };
            if let Some(tables) = item.as_array_of_tables_mut() {
                tables.iter_mut().for_each(lay_out);
            }
        }
        let mut text = document.to_string();
        if !text.is_empty() && !rest.is_empty() {
            text.push('\n');
        }
        Ok(text + &rest)
    }

    fn keys(&self) -> Document {
        let probe_matches = |wanted: fn(&ProbeMatch) -> Option<SocketAddr>| {
            let keys = self.probe_matches.iter().filter_map(move |state| {
                wanted(&state.by).map(|address| ProbeMatchKeys {
                    address: Text(address.ip()),
                    port: address.port(),
                    real: Text(state.real),
                })
            });
            keys.map(placeless).collect()
        };
        Document {
            balancer: self.balancer.as_ref().map(BalancerKeys::from),
            vip: self.vips.iter().map(vip_keys).map(placeless).collect(),
            server_id: each(&self.server_ids, |state| ServerIdKeys {
                id: state.id.id(),
                real: Text(state.id.real()),
                valid: state.valid,
            }),
            source_route: each(&self.source_routes, |route| SourceRouteKeys {
                prefix: Text(route.prefix()),
                real: Text(route.real()),
            }),
            decap: each(&self.decap, |state| DecapKeys {
                address: Text(state.address),
                mode: Text(state.mode),
            }),
            mark: each(&self.marks, |state| MarkKeys {
                mark: state.mark,
                real: Text(state.real),
            }),
            probe_destination: probe_matches(|by| match by {
                ProbeMatch::Destination(address) => Some(*address),
                ProbeMatch::Source(_) => None,
            }),
            probe_source: probe_matches(|by| match by {
                ProbeMatch::Source(address) => Some(*address),
                ProbeMatch::Destination(_) => None,
            }),
            probe: each(&self.probes, |probe| ProbeKeys {
                address: Text(probe.address()),
                port: probe.port(),
                protocol: Text(probe.protocol()),
            }),
        }
    }
}

/// Keys that stand nowhere yet.
fn placeless<K>(keys: K) -> Spanned<K> {
    Spanned::new(0..0, keys)
}

fn each<S, K>(states: &[S], keys: impl Fn(&S) -> K) -> Vec<Spanned<K>> {
    states.iter().map(keys).map(placeless).collect()
}

/// A line for each real.
fn lay_out(table: &mut Table) {
    let Some(reals) = table.get_mut("reals").and_then(Item::as_array_mut) else {
        return;
    };
    for real in reals.iter_mut() {
        real.decor_mut().set_prefix("\n    ");
    }
    reals.set_trailing("\n");
    reals.set_trailing_comma(true);
}

/// What is wrong, and where.
fn refuse(text: &str, span: Range<usize>, message: &str) -> Error {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    Error::Document {
        message: format!("line {line}, column {column}: {message}"),
    }
}

fn vip_state(text: &str, spanned: &Spanned<VipKeys>) -> Result<VipState> {
    let keys = spanned.get_ref();
    let mut vip = Vip::new((keys.address.0, keys.port).into(), keys.protocol.0);
    if let Some(length) = &keys.prefix_length {
        vip = vip
            .with_prefix(*length.get_ref())
            .map_err(|error| refuse(text, length.span(), &error.to_string()))?;
    }
    Ok(VipState {
        vip,
        flags: keys.flags.0,
        hash: keys.hash.as_ref().map(|hash| hash.0),
        reals: keys
            .reals
            .iter()
            .map(|keys| real(text, keys.get_ref()))
            .collect::<Result<_>>()?,
        down: keys
            .reals
            .iter()
            .filter(|real| real.get_ref().down)
            .map(|real| real.get_ref().address.0.to_canonical())
            .collect(),
    })
}

/// First those by destination, then those by source.
fn probe_matches(document: &Document) -> Vec<ProbeMatchState> {
    let of = |keys: &Spanned<ProbeMatchKeys>, by: fn(SocketAddr) -> ProbeMatch| {
        let keys = keys.get_ref();
        let address = (keys.address.0, keys.port).into();
        ProbeMatchState::new(by(address), keys.real.0)
    };
    let destinations = document.probe_destination.iter();
    let sources = document.probe_source.iter();
    destinations
        .map(|keys| of(keys, ProbeMatch::Destination))
        .chain(sources.map(|keys| of(keys, ProbeMatch::Source)))
        .collect()
}

fn server_id(keys: &ServerIdKeys) -> ServerIdState {
    let mut state = ServerIdState::new(ServerId::new(keys.id, keys.real.0));
    state.valid = keys.valid;
    state
}

fn real(text: &str, keys: &RealKeys) -> Result<Real> {
    let mut flags = RealFlags::empty();
    flags.set(RealFlags::LOCAL_REAL, keys.local);
    if let Some(bits) = &keys.application_flags {
        let application = RealFlags::from_bits_retain(*bits.get_ref());
        if !RealFlags::APPLICATION.contains(application) {
            let message = format!(
                "application_flags = {}: bits 0 and 1 are the library's; a multiple of 4 up to \
                 252 is expected",
                bits.get_ref()
            );
            return Err(refuse(text, bits.span(), &message));
        }
        flags |= application;
    }
    let real = Real::new(keys.address.0).weight(keys.weight);
    Ok(match flags.is_empty() {
        true => real,
        false => real.flags(flags),
    })
}

fn vip_keys(state: &VipState) -> VipKeys {
    let vip = &state.vip;
    let down: BTreeSet<IpAddr> = state.down.iter().copied().collect();
    let length = vip.is_prefix().then(|| vip.prefix_length());
    VipKeys {
        address: Text(vip.address()),
        prefix_length: length.map(placeless),
        port: vip.port(),
        protocol: Text(vip.protocol()),
        flags: Set(state.flags),
        hash: state.hash.map(Text),
        reals: each(&state.reals, |real| {
            let flags = stated_flags(real);
            let application = flags.intersection(RealFlags::APPLICATION);
            RealKeys {
                address: Text(real.address()),
                weight: real.get_weight(),
                local: flags.contains(RealFlags::LOCAL_REAL),
                application_flags: (!application.is_empty()).then(|| placeless(application.bits())),
                down: down.contains(&real.address()),
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Features;
    use crate::types::DecapMode;
    use crate::types::Encapsulation;
    use crate::types::HashFunction;
    use crate::types::MaxFrame;
    use crate::types::VipFlags;

    const SPEC: &str = r#"
[balancer]
gateway_mac = "0a:00:00:00:00:fe"
encapsulation = "ipip"
source_v4 = "10.10.10.10"
source_v6 = "2001:db8:ffff::1"
gue_port = 6080
max_frame = 1514
max_vips = 512
ring_size = 65537
flow_table_size = 100000
features = ["source-routing", "inline-decap", "icmp-too-big"]

[[vip]]
address = "203.0.113.1"
# prefix_length = 96
port = 443
protocol = "tcp"
flags = ["no-src-port"]
hash = "maglev"
reals = [ { address = "198.51.100.1", weight = 3 }, { address = "2001:db8:2::1", local = true } ]

[[server_id]]
id = 1000
real = "198.51.100.1"

[[source_route]]
prefix = "100.64.0.0/10"
real = "2001:db8:2::100"

[[decap]]
address = "192.0.2.200"
mode = "inline"

[[mark]]
mark = 1000
real = "198.51.100.1"
"#;

    const ALL_SETTINGS: &str = r#"[balancer]
gateway_mac = "auto"
gateway_mac_v6 = "0a:00:00:00:00:06"
next_hops = "per-real"
encapsulation = "gue"
outer_dont_fragment = "inherit"
features = []
source_v4 = "10.10.10.10"
source_v6 = "2001:db8:ffff::1"
ipip_source_v4 = "10.20.0.0/16"
ipip_source_v6 = "2001:db8::/96"
gue_port = 6081
max_frame = 9014
frags = true
max_vips = 1
max_reals = 2
ring_size = 3
hash_function = "maglev"
flow_table = "kernel-lru"
flow_table_size = 4
forwarding_cpus = [0, 1]
numa_nodes = [0, 0]
flood_threshold = 5
udp_timeout = 1.5
global_flow_table_size = 6
max_source_routes = 7
max_decap = 8
max_server_ids = 9
healthcheck_interface = "eth0"
healthcheck_priority = 10
healthcheck_max_packet = 1500
healthcheck_hook = "clsact"
event_buffer = 4096

[[vip]]
address = "2001:db8:c::"
prefix_length = 96
port = 0
protocol = "udp"
flags = ["lru-bypass", "quic", "udp-flow-migration"]
hash = "maglev-v2"
reals = [
    { address = "198.51.100.1", weight = 0, local = true, application_flags = 132, down = true },
]

[[vip]]
address = "203.0.113.1"
port = 1
protocol = "tcp"

[[server_id]]
id = 1000
real = "198.51.100.1"

[[server_id]]
id = 4294967295
real = "2001:db8:2::1"
valid = false

[[source_route]]
prefix = "100.64.0.0/10"
real = "2001:db8:2::100"

[[decap]]
address = "192.0.2.200"
mode = "inline"

[[decap]]
address = "2001:db8::200"
mode = "egress"

[[mark]]
mark = 1000
real = "198.51.100.1"

[[probe_destination]]
address = "203.0.113.1"
port = 443
real = "198.51.100.1"

[[probe_source]]
address = "2001:db8::9"
port = 0
real = "2001:db8:2::1"

[[probe]]
address = "203.0.113.1"
port = 443
protocol = "tcp"
"#;

    fn message(text: &str) -> String {
        State::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn the_document_of_the_specification_is_read() {
        let state = State::from_toml(SPEC).unwrap();
        let balancer = state.balancer.as_ref().unwrap();
        assert_eq!(balancer.encapsulation, Some(Encapsulation::Ipip));
        assert_eq!(
            balancer.features,
            Some(Features::SOURCE_ROUTING | Features::INLINE_DECAP | Features::ICMP_TOO_BIG)
        );
        assert_eq!(balancer.flow_table_size, Some(100_000));
        assert_eq!(balancer.max_reals, None);
        let vip = &state.vips[0];
        assert_eq!(vip.vip.to_string(), "203.0.113.1:443/tcp");
        assert_eq!(vip.flags, VipFlags::NO_SRC_PORT);
        assert_eq!(vip.hash, Some(HashFunction::Maglev));
        let real = |address: &str| Real::new(address.parse().unwrap());
        assert_eq!(
            vip.reals,
            [
                real("198.51.100.1").weight(3),
                real("2001:db8:2::1").flags(RealFlags::LOCAL_REAL)
            ]
        );
        let ip = |text: &str| text.parse().unwrap();
        let id = ServerId::new(1000, ip("198.51.100.1"));
        assert_eq!(state.server_ids, [ServerIdState::new(id)]);
        let prefix = "100.64.0.0/10".parse().unwrap();
        let route = SourceRoute::new(prefix, ip("2001:db8:2::100"));
        assert_eq!(state.source_routes, [route]);
        let end = DecapState::new(ip("192.0.2.200"), DecapMode::Inline);
        assert_eq!(state.decap, [end]);
    }

    #[test]
    fn every_setting_round_trips() {
        let state = State::from_toml(ALL_SETTINGS).unwrap();
        assert_eq!(state.to_toml().unwrap(), ALL_SETTINGS);
        let balancer = state.balancer.as_ref().unwrap();
        assert_eq!(balancer.udp_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(balancer.features, Some(Features::empty()));
        assert_eq!(State::from_toml("").unwrap(), State::default());
        assert_eq!(State::default().to_toml().unwrap(), "");
    }

    #[test]
    fn missing_features_are_the_default_set() {
        let state = State::from_toml("[balancer]\n").unwrap();
        assert_eq!(state.balancer, Some(BalancerState::default()));
        let whole = State::from_toml("[balancer]\nudp_timeout = 2\n").unwrap();
        assert_eq!(whole.to_toml().unwrap(), "[balancer]\nudp_timeout = 2\n");
    }

    #[test]
    fn the_longest_frame_is_a_number_or_auto() {
        let document = |text: &str| format!("[balancer]\nmax_frame = {text}\n");
        for (text, expected) in [
            ("1514", MaxFrame::Bytes(1514)),
            ("\"auto\"", MaxFrame::Auto),
        ] {
            let state = State::from_toml(&document(text)).unwrap();
            assert_eq!(state.balancer.as_ref().unwrap().max_frame, Some(expected));
            assert_eq!(state.to_toml().unwrap(), document(text));
        }
        for wrong in ["\"large\"", "-1", "4294967296", "true", "1514.0"] {
            let error = State::from_toml(&document(wrong)).unwrap_err().to_string();
            assert!(
                error.contains("line 2") && error.contains("auto"),
                "{error}"
            );
        }
    }

    #[test]
    fn errors_say_where() {
        let vip = "[[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n";
        let with = |line: &str| format!("{vip}{line}\n");
        let cases = [
            (
                "[balancer]\ngatewaymac = 1\n".to_owned(),
                "line 2, column 1: ",
                "gatewaymac",
            ),
            ("\n[balance]\n".to_owned(), "line 2, column 2: ", "balance"),
            (with("weigth = 1"), "line 5, column 1: ", "weigth"),
            (
                with("reals = [\n  { address = \"198.51.100.1\", wieght = 1 },\n]"),
                "line 6, column 31: ",
                "wieght",
            ),
            (
                with("reals = [ { address = \"198.51.100\" } ]"),
                "line 5, column 23: ",
                "`198.51.100`",
            ),
            (
                with("flags = [\"no-src-port\", \"quick\"]"),
                "line 5, column 9: ",
                "`quick`",
            ),
            (
                with("hash = \"maglev-v3\""),
                "line 5, column 8: ",
                "`maglev-v3`",
            ),
            (
                with("prefix_length = 33"),
                "line 5, column 17: ",
                "longest prefix",
            ),
            (
                with("reals = [ { address = \"198.51.100.1\", application_flags = 2 } ]"),
                "line 5, column 59: ",
                "multiple of 4",
            ),
            (
                "[balancer]\nipip_source_v4 = \"10.0.0.0/8\"\n".to_owned(),
                "line 2, column 18: ",
                "length 16",
            ),
            (
                "[balancer]\nmax_vips = -1\n".to_owned(),
                "line 2, column 12: ",
                "-1",
            ),
            (
                "[balancer]\nudp_timeout = -1\n".to_owned(),
                "line 2, column 15: ",
                "",
            ),
            ("[balancer]\nmax_vips 1\n".to_owned(), "line 2, column ", ""),
            (
                with("\n[[server_id]]\nid = 1000\nreel = \"198.51.100.1\""),
                "line 8, column 1: ",
                "`reel`",
            ),
            (
                with("[[source_route]]\nprefix = \"100.64.0.1/10\"\nreal = \"198.51.100.1\""),
                "line 6, column 10: ",
                "would be 100.64.0.0/10",
            ),
            (
                with("[[decap]]\naddress = \"192.0.2.200\"\nmode = \"outline\""),
                "line 7, column 8: ",
                "inline or egress",
            ),
            (
                with(
                    "[[decap]]\naddress = \"192.0.2.200\"\nmode = \"inline\"\n\n\
                     [[decap]]\naddress = \"192.0.2.200\"\nmode = \"egress\"",
                ),
                "line 9, column 1: ",
                "192.0.2.200 is listed twice",
            ),
            (
                with("[[mark]]\nmark = 1\n"),
                "line 5, column 1: ",
                "missing field `real`",
            ),
            (
                format!("{vip}\n{vip}"),
                "line 6, column 1: ",
                "listed twice",
            ),
            (
                with(
                    "reals = [ { address = \"198.51.100.1\" },\n          \
                     { address = \"198.51.100.1\" } ]",
                ),
                "line 6, column 11: ",
                "listed twice",
            ),
        ];
        for (text, place, part) in cases {
            let message = message(&text);
            assert!(
                message.contains(place) && message.contains(part),
                "{place:?} and {part:?} are to be in {message:?} of\n{text}"
            );
        }
    }
}
