//! Reals: the backends as the balancer knows them.

use std::fmt;
use std::net::IpAddr;

use bitflags::bitflags;

bitflags! {
    /// Properties of a real, the same for every VIP that uses it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RealFlags: u8 {
        /// The real has an IPv6 address. The library sets it; setting it yourself has no effect.
        const IPV6 = 1 << 0;
        /// The real is this host: packets of a VIP with
        /// [`VipFlags::LOCAL_VIP`](crate::VipFlags::LOCAL_VIP) go to its network stack.
        const LOCAL_REAL = 1 << 1;
        /// Bits 2 to 7 belong to the application: the library keeps and reports them, and never
        /// interprets them.
        const APPLICATION = 0b1111_1100;
    }
}

/// The program's number for a real: 1 to `max_reals`.
///
/// A number stays with its address while anything names the address, and may be given to another
/// afterwards.
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

/// A backend of one VIP: its address and its share of the VIP's new flows.
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

/// # Address, weight and flags
impl Real {
    /// A real at `address`, of weight 1.
    ///
    /// An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291, 2.5.5.2) means the IPv4 real,
    /// because such an address is not allowed on the wire.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            weight: 1,
            flags: None,
        }
    }

    /// Sets the weight: the real's share of new flows, relative to the VIP's other reals.
    ///
    /// Range: all of `u32`; default 1. Weight 0 drains: the real gets no new flows and keeps those
    /// in the flow table, including a SYN within five seconds of their last packet. No datagram
    /// reveals that it is a flow's first, so with
    /// [`FlowTracking::Changed`](crate::FlowTracking::Changed) UDP flows that begin within
    /// `udp_timeout` of the change, in slots that were the real's, still join it.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the real's flags, for all VIPs that use it. Without this call a known real keeps its
    /// flags, and a new one has none.
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

    /// The flags, if they were set.
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
