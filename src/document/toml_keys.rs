//! The keys of the TOML document, as serde sees them; those of `[balancer]` come from the table of
//! settings. What is left out and what stands for it is said once, for reading and writing.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;
use toml::Spanned;

use crate::config::BalancerKeys;
use crate::config::Set;
use crate::config::Text;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Prefix;
use crate::types::Protocol;
use crate::types::VipFlags;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balancer: Option<BalancerKeys>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) vip: Vec<Spanned<VipKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) server_id: Vec<Spanned<ServerIdKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) source_route: Vec<Spanned<SourceRouteKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) decap: Vec<Spanned<DecapKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) mark: Vec<Spanned<MarkKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) probe_destination: Vec<Spanned<ProbeMatchKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) probe_source: Vec<Spanned<ProbeMatchKeys>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) probe: Vec<Spanned<ProbeKeys>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkKeys {
    pub(super) mark: u32,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeMatchKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(default)]
    pub(super) port: u16,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerIdKeys {
    pub(super) id: u32,
    pub(super) real: Text<IpAddr>,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub(super) valid: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceRouteKeys {
    pub(super) prefix: Text<Prefix>,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecapKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) mode: Text<DecapMode>,
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VipKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefix_length: Option<Spanned<u8>>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(super) flags: Set<VipFlags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<Text<HashFunction>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) reals: Vec<Spanned<RealKeys>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RealKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(default = "one")]
    pub(super) weight: u32,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) local: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) application_flags: Option<Spanned<u8>>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) down: bool,
}

fn one() -> u32 {
    1
}

fn is_empty(flags: &Set<VipFlags>) -> bool {
    flags.0.is_empty()
}
