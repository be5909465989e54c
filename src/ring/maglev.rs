//! Whose turn it is: the two ring functions, Maglev and MaglevV2.
//!
//! Both go back to Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (NSDI 2016), section 3.4, and differ in how weights enter.

use super::Endpoint;
use super::RingSize;
use super::table::Candidates;
use super::table::Table;
use crate::HashFunction;

/// The slots of the ring of these endpoints, which are in order and none of weight 0.
pub(super) fn fill(function: HashFunction, size: RingSize, endpoints: &[Endpoint]) -> Vec<u16> {
    let mut table = Table::new(size);
    match endpoints {
        [] => return vec![0; size.get() as usize],
        [only] => return vec![only.number; size.get() as usize],
        _ => {}
    }
    let mut candidates: Vec<Candidates> = endpoints
        .iter()
        .map(|endpoint| Candidates::new(endpoint.number, endpoint.hash, size))
        .collect();
    let equal_ones = endpoints.iter().all(|endpoint| endpoint.weight == 1);
    match function {
        HashFunction::Maglev => {
            for (candidates, endpoint) in candidates.iter_mut().zip(endpoints) {
                for _ in 0..endpoint.weight.min(table.free_count()) {
                    table.claim(candidates);
                }
            }
            round_robin(&mut table, &mut candidates);
        }
        HashFunction::MaglevV2 if equal_ones => round_robin(&mut table, &mut candidates),
        HashFunction::MaglevV2 => by_weight(&mut table, &mut candidates, endpoints),
    }
    table.into_slots()
}

/// Every endpoint claims one slot in each round, until the ring is full.
fn round_robin(table: &mut Table, candidates: &mut [Candidates]) {
    while !table.is_full() {
        for candidates in candidates.iter_mut().take(table.free_count() as usize) {
            table.claim(candidates);
        }
    }
}

/// In each round every endpoint adds its weight to a sum; it claims one slot when the sum has
/// reached the largest weight, which is subtracted then.
fn by_weight(table: &mut Table, candidates: &mut [Candidates], endpoints: &[Endpoint]) {
    let largest = endpoints.iter().map(|e| u64::from(e.weight)).max().unwrap_or(1);
    let mut sums = vec![0; endpoints.len()];
    let mut turns = vec![0_u32; endpoints.len()];
    while !table.is_full() {
        let mut count = 0;
        for (i, (sum, endpoint)) in sums.iter_mut().zip(endpoints).enumerate() {
            *sum += u64::from(endpoint.weight);
            turns[count] = i as u32;
            let due = *sum >= largest;
            *sum -= if due { largest } else { 0 };
            count += usize::from(due);
        }
        for &i in turns[..count].iter().take(table.free_count() as usize) {
            table.claim(&mut candidates[i as usize]);
        }
    }
}
