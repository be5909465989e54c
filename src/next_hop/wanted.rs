//! What the user has said of next hops; the rest is found out.

use crate::types::Family;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::NextHops;

/// What the user has said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) gateway: Gateway,
    /// For reals with IPv6 addresses, if it is another one.
    pub(crate) gateway_v6: Option<MacAddr>,
    pub(crate) mode: NextHops,
}

impl Wanted {
    /// The address that the user has given for a family.
    pub(crate) fn fixed(&self, family: Family) -> Option<MacAddr> {
        let of_family = self.gateway_v6.filter(|_| family == Family::V6);
        of_family.or(match self.gateway {
            Gateway::Mac(mac) => Some(mac),
            Gateway::Auto => None,
        })
    }

    /// Whether anything has to be found out.
    pub(crate) fn needs_watching(&self) -> bool {
        self.gateway == Gateway::Auto || self.mode != NextHops::Gateway
    }

    /// Whether the gateways have to be found out.
    pub(super) fn finds_gateway(&self) -> bool {
        self.mode == NextHops::Gateway && self.gateway == Gateway::Auto
    }
}
