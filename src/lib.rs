//! A layer-4 load balancer to embed.
//!
//! An XDP program picks a backend ("real") for each flow by Maglev hashing, wraps its packets in
//! another IP packet and sends them on. Backends strip the outer header and answer clients
//! directly. Where a change would move flows, a flow table of fixed size remembers them. Your
//! program configures this through the crate; the kernel forwards packets without it.
//!
//! The crate is compatible on the wire with Facebook's Katran: hosts of both kinds behind one ECMP
//! route send every flow to the same backend.
//!
//! ```no_run
//! use katran::Katran;
//! use katran::Real;
//! use katran::RealChange;
//! use katran::Vip;
//! use katran::VipFlags;
//! use katran::XdpMode;
//!
//! let mut katran = Katran::builder()
//!     .gateway_mac("0a:00:00:00:00:fe".parse()?) // the router that leads to the reals
//!     .load()?; // checks, loads and verifies; attaches nothing
//! let vip = Vip::tcp("203.0.113.1:443".parse().unwrap());
//! katran.add_vip(vip, VipFlags::empty())?;
//! let reals = [
//!     Real::new("198.51.100.1".parse().unwrap()).weight(3),
//!     Real::new("198.51.100.2".parse().unwrap()),
//! ];
//! katran.modify_reals(vip, &reals.map(RealChange::Add))?;
//! katran.attach("eth0", XdpMode::Auto)?; // packets are balanced from here on
//! # fn shared<T: Send + Sync>() {}
//! # shared::<(Katran, katran::Decap, katran::RootProgram, katran::ServerIdOption)>();
//! # shared::<katran::events::Monitor>();
//! # Ok::<(), katran::Error>(())
//! ```
//!
//! # Handles
//! Each handle owns programs and maps in the kernel. Dropping it detaches and frees them, unless
//! they are pinned.
//!
//! | handle | what it is | made by |
//! | --- | --- | --- |
//! | [`Katran`] | the balancer | [`Builder`], from [`Katran::builder`] or [`State::builder`] |
//! | [`Decap`] | a backend's end of the tunnel | [`DecapBuilder`], from [`Decap::builder`] |
//! | [`RootProgram`] | an interface shared by several XDP programs | [`RootProgramBuilder`], from [`RootProgram::builder`] |
//! | [`ServerIdOption`] | the TCP option of server ids, on servers and clients | [`ServerIdOption::server`], [`client`](ServerIdOption::client) |
//! | [`Monitor`](events::Monitor) | a listener to events of packets | [`Katran::events`] |
//! | [`Health`](health::Health) | the threads that check reals (feature `health`) | [`Health::start`](health::Health::start) |
//!
//! `Katran` itself has the common calls. The calls of an area are methods of a view that borrows
//! it, one to read and one, with the suffix `_mut`, to change: [`stats`](Katran::stats),
//! [`gateways`](Katran::gateways), [`flows`](Katran::flows),
//! [`global_flows`](Katran::global_flows), [`server_ids`](Katran::server_ids),
//! [`source_routes`](Katran::source_routes), [`decap`](Katran::decap), [`probes`](Katran::probes).
//! All handles are `Send` and `Sync`; to change one from several threads, put it into a mutex. No
//! call blocks packets.
//!
//! # The life of a balancer
//! 1. **Configure.** Set a [`Builder`], or read a document with [`State::from_toml_file`].
//!    [`Builder::memory_estimate`] estimates its memory.
//! 2. **Load.** [`Builder::load`] checks the settings and runs the kernel's verifier, which takes
//!    one to four seconds. Nothing is attached yet.
//! 3. **Fill.** Add VIPs and reals by single calls, or all at once by [`Katran::apply`].
//! 4. **Attach** to interfaces with [`Katran::attach`], or to an entry of a root program with
//!    [`Katran::attach_shared`]. [`Katran::diagnose`] names what keeps packets from flowing.
//! 5. **Change** anything under traffic. A call that fails has changed nothing, unless its
//!    documentation says otherwise. `apply` also changes load-time settings, by loading a
//!    replacement beside the running balancer.
//! 6. **Drain** a real with weight 0 before maintenance, until [`Katran::drained`] is long enough;
//!    take a dead one out with [`Katran::mark_down`].
//! 7. **End** by dropping the handle. A balancer with [`Builder::pin`] keeps forwarding instead:
//!    the next process continues with it by [`Builder::adopt_or_load`], and [`remove`] ends it.
//!
//! # Where to look
//! | task | items |
//! | --- | --- |
//! | load and set sizes | [`Builder`], [`Features`], [`stats::MemoryEstimate`] |
//! | services and backends | [`Vip`], [`VipFlags`], [`Real`], [`Katran::modify_reals`] |
//! | configuration files | [`State`], [`Katran::apply`], [`Katran::changes_to`], [`state::Changes`] |
//! | interfaces | [`XdpMode`], [`attachments::Attachment`], [`Katran::interfaces`] |
//! | interfaces that come and go | [`events::Events::watch_attachments`], [`Katran::reattach`] |
//! | routers and next hops | [`Gateway`], [`NextHops`], [`attachments::Gateways`] |
//! | health of reals | [`Katran::mark_down`], [`probes`], [`health`] |
//! | counters for monitoring | [`Katran::counters`], [`stats::Counters::metrics`], [`stats`] |
//! | why a packet went where it did | [`Katran::simulate`], [`Katran::real_for_flow`], [`flows`] |
//! | why nothing arrives | [`Katran::diagnose`], [`Decap::diagnose`], [`diagnosis`] |
//! | flows and drains | [`FlowTracking`], [`Katran::drained`], [`flows::Flows`] |
//! | routing by server id or client prefix | [`routing`], [`ServerId`], [`SourceRoute`] |
//! | flows whose real you choose | [`flows::GlobalFlowsMut`] |
//! | tunnels that end at the balancer | [`routing::InlineDecapMut`], [`DecapMode`] |
//! | packet events and callbacks | [`events`], [`Katran::on_real_added`] |
//! | upgrades without a gap | [`Builder::pin`], [`Builder::take_over`], [`pinned`], [`remove`] |
//! | the rings themselves, without a kernel | [`ring`] |
//! | errors | [`Error`]: each names the operation, its object and a remedy |
//!
//! The repository's `docs/` has guides for operators and embedders, a glossary, and the reference
//! of configuration keys and metrics.
//!
//! # Requirements
//! Linux 6.1 or newer; items that need more say so. Root, or `CAP_BPF`, `CAP_NET_ADMIN` and
//! `CAP_PERFMON`. Building needs clang 14 or newer, libelf, zlib and the kernel's headers.
//!
//! # Features of the crate
//! - `serde` (on by default): [`State`] as a TOML document, and counters as serialisable values.
//! - `health`: [health checks](health), which probe reals and take dead ones out.

#![cfg_attr(docsrs, feature(doc_cfg))]
// The page above links into `health`.
#![cfg_attr(not(feature = "health"), allow(rustdoc::broken_intra_doc_links))]
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

/// The code of the README and the guides, compiled as documentation tests.
#[cfg(all(doctest, feature = "serde"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/embedding.md")]
    struct Embedding;
}
