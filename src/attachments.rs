//! Where programs are attached, and where packets go from there.
//!
//! [`Katran::attach`](crate::Katran::attach) and its fellows return what they have attached; a
//! [`NextHop`] is what the library knows of the way to a real. [`Gateways`] is the view that lists them, and
//! [`GatewaysMut`] says to whom packets are sent.

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
