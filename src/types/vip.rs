//! VIPs: the addresses of the services.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::str::FromStr;

use bitflags::bitflags;

use super::Protocol;
use super::prefix::check_prefix;
use super::prefix::full_length;
use super::prefix::mask;
use crate::error::Error;
use crate::skel::katran::types::vip_flag;

/// The address of a service: an address or prefix, a port (0: any) and a protocol.
///
/// Its text form is `203.0.113.1:443/tcp`, `[2001:db8::1]:0/udp`, or with a prefix
/// `203.0.113.0/24:443/tcp` and `[2001:db8::/96]:443/tcp`.
///
/// ```
/// use katran::Vip;
///
/// let vip = Vip::tcp("203.0.113.1:443".parse().unwrap());
/// assert_eq!(vip.to_string(), "203.0.113.1:443/tcp");
/// assert_eq!("203.0.113.1:443/tcp".parse::<Vip>().unwrap(), vip);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "VipKey")]
pub struct Vip {
    address: IpAddr,
    prefix_length: u8,
    port: u16,
    protocol: Protocol,
}

/// # Address, port and protocol
impl Vip {
    /// A TCP service at `address`; port 0 means every port without its own VIP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(address, Protocol::Tcp)
    }

    /// A UDP service at `address`; port 0 means every port without its own VIP.
    pub fn udp(address: SocketAddr) -> Self {
        Self::new(address, Protocol::Udp)
    }

    /// A service of the given protocol at `address`.
    ///
    /// An IPv4-mapped IPv6 address means the IPv4 address.
    pub fn new(address: SocketAddr, protocol: Protocol) -> Self {
        let ip = address.ip().to_canonical();
        Self {
            address: ip,
            prefix_length: full_length(ip),
            port: address.port(),
            protocol,
        }
    }

    /// Makes it a prefix VIP: it covers every address of the prefix that has no more specific VIP.
    ///
    /// `length` counts bits, 0 to 32 for IPv4 and 0 to 128 for IPv6; the full length is a plain
    /// VIP.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `length` is longer than the address, or if the address has bits
    /// set beyond the prefix.
    pub fn with_prefix(mut self, length: u8) -> Result<Self, Error> {
        check_prefix(self.address, length)?;
        self.prefix_length = length;
        Ok(self)
    }

    /// The address, or the first address of the prefix.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits; 32 or 128 for a single address.
    pub fn prefix_length(&self) -> u8 {
        self.prefix_length
    }

    /// Whether it covers more than one address.
    pub fn is_prefix(&self) -> bool {
        self.prefix_length != full_length(self.address)
    }

    /// The port; 0 means any.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether this VIP's address or prefix contains `address`, whatever the port.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && mask(address, self.prefix_length) == self.address
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            prefix_length,
            port,
            protocol,
        } = self;
        match (self.is_prefix(), address) {
            (false, _) => write!(f, "{}/{protocol}", SocketAddr::new(*address, *port)),
            (true, IpAddr::V4(_)) => write!(f, "{address}/{prefix_length}:{port}/{protocol}"),
            (true, IpAddr::V6(_)) => write!(f, "[{address}/{prefix_length}]:{port}/{protocol}"),
        }
    }
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Parse {
            input: text.to_owned(),
            expected: "a VIP such as 203.0.113.1:443/tcp or [2001:db8::/96]:443/tcp",
        };
        let (rest, protocol) = text.rsplit_once('/').ok_or_else(error)?;
        let protocol = protocol.parse()?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().map_err(|_| error())?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let (address, length) = match host.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| error())?)),
            None => (host, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        if address.is_ipv6() != bracketed.is_some() {
            return Err(error());
        }
        let vip = Self::new(SocketAddr::new(address, port), protocol);
        match length {
            Some(length) => vip.with_prefix(length),
            None => Ok(vip),
        }
    }
}

