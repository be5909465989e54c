//! Health checks that go the way of clients' packets: which packets of a checker reach which real.
//!
//! These are views of a [`Katran`](crate::Katran), which borrow it. [`Real`](crate::Real)s that are found dead are
//! taken out by [`Katran::mark_down`](crate::Katran::mark_down).

pub use crate::katran::Probes;
pub use crate::katran::ProbesMut;
pub use crate::types::ProbeSource;
