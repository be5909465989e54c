//! The flow table to compare all others with: it evicts exactly the least recently used flow.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::FlowTable;

/// A cache of a fixed number of flows that evicts exactly the least recently used one.
pub struct ExactLru {
    flows: LruCache<u32, ()>,
}

impl ExactLru {
    /// An empty table with `entries` entries, each for one flow.
    pub fn new(entries: NonZeroUsize) -> Self {
        Self {
            flows: LruCache::new(entries),
        }
    }
}

impl FlowTable for ExactLru {
    fn find(&mut self, flow: u32, _now: u32) -> bool {
        self.flows.get(&flow).is_some()
    }

    fn remember(&mut self, flow: u32, _now: u32) {
        self.flows.put(flow, ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_flow_goes() {
        let mut table = ExactLru::new(NonZeroUsize::new(3).unwrap());
        for flow in [1, 2, 3] {
            assert!(!table.packet(flow, 0));
        }
        assert!(table.packet(1, 0));
        table.remember(2, 0);
        assert!(!table.packet(4, 0), "puts 3 out");
        assert!(!table.find(3, 0));
        for flow in [1, 2, 4] {
            assert!(table.find(flow, 0));
        }
    }
}
