//! What is asked of a VIP's reals: by the command line, or else by the VIP's protocol.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Context;
use anyhow::Result;
use katran::Protocol;
use katran::State;
use katran::Vip;

/// What counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing is asked: reals count as up.
    None,
    /// A TCP connection is accepted: at this port, or the VIP's.
    Connect { port: Option<u16> },
    /// A GET request for `path` is answered with the status that is wanted.
    Http { path: String },
    /// A datagram comes back as it was.
    Echo,
}

impl Check {
    /// What is asked of VIPs that nothing else is said of.
    fn usual(vip: Vip) -> Self {
        match vip.protocol() {
            Protocol::Tcp => Self::Connect { port: None },
            Protocol::Udp => Self::Echo,
        }
    }

    /// The address, port and protocol that probes go to; `None`: there are none to be sent.
    pub(crate) fn destination(&self, vip: Vip) -> Option<Vip> {
        let port = match self {
            Self::None => return None,
            Self::Connect { port: Some(port) } => *port,
            _ => vip.port(),
        };
        if vip.is_prefix() || port == 0 {
            return None;
        }
        let to = (vip.address(), port).into();
        Some(match self {
            Self::Echo => Vip::udp(to),
            _ => Vip::tcp(to),
        })
    }
}

impl FromStr for Check {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        Ok(match (kind, rest) {
            ("none", None) => Self::None,
            ("udp", None) => Self::Echo,
            ("tcp", None) => Self::Connect { port: None },
            ("tcp", Some(port)) => Self::Connect {
                port: Some(
                    port.parse()
                        .ok()
                        .filter(|port| *port != 0)
                        .with_context(|| format!("{port} is no port: 1 to 65535"))?,
                ),
            },
            ("http", Some(path)) => Self::http(path)?,
            _ => anyhow::bail!("a check is none, tcp, tcp:PORT, http:PATH or udp"),
        })
    }
}

impl Check {
    fn http(path: &str) -> Result<Self> {
        anyhow::ensure!(path.starts_with('/'), "a path begins with /");
        let printable = path.bytes().all(|byte| byte.is_ascii_graphic());
        anyhow::ensure!(printable, "a path has no spaces: write %20");
        Ok(Self::Http {
            path: path.to_owned(),
        })
    }
}

/// The check of a VIP, as in `203.0.113.1:53/udp=tcp:53`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfVip {
    vip: Vip,
    check: Check,
}

impl FromStr for OfVip {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (vip, check) = text.split_once('=').context("it is VIP=CHECK")?;
        Ok(Self {
            vip: vip.parse()?,
            check: check.parse()?,
        })
    }
}

/// A page of a VIP, as in `203.0.113.1:80/tcp=/health`.
pub(crate) fn page(text: &str) -> Result<OfVip> {
    let (vip, path) = text.split_once('=').context("it is VIP=PATH")?;
    Ok(OfVip {
        vip: vip.parse()?,
        check: Check::http(path)?,
    })
}

/// The checks of the command line.
pub(crate) struct Checks(BTreeMap<Vip, Check>);

impl Checks {
    /// Takes what the command line says; one check for a VIP, that can be made.
    pub(crate) fn new<'a>(given: impl IntoIterator<Item = &'a OfVip>) -> Result<Self> {
        let mut checks = BTreeMap::new();
        for OfVip { vip, check } in given {
            let vip = *vip;
            anyhow::ensure!(
                !(matches!(check, Check::Http { .. }) && vip.protocol() == Protocol::Udp),
                "{vip} is no TCP service and has no pages: use --check {vip}=tcp:PORT"
            );
            anyhow::ensure!(
                *check == Check::None || check.destination(vip).is_some(),
                "{vip} cannot be probed so: a probe goes to one address and port"
            );
            anyhow::ensure!(
                checks.insert(vip, check.clone()).is_none(),
                "{vip} has two checks: give one"
            );
        }
        Ok(Self(checks))
    }

    /// VIPs that have a check and are not in the file.
    pub(crate) fn unknown(&self, state: &State) -> Vec<Vip> {
        let known = |vip: &&Vip| !state.vips.iter().any(|of| of.vip == **vip);
        self.0.keys().filter(known).copied().collect()
    }

    /// What is asked of a VIP's reals.
    pub(crate) fn of(&self, vip: Vip) -> Check {
        let given = self.0.get(&vip).cloned();
        given.unwrap_or_else(|| Check::usual(vip))
    }

    /// Where probes of the VIPs of a file go to, of those that are probed.
    pub(crate) fn destinations(&self, state: &State) -> BTreeMap<Vip, Vip> {
        let vips = state.vips.iter().map(|of| of.vip);
        vips.filter_map(|vip| Some((vip, self.of(vip).destination(vip)?)))
            .collect()
    }
}
