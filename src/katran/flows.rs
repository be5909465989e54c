//! Flow entries: finding, listing, counting and removing them.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Katran;
use crate::error::Error;
use crate::error::Result;
use crate::maps::FlowTable;
use crate::maps::real_id;
use crate::skel::katran::types;
use crate::types::Flow;
use crate::types::FlowTableKind;
use crate::types::Protocol;
use crate::types::Vip;

/// A flow's entry in a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowEntry {
    /// The flow as the table knows it. Port 0 of a UDP flow marks a port that does not count for
    /// its VIP (`NO_SRC_PORT`, any-port VIPs). TCP flows keep both ports.
    pub flow: Flow,
    /// The CPU whose table has it; `None`: the fallback table.
    pub cpu: Option<u32>,
    /// The real that the flow goes to; `None`: the entry is void, because the VIP lost that real or
    /// it is [down](Katran::mark_down).
    pub real: Option<IpAddr>,
    /// The time since its last use, to four ticks of the kernel's clock (1 to 10 ms each).
    pub age: Duration,
}

/// A VIP's flow entries, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FlowStats {
    /// All entries; a flow counts once for each CPU that knows it.
    pub entries: u64,
    /// Void entries among them, whose real is gone or down; they make room for new ones.
    pub stale: u64,
    /// Entries with an [age](FlowEntry::age) below one second.
    pub younger_than_1s: u64,
    /// One second to ten.
    pub younger_than_10s: u64,
    /// Ten seconds to a minute.
    pub younger_than_1min: u64,
    /// A minute or more.
    pub older: u64,
}

/// Reads the flow tables: [`Katran::flows`].
///
/// ```no_run
/// use katran::Flow;
/// use katran::Protocol;
///
/// # fn example(katran: &katran::Katran, vip: katran::Vip) -> katran::Result<()> {
/// let flow = Flow {
///     source: "192.0.2.1:1234".parse().unwrap(),
///     destination: "203.0.113.1:443".parse().unwrap(),
///     protocol: Protocol::Tcp,
/// };
/// for entry in katran.flows().find(&flow)? {
///     println!("{:?} for {:?}", entry.real, entry.age);
/// }
/// println!("{} flows of {vip}", katran.flows().stats(vip)?.entries);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct Flows<'a> {
    pub(super) katran: &'a Katran,
}

