//! Reals: the backend servers.

use std::fmt;
use std::net::IpAddr;

use bitflags::bitflags;

bitflags! {
    /// Properties of a real, the same for every VIP that uses it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RealFlags: u8 {
        /// The real has an IPv6 address. Set by the library; setting it yourself has no effect.
        const IPV6 = 1 << 0;
        /// The real is this very host: packets of a VIP with
        /// [`VipFlags::LOCAL_VIP`](crate::VipFlags::LOCAL_VIP) go to the local stack.
        const LOCAL_REAL = 1 << 1;
        /// Bits 2 to 7: the application's own; kept and reported, never interpreted.
        const APPLICATION = 0b1111_1100;
    }
}

/// The number under which the program knows a real: 1 to `max_reals`.
///
/// A number stays with its address as long as anything names the address, and is given to
/// another one only after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealNumber(pub(crate) u16);

impl RealNumber {
    /// The number as an integer.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for RealNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A backend server of one VIP: its address and its share of the VIP's new flows.
///
/// ```
/// use katran::Real;
///
/// let twice_the_share = Real::new("198.51.100.7".parse().unwrap()).weight(2);
/// assert_eq!(twice_the_share.get_weight(), 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "NewReal")]
pub struct Real {
    address: IpAddr,
    weight: u32,
    flags: Option<RealFlags>,
}

impl Real {
    /// A real at `address`, of weight 1.
    ///
    /// An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291, 2.5.5.2) is the IPv4 real:
    /// such an address is not allowed on the wire.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            weight: 1,
            flags: None,
        }
    }

    /// Sets the weight: the real's share of new flows, relative to the VIP's other reals.
    ///
    /// Range: all of `u32`; default 1. Weight 0 drains: no new flows, and those in the flow
    /// table stay, with a SYN that comes within five seconds of their last packet. No datagram says that it is a flow's first: with
    /// [`FlowTracking::Changed`](crate::FlowTracking::Changed) UDP flows that begin within `udp_timeout` of the change, in slots
    /// that were the real's, still join it.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the real's flags, for all VIPs that use it. Without this call they stay what they
    /// are, none for a real that is new.
    pub fn flags(mut self, flags: RealFlags) -> Self {
        self.flags = Some(flags);
        self
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The weight.
    pub fn get_weight(&self) -> u32 {
        self.weight
    }

    /// The flags, if they were given.
    pub fn get_flags(&self) -> Option<RealFlags> {
        self.flags
    }
}

/// One change of a VIP's reals, for [`Katran::modify_reals`](crate::Katran::modify_reals).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "ModifyAction")]
pub enum RealChange {
    /// Adds the real, or updates the weight of one that the VIP has.
    Add(Real),
    /// Removes the real with this address.
    Remove(IpAddr),
}
