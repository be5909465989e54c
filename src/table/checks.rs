//! Which flags a VIP can have, and how a real's flags are kept.

use std::net::IpAddr;

use crate::error::Error;
use crate::error::Result;
use crate::types::Protocol;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

/// Refuses flags that the protocol cannot have, and bits that are no flag.
///
/// No combination of the others is refused: where one makes another moot (`DPORT_HASH` beside
/// `NO_SRC_PORT`, `SRC_DST_PORT` on a VIP with a port), Katran accepts both, and so must a host
/// that shares its configuration.
pub(super) fn check_vip_flags(vip: &Vip, flags: VipFlags) -> Result<()> {
    let invalid = |reason: &str| Error::InvalidConfig {
        setting: "flags",
        value: format!("{flags} of VIP {vip}"),
        reason: reason.to_owned(),
    };
    if flags.contains(VipFlags::QUIC) && vip.protocol() != Protocol::Udp {
        return Err(invalid("QUIC runs over UDP: leave quic out for a TCP VIP"));
    }
    if !flags.difference(VipFlags::all()).is_empty() {
        return Err(invalid("bits that are no flag are set"));
    }
    Ok(())
}

/// The flags as the program gets them: the address decides the family's bit.
pub(super) fn real_flags(address: IpAddr, flags: RealFlags) -> RealFlags {
    flags.difference(RealFlags::IPV6)
        | match address {
            IpAddr::V4(_) => RealFlags::empty(),
            IpAddr::V6(_) => RealFlags::IPV6,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
