//! The records of a ledger. The variants' numbers are part of the layout: add new ones at the end,
//! and a version that does not know one refuses the ledger.

use std::net::IpAddr;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;

use crate::document::ProbeMatch;
use crate::table::Met;
use crate::table::StoredEdit;
use crate::table::StoredEntry;
use crate::table::StoredNumbers;
use crate::table::StoredReal;
use crate::types::StoredPrefix;
use crate::types::StoredVip;

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    /// The first one: the settings, and the values drawn at load.
    Start(Vec<u8>, Drawn),
    /// Parts of a snapshot.
    Vip(StoredVip, StoredEntry),
    Reals(Vec<(IpAddr, StoredReal)>),
    Numbers(StoredNumbers),
    Part(Change),
    /// A change is about to be made.
    Intent(Intent),
    /// It is made.
    Done,
    /// It is rolled back; packets may have met its new reals.
    Undone {
        met: bool,
    },
    /// All changes from here to `End` are one change, made whole or not at all.
    Begin,
    End,
}

/// The new values of what a change touches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// VIPs and reals.
    pub(crate) edit: Option<StoredEdit>,
    /// Everything else.
    pub(crate) changes: Vec<Change>,
}

/// Values drawn or discovered at load, which stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drawn {
    /// The hash keys of the flow table, of the VIP table, and of server ids.
    pub(crate) flow_keys: Vec<u64>,
    pub(crate) vip_keys: Vec<u64>,
    pub(crate) server_id_keys: [u64; 2],
    /// Of the flow hash, from the settings that the balancer was first loaded with.
    pub(crate) hash_seeds: (u32, u32),
    /// The kernel's tick in nanoseconds, and the number of possible CPUs.
    pub(crate) tick: u64,
    pub(crate) possible_cpus: u32,
}

/// New values of what a change touches, besides VIPs and reals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// All settings.
    Settings(Vec<u8>),
    /// Ids that go, and new ids with the numbers of their reals; new ones are valid.
    ServerIds {
        remove: Vec<u32>,
        add: Vec<(u32, u16)>,
    },
    Validity {
        ids: Vec<u32>,
        valid: bool,
    },
    SourceRoutes {
        remove: Vec<StoredPrefix>,
        add: Vec<(StoredPrefix, u16)>,
    },
    Decap(IpAddr, Option<u8>),
    Mark(u32, Option<IpAddr>),
    Match(StoredMatch, Option<IpAddr>),
    Probe(StoredVip, bool),
    Watched(Option<StoredVip>),
    /// Numbers that packets met in a balancer that did not replace this one after all.
    Met(Met),
}

/// How a probe is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StoredMatch {
    Destination(SocketAddr),
    Source(SocketAddr),
}

impl From<ProbeMatch> for StoredMatch {
    fn from(by: ProbeMatch) -> Self {
        match by {
            ProbeMatch::Destination(address) => Self::Destination(address),
            ProbeMatch::Source(address) => Self::Source(address),
        }
    }
}

impl From<StoredMatch> for ProbeMatch {
    fn from(by: StoredMatch) -> Self {
        match by {
            StoredMatch::Destination(address) => Self::Destination(address),
            StoredMatch::Source(address) => Self::Source(address),
        }
        .canonical()
    }
}
