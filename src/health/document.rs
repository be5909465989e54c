//! A document with health checks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::given::Given;
use super::keys::ALL;
use super::keys::OF_REAL;
use super::keys::OF_VIP;
use super::policy::Policy;
use super::policy::RealPolicy;
use super::read_check::Asked;
use super::read_check::asked;
use super::read_check::authorities;
use super::settings::Settings;
use super::table::checked;
use super::table::given;
use super::table::time;
use crate::config::Value;
use crate::document::Beside;
use crate::document::Keys;
use crate::document::Page;
use crate::document::Source;
use crate::document::State;
use crate::document::VipState;
use crate::document::read_toml;
use crate::document::read_toml_file;
use crate::error::Error;
use crate::error::Result;
use crate::types::HashFunction;
use crate::types::Protocol;
use crate::types::Vip;

/// A TOML document for a balancer with its health checks: the section `[health]`, and the keys
/// `health` of VIPs and reals, which `docs/health.md` lists. Also needs the feature `serde`.
///
/// ```
/// # fn main() -> katran::Result<()> {
/// use katran::health::Document;
///
/// let document = Document::from_toml(
///     r#"
///     [balancer]
///     gateway_mac = "0a:00:00:00:00:fe"
///
///     [health]
///     interval = 1
///
///     [[vip]]
///     address = "203.0.113.1"
///     port = 443
///     protocol = "tcp"
///     reals = [
///         { address = "198.51.100.1" },
///         { address = "198.51.100.2", health = { fall = 5 } },
///     ]
///     [vip.health]
///     check = { kind = "https", path = "/healthz", server_name = "www.example.com" }
///     slow_start = 30
///     "#,
/// )?;
/// let settings = document.settings.unwrap();
/// assert_eq!(settings.vips[&document.state.vips[0].vip].reals.len(), 1);
/// # Ok(())
/// # }
/// ```
///
/// **A command runs as the process that checks**, so anybody who can hand a document to that
/// process can run any program as its user. Accept documents with [`commands`](Self::commands) only
/// from users who may do so anyway.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Document {
    /// The wanted state of the balancer.
    pub state: State,
    /// The health checks; `None` if the document has no key `health`.
    pub settings: Option<Settings>,
    source: Source,
    authorities: Authorities,
}

/// Where each file of authorities is first named.
type Authorities = BTreeMap<String, usize>;

impl PartialEq for Document {
    /// Compares contents, not places.
    fn eq(&self, other: &Self) -> bool {
        self.state == other.state && self.settings == other.settings
    }
}

/// # Reading and checking
impl Document {
    /// Reads a TOML document.
    ///
    /// # Errors
    /// [`Error::Document`], as [`State::from_toml`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut reading = Reading::default();
        let (state, places) = read_toml(text, &mut reading)?;
        let source = Source::new(None, text.to_owned(), places);
        reading.finish(state, source)
    }

    /// Reads a file with a TOML document.
    ///
    /// # Errors
    /// Those of [`State::from_toml_file`].
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut reading = Reading::default();
        let (state, source) = read_toml_file(path, &mut reading)?;
        reading.finish(state, source)
    }

    /// Checks what a balancer loaded from it would refuse (see
    /// [`state::Document::check`](crate::state::Document::check)), and what its checks would
    /// refuse: unreadable certificates, or a missing source address for probes through the tunnel.
    /// Call it before you change `state`.
    ///
    /// # Errors
    /// [`Error::Document`], with file, line and column.
    pub fn check(&self) -> Result<()> {
        let Some(settings) = &self.settings else {
            return self.source.check(&self.state, &|_, _| false);
        };
        let is_probed = |vip, real| settings.is_by_tunnel(vip, real);
        self.source.check(&self.state, &is_probed)?;
        settings.check().map_err(|error| self.placed(error))
    }

    /// Adds file, line and column to an error of a call that was given this state; see
    /// [`state::Document::placed`](crate::state::Document::placed). Do not change `state` before;
    /// change a copy.
    #[must_use]
    pub fn placed(&self, error: Error) -> Error {
        match &error {
            Error::InvalidConfig { setting, value, .. } if *setting == "authorities" => {
                match self.authorities.get(value) {
                    Some(at) => self.source.refuse_at(*at, &error),
                    None => error,
                }
            }
            _ => self.source.placed(&self.state, error),
        }
    }

    /// The programs that its checks run, with arguments.
    pub fn commands(&self) -> impl Iterator<Item = &super::Command> {
        self.settings.iter().flat_map(Settings::commands)
    }

    /// The files of authorities that it names, with duplicates. The checking process opens them,
    /// and its errors reveal which exist: consider that if you did not write the document.
    pub fn authorities(&self) -> impl Iterator<Item = &Path> {
        self.settings.iter().flat_map(Settings::authorities)
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    is_there: bool,
    settings: Settings,
    all: Given,
    tcp: Option<Asked>,
    udp: Option<Asked>,
    vips: BTreeMap<Vip, Given>,
    reals: BTreeMap<Vip, BTreeMap<IpAddr, RealPolicy>>,
    authorities: Authorities,
}

