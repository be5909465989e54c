//! The VIP table: how packets find a VIP, and what they see of it. A hash table with chains in
//! shared memory: packets walk a chain while the library changes it.
//!
//! One store puts a VIP at the head of its chain, and one store removes it. A removed number keeps
//! its key and its successor until a grace period has passed (the caller waits for that before it
//! gives the number out again), so a packet that is at it can continue.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::RingSlot;
use super::random::mix;
use super::random::random_words;
use crate::skel::katran::types;
use crate::sys::mapping::Mapping;
use crate::types::FlowTracking;
use crate::types::VipFlags;

/// Chain heads per VIP, at least: half a dozen VIPs with one hash are rare then.
const HEADS_PER_VIP: u32 = 4;
const CHAIN: usize = types::vip_constant::VIP_CHAIN.0 as usize;
const WORDS: usize = types::vip_constant::VIP_WORDS.0 as usize;

/// 32-bit words of a VIP, and the one of its successor; 64-bit words, and the one of flags and
/// ring.
const INFO_U32S: usize = size_of::<types::vip_info>() / 4;
const INFO_NEXT: usize = WORDS;
const INFO_U64S: usize = size_of::<types::vip_info>() / 8;
const INFO_VIP: usize = INFO_U64S - 1;

const _: () = {
    assert!(size_of::<types::vip>() == 8);
    assert!(std::mem::offset_of!(types::vip_info, next) == 4 * INFO_NEXT);
    assert!(std::mem::offset_of!(types::vip_info, vip) == 8 * INFO_VIP);
};

/// Flows of VIPs with these flags may be on reals that no ring ever named, so all of them ask the
/// tables; or they go by a port alone and are in no table.
pub(crate) const TABLES_DECIDE: VipFlags = VipFlags::QUIC
    .union(VipFlags::UDP_STABLE_ROUTING)
    .union(VipFlags::SRC_ROUTING)
    .union(VipFlags::GLOBAL_LRU)
    .union(VipFlags::UDP_FLOW_MIGRATION)
    .union(VipFlags::DPORT_HASH);

const VOID_FLOWS: u32 = types::vip_flag::VIP_VOID_FLOWS.0;
const HANDS_BACK: u32 = types::vip_flag::VIP_HANDS_BACK.0;
/// Tables have no flows of VIPs with these flags.
const NOT_REMEMBERED: VipFlags = VipFlags::LRU_BYPASS.union(VipFlags::DPORT_HASH);

/// What packets see of one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VipCell {
    pub(crate) flags: VipFlags,
    /// Whether the VIP has any real, including drained ones.
    pub(crate) has_reals: bool,
    /// Whether entries of its flows may be void.
    pub(crate) void_flows: bool,
    /// The current ring; none if no real takes new flows.
    pub(crate) ring: Option<RingSlot>,
}

impl VipCell {
    /// `tracking`: which flows this balancer remembers; `in_detail`: whether it counts more than
    /// packets and bytes; `hands_back`: a replaced balancer's tables may know more of its flows.
    fn word(&self, tracking: FlowTracking, in_detail: bool, hands_back: bool) -> u64 {
        let no_reals = types::vip_flag::VIP_NO_REALS.0;
        let mut flags = self.flags.bits() | if self.has_reals { 0 } else { no_reals };
        if self.void_flows {
            flags |= VOID_FLOWS;
        }
        if tracking == FlowTracking::Changed && !self.flags.intersects(TABLES_DECIDE) {
            flags |= types::vip_flag::VIP_TRACKS_CHANGES.0;
        }
        if in_detail {
            flags |= types::vip_flag::VIP_IN_DETAIL.0;
        }
        if hands_back && self.has_reals && !self.flags.intersects(NOT_REMEMBERED) {
            flags |= HANDS_BACK;
        }
        let ring = self
            .ring
            .map_or(types::ring_constant::RING_NONE.0, |slot| slot.get());
        // The struct's first field is at the lower address; the program is little-endian only.
        u64::from(flags) | u64::from(ring) << 32
    }
}

