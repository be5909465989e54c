//! Reads a TOML document as a state. Each error says where it is and what to write instead.
//!
//! `pieces.rs` cuts the document, `toml` parses a piece, `page.rs` reads tables and has the
//! messages. `toml_write.rs` writes documents; `sections.rs` has the keys.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use super::beside::Beside;
use super::beside::Nobody;
use super::page::Host;
use super::page::Keys;
use super::page::Page;
use super::page::unknown;
use super::pieces::pieces;
use super::places::Places;
use super::room::beyond;
use super::sections::DECAP;
use super::sections::HEALTH;
use super::sections::MARK;
use super::sections::PROBE;
use super::sections::PROBE_DESTINATION;
use super::sections::PROBE_SOURCE;
use super::sections::SECTIONS;
use super::sections::SERVER_ID;
use super::sections::SOURCE_ROUTE;
use super::sections::Section;
use super::sections::VIP;
use super::sections::is_section;
use super::source::Source;
use super::state::DecapState;
use super::state::MarkState;
use super::state::ProbeMatch;
use super::state::ProbeMatchState;
use super::state::ServerIdState;
use super::state::State;
use super::toml_vip::vip;
use crate::config::BalancerState;
use crate::config::SETTING_KEYS;
use crate::config::Text;
use crate::config::Value;
use crate::error::Error;
use crate::error::Result;
use crate::types::DecapMode;
use crate::types::Prefix;
use crate::types::Protocol;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::Vip;
use crate::types::check_host;
use crate::types::check_mark;
use crate::types::check_real;
use crate::types::check_server_id;

/// # Reading TOML
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
    /// `docs/configuration.md` lists all keys, with units, ranges and defaults. The keys `health`
    /// are refused here; `health::Document` (feature `health`) reads them.
    ///
    /// Reading needs memory for the text and the state, and some megabytes (30 times the text of
    /// the longest table). Millions of lines take a second or two: read before you take a lock.
    ///
    /// Loading and [`apply`](crate::Katran::apply) check what depends on the machine and the
    /// balancer. Read a [`Document`](crate::state::Document) to have their errors name the line
    /// too.
    ///
    /// # Errors
    /// [`Error::Document`] with line and column if the text is not TOML, has an unknown key or a
    /// value out of range, or contradicts itself.
    pub fn from_toml(text: &str) -> Result<Self> {
        let (state, _) = read_toml(text, &mut Nobody)?;
        Ok(state)
    }

    /// Reads a file with a TOML document, as [`from_toml`](Self::from_toml) does; errors name the
    /// file.
    ///
    /// # Errors
    /// [`Error::Document`], such as `lb.toml:17:8: port = 65536: must be 0 to 65535, 0 for any`;
    /// [`Error::Kernel`] if the file cannot be read.
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self> {
        let (state, _) = read_toml_file(path.as_ref(), &mut Nobody)?;
        Ok(state)
    }
}

/// Reads a document and lets `beside` read the keys of health checks.
pub(crate) fn read_toml(text: &str, beside: &mut dyn Beside) -> Result<(State, Places)> {
    Reader::new(None, text, beside).read()
}

/// Reads a file with a document and lets `beside` read the keys of health checks.
pub(crate) fn read_toml_file(path: &Path, beside: &mut dyn Beside) -> Result<(State, Source)> {
    let bytes = fs::read(path).map_err(|errno| Error::Kernel {
        operation: "read the configuration document",
        object: path.display().to_string(),
        errno,
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let page = Page {
            file: Some(path),
            text: &text,
            start: 0,
        };
        page.refuse(valid, "this is not UTF-8 text")
    })?;
    let (state, places) = Reader::new(Some(path), &text, beside).read()?;
    Ok((state, Source::new(Some(path), text, places)))
}

