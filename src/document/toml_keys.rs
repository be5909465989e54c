//! The keys of the TOML document, as serde sees them.
//!
//! Values that have a text form are read with it, so that a bad one is reported by the parser
//! with its place.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;
use serde::de::Visitor;
use toml::Spanned;

use super::state::BalancerState;
use crate::config::Features;
use crate::types::DecapMode;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::Prefix;
use crate::types::Protocol;
use crate::types::TcHook;
use crate::types::VipFlags;
use crate::types::flag_by_name;
use crate::types::flag_names;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) balancer: Option<BalancerKeys>,
    #[serde(default)]
    pub(super) vip: Vec<Spanned<VipKeys>>,
    #[serde(default)]
    pub(super) server_id: Vec<Spanned<ServerIdKeys>>,
    #[serde(default)]
    pub(super) source_route: Vec<Spanned<SourceRouteKeys>>,
    #[serde(default)]
    pub(super) decap: Vec<Spanned<DecapKeys>>,
    #[serde(default)]
    pub(super) mark: Vec<Spanned<MarkKeys>>,
    #[serde(default)]
    pub(super) probe_destination: Vec<Spanned<ProbeMatchKeys>>,
    #[serde(default)]
    pub(super) probe_source: Vec<Spanned<ProbeMatchKeys>>,
    #[serde(default)]
    pub(super) probe: Vec<Spanned<ProbeKeys>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkKeys {
    pub(super) mark: u32,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeMatchKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(default)]
    pub(super) port: u16,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerIdKeys {
    pub(super) id: u32,
    pub(super) real: Text<IpAddr>,
    #[serde(default = "yes")]
    pub(super) valid: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceRouteKeys {
    pub(super) prefix: Text<Prefix>,
    pub(super) real: Text<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecapKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) mode: Text<DecapMode>,
}

