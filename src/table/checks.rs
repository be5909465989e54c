//! How a real's flags are kept.

use std::net::IpAddr;

use crate::types::RealFlags;

/// The flags for the program: the address determines the family's bit.
pub(super) fn real_flags(address: IpAddr, flags: RealFlags) -> RealFlags {
    flags.difference(RealFlags::IPV6)
        | match address {
            IpAddr::V4(_) => RealFlags::empty(),
            IpAddr::V6(_) => RealFlags::IPV6,
        }
}