/// A document while it is read.
struct Reader<'t, 'b> {
    page: Page<'t>,
    beside: &'b mut dyn Beside,
    /// Where the section of health checks is.
    health: Option<usize>,
    state: State,
    places: Places,
    /// Matches by source, which come after those by destination.
    sources: Vec<(usize, ProbeMatchState)>,
    /// Sections written as `vip = [ ... ]`, of which TOML allows no more, and where.
    whole: Vec<(&'static str, usize)>,
}

impl<'t, 'b> Reader<'t, 'b> {
    fn new(file: Option<&'t Path>, text: &'t str, beside: &'b mut dyn Beside) -> Self {
        Self {
            beside,
            health: None,
            page: Page {
                file,
                text,
                start: 0,
            },
            state: State::default(),
            places: Places::default(),
            sources: Vec::new(),
            whole: Vec::new(),
        }
    }

    /// The state, and where everything in it is.
    fn read(mut self) -> Result<(State, Places)> {
        for piece in pieces(self.page.text) {
            self.page.start = piece.start;
            let tables = DeTable::parse(piece.text).map_err(|error| {
                let span = error.span().unwrap_or_default();
                self.page.refuse_syntax(span, error.message())
            })?;
            // In the order of the text, so that the first error is reported.
            let mut sections: Vec<_> = tables.get_ref().iter().collect();
            sections.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in sections {
                self.section(key, value)?;
            }
        }
        self.finish()
    }

    fn section(&mut self, key: &Spanned<impl AsRef<str>>, value: &Value<'_>) -> Result<()> {
        let name = key.get_ref().as_ref();
        if name == "balancer" {
            return self.balancer(key, value);
        }
        if name == HEALTH {
            return self.health(key, value);
        }
        let section = SECTIONS.iter().copied();
        let Some(section) = section
            .filter(|of| is_section(of.name))
            .find(|of| of.name == name)
        else {
            let names = SECTIONS.iter().map(|section| section.name);
            let names = names.filter(|name| is_section(name));
            let names = ["balancer", HEALTH].into_iter().chain(names);
            let message = unknown("a document", name, names);
            return Err(self.page.refuse(key.span().start, message));
        };
        if let Some((_, at)) = self.whole.iter().find(|(of, _)| *of == section.name) {
            let message = format!(
                "{name} = [ ... ] in line {} already lists them all: write {} for each instead",
                self.page.line(*at),
                section.title
            );
            return Err(self.page.refuse(key.span().start, message));
        }
        let page = self.page;
        let tables = page.tables(section, key, value)?;
        if page.is_assigned(key) {
            self.whole
                .push((section.name, page.start + key.span().start));
        }
        for table in tables {
            let keys = Keys::new(&page, section, table)?;
            self.table(section, &keys)?;
        }
        Ok(())
    }

    fn balancer(&mut self, key: &Spanned<impl AsRef<str>>, value: &Value<'_>) -> Result<()> {
        let at = key.span().start;
        if let Some(first) = self.places.balancer {
            let line = self.page.line(first);
            let message = format!("[balancer] is already in line {line}");
            return Err(self.page.refuse(at, message));
        }
        let DeValue::Table(table) = value.get_ref() else {
            let message = "[balancer] may occur only once: write [balancer], with single brackets";
            return Err(self.page.refuse(at, message));
        };
        let mut settings: Vec<_> = table.iter().collect();
        settings.sort_by_key(|(key, _)| key.span().start);
        let mut state = BalancerState::default();
        for (key, value) in settings {
            let name: &str = key.get_ref();
            match state.read(name, value) {
                Some(Ok(())) => {
                    let at = self.page.start + value.span().start;
                    self.places.add_setting(name, at);
                }
                Some(Err(wrong)) => return Err(self.page.refuse_value(name, value, wrong)),
                None => {
                    let names = SETTING_KEYS.iter().copied();
                    let message = unknown("[balancer]", name, names);
                    return Err(self.page.refuse(key.span().start, message));
                }
            }
        }
        self.places.balancer = Some(self.page.start + at);
        self.state.balancer = Some(state);
        Ok(())
    }

