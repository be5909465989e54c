//! The health-check path: probes that take the same path as clients' packets, each to one real.
//!
//! [`Probes`] and [`ProbesMut`] are views that borrow a [`Katran`](crate::Katran). Take a dead
//! [`Real`](crate::Real) out by [`Katran::mark_down`](crate::Katran::mark_down).

pub use crate::katran::Probes;
pub use crate::katran::ProbesMut;
pub use crate::types::ProbeSource;
