//! The settings of a pinned decapsulator: prefixes are in its tries, the rest in a small map that
//! is written before it is pinned and never changes.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::builder::DecapBuilder;
use super::parts::words;
use crate::maps::PrefixTrie;
use crate::sys::map;
use crate::sys::mapping::Mapping;

pub(super) const NAME: &str = "decap_settings";

/// Words of 32 bits: the IPv4 and the IPv6 destination in memory order (zeros: none), the port of
/// GUE, and the server id.
const WORDS: usize = 8;
const AT_V6: usize = 1;
const AT_PORT: usize = 5;
const AT_SERVER_ID: usize = 6;
const BYTES: usize = WORDS * size_of::<u32>();

/// Makes a map of what the tries do not hold.
pub(super) fn write(settings: &DecapBuilder) -> io::Result<OwnedFd> {
    let map = map::create_value(NAME, BYTES)?;
    let v4 = settings.destination_v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let v6 = settings.destination_v6.unwrap_or(Ipv6Addr::UNSPECIFIED);
    let [a, b, c, d] = words(v6.octets());
    let values = [
        u32::from_ne_bytes(v4.octets()),
        a,
        b,
        c,
        d,
        settings.gue_port.into(),
        settings.server_id,
        0,
    ];
    let memory = Mapping::new(map.as_fd(), BYTES)?;
    for (word, value) in memory.u32s().iter().zip(values) {
        word.store(value, Ordering::Release);
    }
    Ok(map)
}

/// The settings that a map and tries hold; an error of kind `InvalidData` if it is another map.
pub(super) fn read(
    map: OwnedFd,
    sources: &PrefixTrie,
    destinations: &PrefixTrie,
) -> io::Result<DecapBuilder> {
    let info = map::info(map.as_fd())?;
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let is_ours = info.kind == libbpf_sys::BPF_MAP_TYPE_ARRAY && info.value_size as usize == BYTES;
    if !is_ours {
        return Err(nonsense());
    }
    let memory = Mapping::new(map.as_fd(), BYTES)?;
    let word = |at: usize| memory.u32s()[at].load(Ordering::Acquire);
    let mut v6 = [0; 16];
    for (at, bytes) in v6.chunks_exact_mut(4).enumerate() {
        bytes.copy_from_slice(&word(AT_V6 + at).to_ne_bytes());
    }
    let (v4, v6) = (Ipv4Addr::from(word(0).to_ne_bytes()), Ipv6Addr::from(v6));
    Ok(DecapBuilder {
        destination_v4: Some(v4).filter(|v4| !v4.is_unspecified()),
        destination_v6: Some(v6).filter(|v6| !v6.is_unspecified()),
        sources: sources.prefixes()?,
        destinations: destinations.prefixes()?,
        gue_port: u16::try_from(word(AT_PORT)).map_err(|_| nonsense())?,
        server_id: word(AT_SERVER_ID),
        pin: None,
    })
}
