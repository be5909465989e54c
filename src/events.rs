//! What happens while packets flow: packets that are shown, and reals that come and go.
//!
//! [`Katran::events`](crate::Katran::events) starts a [`Monitor`], which hands each [`Event`] to a function, to a
//! list or to pcap files. [`Katran::on_real_added`](crate::Katran::on_real_added) and others
//! register callbacks, which a [`CallbackId`] ends.

pub use crate::katran::CallbackId;
pub use crate::katran::Events;
pub use crate::monitor::Event;
pub use crate::monitor::EventKind;
pub use crate::monitor::Monitor;
pub use crate::monitor::MonitorOptions;
pub use crate::monitor::MonitorStats;
