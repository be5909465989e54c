//! Events while packets flow: noteworthy packets, and reals that come and go.
//!
//! [`Katran::events`](crate::Katran::events) starts a [`Monitor`], which delivers each [`Event`] to
//! a function, a list or pcap files. [`Katran::on_real_added`](crate::Katran::on_real_added) and
//! similar calls register callbacks, which a [`CallbackId`] ends.

pub use crate::katran::CallbackId;
pub use crate::katran::Events;
pub use crate::monitor::Event;
pub use crate::monitor::EventKind;
pub use crate::monitor::Monitor;
pub use crate::monitor::MonitorOptions;
pub use crate::monitor::MonitorStats;
