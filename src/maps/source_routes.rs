//! The tries in which the program looks up the client's prefix.

use std::io;

use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::Prefix;
use crate::types::address_bytes;

/// Real numbers by prefixes of the client's address.
pub(crate) struct SourceRouteMaps {
    pub(crate) v4: Typed<types::source_prefix_v4, u32>,
    pub(crate) v6: Typed<types::source_prefix_v6, u32>,
}

impl SourceRouteMaps {
    /// Adds or changes routes, by one call per family. After an error some may be there.
    pub(crate) fn insert(&self, routes: &[(Prefix, u32)]) -> io::Result<()> {
        let (v4, v6): (Vec<_>, Vec<_>) = routes.iter().partition(|(prefix, _)| is_v4(*prefix));
        let keys: Vec<_> = v4.iter().map(|(prefix, _)| key_v4(*prefix)).collect();
        let values: Vec<_> = v4.iter().map(|(_, real)| *real).collect();
        self.v4.update_all(&keys, &values)?;
        let keys: Vec<_> = v6.iter().map(|(prefix, _)| key_v6(*prefix)).collect();
        let values: Vec<_> = v6.iter().map(|(_, real)| *real).collect();
        self.v6.update_all(&keys, &values)
    }

    /// Removes existing routes, by one call per family. After an error some may be gone.
    pub(crate) fn remove(&self, prefixes: &[Prefix]) -> io::Result<()> {
        let (v4, v6): (Vec<_>, Vec<_>) = prefixes.iter().partition(|prefix| is_v4(**prefix));
        let keys: Vec<_> = v4.into_iter().map(key_v4).collect();
        self.v4.delete_all(&keys)?;
        let keys: Vec<_> = v6.into_iter().map(key_v6).collect();
        self.v6.delete_all(&keys)
    }

    /// Routes one prefix to a real, or removes its route.
    pub(crate) fn set(&self, prefix: Prefix, real: Option<u32>) -> io::Result<()> {
        match (is_v4(prefix), real) {
            (true, Some(real)) => self.v4.update(&key_v4(prefix), &real),
            (false, Some(real)) => self.v6.update(&key_v6(prefix), &real),
            (true, None) => self.v4.delete(&key_v4(prefix)).map(drop),
            (false, None) => self.v6.delete(&key_v6(prefix)).map(drop),
        }
    }
}

fn is_v4(prefix: Prefix) -> bool {
    prefix.address().is_ipv4()
}

fn key_v4(prefix: Prefix) -> types::source_prefix_v4 {
    let [a, b, c, d, ..] = address_bytes(prefix.address());
    types::source_prefix_v4 {
        prefix_length: prefix.length().into(),
        address: [a, b, c, d],
    }
}

fn key_v6(prefix: Prefix) -> types::source_prefix_v6 {
    types::source_prefix_v6 {
        prefix_length: prefix.length().into(),
        address: address_bytes(prefix.address()),
    }
}