/// The VIP table's hash: a multilinear hash, mixed (see `src/bpf/flow_sets.h`), with its own keys.
#[derive(Clone, Debug)]
pub(crate) struct VipHash {
    keys: [u64; WORDS + 1],
    shift: u32,
}

impl VipHash {
    /// Random keys, for a table of `max_vips` VIPs.
    pub(crate) fn draw(max_vips: u32) -> io::Result<Self> {
        Ok(Self::with(random_words()?, max_vips))
    }

    /// Keys drawn earlier; `None`: the number of keys is wrong.
    pub(crate) fn of(keys: &[u64], max_vips: u32) -> Option<Self> {
        Some(Self::with(keys.try_into().ok()?, max_vips))
    }

    fn with(keys: [u64; WORDS + 1], max_vips: u32) -> Self {
        Self {
            keys,
            shift: u64::BITS - (HEADS_PER_VIP * max_vips).next_power_of_two().ilog2(),
        }
    }

    pub(crate) fn keys(&self) -> [u64; WORDS + 1] {
        self.keys
    }

    /// How far the sum is shifted right.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// The number of chains.
    #[cfg(test)]
    pub(crate) fn heads(&self) -> usize {
        1 << (u64::BITS - self.shift)
    }

    fn head_of(&self, words: &[u32; WORDS]) -> usize {
        let sum = self.keys[..WORDS]
            .iter()
            .zip(words)
            .fold(self.keys[WORDS], |sum, (key, word)| {
                sum.wrapping_add(key.wrapping_mul(u64::from(*word)))
            });
        (mix(sum) >> self.shift) as usize
    }
}

/// The VIP table's memory in bytes for `max_vips` VIPs: heads, and the VIPs themselves.
pub(crate) fn vip_table_bytes(max_vips: u32) -> [u32; 2] {
    let heads = (HEADS_PER_VIP * max_vips).next_power_of_two();
    [
        heads * size_of::<u16>() as u32,
        max_vips * size_of::<types::vip_info>() as u32,
    ]
}

/// The VIP table in the kernel.
pub(crate) struct VipCells {
    heads_map: OwnedFd,
    infos_map: OwnedFd,
    heads: Mapping,
    infos: Mapping,
    hash: VipHash,
    tracking: FlowTracking,
    in_detail: bool,
    hands_back: AtomicBool,
    /// Whether VIPs that are set get the bit, or only keep it.
    gives_bits: AtomicBool,
}

/// A chain with as many VIPs as a packet would examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainFull;

impl VipCells {
    pub(crate) fn new(
        heads_map: OwnedFd,
        infos_map: OwnedFd,
        max_vips: u32,
        hash: VipHash,
        tracking: FlowTracking,
        in_detail: bool,
    ) -> io::Result<Self> {
        let [heads, infos] = vip_table_bytes(max_vips);
        let cells = Self {
            heads: Mapping::new(heads_map.as_fd(), heads as usize)?,
            infos: Mapping::new(infos_map.as_fd(), infos as usize)?,
            heads_map,
            infos_map,
            hash,
            tracking,
            in_detail,
            hands_back: AtomicBool::new(false),
            gives_bits: AtomicBool::new(false),
        };
        let is_set = |word: &AtomicU64| word.load(Ordering::Relaxed) & u64::from(HANDS_BACK) != 0;
        let hands_back = cells.words().any(is_set);
        cells.hands_back.store(hands_back, Ordering::Relaxed);
        Ok(cells)
    }

