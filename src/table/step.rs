//! What a plan is made of: one step is one call of the public API, or a change of many names at once.

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
        /// Which of its reals are down after that, of those that are so now, or are so no more.
        health: Vec<(IpAddr, Health)>,
    },
    SetRealFlags(IpAddr, RealFlags),
    /// Reals are named, or no more, by nothing but the way to the state: what goes from a name of one kind to
    /// one of another is named by neither for a moment.
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

/// Names that go, and names that come or name other reals, in one change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NameChange<K> {
    pub(crate) remove: Vec<K>,
    pub(crate) add: Vec<(K, IpAddr)>,
    /// What that means for the reals.
    pub(crate) references: Deltas,
}

/// In which order server ids and source routes come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// New ones first, so that none that stays is missing for a moment.
    Gapless,
    /// Those of reals that go first and new ones last, for numbers are short: one that stays, and is to
    /// lead to a real which there is no number for yet, is missing until there is.
    Frugal,
}
