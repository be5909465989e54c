//! Counts each VIP's flow entries, in one walk through all tables, at once or in small steps
//! between other work.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use super::Katran;
use super::flows::Flows;
use crate::error::Result;
use crate::table::VipEntry;
use crate::types::Vip;
use crate::types::VipNumber;

/// The number of flow entries of each VIP: [`Flows::count`].
///
/// ```no_run
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// use std::thread;
/// use std::time::Duration;
///
/// let mut count = katran.flows().count()?;
/// // ... and later again, a millisecond at a time:
/// while !katran.flows().recount(&mut count, Duration::from_millis(1))? {
///     thread::sleep(Duration::from_millis(10));
/// }
/// for (vip, entries) in count.vips() {
///     println!("{entries} entries of {vip}, {:?} ago", count.age());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a count does nothing by itself"]
pub struct FlowCount {
    /// When the count began.
    begun: Instant,
    of_vips: BTreeMap<Vip, u64>,
    of_cpus: u64,
    of_shared: u64,
    /// A count under way, not yet shown.
    next: Option<Walk>,
}

/// # Entries by VIP
impl FlowCount {
    /// A VIP's entries over all CPUs, including [void](crate::flows::FlowStats::stale) ones; a flow
    /// counts once for each CPU that knows it. `None` unless the VIP existed for the whole count.
    pub fn entries(&self, vip: Vip) -> Option<u64> {
        self.of_vips.get(&vip).copied()
    }

    /// The entries of every VIP that existed, sorted by VIP.
    pub fn vips(&self) -> impl ExactSizeIterator<Item = (Vip, u64)> + '_ {
        self.of_vips.iter().map(|(vip, entries)| (*vip, *entries))
    }

    /// The age of these figures: the time since their count began.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Entries in the forwarding CPUs' tables, including those of removed VIPs.
    pub(super) fn of_cpus(&self) -> u64 {
        self.of_cpus
    }

    /// Entries in the fallback table.
    pub(super) fn of_shared(&self) -> u64 {
        self.of_shared
    }
}

#[derive(Clone, Debug)]
struct Walk {
    begun: Instant,
    /// The VIPs at its beginning: a number may belong to another VIP at its end.
    vips: Vec<(Vip, VipNumber)>,
    of_numbers: Vec<u64>,
    of_cpus: u64,
    of_shared: u64,
    /// The current table, and the place in it; `None`: its beginning.
    table: usize,
    place: Option<u32>,
}

impl Walk {
    fn begin(katran: &Katran) -> Self {
        let number = |(vip, entry): (&Vip, &VipEntry)| (*vip, entry.number);
        Self {
            begun: Instant::now(),
            vips: katran.table.vips().map(number).collect(),
            of_numbers: vec![0; katran.config.max_vips.into()],
            of_cpus: 0,
            of_shared: 0,
            table: 0,
            place: None,
        }
    }

    /// Continues until it is complete (`true`) or `time` is up.
    fn go_on(&mut self, katran: &Katran, time: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        let records = katran.per_cpu()?;
        for (cpu, table) in katran.maps.flows.all().into_iter().skip(self.table) {
            let record = cpu.and_then(|cpu| records.get(cpu as usize));
            let active = record.map(|record| record.sets.count);
            loop {
                let mut met = 0;
                let part = table.see_part(self.place, active, |vip| {
                    met += 1;
                    // In the fallback table an entry may mix halves of two, with any number.
                    if let Some(of_vip) = self.of_numbers.get_mut(usize::from(vip)) {
                        *of_vip += 1;
                    }
                });
                self.place = katran.kernel.check("count", "flow table entries", part)?;
                match cpu {
                    Some(_) => self.of_cpus += met,
                    None => self.of_shared += met,
                }
                let is_through = self.place.is_none();
                self.table += usize::from(is_through);
                if is_through && cpu.is_none() {
                    return Ok(true);
                }
                if time.is_some_and(|time| start.elapsed() >= time) {
                    return Ok(false);
                }
                if is_through {
                    break;
                }
            }
        }
        // Tables of another balancer, with fewer of them.
        Ok(true)
    }

    fn end(self, katran: &Katran) -> FlowCount {
        let of = |(vip, number): (Vip, VipNumber)| {
            let now = katran.table.vip(&vip)?.number;
            let entries = *self.of_numbers.get(usize::from(number.0))?;
            (now == number).then_some((vip, entries))
        };
        FlowCount {
            begun: self.begun,
            of_vips: self.vips.into_iter().filter_map(of).collect(),
            of_cpus: self.of_cpus,
            of_shared: self.of_shared,
            next: None,
        }
    }
}

/// # Counting entries of all VIPs
impl Flows<'_> {
    /// Counts the entries of all VIPs in one walk through all tables.
    ///
    /// The walk takes 1 ms for a CPU that knows 65,536 flows, 17 ms for 1,000,000 and 25 ms for
    /// 4,000,000 (`cargo bench --bench counting`, on an AMD EPYC); with a
    /// [`KernelLru`](crate::FlowTableKind::KernelLru) 0.35 s for each million. Traffic continues
    /// meanwhile: the count may miss entries that come or go, and may count some twice while a
    /// table of sets fills.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn count(&self) -> Result<FlowCount> {
        let mut walk = Walk::begin(self.katran);
        walk.go_on(self.katran, None)?;
        Ok(walk.end(self.katran))
    }

    /// Counts again, step by step: continues the walk that the last call left, or begins one, and
    /// stops after about `time`. `true` means that `count` has new figures; until then it keeps the
    /// old ones.
    ///
    /// The smallest step is a part of a table: 0.3 ms, with a
    /// [`KernelLru`](crate::FlowTableKind::KernelLru) up to 3 ms.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel): the next call begins a new walk.
    pub fn recount(&self, count: &mut FlowCount, time: Duration) -> Result<bool> {
        let next = count.next.take();
        let mut walk = next.unwrap_or_else(|| Walk::begin(self.katran));
        let is_over = walk.go_on(self.katran, Some(time))?;
        match is_over {
            true => *count = walk.end(self.katran),
            false => count.next = Some(walk),
        }
        Ok(is_over)
    }
}
