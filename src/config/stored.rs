//! Settings in a form that outlives the process: the keys and values of the document, as
//! MessagePack. Settings are named, so a version with more settings can read it, and one that lacks
//! a setting names that one.

use std::collections::BTreeMap;

use super::BalancerKeys;
use super::BalancerState;
use super::Config;
use super::cpus::Topology;
use crate::error::Result;

impl Config {
    /// The settings as bytes.
    ///
    /// # Errors
    /// A value that cannot be written, such as a time that is not a number of seconds.
    pub(crate) fn stored(&self) -> std::result::Result<Vec<u8>, String> {
        let keys = BalancerKeys::from(&BalancerState::of(self));
        rmp_serde::to_vec_named(&keys).map_err(|error| error.to_string())
    }

    /// The settings that the bytes hold. They were checked when they were loaded, and this
    /// machine's CPUs may have changed since.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_stored(bytes: &[u8]) -> std::result::Result<Self, String> {
        let keys: BalancerKeys = rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        let state = BalancerState::from(keys);
        let config = state.restored();
        config.map_err(|error| error.to_string())
    }
}

impl BalancerState {
    /// As they were loaded, whatever this machine is like now.
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
            let bytes = config.stored().unwrap();
            assert_eq!(Config::of_stored(&bytes), Ok(config));
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        let config = Builder::new().gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]));
        let bytes = config.validate().unwrap().stored().unwrap();
        let renamed = |key: &str, to: &str| {
            let at = bytes.windows(key.len()).position(|at| at == key.as_bytes());
            let mut bytes = bytes.clone();
            bytes[at.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
            Config::of_stored(&bytes).unwrap_err()
        };
        let error = renamed("max_vips", "max_wips");
        assert!(error.contains("max_wips"), "{error}");
        // Without it nothing can be loaded.
        let error = renamed("gateway_mac", "gateway_cam");
        assert!(error.contains("gateway_cam"), "{error}");
        assert!(Config::of_stored(&[]).is_err());
    }
}
