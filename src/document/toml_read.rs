//! A TOML document read as a state. Every error says where: `line 12, column 9: ...`.
//!
//! `toml_write.rs` is the other way; the keys are in `toml_keys.rs`.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::state::DecapState;
use super::state::MarkState;
use super::state::Place;
use super::state::ProbeMatch;
use super::state::ProbeMatchState;
use super::state::ServerIdState;
use super::state::State;
use super::state::VipState;
use super::toml_keys::Document;
use super::toml_keys::ProbeMatchKeys;
use super::toml_keys::RealKeys;
use super::toml_keys::ServerIdKeys;
use super::toml_keys::VipKeys;
use crate::config::BalancerState;
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

#[cfg(test)]
mod tests {

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
