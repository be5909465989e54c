//! The configuration of next hops; everything else is resolved.

use crate::types::Family;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::NextHops;

/// The configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) gateway: Gateway,
    /// For IPv6 reals, if it differs.
    pub(crate) gateway_v6: Option<MacAddr>,
    pub(crate) mode: NextHops,
}

impl Wanted {
    /// The configured address of a family.
    pub(crate) fn fixed(&self, family: Family) -> Option<MacAddr> {
        let of_family = self.gateway_v6.filter(|_| family == Family::V6);
        of_family.or(match self.gateway {
            Gateway::Mac(mac) => Some(mac),
            Gateway::Auto => None,
        })
    }

    /// Whether anything must be resolved.
    pub(crate) fn needs_watching(&self) -> bool {
        self.gateway == Gateway::Auto || self.mode != NextHops::Gateway
    }

    /// Whether the gateways must be resolved.
    pub(super) fn finds_gateway(&self) -> bool {
        self.mode == NextHops::Gateway && self.gateway == Gateway::Auto
    }
}
