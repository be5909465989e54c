//! What a ledger says, record by record. The numbers of the variants are those of the layout: a new one goes to the end,
//! and a version that does not know it refuses the ledger.

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
    /// The first one: the settings, and what was drawn at load.
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
    /// It is not, and nothing is left of it; packets may have met its new reals.
    Undone {
        met: bool,
    },
    /// What is changed from here to `End` is one change, of which a part is none.
    Begin,
    End,
}

/// What a change makes of what it touches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// Of VIPs and reals.
    pub(crate) edit: Option<StoredEdit>,
    /// Of the rest.
    pub(crate) changes: Vec<Change>,
}

/// What is drawn or found out at load, and stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drawn {
    /// The keys of the flow table's hash, of the VIP table's, and of server ids.
    pub(crate) flow_keys: Vec<u64>,
    pub(crate) vip_keys: Vec<u64>,
    pub(crate) server_id_keys: [u64; 2],
    /// Of the hash of flows: those of the settings that the balancer was loaded with first.
    pub(crate) hash_seeds: (u32, u32),
    /// The kernel's tick, in nanoseconds, and how many CPUs there can be.
    pub(crate) tick: u64,
    pub(crate) possible_cpus: u32,
}

/// New values of what a change touches, besides VIPs and reals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// All settings.
    Settings(Vec<u8>),
    /// Ids that go, and ids that come with the numbers of their reals; those that come are valid.
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
    /// Numbers that packets have met in a balancer that did not take this one's place.
    Met(Met),
}

/// By what probes are told.
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