/// # Entries
impl<'a> Flows<'a> {
    /// A forwarding CPU's flow table, for embedders that read it themselves; `None` if that CPU has
    /// none.
    pub fn table_fd(&self, cpu: u32) -> Option<BorrowedFd<'a>> {
        let mut tables = self.katran.maps.flows.of_cpus.iter();
        let (_, table) = tables.find(|(of, _)| *of == cpu)?;
        Some(table.as_fd())
    }

    /// A flow's entries, one for each CPU that knows it. Empty if no VIP covers the destination or
    /// no table knows the flow.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if source and destination are of different families;
    /// [`Error::Kernel`].
    pub fn find(&self, flow: &Flow) -> Result<Vec<FlowEntry>> {
        let katran = self.katran;
        let Some((_, key)) = katran.key_of(flow)? else {
            return Ok(Vec::new());
        };
        let now = katran.ticks_now()?;
        let mut found = Vec::new();
        katran.on_each_table(|cpu, table, active| {
            let fingerprint = katran.fixed.flow_keys.fingerprint(&key);
            let value = table.find(&key, fingerprint, active);
            if let Some(value) = katran.kernel.check("look into", "a flow table", value)? {
                found.push(katran.describe(&key, &value, cpu, now));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Up to `limit` entries of a VIP's flows, in no order. Traffic continues, so flows that come
    /// or go during the walk may be missing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unsupported`] unless the table is a
    /// [`KernelLru`](FlowTableKind::KernelLru): a table of sets does not store addresses;
    /// [`Error::Kernel`].
    #[doc(alias = "getLruEntries")]
    pub fn list(&self, vip: Vip, limit: usize) -> Result<Vec<FlowEntry>> {
        let katran = self.katran;
        let number = katran.entry(vip)?.number.0;
        if katran.config.flow_table != FlowTableKind::KernelLru {
            return Err(Error::Unsupported {
                what: "listing flows".to_owned(),
                reason: "a set-associative table keeps no addresses: load with the flow table \
                         kernel-lru, or ask for one flow",
            });
        }
        let now = katran.ticks_now()?;
        let mut flows = Vec::new();
        katran.on_each_table(|cpu, table, _| {
            let walked = table.each(|seen| {
                if let Some(key) = seen.key
                    && seen.vip == number
                    && flows.len() < limit
                {
                    flows.push(katran.describe(&key, &seen.value, cpu, now));
                }
                flows.len() < limit
            });
            katran.kernel.check("walk through", "a flow table", walked)
        })?;
        Ok(flows)
    }

    /// Counts a VIP's entries by walking through all tables: tens of milliseconds with millions of
    /// flows, seconds with a [`KernelLru`](FlowTableKind::KernelLru).
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "analyzeLru")]
    pub fn stats(&self, vip: Vip) -> Result<FlowStats> {
        let katran = self.katran;
        let number = katran.entry(vip)?.number.0;
        let now = katran.ticks_now()?;
        let mut stats = FlowStats::default();
        katran.on_each_table(|_, table, _| {
            let walked = table.each(|seen| {
                if seen.vip != number {
                    return true;
                }
                stats.entries += 1;
                stats.stale += u64::from(katran.owner_in(number, seen.value.id).is_none());
                let age = katran.age(&seen.value, now).as_secs();
                *match age {
                    0 => &mut stats.younger_than_1s,
                    1..10 => &mut stats.younger_than_10s,
                    10..60 => &mut stats.younger_than_1min,
                    _ => &mut stats.older,
                } += 1;
                true
            });
            katran.kernel.check("walk through", "a flow table", walked)
        })?;
        Ok(stats)
    }
}

/// Removes entries from the flow tables: [`Katran::flows_mut`].
///
/// ```no_run
/// # fn example(katran: &mut katran::Katran, vip: katran::Vip) -> katran::Result<()> {
/// let forgotten = katran.flows_mut().purge(vip)?;
/// println!("the next packets of {forgotten} flows follow the ring");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct FlowsMut<'a> {
    katran: &'a mut Katran,
}

/// # Removing entries
impl FlowsMut<'_> {
    /// Removes a flow from all tables; its next packet follows the ring. Returns the number of
    /// entries removed.
    ///
    /// # Errors
    /// As [`Flows::find`].
    #[doc(alias = "deleteLru")]
    pub fn remove(&mut self, flow: &Flow) -> Result<u64> {
        let _call = self.katran.call()?;
        let katran = &*self.katran;
        let Some((_, key)) = katran.key_of(flow)? else {
            return Ok(0);
        };
        let mut removed = 0;
        katran.on_each_table(|_, table, active| {
            let fingerprint = katran.fixed.flow_keys.fingerprint(&key);
            let result = table.remove(&key, fingerprint, active);
            removed += u64::from(katran.kernel.check("remove from", "a flow table", result)?);
            Ok(())
        })?;
        Ok(removed)
    }

    /// Removes a VIP's flows from all tables; returns the number of entries removed. Forwarding
    /// continues undisturbed: the library reads a table of sets through shared memory, without a
    /// lock. A million flows take about 0.3 s there, and 3 s with the kernel's LRU hash.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`]: some entries are gone then.
    #[doc(alias = "purgeVipLru")]
    pub fn purge(&mut self, vip: Vip) -> Result<u64> {
        let _call = self.katran.call()?;
        let number = self.katran.entry(vip)?.number.0;
        self.katran.settle_all(number.into());
        self.purge_if(|of, _| of == number)
    }

    /// Removes a VIP's flows to one real from all tables; returns the number of entries removed.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such VIP or nothing names the real; [`Error::Kernel`]:
    /// some entries are gone then.
    pub fn purge_real(&mut self, vip: Vip, real: IpAddr) -> Result<u64> {
        let _call = self.katran.call()?;
        let katran = &*self.katran;
        let number = katran.entry(vip)?.number.0;
        let entry = katran.table.real(real).ok_or_else(|| Error::NotFound {
            what: format!("real {real}"),
        })?;
        let (of_real, real) = (entry.number, real_id(entry.number.0, entry.generation));
        self.katran.give_up_base(number.into(), of_real);
        self.purge_if(|of, id| of == number && id == real)
    }

    fn purge_if(&self, matches: impl Fn(u16, u32) -> bool) -> Result<u64> {
        let katran = &*self.katran;
        let mut removed = 0;
        katran.on_each_table(|_, table, _| {
            let result = table.remove_all(&matches);
            removed += katran.kernel.check("remove from", "a flow table", result)?;
            Ok(())
        })?;
        Ok(removed)
    }
}

