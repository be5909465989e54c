//! Settings in a form that outlives the process: the keys and values of the document, as one line of JSON. It names what it
//! has, so a version with more settings reads it, and one that lacks a setting says which.

use std::collections::BTreeMap;

use super::BalancerKeys;
use super::BalancerState;
use super::Config;
use super::cpus::Topology;
use crate::error::Result;

impl Config {
    /// The settings as text.
    ///
    /// # Errors
    /// What cannot be written, such as a time that has no form as a number of seconds.
    pub(crate) fn stored(&self) -> std::result::Result<String, String> {
        let keys = BalancerKeys::from(&BalancerState::of(self));
        serde_json::to_string(&keys).map_err(|error| error.to_string())
    }

    /// The settings that a text says. What is there was checked as it was loaded, so this machine's CPUs may be
    /// others by now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_stored(text: &str) -> std::result::Result<Self, String> {
        let keys: BalancerKeys = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let state = BalancerState::from(keys);
        let config = state.restored();
        config.map_err(|error| error.to_string())
    }
}

impl BalancerState {
    /// As they were loaded, whatever this machine is now.
    fn restored(&self) -> Result<Config> {
        let cpus = self.forwarding_cpus.iter().flatten().copied();
        let nodes = self.numa_nodes.iter().flatten().copied();
        let machine = Topology {
            online: cpus.clone().collect(),
            possible: cpus.collect(),
            nodes: nodes.collect(),
            node_of: BTreeMap::new(),
        };
        self.builder().validate_on(&machine)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::config::Builder;
    use crate::config::Features;
    use crate::types::FlowTracking;
    use crate::types::MacAddr;
    use crate::types::NextHops;

    #[test]
    fn what_was_written_is_read() {
        let usual = Builder::new().gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]));
        let other = usual
            .clone()
            .flow_tracking(FlowTracking::Changed)
            .flow_idle_timeout(Duration::from_nanos(7_200_123_456_789))
            .udp_timeout(Duration::from_millis(1_100))
            .hash_seed(i64::MAX as u64)
            .features(Features::IMPLEMENTED)
            .next_hops(NextHops::PerReal)
            .allow_sources(["198.51.100.0/24".parse().unwrap()])
            .source_v4(Ipv4Addr::new(192, 0, 2, 1))
            .max_frame(9000)
            .healthcheck_interface("eth0");
        for builder in [usual, other] {
            let config = builder.validate().unwrap();
            let text = config.stored().unwrap();
            assert_eq!(Config::of_stored(&text), Ok(config), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        let config = Builder::new().gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]));
        let text = config.validate().unwrap().stored().unwrap();
        let later = text.replace("\"max_vips\"", "\"max_wips\"");
        let error = Config::of_stored(&later).unwrap_err();
        assert!(error.contains("max_wips"), "{error}");
        assert!(Config::of_stored("").is_err());
        let none = text.replace("\"gateway_mac\"", "\"source_v4\"");
        assert!(Config::of_stored(&none).is_err());
    }
}
