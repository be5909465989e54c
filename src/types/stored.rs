//! Stored forms of the vocabulary: plain numbers, whose meaning belongs to a layout and not to a
//! version of this crate. Reading refuses impossible values.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

use super::DecapMode;
use super::HashFunction;
use super::Prefix;
use super::Protocol;
use super::Vip;

/// A stored value that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense(pub(crate) &'static str);

/// A VIP: address, prefix length, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredVip(IpAddr, u8, u16, u8);

impl From<Vip> for StoredVip {
    fn from(vip: Vip) -> Self {
        let length = vip.prefix_length();
        Self(vip.address(), length, vip.port(), vip.protocol().number())
    }
}

impl TryFrom<StoredVip> for Vip {
    type Error = Nonsense;

    fn try_from(stored: StoredVip) -> Result<Self, Nonsense> {
        let StoredVip(address, length, port, protocol) = stored;
        let protocols = [Protocol::Tcp, Protocol::Udp].into_iter();
        let protocol = protocols.into_iter().find(|of| of.number() == protocol);
        let protocol = protocol.ok_or(Nonsense("a VIP has an unknown protocol"))?;
        let vip = Self::new((canonical(address)?, port).into(), protocol);
        vip.with_prefix(length)
            .map_err(|_| Nonsense("a VIP has bits beyond its prefix"))
    }
}

/// A prefix: address and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPrefix(IpAddr, u8);

impl From<Prefix> for StoredPrefix {
    fn from(prefix: Prefix) -> Self {
        Self(prefix.address(), prefix.length())
    }
}

impl TryFrom<StoredPrefix> for Prefix {
    type Error = Nonsense;

    fn try_from(stored: StoredPrefix) -> Result<Self, Nonsense> {
        Self::new(stored.0, stored.1).map_err(|_| Nonsense("bits beyond a prefix are set"))
    }
}

/// Requires the only form in which an address is stored.
pub(crate) fn canonical(address: IpAddr) -> Result<IpAddr, Nonsense> {
    match address.to_canonical() == address {
        true => Ok(address),
        false => Err(Nonsense("an IPv4 address is stored as an IPv6 address")),
    }
}

impl HashFunction {
    pub(crate) const fn stored(self) -> u8 {
        match self {
            Self::Maglev => 1,
            Self::MaglevV2 => 2,
        }
    }

    pub(crate) const fn of_stored(number: u8) -> Result<Self, Nonsense> {
        match number {
            1 => Ok(Self::Maglev),
            2 => Ok(Self::MaglevV2),
            _ => Err(Nonsense("a VIP has an unknown hash function")),
        }
    }
}

impl DecapMode {
    pub(crate) const fn stored(self) -> u8 {
        match self {
            Self::Inline => 1,
            Self::Egress => 2,
        }
    }

    pub(crate) const fn of_stored(number: u8) -> Result<Self, Nonsense> {
        match number {
            1 => Ok(Self::Inline),
            2 => Ok(Self::Egress),
            _ => Err(Nonsense("a decap address has an unknown mode")),
        }
    }
}
