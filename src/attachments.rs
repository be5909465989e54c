//! Attachments, and the next hops of packets.
//!
//! [`Katran::attach`](crate::Katran::attach) and similar calls return an [`Attachment`]; a
//! [`NextHop`] is what the library knows about the path to a real. [`Gateways`] lists next hops,
//! and [`GatewaysMut`] changes gateways and sources.

pub use crate::attach::Attachment;
pub use crate::attach::AttachmentState;
pub use crate::attach::CgroupAttachment;
pub use crate::attach::EntryProgram;
pub use crate::attach::NotNative;
pub use crate::attach::SharedEntries;
pub use crate::attach::SharedEntry;
pub use crate::attach::TcAttachment;
pub use crate::katran::AttachedTo;
pub use crate::katran::AttachmentChange;
pub use crate::katran::AttachmentWatch;
pub use crate::katran::Gateways;
pub use crate::katran::GatewaysMut;
pub use crate::next_hop::NextHop;
pub use crate::next_hop::NextHopList;
pub use crate::types::TcHook;
