//! Single flows and packets: to which real they go, by what, and what the flow tables hold.
//!
//! [`Katran::simulate`](crate::Katran::simulate) sends a frame through the loaded program and returns a
//! [`Simulation`]; [`Katran::real_for_flow`](crate::Katran::real_for_flow) asks for a flow's real without a trace.
//! [`Flows`] and [`GlobalFlows`] read what the tables hold, [`FlowsMut`] and [`GlobalFlowsMut`] change it.

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