bitflags! {
    /// How a VIP's packets are routed. A flag that belongs to a feature does nothing while the
    /// feature is off.
    ///
    /// As text, flags are these names in lower case with hyphens, separated by commas:
    ///
    /// ```
    /// use katran::VipFlags;
    ///
    /// let flags = VipFlags::NO_SRC_PORT | VipFlags::LRU_BYPASS;
    /// assert_eq!(flags.to_string(), "no-src-port,lru-bypass");
    /// assert_eq!("no-src-port,lru-bypass".parse::<VipFlags>()?, flags);
    /// # Ok::<(), katran::Error>(())
    /// ```
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VipFlags: u32 {
        /// Ignore the client's port: each client goes to one real.
        #[doc(alias = "F_HASH_NO_SRC_PORT")]
        const NO_SRC_PORT = vip_flag::VIP_NO_SRC_PORT.0;
        /// Do not use the flow table.
        #[doc(alias = "F_LRU_BYPASS")]
        const LRU_BYPASS = vip_flag::VIP_LRU_BYPASS.0;
        /// Route by QUIC connection id; UDP only.
        #[doc(alias = "F_QUIC_VIP")]
        const QUIC = vip_flag::VIP_QUIC.0;
        /// Hash only the destination port (VoIP-like services).
        #[doc(alias = "F_HASH_DPORT_ONLY")]
        const DPORT_HASH = vip_flag::VIP_DPORT_HASH.0;
        /// Choose reals by the client's prefix; needs the feature
        /// [`Features::SOURCE_ROUTING`](crate::Features::SOURCE_ROUTING).
        #[doc(alias = "F_SRC_ROUTING")]
        const SRC_ROUTING = vip_flag::VIP_SRC_ROUTING.0;
        /// Pass packets for local reals to this host's network stack.
        ///
        /// Local reals have the flag [`RealFlags::LOCAL_REAL`](crate::RealFlags::LOCAL_REAL).
        #[doc(alias = "F_LOCAL_VIP")]
        const LOCAL_VIP = vip_flag::VIP_LOCAL.0;
        /// Look into the global flow table; needs the feature
        /// [`Features::GLOBAL_FLOW_TABLE`](crate::Features::GLOBAL_FLOW_TABLE).
        #[doc(alias = "F_GLOBAL_LRU")]
        const GLOBAL_LRU = vip_flag::VIP_GLOBAL_LRU.0;
        /// Hash both ports, even on a VIP with port 0.
        #[doc(alias = "F_HASH_SRC_DST_PORT")]
        const SRC_DST_PORT = vip_flag::VIP_SRC_DST_PORT.0;
        /// Route by the id in the datagram; needs the feature
        /// [`Features::UDP_STABLE_ROUTING`](crate::Features::UDP_STABLE_ROUTING).
        #[doc(alias = "F_UDP_STABLE_ROUTING_VIP")]
        const UDP_STABLE_ROUTING = vip_flag::VIP_UDP_STABLE_ROUTING.0;
        /// Count datagrams that leave [down](crate::Katran::mark_down) reals; during a flood, leave
        /// their flows on the down real, as Katran does. Flows leave down reals without this flag,
        /// too.
        #[doc(alias = "F_UDP_FLOW_MIGRATION")]
        const UDP_FLOW_MIGRATION = vip_flag::VIP_UDP_FLOW_MIGRATION.0;
    }
}

super::text_form!(VipFlags, "a VIP flag such as no-src-port");

/// Refuses flags that the protocol cannot have, and unknown bits.
///
/// It allows all combinations of the others. Where one flag makes another moot (`DPORT_HASH` beside
/// `NO_SRC_PORT`, `SRC_DST_PORT` on a VIP with a port), Katran accepts both, and so must a host
/// that shares its configuration.
pub(crate) fn check_vip_flags(vip: &Vip, flags: VipFlags) -> Result<(), Error> {
    let invalid = |reason: &str| Error::InvalidConfig {
        setting: "flags",
        value: format!("{flags} of VIP {vip}"),
        reason: reason.to_owned(),
    };
    if flags.contains(VipFlags::QUIC) && vip.protocol() != Protocol::Udp {
        return Err(invalid("QUIC runs over UDP: leave quic out for a TCP VIP"));
    }
    if !flags.difference(VipFlags::all()).is_empty() {
        return Err(invalid("it has bits that are not flags"));
    }
    Ok(())
}

