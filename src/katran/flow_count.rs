//! How many entries of the flow tables each VIP has: counted in one walk through all tables for all
//! VIPs, at once or bit by bit beside other work.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use super::Katran;
use super::flows::Flows;
use crate::error::Result;
use crate::table::VipEntry;
use crate::types::Vip;
use crate::types::VipNumber;

/// How many entries of the flow tables each VIP has: [`Flows::count`].
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
    /// When it was begun.
    begun: Instant,
    of_vips: BTreeMap<Vip, u64>,
    of_cpus: u64,
    of_shared: u64,
    /// One that is under way, of which nothing is shown yet.
    next: Option<Walk>,
}

impl FlowCount {
    /// Entries of a VIP, over all CPUs, also those that [count no more](crate::flows::FlowStats::stale);
    /// a flow that several CPUs know has one on each. `None` if the VIP was not there, or not all the time.
    pub fn entries(&self, vip: Vip) -> Option<u64> {
        self.of_vips.get(&vip).copied()
    }

    /// The entries of every VIP that was there, in the order of VIPs.
    pub fn vips(&self) -> impl ExactSizeIterator<Item = (Vip, u64)> + '_ {
        self.of_vips.iter().map(|(vip, entries)| (*vip, *entries))
    }

    /// For how long these figures have been true: since the count that they are of was begun.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Entries in the tables of CPUs, also of VIPs that are gone.
    pub(super) fn of_cpus(&self) -> u64 {
        self.of_cpus
    }

    /// Entries in the table that all other CPUs share.
    pub(super) fn of_shared(&self) -> u64 {
        self.of_shared
    }
}

/// A count that is under way.
#[derive(Clone, Debug)]
struct Walk {
    begun: Instant,
    /// Those that were there at its beginning: a number may be another VIP's at its end.
    vips: Vec<(Vip, VipNumber)>,
    /// Entries by the VIP's number.
    of_numbers: Vec<u64>,
    of_cpus: u64,
    of_shared: u64,
    /// The table that it is in, and where in that; `None`: at its beginning.
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

    /// Goes on until it is over (`true`), or `time` is up.
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
                    // Halves of two entries, where CPUs share a table, are of any number.
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
        // Tables of another balancer, which has fewer of them.
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

impl Flows<'_> {
    /// Counts the entries of all VIPs in one walk through all tables, of which it takes 1 ms for a CPU that knows 65,536 flows,
    /// 17 ms for 1,000,000, and 25 ms for 4,000,000 (`cargo bench --bench counting`, on an AMD EPYC); with a
    /// [`KernelLru`](crate::FlowTableKind::KernelLru) 0.35 s for each million. Packets go on meanwhile: entries that come or
    /// go during the walk are in it or not, and while a table of sets fills, some may be in it twice.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn count(&self) -> Result<FlowCount> {
        let mut walk = Walk::begin(self.katran);
        walk.go_on(self.katran, None)?;
        Ok(walk.end(self.katran))
    }

    /// Counts again, bit by bit: goes on with what the last call has left, or begins, and stops after about `time` (a part of a
    /// table is the least: 0.3 ms, of a [`KernelLru`](crate::FlowTableKind::KernelLru) up to 3 ms). `true`: `count` has new figures; until then it keeps
    /// the old ones.
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
