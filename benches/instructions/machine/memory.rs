//! A program's address space: regions of four gigabytes each, so that an address shows its region
//! and every access is checked against the region's end.

const REGION_BITS: u32 = 32;

#[derive(Default)]
pub(crate) struct Memory {
    regions: Vec<Vec<u8>>,
}

impl Memory {
    /// Adds a region with these bytes; returns its address, which is not 0.
    pub(crate) fn add(&mut self, bytes: Vec<u8>) -> u64 {
        self.regions.push(bytes);
        (self.regions.len() as u64) << REGION_BITS
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> &[u8] {
        let (region, at) = split(address);
        &self.regions[region][at..at + length]
    }

    pub(crate) fn bytes_mut(&mut self, address: u64, length: usize) -> &mut [u8] {
        let (region, at) = split(address);
        &mut self.regions[region][at..at + length]
    }

    /// A word of 1, 2, 4 or 8 bytes.
    pub(crate) fn load(&self, address: u64, size: usize) -> u64 {
        let mut word = [0; 8];
        word[..size].copy_from_slice(self.bytes(address, size));
        u64::from_le_bytes(word)
    }

    pub(crate) fn store(&mut self, address: u64, size: usize, value: u64) {
        let word = value.to_le_bytes();
        self.bytes_mut(address, size).copy_from_slice(&word[..size]);
    }
}

fn split(address: u64) -> (usize, usize) {
    let region = (address >> REGION_BITS) as usize;
    assert!(region > 0, "access to address {address:#x}");
    (region - 1, address as u32 as usize)
}