fn yes() -> bool {
    true
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BalancerKeys {
    pub(super) gateway_mac: Option<Text<Gateway>>,
    pub(super) gateway_mac_v6: Option<Text<MacAddr>>,
    pub(super) next_hops: Option<Text<NextHops>>,
    pub(super) encapsulation: Option<Text<Encapsulation>>,
    pub(super) features: Option<Vec<Flag<Features>>>,
    pub(super) source_v4: Option<Text<Ipv4Addr>>,
    pub(super) source_v6: Option<Text<Ipv6Addr>>,
    pub(super) ipip_source_v4: Option<Text<FirstOf<Ipv4Addr, 16>>>,
    pub(super) ipip_source_v6: Option<Text<FirstOf<Ipv6Addr, 96>>>,
    pub(super) gue_port: Option<u16>,
    pub(super) max_frame: Option<u32>,
    pub(super) frags: Option<bool>,
    pub(super) max_vips: Option<u32>,
    pub(super) max_reals: Option<u32>,
    pub(super) ring_size: Option<u32>,
    pub(super) hash_function: Option<Text<HashFunction>>,
    pub(super) flow_table: Option<Text<FlowTableKind>>,
    pub(super) flow_table_size: Option<u64>,
    pub(super) forwarding_cpus: Option<Vec<u32>>,
    pub(super) numa_nodes: Option<Vec<u32>>,
    pub(super) flood_threshold: Option<u32>,
    pub(super) udp_timeout: Option<Seconds>,
    pub(super) global_flow_table_size: Option<u32>,
    pub(super) max_source_routes: Option<u32>,
    pub(super) max_decap: Option<u32>,
    pub(super) max_server_ids: Option<u32>,
    pub(super) healthcheck_interface: Option<String>,
    pub(super) healthcheck_priority: Option<u16>,
    pub(super) healthcheck_max_packet: Option<u32>,
    pub(super) healthcheck_hook: Option<Text<TcHook>>,
    pub(super) event_buffer: Option<u32>,
}

impl From<BalancerKeys> for BalancerState {
    fn from(keys: BalancerKeys) -> Self {
        Self {
            gateway_mac: keys.gateway_mac.map(|text| text.0),
            gateway_mac_v6: keys.gateway_mac_v6.map(|text| text.0),
            next_hops: keys.next_hops.map(|text| text.0),
            encapsulation: keys.encapsulation.map(|text| text.0),
            features: keys.features.map(|list| {
                list.iter()
                    .fold(Features::empty(), |set, Flag(flag)| set | *flag)
            }),
            source_v4: keys.source_v4.map(|text| text.0),
            source_v6: keys.source_v6.map(|text| text.0),
            ipip_source_v4: keys.ipip_source_v4.map(|text| text.0.0),
            ipip_source_v6: keys.ipip_source_v6.map(|text| text.0.0),
            gue_port: keys.gue_port,
            max_frame: keys.max_frame,
            frags: keys.frags,
            max_vips: keys.max_vips,
            max_reals: keys.max_reals,
            ring_size: keys.ring_size,
            hash_function: keys.hash_function.map(|text| text.0),
            flow_table: keys.flow_table.map(|text| text.0),
            flow_table_size: keys.flow_table_size,
            forwarding_cpus: keys.forwarding_cpus,
            numa_nodes: keys.numa_nodes,
            flood_threshold: keys.flood_threshold,
            udp_timeout: keys.udp_timeout.map(|seconds| seconds.0),
            global_flow_table_size: keys.global_flow_table_size,
            max_source_routes: keys.max_source_routes,
            max_decap: keys.max_decap,
            max_server_ids: keys.max_server_ids,
            healthcheck_interface: keys.healthcheck_interface,
            healthcheck_priority: keys.healthcheck_priority,
            healthcheck_max_packet: keys.healthcheck_max_packet,
            healthcheck_hook: keys.healthcheck_hook.map(|text| text.0),
            event_buffer: keys.event_buffer,
        }
    }
}

impl From<&BalancerState> for BalancerKeys {
    fn from(state: &BalancerState) -> Self {
        Self {
            gateway_mac: state.gateway_mac.map(Text),
            gateway_mac_v6: state.gateway_mac_v6.map(Text),
            next_hops: state.next_hops.map(Text),
            encapsulation: state.encapsulation.map(Text),
            features: state
                .features
                .map(|set| set.iter().map(Flag).collect::<Vec<_>>()),
            source_v4: state.source_v4.map(Text),
            source_v6: state.source_v6.map(Text),
            ipip_source_v4: state.ipip_source_v4.map(|first| Text(FirstOf(first))),
            ipip_source_v6: state.ipip_source_v6.map(|first| Text(FirstOf(first))),
            gue_port: state.gue_port,
            max_frame: state.max_frame,
            frags: state.frags,
            max_vips: state.max_vips,
            max_reals: state.max_reals,
            ring_size: state.ring_size,
            hash_function: state.hash_function.map(Text),
            flow_table: state.flow_table.map(Text),
            flow_table_size: state.flow_table_size,
            forwarding_cpus: state.forwarding_cpus.clone(),
            numa_nodes: state.numa_nodes.clone(),
            flood_threshold: state.flood_threshold,
            udp_timeout: state.udp_timeout.map(Seconds),
            global_flow_table_size: state.global_flow_table_size,
            max_source_routes: state.max_source_routes,
            max_decap: state.max_decap,
            max_server_ids: state.max_server_ids,
            healthcheck_interface: state.healthcheck_interface.clone(),
            healthcheck_priority: state.healthcheck_priority,
            healthcheck_max_packet: state.healthcheck_max_packet,
            healthcheck_hook: state.healthcheck_hook.map(Text),
            event_buffer: state.event_buffer,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VipKeys {
    pub(super) address: Text<IpAddr>,
    pub(super) prefix_length: Option<Spanned<u8>>,
    pub(super) port: u16,
    pub(super) protocol: Text<Protocol>,
    #[serde(default)]
    pub(super) flags: Vec<Flag<VipFlags>>,
    pub(super) hash: Option<Text<HashFunction>>,
    #[serde(default)]
    pub(super) reals: Vec<Spanned<RealKeys>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RealKeys {
    pub(super) address: Text<IpAddr>,
    #[serde(default = "one")]
    pub(super) weight: u32,
    #[serde(default)]
    pub(super) local: bool,
    #[serde(default)]
    pub(super) down: bool,
    pub(super) application_flags: Option<Spanned<u8>>,
}

fn one() -> u32 {
    1
}

/// A value written as a string in its text form.
pub(super) struct Text<T>(pub(super) T);

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error: T::Err| {
            let error = error.to_string();
            // The errors of std do not say what they could not read.
            match error.contains(&format!("`{text}`")) {
                true => D::Error::custom(error),
                false => D::Error::custom(format_args!("`{text}`: {error}")),
            }
        })
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The first address of a prefix whose length is fixed.
pub(super) struct FirstOf<A, const LENGTH: u8>(pub(super) A);

impl<A: FromStr, const LENGTH: u8> FromStr for FirstOf<A, LENGTH> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_suffix(&format!("/{LENGTH}"))
            .and_then(|address| address.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a prefix of length {LENGTH} of this family"))
    }
}

impl<A: fmt::Display, const LENGTH: u8> fmt::Display for FirstOf<A, LENGTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{LENGTH}", self.0)
    }
}

/// One bit of a set, by its name.
pub(super) struct Flag<F>(pub(super) F);

impl<'de, F: bitflags::Flags> Deserialize<'de> for Flag<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        flag_by_name(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format_args!(
                "`{text}` is none of {}",
                flag_names(&F::all()).join(", ")
            ))
        })
    }
}

impl<F: bitflags::Flags> Serialize for Flag<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&flag_names(&self.0).join(","))
    }
}

/// A time in seconds, whole or not.
#[derive(Clone, Copy)]
pub(super) struct Seconds(pub(super) Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                u64::try_from(seconds)
                    .map(|seconds| Seconds(Duration::from_secs(seconds)))
                    .map_err(E::custom)
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Seconds, E> {
                Duration::try_from_secs_f64(seconds)
                    .map(Seconds)
                    .map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}
