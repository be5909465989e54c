//! The steps of a plan: each is one call of the public API, or a change of many names at once.

use std::net::IpAddr;

use super::names::Deltas;
use crate::config::LiveSetting;
use crate::document::ProbeMatch;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Prefix;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

/// One call on the way to a state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Set(LiveSetting),
    SetVipFlags(Vip, VipFlags),
    SetHashFunction(Vip, HashFunction),
    RemoveVip(Vip),
    AddVip {
        vip: Vip,
        flags: VipFlags,
        hash: HashFunction,
    },
    ModifyReals {
        vip: Vip,
        changes: Vec<RealChange>,
        /// Which of its reals go down or up after that.
        health: Vec<(IpAddr, Health)>,
    },
    SetRealFlags(IpAddr, RealFlags),
    /// References to reals that only the plan holds, taken or returned: a real whose name moves
    /// from one type to another is named by neither for a moment.
    Hold(Deltas),
    ServerIds(NameChange<u32>),
    SourceRoutes(NameChange<Prefix>),
    Invalidate(Vec<u32>),
    Revalidate(Vec<u32>),
    SetDecap(IpAddr, DecapMode),
    RemoveDecap(IpAddr),
    MapMark(u32, IpAddr),
    UnmapMark(u32),
    SetProbeMatch(ProbeMatch, IpAddr),
    RemoveProbeMatch(ProbeMatch),
    RegisterProbe(Vip),
    UnregisterProbe(Vip),
}

/// Names to remove, and names to add or to give another real, in one change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NameChange<K> {
    pub(crate) remove: Vec<K>,
    pub(crate) add: Vec<(K, IpAddr)>,
    /// What that means for the reals.
    pub(crate) references: Deltas,
}

/// The order in which server ids and source routes come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// New ones first, so that none that stays is ever missing.
    Gapless,
    /// Those of leaving reals first and new ones last, because numbers are short. A name that stays
    /// but moves to a real without a number yet is missing until there is one.
    Frugal,
}