/// The program's number for a VIP: 0 to `max_vips` - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VipNumber(pub(crate) u16);

/// The function that fills a VIP's ring: two variants of Maglev hashing (Eisenbud et al., NSDI
/// 2016, section 3.4) with different treatment of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HashFunction {
    /// Katran's default, for fleets shared with Katran hosts: weights count in the first round
    /// only, so on a large ring they have almost no effect.
    Maglev,
    /// Gives reals shares of the ring in proportion to their weights. The default.
    #[default]
    MaglevV2,
}

impl fmt::Display for HashFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maglev => "maglev",
            Self::MaglevV2 => "maglev-v2",
        })
    }
}

impl FromStr for HashFunction {
    type Err = Error;

    /// `maglev` or `maglev-v2`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "maglev" => Ok(Self::Maglev),
            "maglev-v2" => Ok(Self::MaglevV2),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "a hash function (`maglev` or `maglev-v2`)",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for text in [
            "203.0.113.1:443/tcp",
            "203.0.113.0/24:0/udp",
            "0.0.0.0/0:80/tcp",
            "[2001:db8::1]:53/udp",
            "[2001:db8::/96]:443/tcp",
        ] {
            let vip: Vip = text.parse().unwrap();
            assert_eq!(vip.to_string(), text);
        }
        for bad in [
            "",
            "203.0.113.1:443",
            "203.0.113.1/tcp",
            "2001:db8::1:53/udp",
            "[203.0.113.1]:1/tcp",
            "203.0.113.1:70000/tcp",
            "203.0.113.1:1/sctp",
            "203.0.113.1/24:1/tcp",
            "203.0.113.0/33:1/tcp",
        ] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }

    #[test]
    fn full_length_prefix_is_the_plain_vip() {
        let vip = Vip::tcp("203.0.113.1:443".parse().unwrap());
        assert_eq!(vip.with_prefix(32).unwrap(), vip);
        assert!(!vip.is_prefix());
    }

    #[test]
    fn prefix_covers_its_addresses_only() {
        let vip: Vip = "203.0.113.0/24:80/tcp".parse().unwrap();
        assert!(vip.covers("203.0.113.255".parse().unwrap()));
        assert!(!vip.covers("203.0.114.0".parse().unwrap()));
        assert!(!vip.covers("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn flags_have_a_text_form() {
        let flags = VipFlags::NO_SRC_PORT | VipFlags::QUIC;
        assert_eq!(flags.to_string(), "no-src-port,quic");
        assert_eq!("quic, no-src-port".parse::<VipFlags>().unwrap(), flags);
        assert_eq!("none".parse::<VipFlags>().unwrap(), VipFlags::empty());
        assert_eq!(VipFlags::empty().to_string(), "none");
        assert_eq!(
            VipFlags::from_bits_retain(1 << 30).to_string(),
            "0x40000000"
        );
        assert!("NO_SRC_PORT".parse::<VipFlags>().is_err());
    }

    #[test]
    fn vip_flags_are_checked() {
        let tcp: Vip = "203.0.113.1:443/tcp".parse().unwrap();
        let udp: Vip = "203.0.113.1:443/udp".parse().unwrap();
        assert!(check_vip_flags(&tcp, VipFlags::all() - VipFlags::QUIC).is_ok());
        assert!(check_vip_flags(&tcp, VipFlags::from_bits_retain(1 << 20)).is_err());
        let message = |vip, flags| check_vip_flags(vip, flags).unwrap_err().to_string();
        assert!(message(&tcp, VipFlags::QUIC).contains("QUIC runs over UDP"));
        assert!(check_vip_flags(&udp, VipFlags::all()).is_ok());
    }

    #[test]
    fn mapped_address_is_ipv4() {
        let vip = Vip::tcp("[::ffff:203.0.113.1]:443".parse().unwrap());
        assert_eq!(vip.to_string(), "203.0.113.1:443/tcp");
    }
}
