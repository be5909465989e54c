//! The history of a VIP's slots, and what changes of the VIP do to it. A slot is *settled* when
//! every live flow in it belongs to the ring's real. Otherwise it is *unsettled*, and has a *base*:
//! the real that it had when last settled.

use std::collections::BTreeMap;

use crate::Balancer;
use crate::RealId;
use crate::Time;
use crate::Vip;
use crate::VipNumber;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::config::Config;
use crate::config::Tracking;

/// Unsettled slots by their place in the ring.
pub type Unsettled = BTreeMap<usize, Before>;

/// An unsettled slot's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// The real that it had when last settled; none: that real is gone.
    pub base: Option<RealId>,
    /// When it became unsettled.
    pub since: Time,
    /// Meanwhile it has had reals that are neither its base nor gone nor current. (It is not known
    /// which, so this stays even if they go.)
    pub others: bool,
    /// When a packet in it last went elsewhere than to the ring's real, or the ring last changed in
    /// it.
    pub deviated: Time,
}

impl Vip {
    /// Whether only packets in unsettled slots look at tables, so that only the ring may place
    /// flows.
    pub fn tracks_changes(&self, config: &Config) -> bool {
        let by_ids = config.features.tcp_server_id && self.protocol == PROTOCOL_TCP;
        self.goes_by_ring(config) && !by_ids
    }

    fn goes_by_ring(&self, config: &Config) -> bool {
        let flags = self.flags;
        let placed_otherwise = flags.quic
            || flags.udp_stable_routing
            || flags.src_routing
            || flags.global_lru
            || flags.udp_flow_migration
            || flags.dport_hash;
        config.tracking == Tracking::Changed && !placed_otherwise
    }

    /// Whether slots can be unsettled: not if no flow is remembered. With TCP server ids tables
    /// must know all connections, but older ones may be on a base.
    fn has_history(&self, config: &Config) -> bool {
        self.goes_by_ring(config) && !self.flags.lru_bypass
    }

    /// Whether flows of the VIP may be on the real.
    pub(crate) fn keeps(&self, real: RealId) -> bool {
        self.reals.contains(&real) && !self.down.contains(&real)
    }

    /// Whether new flows may go to the real.
    pub(crate) fn takes_new(&self, real: RealId) -> bool {
        self.keeps(real) && !self.drained.contains(&real)
    }

    fn ring_at(&self, slot: usize) -> Option<RealId> {
        self.ring.as_ref().and_then(|ring| ring[slot])
    }

    /// The history when the VIP changes to `after`.
    fn unsettled_as(&self, after: &Self, config: &Config, now: Time) -> Unsettled {
        let slots = 0..config.ring_size as usize;
        // Without reals there are no flows.
        if !after.has_history(config) || after.reals.is_empty() {
            return Unsettled::new();
        }
        if !self.has_history(config) {
            // Entries of any age may say anything of its flows.
            let all = slots.map(|slot| {
                let before = Before {
                    base: after.ring_at(slot).filter(|real| after.keeps(*real)),
                    since: 0,
                    others: true,
                    deviated: now,
                };
                (slot, before)
            });
            return all.collect();
        }
        let still = slots.filter_map(|slot| {
            let named = self.ring_at(slot);
            let changes_hands = named != after.ring_at(slot);
            let flows_on = named.filter(|real| changes_hands && after.keeps(*real));
            let Some(mut before) = self.unsettled.get(&slot).copied() else {
                let first = flows_on.map(|real| Before {
                    base: Some(real),
                    since: now,
                    others: false,
                    deviated: now,
                });
                return first.map(|before| (slot, before));
            };
            if changes_hands {
                before.deviated = now;
            }
            before.others |= flows_on.is_some() && flows_on != before.base;
            before.base = before.base.filter(|real| after.keeps(*real));
            before.is_needed().then_some((slot, before))
        });
        still.collect()
    }
}

impl Before {
    /// Whether any flow in the slot may belong elsewhere than to the ring's real.
    fn is_needed(&self) -> bool {
        self.base.is_some() || self.others
    }
}

impl Balancer {
    /// The VIP gets other reals, another ring, flags or health at once. Entries for reals that it
    /// has given up, or that are down, become void.
    pub fn change_vip(&mut self, number: VipNumber, mut after: Vip, now: Time) {
        let before = &self.tables.vips[&number];
        after.unsettled = before.unsettled_as(&after, &self.config, now);
        // A source route may have led to a real that was never the VIP's, and an id to one that was
        // down.
        let is_void = |real| {
            let falls = after.down.contains(&real) && !before.down.contains(&real);
            falls || before.reals.contains(&real) && !after.reals.contains(&real)
        };
        let entries = &mut self.flows.0;
        entries.retain(|(vip, _), entry| *vip != number || !is_void(entry.real));
        self.tables.vips.insert(number, after);
    }

    /// From here on all flows of the VIP go to the ring's reals.
    pub fn purge(&mut self, number: VipNumber) {
        self.flows.0.retain(|(vip, _), _| *vip != number);
        if let Some(vip) = self.tables.vips.get_mut(&number) {
            vip.unsettled.clear();
        }
    }

    /// The same for the flows on this real.
    pub fn purge_real(&mut self, number: VipNumber, real: RealId) {
        let entries = &mut self.flows.0;
        entries.retain(|(vip, _), entry| *vip != number || entry.real != real);
        if let Some(vip) = self.tables.vips.get_mut(&number) {
            vip.unsettled.retain(|_, before| {
                let was_base = before.base == Some(real);
                before.base = before.base.filter(|base| *base != real);
                !was_base || before.is_needed()
            });
        }
    }

    /// Settles the slots that no live flow needs any more. The library may be late by `lag`:
    /// returns whether it is certain for all slots.
    pub fn settle(&mut self, now: Time, lag: Time) -> bool {
        let mut is_clear = true;
        for vip in self.tables.vips.values_mut() {
            let idle = match vip.protocol {
                PROTOCOL_UDP => self.config.udp_timeout,
                _ => self.config.flow_idle_timeout,
            };
            vip.unsettled.retain(|_, before| {
                let silence = now - before.since.max(before.deviated);
                is_clear &= silence <= idle || silence > idle + lag;
                silence <= idle + lag
            });
        }
        is_clear
    }
}
