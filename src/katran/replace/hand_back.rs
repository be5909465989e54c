//! Packets are handed back to the program before as long as its flow tables know more than those of the one that has taken its
//! place: where tables are not those of both, entries come over one by one, and connections begin meanwhile. A bit of each
//! VIP's word has packets that no entry leads look for that program, in the array of programs; it has counted nothing of them then.
//!
//! Both are there before any packet meets the new program, and they go in the other order, the bit first: whenever the process
//! ends, the next owner finds a set beside the one that counts, enters what is left of it, and takes both away.

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

const BEFORE: u32 = program::PROGRAM_BEFORE.0;

impl Programs {
    fn array(&self) -> io::Result<ProgramArray> {
        let array = ProgramArray::new(self.special.try_clone()?)?;
        array.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Has a main program there for what is handed back.
    pub(in crate::katran) fn hand_back_to(&self, main: BorrowedFd<'_>) -> Result<()> {
        let set = self.array().and_then(|array| array.set(BEFORE, main));
        set.map_err(|error| kernel_error("put the program before into", "special_programs", error))
    }

    fn hand_back_to_none(&self) -> Result<()> {
        let cleared = self.array().and_then(|array| array.clear(BEFORE));
        cleared.map_err(|error| {
            kernel_error("take the program before out of", "special_programs", error)
        })
    }
}

impl Katran {
    /// Whether flows are to come one by one to another balancer's tables, which will be read while they are written here.
    pub(super) fn hands_flows_to(&self, next: &Self) -> bool {
        let (before, after) = (&self.config, &next.config);
        let tables = |of: &Config| (of.flows_per_cpu, of.placement.clone());
        // Entries of another kind mean nothing there, and the kernel has no calls between programs of which one alone
        // takes frames in several buffers.
        before.flow_table == after.flow_table
            && tables(before) != tables(after)
            && before.frags == after.frags
    }

    /// Enters what another balancer's tables know, to which packets were handed back, and has none handed there any more.
    /// Packets meet it in no other way.
    ///
    /// # Errors
    /// What refuses flows; none is handed back all the same.
    pub(in crate::katran) fn catch_up(&mut self, flows: Option<&FlowTables>) -> Result<()> {
        let enter = |katran: &mut Self| match flows {
            Some(flows) => katran.enter_flows(flows, Reader::Packets),
            None => Ok(()),
        };
        let entered = enter(self);
        if !self.maps.vip_cells.hands_back() {
            return entered;
        }
        // Tables grow as packets come: what has got to where nobody looks gets to its place.
        let entered = entered.and(enter(self));
        self.maps.vip_cells.set_hands_back(false);
        self.outlast(Vec::new());
        if let Err(error) = self.programs.hand_back_to_none() {
            log::warn!("the program before stays in memory until the next reload: {error}");
        }
        self.outlast(Vec::new());
        // What datagrams have begun there meanwhile.
        entered.and(enter(self))
    }

    /// Where a replacement was cut off, programs of this version hand packets back as those do whose place they take.
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
            log::warn!("some connections may break: {error}");
        }
    }
}
