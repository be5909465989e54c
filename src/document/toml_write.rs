//! Writes a state as a TOML document, which `toml_read.rs` reads as the same state.

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::net::IpAddr;
use std::net::SocketAddr;

use toml_edit::Item;
use toml_edit::Table;
use toml_edit::ser::to_document;

use super::state::ProbeMatch;
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
use crate::config::Set;
use crate::config::Text;
use crate::error::Error;
use crate::error::Result;
use crate::types::RealFlags;

/// # Writing TOML
impl State {
    /// Writes a TOML document, which [`from_toml`](Self::from_toml) reads as the same state.
    ///
    /// It leaves out settings that are `None`, and writes VIPs completely.
    ///
    /// # Errors
    /// [`Error::Document`] if a number is larger than TOML can hold (2^63 - 1).
    pub fn to_toml(&self) -> Result<String> {
        let refused = |error: &dyn fmt::Display| Error::Document {
            file: None,
            at: None,
            message: error.to_string(),
        };
        let mut keys = self.keys();
        // All other tables are flat and need no layout; there may be many.
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
            keys.collect()
        };
        Document {
            balancer: self.balancer.as_ref().map(BalancerKeys::from),
            vip: self.vips.iter().map(vip_keys).collect(),
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

fn each<S, K>(states: &[S], keys: impl Fn(&S) -> K) -> Vec<K> {
    states.iter().map(keys).collect()
}

/// Puts each real on its own line.
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

fn vip_keys(state: &VipState) -> VipKeys {
    let vip = &state.vip;
    let down: BTreeSet<IpAddr> = state.down.iter().copied().collect();
    let length = vip.is_prefix().then(|| vip.prefix_length());
    VipKeys {
        address: Text(vip.address()),
        prefix_length: length,
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
                application_flags: (!application.is_empty()).then(|| application.bits()),
                down: down.contains(&real.address()),
            }
        }),
    }
}

/// A document with everything in it.
#[cfg(test)]
pub(super) const ALL_SETTINGS: &str = r#"[balancer]
gateway_mac = "auto"
gateway_mac_v6 = "0a:00:00:00:00:06"
next_hops = "per-real"
encapsulation = "gue"
outer_dont_fragment = "inherit"
features = ["source-routing", "inline-decap"]
source_v4 = "10.10.10.10"
source_v6 = "2001:db8:ffff::1"
ipip_source_v4 = "10.20.0.0/16"
ipip_source_v6 = "2001:db8::/96"
gue_port = 6081
max_frame = 9014
frags = true
max_vips = 2
max_reals = 3
ring_size = 3
hash_seed = 9223372036854775807
hash_function = "maglev"
flow_tracking = "changed"
flow_idle_timeout = 1800
flow_table = "kernel-lru"
flow_table_size = 4
forwarding_cpus = [0, 1]
numa_nodes = [0, 0]
flood_threshold = 5
udp_timeout = 1.5
orphan_limit = 60
count_syns = true
max_vip_reals = 8
global_flow_table_size = 6
max_source_routes = 7
max_decap = 8
allow_sources = ["172.16.0.0/16", "100::/64"]
egress_sources = []
max_server_ids = 9
healthcheck_interface = "eth0"
healthcheck_priority = 10
healthcheck_max_packet = 1500
healthcheck_source = "made-up"
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::BalancerState;
    use crate::config::Features;
    use crate::config::SETTING_KEYS;

    #[test]
    fn every_setting_round_trips() {
        let state = State::from_toml(ALL_SETTINGS).unwrap();
        assert_eq!(state.to_toml().unwrap(), ALL_SETTINGS);
        let section = ALL_SETTINGS.split("\n\n").next().unwrap_or_default();
        let keys = section.lines().filter_map(|line| line.split_once(" = "));
        let keys: Vec<_> = keys.map(|(key, _)| key).collect();
        assert_eq!(keys, SETTING_KEYS, "one is missing");
        let balancer = state.balancer.as_ref().unwrap();
        assert_eq!(balancer.udp_timeout, Some(Duration::from_millis(1500)));
        let features = Features::SOURCE_ROUTING | Features::INLINE_DECAP;
        assert_eq!(balancer.features, Some(features));
        assert_eq!(State::from_toml("").unwrap(), State::default());
        assert_eq!(State::default().to_toml().unwrap(), "");
    }

    #[test]
    fn missing_features_are_the_default_set() {
        let state = State::from_toml("[balancer]\n").unwrap();
        assert_eq!(state.balancer, Some(BalancerState::default()));
        let none = "[balancer]\nfeatures = []\n";
        let state = State::from_toml(none).unwrap();
        let features = state.balancer.as_ref().unwrap().features;
        assert_eq!(features, Some(Features::empty()));
        assert_eq!(state.to_toml().unwrap(), none);
        let whole = State::from_toml("[balancer]\nudp_timeout = 2\n").unwrap();
        assert_eq!(whole.to_toml().unwrap(), "[balancer]\nudp_timeout = 2\n");
    }
}
