//! Rings: which real each slot of a VIP belongs to.
//!
//! A packet's flow hashes to a slot, and the slot names the real. All hosts that know the same
//! reals with the same weights build the same ring, so it does not matter which of them a packet
//! reaches, and when reals come or go, few slots change owners. [`Ring::build`] makes a ring from
//! [`Endpoint`]s. Nothing here needs a kernel.

// `maglev` and `turns` decide the order of turns, `table` and `candidates` the slot of each turn.

mod candidates;
mod hash;
pub(crate) mod history;
mod maglev;
mod size;
mod table;
mod turns;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub(crate) use hash::FlowHasher;
pub use hash::backend_hash;
pub use size::RingSize;

use crate::error::Error;
use crate::error::Result;
use crate::types::HashFunction;

/// One backend of a ring: the number its slots get, its hash, and its weight.
///
/// A ring depends on the order of its endpoints, so all hosts must use the same one: by hash.
/// With equal hashes the smaller address comes first (IPv4 before IPv6, then as numbers); without
/// addresses ([`Endpoint::with_hash`]) the smaller weight. The number decides last, because each
/// host has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    number: u16,
    weight: u32,
    hash: u64,
    address: Option<IpAddr>,
}

/// # Number, hash and weight
impl Endpoint {
    /// The backend at `address`; its slots will hold `number`, which must not be 0.
    #[must_use]
    pub fn new(number: u16, address: IpAddr, weight: u32) -> Self {
        Self {
            address: Some(address.to_canonical()),
            ..Self::with_hash(number, backend_hash(address), weight)
        }
    }

    /// A backend that is known only by its hash; its slots will hold `number`, which must not be 0.
    #[must_use]
    pub fn with_hash(number: u16, hash: u64, weight: u32) -> Self {
        Self {
            number,
            weight,
            hash,
            address: None,
        }
    }

    /// Compares the order of two endpoints.
    #[inline]
    fn ring_order(&self, other: &Self) -> Ordering {
        let by_hash = self.hash.cmp(&other.hash);
        by_hash.then_with(|| self.break_tie(other))
    }

    #[cold]
    fn break_tie(&self, other: &Self) -> Ordering {
        let rest = |endpoint: &Self| (endpoint.address, endpoint.weight, endpoint.number);
        rest(self).cmp(&rest(other))
    }

    /// The number that a ring has in this endpoint's slots.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Determines its place among the endpoints and its candidate slots.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Its share of the slots, relative to the other endpoints; 0 gets none.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }
}

/// A finished ring.
///
/// ```
/// use katran::ring::Endpoint;
/// use katran::HashFunction;
/// use katran::ring::Ring;
/// use katran::ring::RingSize;
///
/// let endpoints = [
///     Endpoint::new(1, "198.51.100.1".parse().unwrap(), 1),
///     Endpoint::new(2, "198.51.100.2".parse().unwrap(), 3),
/// ];
/// let ring = Ring::build(HashFunction::MaglevV2, RingSize::DEFAULT, &endpoints)?;
/// assert_eq!(ring.shares()[&2], 49_153);
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[doc(alias = "CHHelpers")]
pub struct Ring {
    slots: Vec<u16>,
}

/// # Building and reading
impl Ring {
    /// Builds the ring of these endpoints, in any order.
    ///
    /// Endpoints of weight 0 are left out. Without endpoints the ring is empty: all slots are 0.
    /// With more endpoints than slots, some get none. It takes less than a millisecond for 65,537
    /// slots, whatever the weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if an endpoint has the number 0, which means no real.
    pub fn build(function: HashFunction, size: RingSize, endpoints: &[Endpoint]) -> Result<Self> {
        if endpoints.iter().any(|endpoint| endpoint.number == 0) {
            return Err(Error::InvalidConfig {
                setting: "endpoint number",
                value: "0".to_owned(),
                reason: "0 means no real: number endpoints from 1".to_owned(),
            });
        }
        let mut endpoints: Vec<Endpoint> = endpoints
            .iter()
            .filter(|endpoint| endpoint.weight != 0)
            .copied()
            .collect();
        endpoints.sort_unstable_by(|one, other| one.ring_order(other));
        Ok(Self {
            slots: maglev::fill(function, size, &endpoints),
        })
    }

