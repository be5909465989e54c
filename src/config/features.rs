//! The optional parts of the program.
//!
//! A feature is a constant of the program, set at load: the verifier removes the code of features
//! that are off, and the library does not make their maps.

use bitflags::bitflags;

use crate::error::Error;
use crate::error::Result;
use crate::skel::katran::types::feature;
use crate::types::flag_names;
use crate::types::text_form;

bitflags! {
    /// The optional parts of the program; [`Builder::features`](crate::Builder::features) selects
    /// them at load.
    ///
    /// The default set is `STRICT_DESTINATION | ICMP_TOO_BIG | LOCAL_DELIVERY`. As text, features
    /// are these names in lower case with hyphens, separated by commas:
    /// `icmp-too-big,local-delivery`.
    ///
    /// ```
    /// use katran::Features;
    /// use katran::Katran;
    ///
    /// let features = Features::default() | Features::SOURCE_ROUTING;
    /// let builder = Katran::builder().features(features);
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[doc(alias = "KatranFeatureEnum")]
    pub struct Features: u32 {
        /// Choose reals by the client's prefix, for VIPs with
        /// [`VipFlags::SRC_ROUTING`](crate::VipFlags::SRC_ROUTING).
        #[doc(alias = "LPM_SRC_LOOKUP")]
        const SOURCE_ROUTING = feature::FEATURE_SOURCE_ROUTING.0;
        /// Unwrap tunnels that end at this host. Name
        /// [`STRICT_DESTINATION`](Self::STRICT_DESTINATION) too.
        ///
        /// See [`InlineDecapMut::add`](crate::routing::InlineDecapMut::add).
        #[doc(alias = "INLINE_DECAP_GENERIC")]
        const INLINE_DECAP = feature::FEATURE_INLINE_DECAP.0;
        /// With [`INLINE_DECAP`](Self::INLINE_DECAP), unwrap only tunnels to decap addresses,
        /// [`Builder::source_v4`](crate::Builder::source_v4) and
        /// [`Builder::source_v6`](crate::Builder::source_v6), not every tunnel that reaches this
        /// host.
        ///
        /// [`InlineDecapMut::add`](crate::routing::InlineDecapMut::add) adds decap addresses.
        ///
        /// **Without this feature the program unwraps every tunnel that reaches this host, whatever
        /// its address, and passes the inner packet to the host's network stack**: anybody can make
        /// packets with forged sources appear there, behind filters, and be forwarded if the host
        /// forwards (CVE-2020-10136).
        const STRICT_DESTINATION = feature::FEATURE_STRICT_DESTINATION.0;
        /// Answer packets longer than `max_frame` with an ICMP error that names the MTU, instead of
        /// dropping them.
        #[doc(alias = "ICMP_TOOBIG_GENERATION")]
        const ICMP_TOO_BIG = feature::FEATURE_ICMP_TOO_BIG.0;
        /// Route TCP by the server id in a TCP option.
        ///
        /// Servers and clients send it with [`ServerIdOption`](crate::ServerIdOption).
        #[doc(alias = "TCP_SERVER_ID_ROUTING")]
        const TCP_SERVER_ID = feature::FEATURE_TCP_SERVER_ID.0;
        /// Route UDP by the id in the datagram, for VIPs with
        /// [`VipFlags::UDP_STABLE_ROUTING`](crate::VipFlags::UDP_STABLE_ROUTING).
        const UDP_STABLE_ROUTING = feature::FEATURE_UDP_STABLE_ROUTING.0;
        /// Look into a second flow table that the host application fills, for VIPs with
        /// [`VipFlags::GLOBAL_LRU`](crate::VipFlags::GLOBAL_LRU).
        ///
        /// [`GlobalFlowsMut::set`](crate::flows::GlobalFlowsMut::set) fills it.
        #[doc(alias = "GLOBAL_LRU_LOOKUP")]
        const GLOBAL_FLOW_TABLE = feature::FEATURE_GLOBAL_FLOW_TABLE.0;
        /// Pass packets of local VIPs for local reals to this host's network stack.
        #[doc(alias = "LOCAL_DELIVERY_OPTIMIZATION")]
        const LOCAL_DELIVERY = feature::FEATURE_LOCAL_DELIVERY.0;
        /// Report noteworthy packets to the host application, with their first bytes.
        ///
        /// [`Katran::events`](crate::Katran::events) returns them.
        const INTROSPECTION = feature::FEATURE_INTROSPECTION.0;
        /// Remember the outer hops of unwrapped GUE flows. Not in this version.
        const FLOW_DEBUG = 1 << 9;
    }
}

text_form!(Features, "a feature such as icmp-too-big");

impl Features {
    pub(crate) const IMPLEMENTED: Self = Self::all().difference(Self::FLOW_DEBUG);

    /// Refuses features that this version lacks, and bits that are not features.
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
                reason: "it has bits that are not features".to_owned(),
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