    fn health(&mut self, key: &Spanned<impl AsRef<str>>, value: &Value<'_>) -> Result<()> {
        let at = key.span().start;
        if let Some(first) = self.health {
            let line = self.page.line(first);
            let message = format!("[health] is already in line {line}");
            return Err(self.page.refuse(at, message));
        }
        if matches!(value.get_ref(), DeValue::Array(_)) {
            let message = "[health] may occur only once: write [health], with single brackets";
            return Err(self.page.refuse(at, message));
        }
        self.health = Some(self.page.start + at);
        self.beside.section(&self.page, value)
    }

    fn table(&mut self, section: &Section, keys: &Keys<'_, '_, '_>) -> Result<()> {
        let at = keys.at;
        let (state, places) = (&mut self.state, &mut self.places);
        let real = || keys.address("real", Host::Real, check_real);
        match section.name {
            of if of == VIP.name => {
                let vip = vip(keys, &mut places.reals, self.beside)?;
                state.vips.push(vip);
                places.vips.push(at);
            }
            of if of == SERVER_ID.name => {
                let id = keys.needed("id")?;
                keys.checked("id", check_server_id(id))?;
                let mut id = ServerIdState::new(ServerId::new(id, real()?));
                id.valid = keys.given("valid")?.unwrap_or(true);
                state.server_ids.push(id);
                places.server_ids.push(at);
            }
            of if of == SOURCE_ROUTE.name => {
                let Text(prefix) = keys.needed::<Text<Prefix>>("prefix")?;
                state.source_routes.push(SourceRoute::new(prefix, real()?));
                places.source_routes.push(at);
            }
            of if of == DECAP.name => {
                let address = keys.address("address", Host::TunnelEnd, check_host)?;
                let Text(mode) = keys.needed::<Text<DecapMode>>("mode")?;
                state.decap.push(DecapState::new(address, mode));
                places.decap.push(at);
            }
            of if of == MARK.name => {
                let mark = keys.needed("mark")?;
                keys.checked("mark", check_mark(mark))?;
                state.marks.push(MarkState::new(mark, real()?));
                places.marks.push(at);
            }
            of if of == PROBE_DESTINATION.name || of == PROBE_SOURCE.name => {
                let address = keys.address("address", Host::Probe, |_| Ok(()))?;
                let address = SocketAddr::new(address, keys.given("port")?.unwrap_or(0));
                if of == PROBE_SOURCE.name {
                    let by = ProbeMatch::Source(address);
                    self.sources.push((at, ProbeMatchState::new(by, real()?)));
                    return Ok(());
                }
                let by = ProbeMatch::Destination(address);
                state.probe_matches.push(ProbeMatchState::new(by, real()?));
                places.probe_matches.push(at);
            }
            of => {
                debug_assert_eq!(of, PROBE.name);
                let address = keys.address("address", Host::Probe, |_| Ok(()))?;
                let address = SocketAddr::new(address, keys.needed("port")?);
                let Text(protocol) = keys.needed::<Text<Protocol>>("protocol")?;
                state.probes.push(Vip::new(address, protocol));
                places.probes.push(at);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(State, Places)> {
        self.page.start = 0;
        for (at, of) in self.sources {
            self.state.probe_matches.push(of);
            self.places.probe_matches.push(at);
        }
        let (state, places) = (self.state, self.places);
        match state.conflict().or_else(|| beyond(&state)) {
            None => Ok((state, places)),
            Some(conflict) => Err(self.page.refuse_conflict(&state, &places, conflict)),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::config::Features;
    use crate::types::DecapMode;
    use crate::types::Encapsulation;
    use crate::types::HashFunction;
    use crate::types::MaxFrame;
    use crate::types::Real;
    use crate::types::RealFlags;
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
}
