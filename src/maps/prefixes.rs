//! Tries of prefixes in which programs look for addresses of packets, of both families.

use std::io;
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

/// Prefixes that addresses may lie in.
pub(crate) struct PrefixTrie(Typed<types::address_prefix, u32>);

impl PrefixTrie {
    /// Takes the map.
    pub(crate) fn new(map: OwnedFd) -> io::Result<Self> {
        Ok(Self(Typed::new(map)?))
    }

    /// Adds prefixes. After an error some of them may be there.
    pub(crate) fn insert(&self, prefixes: &[Prefix]) -> io::Result<()> {
        let keys: Vec<_> = prefixes.iter().map(key).collect();
        self.0.update_all(&keys, &vec![1; keys.len()])
    }
}

impl AsFd for PrefixTrie {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn key(prefix: &Prefix) -> types::address_prefix {
    types::address_prefix {
        prefix_length: FAMILY_BITS + u32::from(prefix.length()),
        family: Family::of(prefix.address()).number().into(),
        address: address_bytes(prefix.address()),
    }
}
