//! The health of reals: a real that is down for a VIP gets no new flows and loses those it has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Katran;
use crate::config::Features;
use crate::error::Error;
use crate::error::Result;
use crate::maps::Lasting;
use crate::maps::VipCell;
use crate::maps::VoidChange;
use crate::maps::Voiding;
use crate::maps::real_id;
use crate::table::RealRecord;
use crate::table::Turned;
use crate::table::VipEntry;
use crate::types::Health;
use crate::types::Protocol;
use crate::types::Vip;
use crate::types::VipFlags;

/// Flags of VIPs whose flows can reach a real by other ways than the ring and flow entries. TCP
/// server ids do so whatever the flags, while their feature is on.
const ASKED_ALWAYS: VipFlags = VipFlags::QUIC
    .union(VipFlags::UDP_STABLE_ROUTING)
    .union(VipFlags::SRC_ROUTING)
    .union(VipFlags::GLOBAL_LRU)
    .union(VipFlags::UDP_FLOW_MIGRATION);

/// # Health of reals
impl Katran {
    /// Takes a dead real out of a VIP: it gets no new flows, and its flows leave it with their next
    /// packets. Its weight stays for [`mark_up`](Self::mark_up).
    ///
    /// This is the call for health checkers. It works for every VIP and protocol, and is
    /// independent of an operator's drain (weight 0), which keeps flows; a real may be both down
    /// and drained. Where [`SRC_ROUTING`](VipFlags::SRC_ROUTING) or the global flow table name the
    /// real, the ring decides instead. A server id still leads the packets that carry it to its
    /// real, but not the flow's packets without an id: withdraw ids by
    /// [`ServerIdsMut::invalidate`](crate::routing::ServerIdsMut::invalidate).
    ///
    /// If all reals of a VIP are down, its packets are dropped and counted as with an empty ring. A
    /// real stays down through changes of weight and flags, [`reload`](Self::reload) and an
    /// [`apply`](Self::apply) whose state marks it down, until the VIP loses it. Marking a down
    /// real down again does nothing.
    ///
    /// One store voids the flow entries together with the switch to the new ring; the library then
    /// removes the entries in the background. Entries of a VIP with
    /// [`UDP_FLOW_MIGRATION`](VipFlags::UDP_FLOW_MIGRATION) stay, because their datagrams are
    /// counted ([`Stats::udp_flow_migration`](crate::stats::Stats::udp_flow_migration)) and, under
    /// flood, follow them as in Katran.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such VIP or it lacks the real; [`Error::Exhausted`]
    /// beyond `max_reals` reals that are down for VIPs with `QUIC`, `UDP_STABLE_ROUTING`,
    /// `SRC_ROUTING`, `GLOBAL_LRU` or `UDP_FLOW_MIGRATION`, and for TCP VIPs while
    /// [`Features::TCP_SERVER_ID`] is on; [`Error::Kernel`]. Nothing has changed then.
    #[doc(alias = "addDownRealForUdpFlowMigration")]
    pub fn mark_down(&mut self, vip: Vip, real: IpAddr) -> Result<()> {
        let _call = self.call()?;
        self.set_health(vip, real, Health::Down)
    }

    /// Brings a [down](Self::mark_down) real back with its weight; a real that is up stays up. Its
    /// former flows stay where they went, but a flow that sent nothing meanwhile may find its entry
    /// again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such VIP or it lacks the real; [`Error::Kernel`]. Nothing
    /// has changed then.
    #[doc(alias = "removeDownRealForUdpFlowMigration")]
    pub fn mark_up(&mut self, vip: Vip, real: IpAddr) -> Result<()> {
        let _call = self.call()?;
        self.set_health(vip, real, Health::Up)
    }

    /// Whether a real is down for a VIP.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such VIP or it lacks the real.
    #[doc(alias = "queryRealForUdpFlowMigration")]
    pub fn is_down(&self, vip: Vip, real: IpAddr) -> Result<bool> {
        let real = real.to_canonical();
        let entry = self.entry(vip)?;
        match entry.reals.contains_key(&real) {
            true => Ok(entry.down.contains(&real)),
            false => Err(Error::NotFound {
                what: format!("real {real} of VIP {vip}"),
            }),
        }
    }