    /// What packets see of each number.
    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        let infos = self.infos.u64s().chunks_exact(INFO_U64S);
        infos.map(|info| &info[INFO_VIP])
    }

    /// Whether packets without an entry go to the replaced program, whose tables may know more
    /// flows.
    pub(crate) fn hands_back(&self) -> bool {
        self.hands_back.load(Ordering::Relaxed)
    }

    /// Turns that on for VIPs that are set from now on, until [`Self::all_were_set`].
    pub(crate) fn begin_handing_back(&self) {
        self.hands_back.store(true, Ordering::Relaxed);
        self.gives_bits.store(true, Ordering::Relaxed);
    }

    /// All VIPs of the replaced balancer are set: it knows no others.
    pub(crate) fn all_were_set(&self) {
        self.gives_bits.store(false, Ordering::Relaxed);
    }

    /// Turns that off at once for all. No other thread may set cells meanwhile.
    pub(crate) fn end_handing_back(&self) {
        self.all_were_set();
        self.hands_back.store(false, Ordering::Relaxed);
        self.words().for_each(|word| {
            word.fetch_and(!u64::from(HANDS_BACK), Ordering::Release);
        });
    }

    /// Switches what packets see of a VIP, flags and ring together.
    pub(crate) fn set(&self, number: u16, cell: VipCell) {
        let words: &[AtomicU64] = self.infos.u64s();
        let word = &words[usize::from(number) * INFO_U64S + INFO_VIP];
        let has_bit = || word.load(Ordering::Relaxed) & u64::from(HANDS_BACK) != 0;
        let hands_back = self.gives_bits.load(Ordering::Relaxed) || has_bit();
        word.store(
            cell.word(self.tracking, self.in_detail, hands_back),
            Ordering::Release,
        );
    }

    /// The number of the ring that packets see of a VIP.
    pub(crate) fn ring_of(&self, number: u16) -> Option<u32> {
        let words: &[AtomicU64] = self.infos.u64s();
        let word = words[usize::from(number) * INFO_U64S + INFO_VIP].load(Ordering::Acquire);
        let ring = (word >> 32) as u32;
        (ring != types::ring_constant::RING_NONE.0).then_some(ring)
    }

    /// A VIP's flows have no void entries any more. No other thread may set its cell meanwhile.
    /// Does nothing for a number that only another balancer has room for.
    pub(crate) fn clear_void_flows(&self, number: u16) {
        let words: &[AtomicU64] = self.infos.u64s();
        if let Some(word) = words.get(usize::from(number) * INFO_U64S + INFO_VIP) {
            word.fetch_and(!u64::from(VOID_FLOWS), Ordering::Release);
        }
    }

    /// Lets packets find a VIP by its key. Its cell is set, and no packet knows the number.
    pub(crate) fn insert(&self, key: &types::vip_key, number: u16) -> Result<(), ChainFull> {
        self.chains().insert(key, number)
    }

    /// Whether packets find this number by the key.
    pub(crate) fn has(&self, key: &types::vip_key, number: u16) -> bool {
        let (chains, words) = (self.chains(), words(key));
        let head = self.hash.head_of(&words);
        chains.chain(head).any(|of| of == number)
    }

    /// Removes the VIP with this key from packets' sight; returns whether it was there.
    pub(crate) fn remove(&self, key: &types::vip_key) -> bool {
        self.chains().remove(key)
    }

    fn chains(&self) -> Chains<'_> {
        Chains {
            heads: self.heads.u16s(),
            infos: self.infos.u32s(),
            hash: &self.hash,
        }
    }

    pub(crate) fn heads_fd(&self) -> BorrowedFd<'_> {
        self.heads_map.as_fd()
    }

    pub(crate) fn infos_fd(&self) -> BorrowedFd<'_> {
        self.infos_map.as_fd()
    }
}

/// The chains, in any memory.
struct Chains<'a> {
    heads: &'a [AtomicU16],
    infos: &'a [AtomicU32],
    hash: &'a VipHash,
}

