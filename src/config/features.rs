//! The optional parts of the program.
//!
//! A feature is a constant of the program, set when it is loaded; the verifier removes the code
//! of those that are off, and their maps are not made.

use bitflags::bitflags;

use crate::error::Error;
use crate::error::Result;
use crate::skel::katran::types::feature;
use crate::types::flag_names;
use crate::types::text_form;

bitflags! {
    /// The optional parts of the program; chosen at load with
    /// [`Builder::features`](crate::Builder::features).
    ///
    /// The default set is `STRICT_DESTINATION | ICMP_TOO_BIG | LOCAL_DELIVERY`. As text, features are these
    /// names in lower case with hyphens, separated by commas: `icmp-too-big,local-delivery`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[doc(alias = "KatranFeatureEnum")]
    pub struct Features: u32 {
        /// The client's prefix may choose the real, for VIPs with
        /// [`VipFlags::SRC_ROUTING`](crate::VipFlags::SRC_ROUTING).
        #[doc(alias = "LPM_SRC_LOOKUP")]
        const SOURCE_ROUTING = feature::FEATURE_SOURCE_ROUTING.0;
        /// Tunnelled packets that arrive for this host are unwrapped; see
        /// [`InlineDecapMut::add`](crate::routing::InlineDecapMut::add). A set that you write down
        /// yourself has `STRICT_DESTINATION` only if you name it.
        #[doc(alias = "INLINE_DECAP_GENERIC")]
        const INLINE_DECAP = feature::FEATURE_INLINE_DECAP.0;
        /// Of tunnels that end at none of those addresses, unwrap only those to this host's own
        /// source address ([`Builder::source_v4`](crate::Builder::source_v4),
        /// [`Builder::source_v6`](crate::Builder::source_v6)). On by default, without effect where
        /// [`INLINE_DECAP`](Self::INLINE_DECAP) is off; and as that is off by default, name both where you switch it on.
        ///
        /// **Switched off, every tunnel that reaches this host is unwrapped, whatever address it is for, and
        /// what was in it goes to the host's network stack**: anybody can have packets with made-up sources
        /// appear there, behind filters, and sent on if the host forwards (CVE-2020-10136).
        const STRICT_DESTINATION = feature::FEATURE_STRICT_DESTINATION.0;
        /// Answer packets longer than `max_frame` with an ICMP error that names the MTU;
        /// without it they are dropped. On by default.
        #[doc(alias = "ICMP_TOOBIG_GENERATION")]
        const ICMP_TOO_BIG = feature::FEATURE_ICMP_TOO_BIG.0;
        /// Route TCP by the server id in a TCP option; see
        /// [`ServerIdOption`](crate::ServerIdOption).
        #[doc(alias = "TCP_SERVER_ID_ROUTING")]
        const TCP_SERVER_ID = feature::FEATURE_TCP_SERVER_ID.0;
        /// Route UDP by the id in the datagram, for VIPs with
        /// [`VipFlags::UDP_STABLE_ROUTING`](crate::VipFlags::UDP_STABLE_ROUTING).
        const UDP_STABLE_ROUTING = feature::FEATURE_UDP_STABLE_ROUTING.0;
        /// A second flow table that the host application fills, for VIPs with
        /// [`VipFlags::GLOBAL_LRU`](crate::VipFlags::GLOBAL_LRU); see
        /// [`GlobalFlowsMut::set`](crate::flows::GlobalFlowsMut::set).
        #[doc(alias = "GLOBAL_LRU_LOOKUP")]
        const GLOBAL_FLOW_TABLE = feature::FEATURE_GLOBAL_FLOW_TABLE.0;
        /// Hand packets of local VIPs for local reals to this host's own stack. On by default.
        #[doc(alias = "LOCAL_DELIVERY_OPTIMIZATION")]
        const LOCAL_DELIVERY = feature::FEATURE_LOCAL_DELIVERY.0;
        /// Tell the host application of noteworthy packets, with their first bytes; see
        /// [`Katran::events`](crate::Katran::events).
        const INTROSPECTION = feature::FEATURE_INTROSPECTION.0;
        /// Remember the outer hops of unwrapped GUE flows. Not in this version.
        const FLOW_DEBUG = 1 << 9;
    }
}

text_form!(Features, "a feature such as icmp-too-big");

impl Features {
    /// What this version's program knows.
    pub(crate) const IMPLEMENTED: Self = Self::all().difference(Self::FLOW_DEBUG);

    /// Refuses features that this version does not have, and bits that are no feature.
    pub(crate) fn check(self) -> Result<()> {
        if let Some(name) = flag_names(&self.difference(Self::IMPLEMENTED)).first() {
            return Err(Error::Unsupported {
                what: format!("feature {name}"),
                reason: "this version has no flow-debug: leave it out",
            });
        }
        match self.difference(Self::all()).is_empty() {
            true => Ok(()),
            false => Err(Error::InvalidConfig {
                setting: "features",
                value: self.to_string(),
                reason: "bits that are no feature are set".to_owned(),
            }),
        }
    }
}

impl Default for Features {
    /// [`STRICT_DESTINATION`](Self::STRICT_DESTINATION), [`ICMP_TOO_BIG`](Self::ICMP_TOO_BIG) and
    /// [`LOCAL_DELIVERY`](Self::LOCAL_DELIVERY).
    fn default() -> Self {
        Self::STRICT_DESTINATION | Self::ICMP_TOO_BIG | Self::LOCAL_DELIVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        assert_eq!(
            Features::default().to_string(),
            "strict-destination,icmp-too-big,local-delivery"
        );
        let all = Features::all().to_string();
        assert_eq!(all.parse::<Features>().unwrap(), Features::all());
        assert!("icmp_too_big".parse::<Features>().is_err());
    }

    #[test]
    fn only_what_is_there_can_be_switched_on() {
        assert!(Features::default().check().is_ok());
        assert!(Features::empty().check().is_ok());
        let error = (Features::default() | Features::FLOW_DEBUG)
            .check()
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("feature flow-debug is not supported")
        );
        assert!(Features::from_bits_retain(1 << 20).check().is_err());
    }
}