impl Beside for Reading {
    fn section(&mut self, page: &Page<'_>, value: &Value<'_>) -> Result<()> {
        self.is_there = true;
        let keys = Keys::new(page, &ALL, value)?;
        self.all = Given::read(&keys)?;
        self.note(&keys);
        self.tcp = asked(&keys, "tcp_check")?;
        self.udp = asked(&keys, "udp_check")?;
        let numbers: [(&str, &mut u32); 4] = [
            ("first_mark", &mut self.settings.first_mark),
            ("concurrency", &mut self.settings.concurrency),
            ("threads", &mut self.settings.threads),
            ("history", &mut self.settings.history),
        ];
        for (key, place) in numbers {
            *place = given(&keys, key)?.unwrap_or(*place);
        }
        let pause: Option<Duration> = time(&keys, "pause")?;
        self.settings.pause = pause.unwrap_or(self.settings.pause);
        checked(&keys, self.settings.validate())
    }

    fn of_vip(&mut self, vip: Vip, page: &Page<'_>, value: &Value<'_>) -> Result<()> {
        self.is_there = true;
        let keys = Keys::new(page, &OF_VIP, value)?;
        let given = Given::read(&keys)?;
        self.note(&keys);
        self.vips.insert(vip, given);
        Ok(())
    }

    fn of_real(
        &mut self,
        vip: Vip,
        real: IpAddr,
        page: &Page<'_>,
        value: &Value<'_>,
    ) -> Result<()> {
        self.is_there = true;
        let keys = Keys::new(page, &OF_REAL, value)?;
        let given = Given::read(&keys)?;
        self.note(&keys);
        let of_vip = self.reals.entry(vip).or_default();
        of_vip.insert(real, given.of_real());
        Ok(())
    }
}

impl Reading {
    /// Records where files of authorities are named.
    fn note(&mut self, keys: &Keys<'_, '_, '_>) {
        for (path, at) in authorities(keys) {
            self.authorities.entry(path).or_insert(at);
        }
    }

    /// Combines what the document says in any order.
    fn finish(self, state: State, source: Source) -> Result<Document> {
        if !self.is_there {
            return Ok(Document {
                state,
                settings: None,
                source,
                authorities: Authorities::new(),
            });
        }
        let mut settings = self.settings;
        for (policy, check) in [(&mut settings.tcp, self.tcp), (&mut settings.udp, self.udp)] {
            self.all.put_into(policy);
            if let Some(check) = check {
                policy.check = check;
            }
        }
        let mut reals = self.reals;
        for vip in state.vips.iter().map(|of| of.vip) {
            let (of_vip, of_reals) = (self.vips.get(&vip), reals.remove(&vip));
            if of_vip.is_none() && of_reals.is_none() {
                continue;
            }
            let mut policy: Policy = match vip.protocol() {
                Protocol::Tcp => settings.tcp.clone(),
                Protocol::Udp => settings.udp.clone(),
            };
            if let Some(given) = of_vip {
                given.put_into(&mut policy);
            }
            policy.reals = of_reals.unwrap_or_default();
            settings.vips.insert(vip, policy);
        }
        let mut marks = state.marks.iter();
        if let Some(index) = marks.position(|of| settings.is_own_mark(of.mark)) {
            let message = format!(
                "mark = {} in [[mark]] is used by the health checks: choose another mark, or another first_mark in [health]",
                state.marks[index].mark
            );
            return Err(source.refuse_mark(&state, index, message));
        }
        let mut vips = state.vips.iter();
        if let Some(index) = vips.position(|of| cannot_climb(&state, of, settings.of(of.vip))) {
            let message = format!(
                "{}: slow_start needs the hash function maglev-v2, because weights have no effect with maglev: set hash = \"maglev-v2\", \
                 or slow_start = 0 in the VIP's health",
                state.vips[index].vip
            );
            return Err(source.refuse_vip(&state, index, message));
        }
        Ok(Document {
            state,
            settings: Some(settings),
            source,
            authorities: self.authorities,
        })
    }
}

/// Whether a VIP's reals are to start slowly, and its ring does not follow weights.
fn cannot_climb(state: &State, of: &VipState, policy: &Policy) -> bool {
    let usual = state.balancer.as_ref().and_then(|of| of.hash_function);
    let hash = of.hash.or(usual).unwrap_or_default();
    let mut reals = policy.reals.values();
    let is_probed = policy.check.is_some() || reals.any(|real| real.probed && real.check.is_some());
    is_probed && hash == HashFunction::Maglev && !policy.slow_start.is_zero()
}
