//! A computed change before it is made: what to tell the kernel, and what happens to the table.
//! `stage.rs` computes it. A change is committed once the kernel has accepted it, or abandoned.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::records::Edit;
use super::records::RealEntry;
use crate::types::HashFunction;
use crate::types::RealFlags;
use crate::types::RealNumber;
use crate::types::VipFlags;
use crate::types::VipNumber;

/// The program's record of a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RealRecord {
    pub(crate) number: RealNumber,
    pub(crate) address: IpAddr,
    pub(crate) generation: u16,
    pub(crate) flags: RealFlags,
}

/// A real as an input of a VIP's ring; weight 0 gets no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) number: RealNumber,
    pub(crate) address: IpAddr,
    pub(crate) weight: u32,
}

/// A VIP to be added, without reals.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedVip {
    pub(crate) number: VipNumber,
    /// The number was another VIP's: wait for a grace period, then call `Table::settle`, before
    /// using it.
    pub(crate) unsettled: bool,
    pub(super) edit: Edit,
}

/// A VIP to be removed.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedRemoval {
    pub(crate) number: VipNumber,
    /// The reals that nothing else names.
    pub(crate) released: Vec<(IpAddr, RealNumber)>,
    pub(super) edit: Edit,
}

/// Changes of a VIP's reals.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedReals {
    pub(crate) number: VipNumber,
    pub(crate) flags: VipFlags,
    pub(crate) hash_function: HashFunction,
    /// Reals that nothing named before.
    pub(crate) added: Vec<RealRecord>,
    /// An added real's number was another's: wait for a grace period, then call `Table::settle`,
    /// before using it.
    pub(crate) unsettled: bool,
    /// Existing reals whose flags change for all VIPs.
    pub(crate) reflagged: Vec<RealRecord>,
    /// The reals that nothing names any more.
    pub(crate) released: Vec<(IpAddr, RealNumber)>,
    /// All reals of the VIP after the change, by address, including weight 0, which reals that are
    /// down have here.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Whether the reals with a weight, or their weights, change.
    pub(crate) ring_changed: bool,
    /// Reals whose flows must leave, and reals that may have flows again.
    pub(crate) turned: Turned,
    pub(super) edit: Edit,
}

/// Reals that have joined or left a VIP, or gone down or up for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turned {
    /// Reals that the VIP no longer has, and whether something else names them.
    pub(crate) given_up: Vec<(RealRecord, bool)>,
    /// Existing reals that the VIP has got.
    pub(crate) joined: Vec<RealRecord>,
    /// Reals that have gone down for the VIP.
    pub(crate) down: Vec<RealRecord>,
    /// Reals that have come up for it.
    pub(crate) up: Vec<RealRecord>,
}

/// What a change of references means for the reals themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adjusted {
    /// Reals that nothing named before.
    pub(crate) added: Vec<RealRecord>,
    /// An added real's number was another's: wait for a grace period, then call `Table::settle`,
    /// before using it.
    pub(crate) unsettled: bool,
    /// The reals that nothing names any more.
    pub(crate) released: Vec<(IpAddr, RealNumber)>,
}

/// Changes of references by something other than a VIP.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedReferences {
    pub(crate) adjusted: Adjusted,
    /// The touched reals that stay or come.
    pub(crate) records: BTreeMap<IpAddr, RealRecord>,
    pub(super) edit: Edit,
}

/// New flags of a VIP.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedVipFlags {
    pub(crate) number: VipNumber,
    /// Whether they differ from the current ones.
    pub(crate) changed: bool,
    pub(super) edit: Edit,
}

/// Another hash function of a VIP.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedHashFunction {
    pub(crate) number: VipNumber,
    pub(crate) flags: VipFlags,
    /// All reals of the VIP, by address, including weight 0.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Whether it differs from the current one.
    pub(crate) changed: bool,
    pub(super) edit: Edit,
}

/// New flags of a real.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct StagedRealFlags {
    pub(crate) record: RealRecord,
    /// Whether they differ from the current ones.
    pub(crate) changed: bool,
    pub(super) edit: Edit,
}

/// The common part of all staged changes: which reals come and go, and what happens to the table.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct Paper {
    /// Reals that nothing named before.
    pub(crate) added: Vec<RealRecord>,
    /// A number that the change takes was another's: wait for a grace period, then call
    /// `Table::settle`, before using it.
    pub(crate) unsettled: bool,
    /// The reals that nothing names any more.
    pub(crate) released: Vec<(IpAddr, RealNumber)>,
    pub(super) edit: Edit,
}

impl Paper {
    fn of(edit: Edit) -> Self {
        Self {
            added: Vec::new(),
            unsettled: false,
            released: Vec::new(),
            edit,
        }
    }

    /// Whether the change returns numbers, which packets may see a moment longer.
    pub(crate) fn gives_back(&self) -> bool {
        self.edit.gives_back()
    }
}

impl From<Paper> for Edit {
    fn from(paper: Paper) -> Self {
        paper.edit
    }
}

impl From<StagedVip> for Paper {
    fn from(staged: StagedVip) -> Self {
        Self {
            unsettled: staged.unsettled,
            ..Self::of(staged.edit)
        }
    }
}

impl From<StagedRemoval> for Paper {
    fn from(staged: StagedRemoval) -> Self {
        Self {
            released: staged.released,
            ..Self::of(staged.edit)
        }
    }
}

impl From<StagedReals> for Paper {
    fn from(staged: StagedReals) -> Self {
        Self {
            added: staged.added,
            unsettled: staged.unsettled,
            released: staged.released,
            edit: staged.edit,
        }
    }
}

impl From<StagedReferences> for Paper {
    fn from(staged: StagedReferences) -> Self {
        Self {
            added: staged.adjusted.added,
            unsettled: staged.adjusted.unsettled,
            released: staged.adjusted.released,
            edit: staged.edit,
        }
    }
}

macro_rules! into_plain_paper {
    ($($staged:ty),*) => {
        $(impl From<$staged> for Paper {
            fn from(staged: $staged) -> Self {
                Self::of(staged.edit)
            }
        })*
    };
}
into_plain_paper!(StagedVipFlags, StagedHashFunction, StagedRealFlags);

macro_rules! into_edit {
    ($($staged:ty),*) => {
        $(impl From<$staged> for Edit {
            fn from(staged: $staged) -> Self {
                staged.edit
            }
        })*
    };
}
into_edit!(
    StagedVip,
    StagedRemoval,
    StagedReals,
    StagedReferences,
    StagedVipFlags,
    StagedHashFunction,
    StagedRealFlags
);

pub(super) fn record(address: IpAddr, entry: &RealEntry) -> RealRecord {
    RealRecord {
        number: entry.number,
        address,
        generation: entry.generation,
        flags: entry.flags,
    }
}