impl Chains<'_> {
    fn info(&self, number: u16) -> &[AtomicU32] {
        &self.infos[usize::from(number) * INFO_U32S..][..INFO_U32S]
    }

    fn next(&self, number: u16) -> u16 {
        // Only numbers are stored there.
        self.info(number)[INFO_NEXT].load(Ordering::Relaxed) as u16
    }

    /// The numbers of a chain, from its head.
    fn chain(&self, head: usize) -> impl Iterator<Item = u16> {
        let number = |next: u16| next.checked_sub(1);
        let first = number(self.heads[head].load(Ordering::Relaxed));
        std::iter::successors(first, move |last| number(self.next(*last)))
    }

    fn insert(&self, key: &types::vip_key, number: u16) -> Result<(), ChainFull> {
        let words = words(key);
        let head = self.hash.head_of(&words);
        if self.chain(head).count() >= CHAIN {
            return Err(ChainFull);
        }
        let info = self.info(number);
        for (to, word) in info.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        let first = self.heads[head].load(Ordering::Relaxed);
        info[INFO_NEXT].store(first.into(), Ordering::Relaxed);
        // Numbers end below 65,535.
        self.heads[head].store(number + 1, Ordering::Release);
        Ok(())
    }

    fn remove(&self, key: &types::vip_key) -> bool {
        let words = words(key);
        let head = self.hash.head_of(&words);
        let mut before = None;
        for number in self.chain(head) {
            let info = self.info(number);
            let mut stored = info.iter().map(|word| word.load(Ordering::Relaxed));
            if words.iter().all(|word| stored.next() == Some(*word)) {
                let next = self.next(number);
                match before {
                    None => self.heads[head].store(next, Ordering::Release),
                    Some(before) => {
                        self.info(before)[INFO_NEXT].store(next.into(), Ordering::Release);
                    }
                }
                return true;
            }
            before = Some(number);
        }
        false
    }
}

