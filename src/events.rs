//! Events: packets worth a look, and reals that come and go.
//!
//! [`Katran::events`](crate::Katran::events) starts a [`Monitor`], which passes each [`Event`] to a
//! function, to a list or to pcap files. [`Katran::on_real_added`](crate::Katran::on_real_added)
//! and [`on_real_removed`](crate::Katran::on_real_removed) register callbacks, and return a
//! [`CallbackId`] to remove them by.

pub use crate::katran::CallbackId;
pub use crate::katran::Events;
pub use crate::monitor::Event;
pub use crate::monitor::EventKind;
pub use crate::monitor::Monitor;
pub use crate::monitor::MonitorOptions;
pub use crate::monitor::MonitorStats;
