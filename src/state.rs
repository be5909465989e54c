//! The parts of a [`State`](crate::State), and what two of them differ in.
//!
//! A state is a document: all that a balancer is to do. [`Katran::state`](crate::Katran::state) takes it down,
//! [`Katran::apply`](crate::Katran::apply) brings it about and returns the [`Changes`].

pub use crate::config::BalancerState;
pub use crate::document::Changes;
pub use crate::document::DecapState;
#[cfg(feature = "serde")]
pub use crate::document::Document;
pub use crate::document::MarkState;
pub use crate::document::ProbeMatch;
pub use crate::document::ProbeMatchState;
pub use crate::document::ServerIdState;
pub use crate::document::VipState;
pub use crate::types::MaxFrame;
pub use crate::types::OuterDontFragment;
