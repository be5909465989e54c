//! The balancer's treatment of a frame, implemented a second time: plain Rust, written from the
//! specification and not from the C program, to read, and to compare the program with.
//!
//! A [`Balancer`] is a configuration, tables and counters. [`Balancer::walk`] takes a frame and
//! gives the verdict and the frame as it leaves; tables, counters and [`Balancer::events`] change
//! as they would in the kernel. One balancer is one CPU's view, as CPUs share nothing that a packet
//! changes.
//!
//! Read it in the order of the walk:
//!
//! | step | module | what |
//! | --- | --- | --- |
//! | 0 | [`walk`](mod@walk) | Ethernet, VLAN tags, the order of all others |
//! | 1 | [`ip`] | the IP header: what is for a VIP, and what is the host's |
//! | 2 | [`icmp`] | echo requests, and errors that belong to a flow |
//! | 3 | [`tunnel`] | tunnels that end here |
//! | 4 | [`transport`] | ports, and TCP's flags |
//! | 5 | [`vip`] | which VIP |
//! | 6 | [`too_big`] | frames that are too long |
//! | 7, 8 | [`choose`] | the flow, and its real: [`ids`], [`flow`], [`hash`]; [`slots`] where tables know only changed flows |
//! | 9 | [`out`] | local delivery, or an outer header |
//!
//! [`history`] is what changes of a VIP leave in its slots. [`decap`] is the tunnel's other end, on
//! a backend; [`probe`] wraps this host's own health checks.

pub mod bytes;
pub mod choose;
pub mod config;
pub mod decap;
pub mod flow;
pub mod hash;
pub mod history;
pub mod icmp;
pub mod ids;
pub mod ip;
pub mod out;
pub mod probe;
pub mod slots;
pub mod tables;
pub mod too_big;
pub mod transport;
pub mod tunnel;
pub mod vip;
pub mod walk;

use std::collections::BTreeMap;

pub use config::Config;
pub use config::Encapsulation;
pub use config::Features;
pub use config::Tracking;
pub use decap::Decap;
pub use flow::Entry;
pub use flow::Flow;
pub use flow::FlowTable;
pub use history::Before;
pub use history::Unsettled;
pub use out::MadeUp;
pub use probe::Probes;
pub use tables::DecapMode;
pub use tables::Hop;
pub use tables::Port;
pub use tables::Real;
pub use tables::RealId;
pub use tables::Tables;
pub use tables::Vip;
pub use tables::VipFlags;
pub use tables::VipNumber;

/// A time, in milliseconds of a clock that never goes back.
pub type Time = u64;

/// The verdict on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sent out of the interface that it arrived on.
    Tx,
    /// Sent out of another interface, which leads to its real.
    Redirect,
    /// Handed to the host's network stack.
    Pass,
    /// Dropped.
    Drop,
}

/// How a walk ends: a verdict, and its reason by the name in counters and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Sent.
    Tx(&'static str),
    /// Sent out of another interface.
    Redirect(&'static str),
    /// Handed to the host.
    Pass(&'static str),
    /// Dropped. The reasons of drops are counted.
    Drop(&'static str),
}

/// A step's result: what it learned, or the end of the walk.
pub type Step<T> = Result<T, End>;

/// The result for a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict and its reason.
    pub end: End,
    /// The frame as it leaves; a dropped one's bytes do not count.
    pub frame: Vec<u8>,
    /// Its VIP, if one was found.
    pub vip: Option<VipNumber>,
    /// The real that it was sent to or delivered for.
    pub real: Option<RealId>,
    /// What chose the real, by the name in `simulate`; none: nothing was chosen.
    pub chosen: Option<&'static str>,
}

impl End {
    /// The verdict alone.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Tx(_) => Verdict::Tx,
            Self::Redirect(_) => Verdict::Redirect,
            Self::Pass(_) => Verdict::Pass,
            Self::Drop(_) => Verdict::Drop,
        }
    }
}

/// An event for the host application: its kind, and the frame as it was at that step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `tcp_non_syn_miss`, `packet_too_big` or `quic_real_gone`.
    pub kind: &'static str,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Counters by `group.name`, as in reports; those at 0 are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<(&'static str, &'static str), u64>);

impl Counters {
    /// Adds to a counter.
    pub fn add(&mut self, group: &'static str, name: &'static str, by: u64) {
        *self.0.entry((group, name)).or_default() += by;
    }
}

/// Packets and bytes, and the other counters of one VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipCounters {
    /// Packets that went to a real or were delivered to this host.
    pub packets: u64,
    /// Their bytes, by the IP header's length field.
    pub bytes: u64,
    /// Unwrapped from GUE for this host's stack.
    pub decap: u64,
    /// Packets that open a connection, so that an id may follow.
    pub server_id_new: u64,
    /// Flows that an id took from another real.
    pub server_id_moved: u64,
}

/// The counters of one real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealCounters {
    /// Packets of all VIPs.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// New flows of the watched VIP.
    pub misses: u64,
}

/// The counters of one VIP that are kept on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipDetails {
    /// TCP packets with SYN that were forwarded.
    pub syns: u64,
    /// Packets to a real without a pair.
    pub unpaired: u64,
}

/// The counters of a pair of VIP and real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairCounters {
    /// Packets of the VIP to the real.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets with SYN.
    pub syns: u64,
}

/// A balancer, as one CPU knows it.
#[derive(Clone, Debug)]
pub struct Balancer {
    /// The configuration of its load.
    pub config: Config,
    /// The tables that the host application fills.
    pub tables: Tables,
    /// The table that packets fill.
    pub flows: FlowTable,
    /// The flood guard's window.
    pub flood: flow::Flood,
    /// Frames that this CPU has sent.
    pub sent: u64,
    /// Counters besides those of VIPs and reals.
    pub counters: Counters,
    /// Counters of VIPs.
    pub of_vips: BTreeMap<VipNumber, VipCounters>,
    /// Counters of reals.
    pub of_reals: BTreeMap<RealId, RealCounters>,
    /// Counters of VIPs on demand.
    pub details: BTreeMap<VipNumber, VipDetails>,
    /// Counters of pairs.
    pub pairs: BTreeMap<(VipNumber, RealId), PairCounters>,
    /// Events for the host application.
    pub events: Vec<Event>,
}

impl Balancer {
    /// A balancer that has seen no frame.
    pub fn new(config: Config, tables: Tables) -> Self {
        Self {
            config,
            tables,
            flows: FlowTable::default(),
            flood: flow::Flood::default(),
            sent: 0,
            counters: Counters::default(),
            of_vips: BTreeMap::new(),
            of_reals: BTreeMap::new(),
            details: BTreeMap::new(),
            pairs: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn count(&mut self, group: &'static str, name: &'static str) {
        self.counters.add(group, name, 1);
    }

    /// Reports an event, if the host application listens.
    pub(crate) fn tell(&mut self, kind: &'static str, frame: &[u8]) {
        if self.config.features.introspection && self.tables.listens {
            self.count("events", kind);
            self.events.push(Event {
                kind,
                frame: frame.to_vec(),
            });
        }
    }
}
