//! Handing packets back to the replaced program while its flow tables know more than the new ones:
//! where tables are not shared, the library copies their entries after the switch, one by one. A
//! bit in each VIP's word makes packets without an entry look for that program in the array of
//! programs; it has counted none of them then.
//!
//! Both are in place before packets meet the new program, and go in reverse order, the bit first.
//! Whenever the process ends, the next owner finds a set beside the current one, copies the rest of
//! its entries, and removes both.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use crate::config::Config;
use crate::error::Result;
use crate::katran::Katran;
use crate::katran::object::Programs;
use crate::kernel::kernel_error;
use crate::maps::FlowTables;
use crate::maps::Reader;
use crate::pins::Home;
use crate::skel::katran::types::program;
use crate::sys::map::ProgramArray;

/// How often to copy entries, at most, until the tables do not grow meanwhile.
const MOST_COPIES: u32 = 8;

const BEFORE: u32 = program::PROGRAM_BEFORE.0;

impl Programs {
    fn array(&self) -> io::Result<ProgramArray> {
        let array = ProgramArray::new(self.special.try_clone()?)?;
        array.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Installs a main program for packets to be handed back to.
    pub(in crate::katran) fn hand_back_to(&self, main: BorrowedFd<'_>) -> Result<()> {
        let set = self.array().and_then(|array| array.set(BEFORE, main));
        set.map_err(|error| {
            kernel_error("put the replaced program into", "special_programs", error)
        })
    }

    fn hand_back_to_none(&self) -> Result<()> {
        let cleared = self.array().and_then(|array| array.clear(BEFORE));
        cleared.map_err(|error| {
            kernel_error(
                "take the replaced program out of",
                "special_programs",
                error,
            )
        })
    }
}

impl Katran {
    /// Whether flows will be copied one by one to another balancer's tables, which packets read
    /// meanwhile.
    pub(super) fn hands_flows_to(&self, next: &Self) -> bool {
        let (before, after) = (&self.config, &next.config);
        let tables = |of: &Config| (of.flows_per_cpu, of.placement.clone());
        // Entries of another type mean nothing there, and the kernel has no calls between programs
        // of which only one takes frames in several buffers.
        before.flow_table == after.flow_table
            && tables(before) != tables(after)
            && before.frags == after.frags
    }

    /// Copies the entries of another balancer's tables, to which packets were handed back, and
    /// stops handing back. Packets cannot reach that balancer otherwise.
    ///
    /// # Errors
    /// What refuses entries; handing back stops all the same.
    pub(in crate::katran) fn catch_up(&mut self, flows: Option<&FlowTables>) -> Result<()> {
        let enter = |katran: &mut Self, since| match flows {
            Some(flows) => katran.enter_flows(flows, Reader::Packets { since }),
            None => Ok(()),
        };
        if !self.maps.vip_cells.hands_back() {
            // An owner may have died before it did this.
            self.forget_replaced();
            return enter(self, None);
        }
        let (mut entered, mut since) = (Ok(()), None);
        for _ in 0..MOST_COPIES {
            let before = self.active_sets().ok();
            since = self.ticks_now().ok();
            entered = enter(self, None);
            // If the table grew meanwhile, some entries are where no packet looks.
            if self.active_sets().ok() == before {
                break;
            }
        }
        self.maps.vip_cells.end_handing_back();
        self.outlast(Vec::new());
        self.forget_replaced();
        self.outlast(Vec::new());
        // Flows that datagrams have begun there since the last copy began. A connection that has
        // begun here on its base meanwhile has no entry, and must get no old one.
        entered.and(enter(self, since))
    }

    fn forget_replaced(&self) {
        if let Err(error) = self.programs.hand_back_to_none() {
            log::warn!("the replaced program stays in memory until the next reload: {error}");
        }
    }

    /// How far each CPU's flow table has grown.
    fn active_sets(&self) -> Result<Vec<u32>> {
        let records = self.per_cpu()?;
        Ok(records.iter().map(|of| of.sets.count).collect())
    }

    /// After a replacement that was cut off, this version's programs hand packets back like those
    /// they replace.
    pub(in crate::katran) fn hand_back_from(&self, programs: &Programs) {
        if !self.maps.vip_cells.hands_back() {
            return;
        }
        let other = self.home.as_ref().map(Home::next_set);
        let entrances = other.map_or_else(|| Ok(Vec::new()), |other| other.entrances());
        let set = entrances.and_then(|entrances| match entrances.first() {
            Some(entrance) => programs.hand_back_to(entrance.main.as_fd()),
            None => Ok(()),
        });
        if let Err(error) = set {
            log::warn!(
                "cannot hand packets back to the replaced program, so some connections may break: \
                 {error}"
            );
        }
    }
}
