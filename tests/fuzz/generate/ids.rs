//! Server ids in packets, in valid forms and others.

use super::Generator;
use crate::balancers::SERVER_IDS;

impl Generator {
    /// TCP options with a server id among them, often malformed.
    pub(super) fn tcp_options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        for _ in 0..self.pick(&[0, 0, 1, 1, 2, 3, 14, 15, 16]) {
            match self.rng.u32(0..8) {
                0..=4 => options.push(1),
                5 => options.extend([2, 4, 5, 0xb4]),
                6 => options.extend([8, 2]),
                _ => {
                    let (kind, length) = (self.rng.u8(..), self.pick(&[0, 1, 2, 3, 40, 255]));
                    options.extend([kind, length]);
                }
            }
        }
        let kind = self.pick(&[0xb7, 0xb7, 0xb7, 0xb7, 0xb6]);
        options.extend([kind, self.pick(&[6, 6, 6, 6, 6, 6, 6, 5, 7, 0])]);
        options.extend(self.server_id().to_le_bytes());
        options.truncate(40);
        options
    }

    fn server_id(&mut self) -> u32 {
        match self.rng.u32(0..10) {
            0 => self.rng.u32(..),
            1 => self.pick(&[0, 77, 6, 0x1_0000]),
            // Ids of reals that are down.
            2 | 3 => self.pick(&[0x8001, 0x00ab_cdef]),
            _ => {
                let ids = SERVER_IDS;
                self.pick(&ids).0
            }
        }
    }

    fn connection_id(&mut self) -> Vec<u8> {
        let id = self.server_id();
        let [a, b, c, d] = id.to_be_bytes();
        let mut bytes = match self.rng.u8(0..4) {
            0 => vec![0x3f & a, b, c, d],
            1 => vec![0x40 | c >> 2, c << 6 | d >> 2, d << 6],
            2 => vec![0x80, b, c, d],
            _ => vec![0xc0, a, b, c, d],
        };
        bytes.resize(8, 0x5a);
        bytes
    }

    pub(super) fn quic(&mut self) -> Vec<u8> {
        let id = self.connection_id();
        let mut payload;
        if self.rng.bool() {
            payload = vec![0x40 | self.rng.u8(0..64)];
            payload.extend(id);
        } else {
            let kind = self.pick(&[0x00, 0x10, 0x20, 0x30]) | self.rng.u8(0..16) | 0xc0;
            let version: u32 = self.pick(&[1, 1, 1, 0x6b33_43cf, 0x6b33_43cf, 0, 0xff00_001d, 2]);
            payload = vec![kind];
            payload.extend(version.to_be_bytes());
            payload.push(self.pick(&[8, 8, 8, 8, 9, 20, 7, 0, 255]));
            payload.extend(id);
        }
        payload.extend(self.bytes(24));
        if self.one_in(8) {
            payload.truncate(self.rng.usize(0..16));
        }
        payload
    }

    pub(super) fn stable_udp(&mut self) -> Vec<u8> {
        let [_, a, b, c] = self.server_id().to_be_bytes();
        let kind = self.pick(&[0x52, 0x52, 0x52, 0x52, 0x53]);
        let mut payload = vec![kind, a, b, c, 0, 0, 0, 0];
        payload.extend(self.bytes(8));
        if self.one_in(8) {
            payload.truncate(self.rng.usize(0..9));
        }
        payload
    }
}
