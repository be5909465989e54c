//! After a replacement that was cut off there are two sets, and packets may have used either. Gives
//! what the other set has counted and remembered to the current one, and removes it.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;
use crate::katran::adopt::flow_tables_in;
use crate::kernel::kernel_error;
use crate::ledger::Kept;
use crate::ledger::Ledger;
use crate::maps::Carrier;
use crate::maps::FlowTables;
use crate::maps::no_carrier;
use crate::pins::Home;
use crate::pins::Part;
use crate::pins::PinnedSet;

impl Katran {
    /// Ends a replacement that the previous owner began, in favour of the current set: all
    /// attachments have its programs.
    pub(in crate::katran) fn end_replacement(&mut self) -> Result<()> {
        let Some(other) = self.home.as_ref().map(|home| home.next_set()) else {
            return Ok(());
        };
        if !other.is_there() {
            return self.catch_up(None);
        }
        log::info!("a replacement of the balancer was interrupted: removing its remains");
        if let Some(checks) = &mut self.healthchecks {
            let switched = checks.switch_to_own();
            let _for_good = switched.map_err(|(error, _)| error)?;
        }
        // Packets may still be in the other one's programs.
        self.outlast(Vec::new());
        let kept = kept_of(&other)?;
        if let Some(kept) = &kept {
            self.burn_numbers_of(&kept.table);
        }
        // Whether or not the counters can be carried over.
        self.take_flows_of(&other, kept);
        let carriers = carriers_from(&other, self.counting_maps());
        match carriers {
            Ok(carriers) => {
                self.carriers = carriers;
                self.carry_counters();
            }
            Err(error) => {
                log::warn!("counts since the replacement wait for the next owner: {error}");
                return Ok(());
            }
        }
        if self.carriers.is_empty() {
            self.unstage_set();
        }
        Ok(())
    }

    /// The same where the current set is not of this version and yet another will replace it: gives
    /// the counts of the other set to the current one. Attachments have the current set's programs.
    /// The other one still exists; `kept` is its state.
    pub(in crate::katran) fn end_replacement_of(
        &mut self,
        home: &Home,
        kept: Option<Kept>,
    ) -> Result<()> {
        self.outlast(Vec::new());
        if let Some(kept) = &kept {
            self.burn_numbers_of(&kept.table);
        }
        self.take_flows_of(&home.next_set(), kept);
        Self::carry_back(home)
    }

    /// Carries the next set's counts over to the current set, where both count in this version's
    /// layout.
    pub(in crate::katran) fn carry_back(home: &Home) -> Result<()> {
        let (set, other) = (home.set(), home.next_set());
        let contents = set.contents()?;
        let knows = |part| contents.as_ref().is_some_and(|of| of.knows(part));
        let mut maps = Vec::new();
        for name in COUNTING {
            if Part::of(name).is_some_and(knows) {
                maps.extend(counting_map(&set, name)?.map(|map| (name, map)));
            }
        }
        let maps = maps.iter().map(|(name, map)| (*name, map.as_fd()));
        let failed = |error| kernel_error("carry", "the counters", error);
        for carrier in carriers_from(&other, maps)? {
            carrier.carry().map_err(failed)?;
        }
        Ok(())
    }

    /// What a replacement that was cut off has kept, if there is one.
    pub(in crate::katran) fn kept_beside(home: &Home) -> Result<Option<Kept>> {
        let other = home.next_set();
        match other.is_there() {
            true => kept_of(&other),
            false => Ok(None),
        }
    }

    /// Takes over the flow entries made by packets in another set, except those that mean nothing
    /// here.
    fn take_flows_of(&mut self, other: &PinnedSet, kept: Option<Kept>) {
        let flows = match &kept {
            Some(kept) => flows_of(other, &kept.config),
            None => Ok(None),
        };
        let (flows, unread) = match flows {
            Ok(flows) => (flows, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let entered = self.catch_up(flows.as_ref());
        if let Err(error) = unread.and(entered) {
            log::warn!("some flows since the replacement are lost: {error}");
        }
        if let Some(kept) = kept {
            self.void_entries_of(&kept.table);
        }
    }
}

/// Maps that count packets.
const COUNTING: [&str; 5] = [
    "cpus",
    "vip_counters",
    "real_counters",
    "vip_details",
    PROBE_COUNTERS,
];
const PROBE_COUNTERS: &str = "probe_counters";

fn counting_map(set: &PinnedSet, name: &str) -> Result<Option<OwnedFd>> {
    let map = match name {
        PROBE_COUNTERS => set.probe_map(name),
        _ => set.map(name),
    };
    match map {
        Err(Error::NotFound { .. }) => Ok(None),
        map => map.map(Some),
    }
}

/// Carries the counters of a set's maps over to others of the same names, where those differ.
fn carriers_from<'a>(
    set: &PinnedSet,
    maps: impl Iterator<Item = (&'static str, BorrowedFd<'a>)>,
) -> Result<Vec<Carrier>> {
    let Some(contents) = set.contents()? else {
        return Ok(Vec::new());
    };
    let mut carriers = Vec::new();
    for (name, to) in maps {
        let Some(part) = Part::of(name) else {
            continue;
        };
        // It was not filled, so no packet was in it.
        let Some(from) = counting_map(set, name)? else {
            continue;
        };
        let carrier = match contents.knows(part) {
            true => Carrier::between(name, from.as_fd(), to),
            false => Err(io::ErrorKind::InvalidData.into()),
        };
        match carrier {
            Ok(carrier) => carriers.extend(carrier),
            // No owner could ever carry it over, so a whole balancer's memory would never be freed.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => log::warn!(
                "counts in {name} since the replacement are lost: katran {} has another layout of \
                 counters",
                contents.version()
            ),
            Err(error) => return Err(no_carrier(error)),
        }
    }
    Ok(carriers)
}

/// The kept state of a set's ledger; `None`: the set was not filled, so no packet has met it, or
/// the ledger cannot be read, which is logged.
fn kept_of(set: &PinnedSet) -> Result<Option<Kept>> {
    let ground = set.ground();
    let ground = ground.map_err(|error| kernel_error("open", "the ledger", error))?;
    let read = ground.map(Ledger::read).transpose();
    if let Err(refused) = &read {
        log::error!(
            "cannot use the record of an interrupted replacement ({refused}): packets follow the \
             current balancer, but connections that the replacement began may stay on its reals, \
             or move to others that get the same numbers"
        );
    }
    let read = read.ok().flatten();
    Ok(read.map(|(_, replayed)| replayed.kept))
}

/// The flow tables of a set; `None`: they have another layout.
fn flows_of(set: &PinnedSet, config: &Config) -> Result<Option<FlowTables>> {
    match set.contents()?.is_some_and(|of| of.knows(Part::Flows)) {
        true => flow_tables_in(set, config).map(Some),
        false => Ok(None),
    }
}
