//! The parts of a [`State`](crate::State), and the differences between two states.
//!
//! A state is the whole configuration of a balancer. [`Katran::state`](crate::Katran::state)
//! returns it, [`Katran::apply`](crate::Katran::apply) establishes it and returns the [`Changes`].

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
