//! Putting a program on an interface, and taking it off.

mod shared;
mod tc;
mod xdp;

pub use shared::EntryProgram;
pub(crate) use shared::SharedAttachments;
pub use shared::SharedEntries;
pub use tc::TcAttachment;
pub(crate) use tc::TcAttachments;
pub use tc::TcHook;
pub use xdp::Attachment;
pub(crate) use xdp::Attachments;
pub use xdp::XdpMode;
