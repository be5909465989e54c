//! Which addresses can be a host beyond a router. VIPs, reals and tunnel sources share most of the
//! rule; each adds its own.

use std::net::IpAddr;

use super::Vip;
use crate::error::Error;

/// Refuses an address that no packet can be routed to.
///
/// # Errors
/// [`Error::InvalidAddress`].
pub(crate) fn check_host(address: IpAddr) -> Result<(), Error> {
    let reason = match address {
        _ if address.is_unspecified() => "the unspecified address names no host",
        _ if address.is_multicast() => "a multicast address names no single host",
        _ if address.is_loopback() => "a loopback address never arrives from the wire",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address names no single host",
        _ => return Ok(()),
    };
    Err(Error::InvalidAddress { address, reason })
}

/// Refuses what cannot be a real: an address that no packet can be routed to, or an IPv6 link-local
/// address, which no gateway forwards to.
///
/// # Errors
/// [`Error::InvalidAddress`].
pub(crate) fn check_real(address: IpAddr) -> Result<(), Error> {
    check_host(address)?;
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(Error::InvalidAddress {
            address,
            reason: "a link-local address cannot be reached through the gateway",
        }),
        _ => Ok(()),
    }
}

/// Refuses what cannot be a VIP. A prefix may begin at the unspecified address, as `0.0.0.0/0`
/// does.
///
/// # Errors
/// [`Error::InvalidAddress`].
pub(crate) fn check_vip(vip: &Vip) -> Result<(), Error> {
    if vip.is_prefix() && vip.address().is_unspecified() {
        return Ok(());
    }
    check_host(vip.address())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_be_routed() {
        for bad in [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "127.0.0.1",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert!(check_host(bad.parse().unwrap()).is_err(), "{bad}");
            assert!(check_real(bad.parse().unwrap()).is_err(), "{bad}");
        }
        assert!(check_real("fe80::1".parse().unwrap()).is_err());
        for good in ["198.51.100.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(check_real(good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_prefix_may_begin_at_zero() {
        assert!(check_vip(&"0.0.0.0/0:80/tcp".parse().unwrap()).is_ok());
        assert!(check_vip(&"0.0.0.0:80/tcp".parse().unwrap()).is_err());
        assert!(check_vip(&"224.0.0.0/8:80/tcp".parse().unwrap()).is_err());
    }
}