    /// A ring without reals: every slot is 0.
    pub fn empty(size: RingSize) -> Self {
        Self {
            slots: vec![0; size.get() as usize],
        }
    }

    /// The slots, each with the number of an endpoint, or 0 for none.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// The number of slots.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no ring has zero slots")]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot names a real.
    #[must_use]
    pub fn has_no_reals(&self) -> bool {
        // A ring that names a real names one in each slot.
        self.slots.iter().all(|&number| number == 0)
    }

    /// How many slots each number has, without 0 and numbers that have none.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<u16, u32> {
        let mut counts = vec![0; usize::from(u16::MAX) + 1];
        for &number in &self.slots {
            counts[usize::from(number)] += 1;
        }
        (0..=u16::MAX)
            .zip(counts)
            .filter(|&(number, count)| number != 0 && count != 0)
            .collect()
    }

    /// The slots whose number differs in `new`, ascending, each with the new number.
    ///
    /// The rings must have the same size: slots that only one of them has are ignored.
    pub fn changed_slots<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = (usize, u16)> + 'a {
        let pairs = self.slots.iter().zip(&new.slots).enumerate();
        pairs.filter_map(|(slot, (old, &new))| (*old != new).then_some((slot, new)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use super::*;

    const BOTH: [HashFunction; 2] = [HashFunction::Maglev, HashFunction::MaglevV2];

    fn build(function: HashFunction, endpoints: &[Endpoint]) -> Ring {
        Ring::build(function, RingSize::DEFAULT, endpoints).unwrap()
    }

    #[test]
    fn number_zero_is_refused() {
        for weight in [0, 1] {
            let endpoint = Endpoint::with_hash(0, 1, weight);
            let error = Ring::build(HashFunction::Maglev, RingSize::MIN, &[endpoint]).unwrap_err();
            assert!(error.to_string().contains("endpoint number = 0"), "{error}");
        }
    }

    #[test]
    fn no_endpoints_no_reals() {
        for function in BOTH {
            let ring = build(function, &[]);
            assert_eq!(ring, Ring::empty(RingSize::DEFAULT));
            assert!(ring.has_no_reals());
            assert!(ring.shares().is_empty());
            assert_eq!(ring, build(function, &[Endpoint::with_hash(1, 1, 0)]));
        }
    }

    #[test]
    fn one_endpoint_has_every_slot() {
        for function in BOTH {
            for weight in [1, 7, u32::MAX] {
                let ring = build(function, &[Endpoint::with_hash(9, 1, weight)]);
                assert!(ring.slots().iter().all(|&number| number == 9));
                assert!(!ring.has_no_reals());
            }
        }
    }

    #[test]
    fn equal_hashes_are_ordered_by_address() {
        let at = |number, address: &str| Endpoint {
            address: Some(address.parse().unwrap()),
            ..Endpoint::with_hash(number, 7, 1)
        };
        for function in BOTH {
            // Two hosts that number the same two reals differently agree on their slots.
            let here = build(function, &[at(1, "10.0.0.1"), at(2, "2001:db8::1")]);
            let there = build(function, &[at(1, "2001:db8::1"), at(2, "10.0.0.1")]);
            for (here, there) in here.slots().iter().zip(there.slots()) {
                assert_eq!(*here, 3 - *there);
            }
        }
    }

    #[test]
    fn changed_slots_turn_one_ring_into_the_other() {
        let endpoints = [1, 2, 3].map(|i| Endpoint::with_hash(i, u64::from(i) << 40, 1));
        let old = build(HashFunction::MaglevV2, &endpoints[..2]);
        let new = build(HashFunction::MaglevV2, &endpoints);
        let mut slots = old.slots().to_vec();
        for (slot, number) in old.changed_slots(&new) {
            assert_ne!(slots[slot], number);
            slots[slot] = number;
        }
        assert_eq!(slots, new.slots());
        assert_eq!(old.changed_slots(&old).count(), 0);
    }
}