/// The key as the program reads it: 32-bit words in memory order.
fn words(key: &types::vip_key) -> [u32; WORDS] {
    let [port_low, port_high] = key.port.to_ne_bytes();
    let service = u32::from_ne_bytes([port_low, port_high, key.protocol, key.family]);
    let mut words = [service; WORDS];
    for (word, bytes) in words.iter_mut().zip(key.address.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::CString;

    use nix::sys::memfd::MFdFlags;
    use nix::sys::memfd::memfd_create;
    use nix::unistd::ftruncate;
    use proptest::prelude::*;

    use super::*;

    const VIPS: u16 = 64;

    /// Tables in memory of no map.
    fn cells() -> VipCells {
        let file = || {
            let name = CString::new("vips").unwrap();
            let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).unwrap();
            ftruncate(&file, 1 << 16).unwrap();
            file
        };
        let most = u32::from(VIPS);
        let hash = VipHash::draw(most).unwrap();
        VipCells::new(file(), file(), most, hash, FlowTracking::All, false).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn packets_of_vips_that_the_replaced_balancer_lacks_are_not_handed_back() {
        let cells = cells();
        let cell = |has_reals| VipCell {
            flags: VipFlags::empty(),
            has_reals,
            void_flows: false,
            ring: None,
        };
        let handed_back = || {
            let words = cells.words().map(|word| word.load(Ordering::Relaxed));
            let is_set = words.map(|word| word & u64::from(HANDS_BACK) != 0);
            is_set.take(3).collect::<Vec<_>>()
        };
        cells.begin_handing_back();
        cells.set(0, cell(true));
        cells.set(1, cell(false));
        cells.all_were_set();
        // Changes of the known one, reals for the empty one, and a new VIP.
        for number in 0..3 {
            cells.set(number, cell(true));
        }
        assert_eq!(handed_back(), [true, false, false]);
        assert!(cells.hands_back());
        cells.end_handing_back();
        assert_eq!(handed_back(), [false; 3]);
        assert!(!cells.hands_back());
    }

    struct Memory {
        heads: Vec<AtomicU16>,
        infos: Vec<AtomicU32>,
        hash: VipHash,
    }

    impl Memory {
        /// So few chains that most have several VIPs.
        fn new(bits: u32) -> Self {
            let hash = VipHash {
                keys: random_words().unwrap(),
                shift: u64::BITS - bits,
            };
            Self {
                heads: (0..hash.heads()).map(|_| AtomicU16::new(0)).collect(),
                infos: (0..usize::from(VIPS) * INFO_U32S)
                    .map(|_| AtomicU32::new(0))
                    .collect(),
                hash,
            }
        }

        fn chains(&self) -> Chains<'_> {
            Chains {
                heads: &self.heads,
                infos: &self.infos,
                hash: &self.hash,
            }
        }

        /// As in the program.
        fn find(&self, key: &types::vip_key) -> Option<u16> {
            let words = words(key);
            let chains = self.chains();
            let head = self.hash.head_of(&words);
            chains.chain(head).take(CHAIN).find(|number| {
                let info = chains.info(*number);
                (0..WORDS).all(|i| info[i].load(Ordering::Relaxed) == words[i])
            })
        }
    }

    fn key(i: u8) -> types::vip_key {
        let mut key = types::vip_key {
            port: 443u16.to_be(),
            protocol: 6,
            family: 4,
            ..Default::default()
        };
        key.address[..4].copy_from_slice(&[203, 0, 113, i]);
        key
    }

    proptest! {
        #[test]
        fn finds_what_is_there_and_nothing_else(
            steps in prop::collection::vec((any::<bool>(), 0..VIPS as u8), 1..200)
        ) {
            let memory = Memory::new(4);
            let mut there = BTreeMap::new();
            for (add, i) in steps {
                // Number i belongs to key i; some chains get full.
                let number = u16::from(i);
                if !add {
                    prop_assert_eq!(memory.chains().remove(&key(i)), there.remove(&i).is_some());
                } else if !there.contains_key(&i)
                    && memory.chains().insert(&key(i), number).is_ok()
                {
                    there.insert(i, number);
                }
                for i in 0..VIPS as u8 {
                    prop_assert_eq!(memory.find(&key(i)), there.get(&i).copied());
                }
            }
        }
    }

    #[test]
    fn a_chain_takes_as_many_vips_as_packets_look_at() {
        let memory = Memory::new(1);
        let mut demand = [0usize; 2];
        let mut refused = 0;
        for i in 0..VIPS as u8 {
            demand[memory.hash.head_of(&words(&key(i)))] += 1;
            match memory.chains().insert(&key(i), i.into()) {
                Ok(()) => assert_eq!(memory.find(&key(i)), Some(i.into())),
                Err(ChainFull) => {
                    refused += 1;
                    assert_eq!(memory.find(&key(i)), None);
                }
            }
        }
        let beyond: usize = demand.iter().map(|vips| vips.saturating_sub(CHAIN)).sum();
        assert_eq!(refused, beyond);
        assert!(refused > 0);
    }

    #[test]
    fn a_removed_vip_still_leads_on() {
        let memory = Memory::new(1);
        let chains = memory.chains();
        for i in 0..8 {
            chains.insert(&key(i), i.into()).unwrap();
        }
        let successors: Vec<_> = (0..8).map(|number| chains.next(number)).collect();
        for i in (0..8).rev() {
            assert!(chains.remove(&key(i)));
            assert_eq!(chains.next(i.into()), successors[usize::from(i)]);
        }
        assert!(
            memory
                .heads
                .iter()
                .all(|head| head.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn many_vips_in_a_row_spread() {
        // A table for 65,535 VIPs: 64 addresses with 1,000 ports each, with any keys.
        for _ in 0..30 {
            let hash = VipHash::draw(65_535).unwrap();
            let mut lengths = vec![0; hash.heads()];
            for i in 0..64 {
                for port in 1..=1000u16 {
                    let mut key = key(i);
                    key.port = port.to_be();
                    lengths[hash.head_of(&words(&key))] += 1;
                }
            }
            let longest = lengths.iter().max().copied().unwrap();
            assert!(longest <= 10, "{longest} in one chain");
        }
    }
}
