//! A flow's slot in a ring: Bob Jenkins' lookup3 over the client's address and both ports. Hosts
//! with the same hash send a flow to the same real.

use std::net::IpAddr;

use crate::Config;

struct Lookup3 {
    a: u32,
    b: u32,
    c: u32,
}

impl Lookup3 {
    fn new(bytes: u32, initval: u32) -> Self {
        let start = 0xdead_beef_u32.wrapping_add(bytes).wrapping_add(initval);
        Self {
            a: start,
            b: start,
            c: start,
        }
    }

    fn mix(&mut self) {
        let Self { a, b, c } = self;
        let step = |x: &mut u32, y: &mut u32, z: &mut u32, bits| {
            *x = x.wrapping_sub(*z) ^ z.rotate_left(bits);
            *z = z.wrapping_add(*y);
        };
        step(a, b, c, 4);
        step(b, c, a, 6);
        step(c, a, b, 8);
        step(a, b, c, 16);
        step(b, c, a, 19);
        step(c, a, b, 4);
    }

    fn finish(mut self) -> u32 {
        let step = |x: &mut u32, y: u32, bits| *x = (*x ^ y).wrapping_sub(y.rotate_left(bits));
        step(&mut self.c, self.b, 14);
        step(&mut self.a, self.c, 11);
        step(&mut self.b, self.a, 25);
        step(&mut self.c, self.b, 16);
        step(&mut self.a, self.c, 4);
        step(&mut self.b, self.a, 14);
        step(&mut self.c, self.b, 24);
        self.c
    }
}

fn two_words(first: u32, second: u32, initval: u32) -> u32 {
    let mut state = Lookup3::new(8, initval);
    state.a = state.a.wrapping_add(first);
    state.b = state.b.wrapping_add(second);
    state.finish()
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The hash's initial values: for an IPv6 address, and for address and ports. They are public
/// unless a seed was set.
fn starts(config: &Config) -> (u32, u32) {
    let public = (
        config.max_vips,
        config.max_vips.wrapping_mul(config.ring_size),
    );
    config
        .hash_seed
        .map_or(public, |seed| (split_mix(seed, 2), split_mix(seed, 1)))
}

/// The upper half of the nth number of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn split_mix(seed: u64, nth: u64) -> u32 {
    let mut z = seed.wrapping_add(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// The slot of a flow in a ring.
pub fn slot(source: IpAddr, source_port: u16, destination_port: u16, config: &Config) -> usize {
    let (start_v6, start) = starts(config);
    let [a, b] = source_port.to_be_bytes();
    let [c, d] = destination_port.to_be_bytes();
    let ports = u32::from_le_bytes([a, b, c, d]);
    let source = match source {
        IpAddr::V4(v4) => word(&v4.octets()),
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            let mut state = Lookup3::new(16, start_v6);
            state.a = state.a.wrapping_add(word(&bytes[0..]));
            state.b = state.b.wrapping_add(word(&bytes[4..]));
            state.c = state.c.wrapping_add(word(&bytes[8..]));
            state.mix();
            state.a = state.a.wrapping_add(word(&bytes[12..]));
            state.finish()
        }
    };
    (two_words(source, ports, start) % config.ring_size) as usize
}
