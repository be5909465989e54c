//! Single flows and packets: their real, the reason for it, and flow entries.
//!
//! [`Katran::simulate`](crate::Katran::simulate) runs the loaded program on a frame and returns a
//! [`Simulation`]; [`Katran::real_for_flow`](crate::Katran::real_for_flow) looks up a flow's real
//! without a trace. [`Flows`] and [`GlobalFlows`] read the tables, [`FlowsMut`] and
//! [`GlobalFlowsMut`] change them.

pub use crate::katran::Answer;
pub use crate::katran::Choice;
pub use crate::katran::FlowCount;
pub use crate::katran::FlowEntry;
pub use crate::katran::FlowStats;
pub use crate::katran::Flows;
pub use crate::katran::FlowsMut;
pub use crate::katran::GlobalFlows;
pub use crate::katran::GlobalFlowsMut;
pub use crate::katran::Reason;
pub use crate::katran::Simulation;
pub use crate::katran::Verdict;
