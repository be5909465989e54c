//! One run: connections, changes of the service and a flow table, and which connections lose their
//! real.

use katran::FlowTracking;
use katran_yardstick::FlowTable;
use katran_yardstick::SetAssociative;
use katran_yardstick::scattered;

use crate::service::Change;
use crate::service::SECOND;
use crate::slots::Slots;
use crate::slots::Way;
use crate::traffic::Connection;
use crate::traffic::Connections;
use crate::traffic::Kind;

/// Seconds before the deployment, in which the table fills.
pub(crate) const BEFORE: u32 = 1200;
/// Seconds after the last change, except removals.
const AFTER: u32 = 1800;
const MINUTE: u32 = 60 * SECOND;
const SEED: u64 = 65_537;

/// A run's parameters.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) tracking: FlowTracking,
    /// The table's configured flows.
    pub(crate) flows: u32,
    pub(crate) kind: Kind,
    pub(crate) changes: &'a [Change],
    /// Seconds that the deployment takes.
    pub(crate) length: u32,
}

/// A run's results.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Connections during the deployment or after it, except those whose real was removed.
    pub(crate) connections: u64,
    /// Connections with a packet to another real than the first.
    pub(crate) broken: u64,
    /// Connections that sent a packet after their real's removal.
    pub(crate) ended: u64,
    /// The most connections at a time that stay on their real only by an entry.
    pub(crate) need_entries: u64,
    /// The largest share of unsettled slots at a time.
    pub(crate) unsettled: f64,
}

impl Run<'_> {
    /// Plays everything.
    pub(crate) fn play(&self) -> Outcome {
        let [first, changes @ ..] = self.changes else {
            return Outcome::default();
        };
        let start = BEFORE * SECOND;
        let mut connections = Connections::new(self.kind, &first.ring, SEED);
        let mut world = World {
            tracking: self.tracking,
            table: SetAssociative::new(self.flows, SEED),
            slots: Slots::new(&first.ring),
            now: 0,
            outcome: Outcome::default(),
        };
        world.slots.change(first);
        let mut changes = changes.iter().peekable();
        let mut earlier = 0;
        for now in 0..(BEFORE + self.length + AFTER) * SECOND {
            world.now = now;
            while let Some(change) = changes.next_if(|change| change.at <= now) {
                world.slots.change(change);
            }
            if now == start {
                earlier = connections.begun() - connections.alive().count() as u32;
            }
            if now % MINUTE == 0 {
                world.slots.settle(now);
                world.look(&connections);
            }
            connections.tick(now, &mut world, World::first, World::packet);
        }
        world.outcome.connections = u64::from(connections.begun() - earlier) - world.outcome.ended;
        world.outcome
    }
}

impl Outcome {
    pub(crate) fn per_million(&self) -> f64 {
        self.broken as f64 / self.connections as f64 * 1e6
    }

    /// By how much of itself that varies by chance.
    pub(crate) fn error(&self) -> f64 {
        1.0 / (self.broken.max(1) as f64).sqrt()
    }

    /// With as many digits as are meaningful.
    pub(crate) fn text(&self) -> String {
        match self.per_million() {
            few if few < 10.0 => format!("{few:.1}"),
            many => format!("{many:.0}"),
        }
    }
}

struct World {
    tracking: FlowTracking,
    table: SetAssociative,
    slots: Slots,
    now: u32,
    outcome: Outcome,
}

impl World {
    /// Samples the current connections.
    fn look(&mut self, connections: &Connections) {
        let needing = connections.alive().filter(|connection| {
            let slot = connection.slot as usize;
            !self.slots.is_gone(connection.real) && self.slots.needs_entry(slot, connection.real)
        });
        let outcome = &mut self.outcome;
        outcome.need_entries = outcome.need_entries.max(needing.count() as u64);
        let share = self.slots.unsettled() as f64 / self.slots.ring.len() as f64;
        outcome.unsettled = outcome.unsettled.max(share);
    }

    /// The real of a connection's first packet.
    fn first(&mut self, connection: &Connection) -> u16 {
        let flow = scattered(connection.number);
        let slot = connection.slot as usize;
        match self.tracking {
            FlowTracking::Changed => {
                let way = self.slots.way(slot, true, self.now, || None);
                if let Way::Remembered(_) = way {
                    self.table.remember(flow, self.now);
                }
            }
            _ => self.table.remember(flow, self.now),
        }
        self.slots.ring[slot]
    }

    /// Another packet of it; returns whether it goes to the same real.
    fn packet(&mut self, connection: &Connection) -> bool {
        let real = self.real_of(connection);
        if self.slots.is_gone(connection.real) {
            self.outcome.ended += 1;
            return false;
        }
        self.outcome.broken += u64::from(real != connection.real);
        real == connection.real
    }

    fn real_of(&mut self, connection: &Connection) -> u16 {
        let flow = scattered(connection.number);
        let slot = connection.slot as usize;
        if self.tracking != FlowTracking::Changed {
            // An entry has the real of the first packet, as connections that go elsewhere end.
            return match self.table.packet(flow, self.now) {
                true => connection.real,
                false => self.slots.ring[slot],
            };
        }
        // Connections of a removed real do not count.
        let counts = !self.slots.is_gone(connection.real);
        let used = || self.table.last_used(flow).filter(|_| counts);
        match self.slots.way(slot, false, self.now, used) {
            Way::To(real) | Way::Remembered(real) => real,
            Way::ByEntry => {
                match connection.ends_by_fin(self.now) {
                    true => self.table.end(flow, self.now),
                    false => _ = self.table.find(flow, self.now),
                }
                self.slots.went_by_entry(slot, connection.real, self.now);
                connection.real
            }
        }
    }
}
