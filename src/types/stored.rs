//! Forms of the vocabulary for what is kept beyond the process: plain numbers, whose meaning is that of a layout, not of a
//! version of this crate. What cannot be is refused as it is read.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

use super::DecapMode;
use super::HashFunction;
use super::Prefix;
use super::Protocol;
use super::Vip;

/// What was read makes no sense.
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
        let protocol = protocol.ok_or(Nonsense("a VIP has a protocol that there is not"))?;
        let vip = Self::new((canonical(address)?, port).into(), protocol);
        vip.with_prefix(length)
            .map_err(|_| Nonsense("a VIP has bits behind its prefix"))
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
        Self::new(stored.0, stored.1).map_err(|_| Nonsense("bits behind a prefix are set"))
    }
}

/// An address that is written in one way only.
pub(crate) fn canonical(address: IpAddr) -> Result<IpAddr, Nonsense> {
    match address.to_canonical() == address {
        true => Ok(address),
        false => Err(Nonsense("an IPv4 address is written as one of IPv6")),
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
            _ => Err(Nonsense("a VIP has a hash function that there is not")),
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
            _ => Err(Nonsense("a decap address has a mode that there is not")),
        }
    }
}