/// # Flow tables
impl Katran {
    /// Reads the flow tables.
    pub fn flows(&self) -> Flows<'_> {
        Flows { katran: self }
    }

    /// Removes entries from the flow tables.
    pub fn flows_mut(&mut self) -> FlowsMut<'_> {
        FlowsMut { katran: self }
    }

    /// Calls `f` with each table, its CPU, and the number of its sets in use.
    fn on_each_table(
        &self,
        mut f: impl FnMut(Option<u32>, &FlowTable, Option<u32>) -> Result<()>,
    ) -> Result<()> {
        let records = self.per_cpu()?;
        for (cpu, table) in &self.maps.flows.of_cpus {
            let active = records.get(*cpu as usize).map(|of| of.sets.count);
            f(Some(*cpu), table, active)?;
        }
        f(None, &self.maps.flows.fallback, None)
    }

    /// The address that a real's id in an entry of this VIP names; `None` if the entry is void.
    fn owner_in(&self, vip: u16, id: u32) -> Option<IpAddr> {
        match self.maps.voids.reason(vip, id) {
            Some(_) => None,
            None => self.owner(id),
        }
    }

    /// The address that a real's id names; `None` if that real is gone.
    pub(super) fn owner(&self, id: u32) -> Option<IpAddr> {
        let number = id & types::flow_table_constant::REAL_NUMBER_MASK.0;
        let address = self.real_numbered(number)?;
        let entry = self.table.real(address)?;
        (real_id(entry.number.0, entry.generation) == id).then_some(address)
    }

    fn age(&self, value: &types::flow_value, now: u32) -> Duration {
        let ticks = now.wrapping_sub(value.used);
        // A fresh stamp may be slightly ahead.
        match ticks > u32::MAX / 2 {
            true => Duration::ZERO,
            false => self.fixed.tick * ticks,
        }
    }

    fn describe(
        &self,
        key: &types::flow_key,
        value: &types::flow_value,
        cpu: Option<u32>,
        now: u32,
    ) -> FlowEntry {
        let endpoint = |bytes: [u8; 16], port: u16| -> SocketAddr {
            let [a, b, c, d, ..] = bytes;
            let address = match key.family {
                4 => IpAddr::from([a, b, c, d]),
                _ => IpAddr::from(bytes),
            };
            (address, u16::from_be(port)).into()
        };
        let protocol = match key.protocol == Protocol::Udp.number() {
            true => Protocol::Udp,
            false => Protocol::Tcp,
        };
        FlowEntry {
            flow: Flow {
                source: endpoint(key.source, key.source_port),
                destination: endpoint(key.destination, key.destination_port),
                protocol,
            },
            cpu,
            real: self.owner_in(key.vip.saturating_sub(1), value.id),
            age: self.age(value, now),
        }
    }
}
