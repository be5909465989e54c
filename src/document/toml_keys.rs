//! The keys of a TOML document in the order of writing; those of `[balancer]` come from the table
//! of settings. A value that equals its default is left out.

use std::net::IpAddr;

use serde::Serialize;

use crate::config::BalancerKeys;
use crate::config::Set;
use crate::config::Text;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Prefix;
use crate::types::Protocol;
use crate::types::VipFlags;

#[derive(Default, Serialize)]
pub(super) struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balancer: Option<BalancerKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) vip: Vec<VipKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) server_id: Vec<ServerIdKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) source_route: Vec<SourceRouteKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) decap: Vec<DecapKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mark: Vec<MarkKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) probe_destination: Vec<ProbeMatchKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) probe_source: Vec<ProbeMatchKeys>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) probe: Vec<ProbeKeys>,
}

#[derive(Serialize)]
pub(super) struct MarkKeys {
    pub(super) mark: u32,
    pub(super) real: Text<IpAddr>,
}

#[derive(Serialize)]
pub(super) struct ProbeMatchKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) port: u16,
    pub(super) real: Text<IpAddr>,
}

#[derive(Serialize)]
pub(super) struct ProbeKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
}

#[derive(Serialize)]
pub(super) struct ServerIdKeys {
    pub(super) id: u32,
    pub(super) real: Text<IpAddr>,
    #[serde(skip_serializing_if = "is_true")]
    pub(super) valid: bool,
}

#[derive(Serialize)]
pub(super) struct SourceRouteKeys {
    pub(super) prefix: Text<Prefix>,
    pub(super) real: Text<IpAddr>,
}

#[derive(Serialize)]
pub(super) struct DecapKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) mode: Text<DecapMode>,
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize)]
pub(super) struct VipKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefix_length: Option<u8>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(super) flags: Set<VipFlags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<Text<HashFunction>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) reals: Vec<RealKeys>,
}

#[derive(Serialize)]
pub(super) struct RealKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) weight: u32,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) local: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) application_flags: Option<u8>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) down: bool,
}

fn is_empty(flags: &Set<VipFlags>) -> bool {
    flags.0.is_empty()
}
