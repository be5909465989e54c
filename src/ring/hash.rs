//! The hashes on which the hosts of a fleet must agree, bit for bit.
//!
//! [`backend_hash`] identifies a backend, [`offset_and_skip`] derives its candidate slots in a
//! ring, and [`FlowHasher`] finds the slot of a flow, as the BPF program does. All are published
//! algorithms; each function names its own.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::RingSize;

/// The 64-bit hash of a backend's address in ring building.
///
/// FNV-1 of an IPv4 address and SpookyHash of an IPv6 one, mixed as CityHash combines halves.
/// It depends only on the address, so all hosts of a fleet derive the same one. An IPv4-mapped IPv6
/// address (`::ffff:a.b.c.d`) hashes like the IPv4 address. Hashes of different addresses can
/// collide: see [`Endpoint`](crate::ring::Endpoint).
///
/// ```
/// let hash = katran::ring::backend_hash("198.51.100.7".parse().unwrap());
/// assert_eq!(hash, 0xcd88152a8a40bb4a);
/// ```
#[must_use]
pub fn backend_hash(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => combine(2, u64::from(fnv1(v4))),
        IpAddr::V6(v6) => {
            let (first, second) = spooky(v6);
            combine(10, combine(first, second))
        }
    }
}

/// The 128-to-64-bit step of CityHash (Pike and Alakuijala).
fn combine(upper: u64, lower: u64) -> u64 {
    const K: u64 = 0x9ddf_ea08_eb38_2d69;
    let mut a = (lower ^ upper).wrapping_mul(K);
    a ^= a >> 47;
    let mut b = (upper ^ a).wrapping_mul(K);
    b ^= b >> 47;
    b.wrapping_mul(K)
}

/// FNV-1, 32 bit (Fowler, Noll and Vo), of the address in network order, except that a byte is
/// sign-extended before it is mixed in.
fn fnv1(address: Ipv4Addr) -> u32 {
    address
        .octets()
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| {
            hash.wrapping_mul(0x0100_0193) ^ (byte.cast_signed() as u32)
        })
}

/// SpookyHash V2 (Jenkins) of the 16 bytes of the address, both seeds 0.
///
/// A message of 16 bytes needs only the algorithm's short form, with one round of mixing.
fn spooky(address: Ipv6Addr) -> (u64, u64) {
    const FILL: u64 = 0xdead_beef_dead_beef;
    const MIX: [u32; 12] = [50, 52, 30, 41, 54, 48, 38, 37, 62, 34, 5, 36];
    const END: [u32; 11] = [15, 52, 26, 51, 28, 9, 47, 54, 32, 25, 63];
    const LENGTH: u64 = 16;

    // The algorithm reads the message as little-endian words.
    let message = u128::from_le_bytes(address.octets());
    let mut h = [
        0,
        0,
        FILL.wrapping_add(message as u64),
        FILL.wrapping_add((message >> 64) as u64),
    ];
    for (round, rotation) in MIX.into_iter().enumerate() {
        let [turned, next, after] = [(round + 2) % 4, (round + 3) % 4, round % 4];
        h[turned] = h[turned].rotate_left(rotation).wrapping_add(h[next]);
        h[after] ^= h[turned];
    }
    h[2] = h[2].wrapping_add(FILL);
    h[3] = h[3].wrapping_add(LENGTH << 56).wrapping_add(FILL);
    for (round, rotation) in END.into_iter().enumerate() {
        let [turned, target] = [(round + 2) % 4, (round + 3) % 4];
        h[target] ^= h[turned];
        h[turned] = h[turned].rotate_left(rotation);
        h[target] = h[target].wrapping_add(h[turned]);
    }
    (h[0], h[1])
}

/// Where a backend's candidate slots begin, and their distance: `0 <= offset < size` and `1 <= skip
/// < size`.
pub(super) fn offset_and_skip(hash: u64, size: RingSize) -> (u32, u32) {
    let size = u64::from(size.get());
    let offset = murmur3(hash, 42, 0) % size;
    let skip = murmur3(hash, 2_718_281_828, 2307) % (size - 1) + 1;
    // Both are below the size, a u32.
    (offset as u32, skip as u32)
}

