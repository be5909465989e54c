//! katran: a layer-4 load balancer to embed.
//!
//! An XDP program picks a backend ("real") for each flow by Maglev hashing, wraps its packets in
//! another IP packet and sends them on; where a change would move flows, a table of fixed size
//! remembers them. Backends answer clients directly. This crate loads and steers that program: [`Katran`] for the
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
//! The names at the root are the handles and the words in which they are spoken to. The rest is in modules,
//! by subject: [`stats`], [`state`], [`events`], [`diagnosis`], [`flows`], [`attachments`],
//! [`routing`], [`probes`] and [`ring`].
//!
//! # Features
//! - `serde` (on by default): [`State`] as a TOML document, and counters as serialisable values.
//! - `health`: [health checks](health), which probe reals and take those out that do not answer.

#![deny(unsafe_code)]

pub mod attachments;
pub mod diagnosis;
pub mod events;
pub mod flows;
#[cfg(feature = "health")]
pub mod health;
pub mod probes;
pub mod ring;
pub mod routing;
pub mod state;
pub mod stats;

mod attach;
mod config;
mod counters;
mod decap;
mod diagnose;
mod document;
mod environment;
mod error;
mod fou;
#[cfg(test)]
mod generated;
mod healthcheck;
mod katran;
mod kernel;
mod ledger;
mod links;
mod maps;
mod monitor;
#[cfg(test)]
mod mutate;
mod next_hop;
mod pins;
#[cfg(test)]
mod records;
mod root_program;
mod rtnetlink;
mod server_id_option;
mod skel;
#[cfg(test)]
mod structure;
#[allow(unsafe_code)]
mod sys;
mod table;
mod types;
#[cfg(test)]
mod words;

pub use attach::XdpMode;
pub use config::Builder;
pub use config::Features;
pub use decap::Decap;
pub use decap::DecapBuilder;
pub use document::State;
pub use error::Error;
pub use error::Result;
pub use katran::Katran;
pub use katran::Start;
pub use pins::pinned;
pub use pins::remove;
pub use root_program::RootProgram;
pub use root_program::RootProgramBuilder;
pub use server_id_option::ServerIdOption;
pub use types::DecapMode;
pub use types::Encapsulation;
pub use types::Family;
pub use types::Flow;
pub use types::FlowTableKind;
pub use types::FlowTracking;
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
pub use types::Vip;
pub use types::VipFlags;

/// The code of README and guide, compiled as documentation tests.
#[cfg(all(doctest, feature = "serde"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/embedding.md")]
    struct Embedding;
}
