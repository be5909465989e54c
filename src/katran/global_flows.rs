//! The global flow tables, one per CPU: flows whose real the host application chooses.

use std::net::IpAddr;

use super::Katran;
use super::handles::GlobalFlowMaps;
use super::remember::nothing_else;
use crate::config::Features;
use crate::error::Error;
use crate::error::Result;
use crate::maps::real_id;
use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::Flow;

/// Reads the global flow tables: [`Katran::global_flows`].
///
/// ```no_run
/// use katran::Flow;
///
/// # fn example(katran: &katran::Katran, flow: Flow) -> katran::Result<()> {
/// println!("{:?}", katran.global_flows().get(0, &flow)?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct GlobalFlows<'a> {
    katran: &'a Katran,
}

impl GlobalFlows<'_> {
    /// The real that a CPU's global flow table has for a flow; `None` if the table does not know
    /// the flow, or the real is gone. The lookup does not count as a use.
    ///
    /// # Errors
    /// As [`GlobalFlowsMut::set`].
    pub fn get(&self, cpu: u32, flow: &Flow) -> Result<Option<IpAddr>> {
        let katran = self.katran;
        let table = katran.global_table(cpu)?;
        let key = katran.global_key(flow)?;
        let found = table.lookup(&key);
        let found = katran.kernel.check("look into", "global_flows", found)?;
        Ok(found.and_then(|id| katran.owner(id)))
    }
}

/// Fills the global flow tables: [`Katran::global_flows_mut`].
///
/// ```no_run
/// use katran::Flow;
///
/// # fn example(katran: &mut katran::Katran, flow: Flow) -> katran::Result<()> {
/// let real = "198.51.100.1".parse().unwrap();
/// katran.global_flows_mut().set(0, &flow, real)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct GlobalFlowsMut<'a> {
    katran: &'a mut Katran,
}

impl GlobalFlowsMut<'_> {
    /// Sets the real of a flow's packets that arrive on this CPU. It applies if the flow table does
    /// not know the flow, its VIP has [`VipFlags::GLOBAL_LRU`](crate::VipFlags::GLOBAL_LRU) and the
    /// packet is not a SYN. All CPUs outside [`forwarding_cpus`](crate::Builder::forwarding_cpus)
    /// share one small table.
    ///
    /// A full table drops the least recently used flow. The entry does not keep the real alive:
    /// once nothing names the real any more, the entry is void.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without [`Features::GLOBAL_FLOW_TABLE`]; [`Error::NotFound`] if no
    /// VIP covers the flow or nothing names the real; [`Error::InvalidConfig`] if source and
    /// destination are of different families; [`Error::Kernel`].
    pub fn set(&mut self, cpu: u32, flow: &Flow, real: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        self.katran.global_table(cpu)?;
        let key = self.katran.global_key(flow)?;
        let entry = self
            .katran
            .table
            .real(real)
            .ok_or_else(|| Error::NotFound {
                what: format!("real {real}"),
            })?;
        let id = real_id(entry.number.0, entry.generation);
        self.katran.change_at_once(nothing_else, |katran| {
            let added = katran.global_table(cpu)?.update(&key, &id);
            katran.kernel.check("add a flow to", "global_flows", added)
        })
    }

    /// Removes a flow from a CPU's global flow table; `false` if it was not there.
    ///
    /// # Errors
    /// As [`GlobalFlowsMut::set`].
    pub fn remove(&mut self, cpu: u32, flow: &Flow) -> Result<bool> {
        let _call = self.katran.call()?;
        self.katran.global_table(cpu)?;
        let key = self.katran.global_key(flow)?;
        self.katran.change_at_once(nothing_else, |katran| {
            let removed = katran.global_table(cpu)?.delete(&key);
            let kernel = &katran.kernel;
            kernel.check("remove a flow from", "global_flows", removed)
        })
    }
}

/// # Global flow tables
impl Katran {
    /// Reads the global flow tables, which the host application fills.
    pub fn global_flows(&self) -> GlobalFlows<'_> {
        GlobalFlows { katran: self }
    }

    /// Fills the global flow tables.
    pub fn global_flows_mut(&mut self) -> GlobalFlowsMut<'_> {
        GlobalFlowsMut { katran: self }
    }

    /// Whether any table has a flow.
    pub(super) fn has_global_flows(&self) -> Result<bool> {
        let Some(maps) = &self.maps.features.global_flows else {
            return Ok(false);
        };
        let of_cpus = maps.of_cpus.iter().map(|(_, table)| table);
        for table in of_cpus.chain([&maps.fallback]) {
            let first = table.next_key(None);
            let first = self.kernel.check("look into", "global_flows", first)?;
            if first.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn global_key(&self, flow: &Flow) -> Result<types::flow_key> {
        let found = self.key_of(flow)?;
        let (_, key) = found.ok_or_else(|| Error::NotFound {
            what: format!("a VIP for {flow}"),
        })?;
        Ok(key)
    }

    fn global_table(&self, cpu: u32) -> Result<&Typed<types::flow_key, u32>> {
        let maps = self
            .maps
            .features
            .global_flows
            .as_ref()
            .ok_or(Error::Unsupported {
                what: "a global flow table".to_owned(),
                reason: "this balancer was loaded without the feature global-flow-table",
            })?;
        Ok(maps.of_cpu(cpu))
    }

    /// What the global tables have for a flow that no flow table knows: the entry of the lowest CPU
    /// that knows it, or of the shared table.
    pub(super) fn in_global_flows(
        &self,
        key: &types::flow_key,
    ) -> Result<Option<(IpAddr, Option<u32>)>> {
        let Some(maps) = &self.maps.features.global_flows else {
            return Ok(None);
        };
        debug_assert!(self.config.features.contains(Features::GLOBAL_FLOW_TABLE));
        let of_cpus = maps.of_cpus.iter().map(|(cpu, table)| (Some(*cpu), table));
        for (cpu, table) in of_cpus.chain([(None, &maps.fallback)]) {
            let found = self
                .kernel
                .check("look into", "global_flows", table.lookup(key))?;
            if let Some(real) = found.and_then(|id| self.owner(id)) {
                return Ok(Some((real, cpu)));
            }
        }
        Ok(None)
    }
}

impl GlobalFlowMaps {
    /// The table that packets on this CPU look into.
    fn of_cpu(&self, cpu: u32) -> &Typed<types::flow_key, u32> {
        let mut own = self.of_cpus.iter().filter(|(of, _)| *of == cpu);
        own.next().map_or(&self.fallback, |(_, table)| table)
    }
}