/// MurmurHash3 x64 128 (Appleby) of the 16 bytes of two words; the first 64 bits of the result.
fn murmur3(first: u64, second: u64, seed: u64) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    const LENGTH: u64 = 16;

    let finish = |mut h: u64| {
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    };
    let scramble = |word: u64, before: u64, rotation: u32, after: u64| {
        word.wrapping_mul(before)
            .rotate_left(rotation)
            .wrapping_mul(after)
    };

    let mut h1 = seed ^ scramble(first, C1, 31, C2);
    h1 = h1.rotate_left(27).wrapping_add(seed);
    h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
    let mut h2 = seed ^ scramble(second, C2, 33, C1);
    h2 = h2.rotate_left(31).wrapping_add(h1);
    h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);

    h1 ^= LENGTH;
    h2 ^= LENGTH;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

/// Finds the slot of a flow, exactly as the BPF program does.
///
/// Both settings are part of the hash: hosts agree only if both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowHasher {
    /// Seed of the final hash: `max_vips * ring_size`.
    seed: u32,
    /// Seed of the hash that folds an IPv6 source address into a word: `max_vips`.
    seed_v6: u32,
    size: RingSize,
}

impl FlowHasher {
    /// The hasher of a balancer with these settings.
    pub(crate) fn new(max_vips: u32, size: RingSize) -> Self {
        Self {
            seed: max_vips.wrapping_mul(size.get()),
            seed_v6: max_vips,
            size,
        }
    }

    /// The same with secret seeds derived from `seed`.
    pub(crate) fn seeded(self, seed: u64) -> Self {
        let [seed, seed_v6] = [1, 2].map(|nth| {
            // Two numbers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
            let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(nth));
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ z >> 31) >> 32) as u32
        });
        Self {
            seed,
            seed_v6,
            ..self
        }
    }

    /// The same with another hasher's seeds.
    pub(crate) fn with_seeds(self, (seed, seed_v6): (u32, u32)) -> Self {
        Self {
            seed,
            seed_v6,
            ..self
        }
    }

    /// The seeds for the program: of the final hash, and of the one that folds an IPv6 source
    /// address.
    pub(crate) fn seeds(&self) -> (u32, u32) {
        (self.seed, self.seed_v6)
    }

    /// The 32-bit hash of a flow.
    ///
    /// An IPv4-mapped address is hashed as IPv6, because the packet has an IPv6 header.
    pub(crate) fn flow_hash(&self, source: IpAddr, source_port: u16, destination_port: u16) -> u32 {
        // Ports are in network order in memory, and read as a little-endian word.
        let ports =
            u32::from(source_port.swap_bytes()) | u32::from(destination_port.swap_bytes()) << 16;
        let source = match source {
            IpAddr::V4(v4) => u32::from_le_bytes(v4.octets()),
            IpAddr::V6(v6) => {
                let words = u128::from_le_bytes(v6.octets());
                let words = [0, 32, 64, 96].map(|shift| (words >> shift) as u32);
                lookup3_4words(words, self.seed_v6)
            }
        };
        lookup3_2words([source, ports], self.seed)
    }

    /// The slot of a flow, in any ring of this size.
    pub(crate) fn slot(&self, source: IpAddr, source_port: u16, destination_port: u16) -> u32 {
        self.flow_hash(source, source_port, destination_port) % self.size.get()
    }
}

/// The start of lookup3 (Jenkins) for a message of `length` bytes, with the seed in the same place
/// as in Linux.
fn lookup3_start(length: u32, seed: u32) -> [u32; 3] {
    [0xdead_beef_u32.wrapping_add(length).wrapping_add(seed); 3]
}

/// lookup3 of 8 bytes.
fn lookup3_2words(words: [u32; 2], seed: u32) -> u32 {
    let mut state = lookup3_start(8, seed);
    state[0] = state[0].wrapping_add(words[0]);
    state[1] = state[1].wrapping_add(words[1]);
    lookup3_final(state)
}

