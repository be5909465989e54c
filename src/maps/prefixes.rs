//! Tries of prefixes, of both families, in which programs look up addresses of packets.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::Family;
use crate::types::Prefix;
use crate::types::address_bytes;

/// Bits of the key before those of the address: the family.
const FAMILY_BITS: u32 = 32;

/// A set of prefixes to check addresses against.
pub(crate) struct PrefixTrie(Typed<types::address_prefix, u32>);

impl PrefixTrie {
    /// Takes the map.
    pub(crate) fn new(map: OwnedFd) -> io::Result<Self> {
        Ok(Self(Typed::new(map)?))
    }

    /// Adds prefixes. After an error some may be there.
    pub(crate) fn insert(&self, prefixes: &[Prefix]) -> io::Result<()> {
        let keys: Vec<_> = prefixes.iter().map(key).collect();
        self.0.update_all(&keys, &vec![1; keys.len()])
    }

    /// The prefixes in it; nothing may change them meanwhile. An error of kind `InvalidData` for an
    /// entry that is not a prefix.
    pub(crate) fn prefixes(&self) -> io::Result<BTreeSet<Prefix>> {
        let mut found = BTreeSet::new();
        let mut last = None;
        while let Some(key) = self.0.next_key(last.as_ref())? {
            found.insert(prefix_of(&key).ok_or(io::ErrorKind::InvalidData)?);
            last = Some(key);
        }
        Ok(found)
    }
}

impl AsFd for PrefixTrie {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn prefix_of(key: &types::address_prefix) -> Option<Prefix> {
    let v4 = key.address.first_chunk::<4>()?;
    let address = match Family::ALL
        .into_iter()
        .find(|family| u32::from(family.number()) == key.family)?
    {
        Family::V4 => IpAddr::from(*v4),
        Family::V6 => IpAddr::from(key.address),
    };
    let length = key.prefix_length.checked_sub(FAMILY_BITS)?;
    Prefix::new(address, u8::try_from(length).ok()?).ok()
}

fn key(prefix: &Prefix) -> types::address_prefix {
    types::address_prefix {
        prefix_length: FAMILY_BITS + u32::from(prefix.length()),
        family: Family::of(prefix.address()).number().into(),
        address: address_bytes(prefix.address()),
    }
}