    /// Every real that is down for a VIP, sorted by address.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn down_reals(&self, vip: Vip) -> Result<Vec<IpAddr>> {
        Ok(self.entry(vip)?.down.iter().copied().collect())
    }

    /// Brings back all down reals of a VIP in one ring update.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`]. Nothing has changed then.
    #[doc(alias = "removeAllDownRealsForUdpFlowMigration")]
    pub fn clear_down(&mut self, vip: Vip) -> Result<()> {
        let _call = self.call()?;
        let down = self.down_reals(vip)?;
        let up: Vec<_> = down.into_iter().map(|real| (real, Health::Up)).collect();
        self.change_reals_and_tell(vip, &[], &up)
    }

    fn set_health(&mut self, vip: Vip, real: IpAddr, health: Health) -> Result<()> {
        if self.is_down(vip, real)? == health.is_down() {
            return Ok(());
        }
        self.change_reals_and_tell(vip, &[], &[(real, health)])
    }

    /// Tells the kernel which entries a change of a VIP's reals voids. First removes entries of a
    /// real that the VIP had lost and gets back; if a state is being undone, they count again
    /// instead.
    pub(super) fn prepare_voids(
        &mut self,
        vip: Vip,
        flags: VipFlags,
        turned: &Turned,
    ) -> Result<Option<Voiding>> {
        let number = self.entry(vip)?.number.0;
        let voids = &self.maps.voids;
        let mut change = VoidChange::default();
        for (record, named) in &turned.given_up {
            // Nothing else names it: its entries are void with its id.
            if *named || voids.reason(number, id_of(record)).is_some() {
                change.remove(id_of(record));
            }
        }
        let mut awaited = false;
        for id in turned.joined.iter().map(id_of) {
            if !voids.is_being_removed(number, id) {
                continue;
            }
            match self.is_undoing() {
                true => change.lift(id),
                false => awaited = true,
            }
        }
        if awaited {
            voids.remove_now(&self.kernel, Some(number))?;
        }
        let lasting = lasting(vip, flags, self.config.features);
        for id in turned.down.iter().map(id_of) {
            change.down(id, lasting);
        }
        for id in turned.up.iter().map(id_of) {
            if voids.reason(number, id).is_some() {
                change.lift(id);
            }
        }
        if change.is_empty() {
            return Ok(None);
        }
        voids.prepare(&self.kernel, number, change).map(Some)
    }

    /// The same for a change of a VIP's flags, which may change what happens to the entries of down
    /// reals.
    pub(super) fn prepare_down(&self, vip: Vip, flags: VipFlags) -> Result<Option<Voiding>> {
        let entry = self.entry(vip)?;
        let change = self.down_again(entry, lasting(vip, flags, self.config.features));
        if change.is_empty() {
            return Ok(None);
        }
        let prepared = self
            .maps
            .voids
            .prepare(&self.kernel, entry.number.0, change);
        prepared.map(Some)
    }

    /// The same for a change of the balancer's features, for all VIPs that it affects.
    pub(super) fn prepare_all_down(&self, features: Features) -> Result<Vec<(u16, Voiding)>> {
        let mut changes = Vec::new();
        for (vip, entry) in self.table.vips() {
            let [before, then] = [self.config.features, features]
                .map(|features| lasting(*vip, entry.flags, features));
            let change = self.down_again(entry, then);
            if then != before && !change.is_empty() {
                changes.push((entry.number.0, change));
            }
        }
        self.maps.voids.prepare_all(&self.kernel, changes)
    }

    /// Packets have the other features.
    pub(super) fn switch_all_down(&mut self, prepared: Vec<(u16, Voiding)>) {
        let cells: BTreeMap<_, _> = self
            .table
            .vips()
            .map(|(_, entry)| (entry.number.0, self.cell_of(entry)))
            .collect();
        for (number, voiding) in prepared {
            if let Some(cell) = cells.get(&number) {
                self.maps.voids.switch(number, *cell, Some(voiding));
            }
        }
    }

    /// What packets should see of a VIP in its current state.
    pub(super) fn cell_of(&self, entry: &VipEntry) -> VipCell {
        VipCell {
            flags: entry.flags,
            has_reals: !entry.reals.is_empty(),
            void_flows: false,
            ring: self.rings[usize::from(entry.number.0)],
        }
    }

    /// The voids of one VIP in its present state.
    pub(super) fn down_again_of(&self, vip: Vip, entry: &VipEntry) -> VoidChange {
        self.down_again(entry, lasting(vip, entry.flags, self.config.features))
    }

    fn down_again(&self, entry: &VipEntry, lasting: Lasting) -> VoidChange {
        let mut change = VoidChange::default();
        for real in &entry.down {
            if let Some(of) = self.table.real(*real) {
                change.down(real_id(of.number.0, of.generation), lasting);
            }
        }
        change
    }
}

/// What happens to the entries of a down real at a VIP with these flags.
fn lasting(vip: Vip, flags: VipFlags, features: Features) -> Lasting {
    let migrates = flags.contains(VipFlags::UDP_FLOW_MIGRATION);
    let tcp_ids = features.contains(Features::TCP_SERVER_ID) && vip.protocol() == Protocol::Tcp;
    Lasting {
        sweep: !(migrates && vip.protocol() == Protocol::Udp),
        keep: flags.intersects(ASKED_ALWAYS) || tcp_ids,
    }
}

fn id_of(record: &RealRecord) -> u32 {
    real_id(record.number.0, record.generation)
}