/// lookup3 of 16 bytes.
fn lookup3_4words(words: [u32; 4], seed: u32) -> u32 {
    let mut state = lookup3_start(16, seed);
    for (state, word) in state.iter_mut().zip(words) {
        *state = state.wrapping_add(word);
    }
    state = lookup3_mix(state);
    state[0] = state[0].wrapping_add(words[3]);
    lookup3_final(state)
}

/// lookup3's reversible mixing of three words.
fn lookup3_mix(mut s: [u32; 3]) -> [u32; 3] {
    for (round, rotation) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
        let [target, grown, turned] = [round % 3, (round + 1) % 3, (round + 2) % 3];
        s[target] = s[target].wrapping_sub(s[turned]) ^ s[turned].rotate_left(rotation);
        s[turned] = s[turned].wrapping_add(s[grown]);
    }
    s
}

/// lookup3's final mixing; the last word is the hash.
fn lookup3_final(mut s: [u32; 3]) -> u32 {
    for (round, rotation) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let [target, turned] = [(round + 2) % 3, (round + 1) % 3];
        s[target] = (s[target] ^ s[turned]).wrapping_sub(s[turned].rotate_left(rotation));
    }
    s[2]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/hashing.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn number<T: TryFrom<u64>>(row: &Value, key: &str) -> T {
        let number = row[key].as_u64().unwrap();
        T::try_from(number).ok().unwrap()
    }

    fn hexadecimal(row: &Value, key: &str) -> u64 {
        u64::from_str_radix(row[key].as_str().unwrap(), 16).unwrap()
    }

    #[test]
    fn addresses_hash_as_recorded() {
        let vectors = vectors();
        let rows = vectors["addresses"].as_array().unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            let address: IpAddr = row["address"].as_str().unwrap().parse().unwrap();
            let hash = backend_hash(address);
            assert_eq!(hash, hexadecimal(row, "hash"), "{address}");
            assert_eq!(
                offset_and_skip(hash, RingSize::DEFAULT),
                (number(row, "offset"), number(row, "skip")),
                "{address}"
            );
        }
    }

    #[test]
    fn mapped_address_hashes_as_ipv4() {
        assert_eq!(
            backend_hash("::ffff:10.0.0.1".parse().unwrap()),
            backend_hash("10.0.0.1".parse().unwrap())
        );
    }

    #[test]
    fn flows_hash_as_recorded() {
        let vectors = vectors();
        let rows = vectors["flows"].as_array().unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            let size = RingSize::try_from(number::<u32>(row, "ring_size")).unwrap();
            let hasher = FlowHasher::new(number(row, "max_vips"), size);
            let source: IpAddr = row["source"].as_str().unwrap().parse().unwrap();
            let (from, to) = (number(row, "source_port"), number(row, "destination_port"));
            let hash = hasher.flow_hash(source, from, to);
            assert_eq!(u64::from(hash), hexadecimal(row, "hash"), "{row}");
            assert_eq!(
                hasher.slot(source, from, to),
                number::<u32>(row, "slot"),
                "{row}"
            );
        }
    }

    #[test]
    fn seeds_are_those_of_the_program() {
        let hasher = FlowHasher::new(512, RingSize::DEFAULT);
        assert_eq!(hasher.seeds(), (512 * 65537, 512));
        // The product wraps, as it does in the program.
        let size = RingSize::try_from(16_777_213).unwrap();
        assert_eq!(FlowHasher::new(512, size).seeds().0, 0xffff_fa00);
    }

    #[test]
    fn seeds_that_are_given_are_used_alone_and_whole() {
        let seeded = |vips, seed| FlowHasher::new(vips, RingSize::DEFAULT).seeded(seed);
        // SplitMix64's published output for 0; the upper halves.
        assert_eq!(seeded(512, 0).seeds(), (0xe220_a839, 0x6e78_9e6a));
        assert_eq!(seeded(512, 7), seeded(16, 7));
        let all: std::collections::BTreeSet<_> =
            (0..63).map(|bit| seeded(512, 1 << bit).seeds()).collect();
        assert_eq!(all.len(), 63);
    }
}
