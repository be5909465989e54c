//! Diagnoses why packets do not arrive: what is wrong with a host, an interface or a configuration.
//!
//! [`Katran::diagnose`](crate::Katran::diagnose) and [`Decap::diagnose`](crate::Decap::diagnose)
//! return a [`Diagnosis`]: a list of [`Finding`]s with remedies. [`Diagnosis::of_host`] and
//! [`Diagnosis::of_pinned`] need no handle.

pub use crate::diagnose::Diagnosis;
pub use crate::diagnose::Finding;
pub use crate::diagnose::Severity;
pub use crate::diagnose::Subject;
pub use crate::pins::Pinned;
pub use crate::pins::PinnedKind;
pub use crate::pins::PinnedOwner;
pub use crate::pins::PinnedStage;
