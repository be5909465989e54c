//! katran: a layer-4 load balancer to embed.
//!
//! An XDP program picks a backend ("real") for each flow by Maglev hashing, remembers the flow in
//! a table of fixed size, wraps its packets in another IP packet and sends them on; backends
//! answer clients directly. This crate loads and steers that program: [`Katran`] for the
//! balancer, [`Decap`] for the backend's end of the tunnel. It is compatible on the wire with
//! Facebook's Katran: hosts of both kinds behind one ECMP route send every flow to the same
//! backend.
//!
//! ```no_run
//! use katran::Katran;
//! use katran::Real;
//! use katran::Vip;
//! use katran::VipFlags;
//! use katran::XdpMode;
//!
//! let mut katran = Katran::builder()
//!     .gateway_mac("0a:00:00:00:00:fe".parse()?) // the router that leads to the reals
//!     .load()?;
//! let vip = Vip::tcp("203.0.113.1:443".parse().unwrap());
//! katran.add_vip(vip, VipFlags::empty())?;
//! katran.add_real(vip, Real::new("198.51.100.1".parse().unwrap()).weight(3))?;
//! katran.add_real(vip, Real::new("198.51.100.2".parse().unwrap()))?;
//! katran.attach("eth0", XdpMode::Auto)?;
//! # Ok::<(), katran::Error>(())
//! ```
//!
//! Needs Linux 6.1 or newer, and root or `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`.
//!
//! # Features
//! - `serde` (on by default): [`State`] as a TOML document, and counters as serialisable values.

mod attach;
mod config;
mod decap;
mod diagnose;
mod document;
mod environment;
mod error;
mod healthcheck;
mod katran;
mod kernel;
mod maps;
mod monitor;
mod next_hop;
mod ring;
mod root_program;
mod rtnetlink;
mod server_id_option;
mod skel;
mod sys;
mod table;
mod types;

pub use attach::Attachment;
pub use attach::EntryProgram;
pub use attach::SharedEntries;
pub use attach::TcAttachment;
pub use attach::XdpMode;
pub use config::Builder;
pub use config::Features;
pub use config::MapMemory;
pub use config::MemoryEstimate;
pub use decap::Decap;
pub use decap::DecapBuilder;
pub use decap::DecapCounters;
pub use diagnose::Diagnosis;
pub use diagnose::Finding;
pub use diagnose::Severity;
pub use diagnose::Subject;
pub use document::BalancerState;
pub use document::Changes;
pub use document::DecapState;
pub use document::MarkState;
pub use document::ProbeMatch;
pub use document::ProbeMatchState;
pub use document::ServerIdState;
pub use document::State;
pub use document::VipState;
pub use error::Error;
pub use error::Result;
pub use healthcheck::HealthcheckCounters;
pub use katran::Answer;
pub use katran::CallbackId;
pub use katran::Choice;
pub use katran::Count;
pub use katran::Counters;
pub use katran::CpuCounters;
pub use katran::DropReason;
pub use katran::DropReasons;
pub use katran::EncapFailures;
pub use katran::EventCounters;
pub use katran::FlowEntry;
pub use katran::FlowStats;
pub use katran::FlowTableCounters;
pub use katran::GlobalFlowCounters;
pub use katran::IcmpCounters;
pub use katran::InlineDecapCounters;
pub use katran::Katran;
pub use katran::LibraryCounters;
pub use katran::QuicCounters;
pub use katran::RealCounters;
pub use katran::Reason;
pub use katran::RingDrops;
pub use katran::Simulation;
pub use katran::SourceRoutingCounters;
pub use katran::StableUdpCounters;
pub use katran::TcpServerIdCounters;
pub use katran::Totals;
pub use katran::UdpFlowMigrationCounters;
pub use katran::Verdict;
pub use katran::VipCounters;
pub use maps::MapUse;
pub use monitor::Event;
pub use monitor::EventKind;
pub use monitor::Monitor;
pub use monitor::MonitorOptions;
pub use monitor::MonitorStats;
pub use next_hop::NextHop;
pub use ring::Endpoint;
pub use ring::Ring;
pub use ring::RingSize;
pub use ring::backend_hash;
pub use root_program::RootProgram;
pub use root_program::RootProgramBuilder;
pub use server_id_option::ServerIdOption;
pub use server_id_option::ServerIdOptionCounters;
pub use types::DecapMode;
pub use types::Encapsulation;
pub use types::Flow;
pub use types::FlowTableKind;
pub use types::Gateway;
pub use types::HashFunction;
pub use types::MacAddr;
pub use types::NextHops;
pub use types::Prefix;
pub use types::Protocol;
pub use types::Real;
pub use types::RealChange;
pub use types::RealFlags;
pub use types::RealNumber;
pub use types::ServerId;
pub use types::SourceRoute;
pub use types::TcHook;
pub use types::Vip;
pub use types::VipFlags;

/// The code of README and guide, compiled as documentation tests.
#[cfg(all(doctest, feature = "serde"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../docs/features.md")]
    struct Features;
    #[doc = include_str!("../docs/host.md")]
    struct Host;
}
