//! Putting a program on an interface, and taking it off.

mod shared;
mod tc;
mod xdp;

pub use shared::EntryProgram;
pub(crate) use shared::EntrySet;
pub(crate) use shared::SharedAttachments;
pub use shared::SharedEntries;
pub(crate) use shared::beside;
pub(crate) use shared::directory_of;
pub(crate) use shared::files_beside;
pub(crate) use shared::special_pins;
pub use tc::TcAttachment;
pub(crate) use tc::TcAttachments;
pub use xdp::Attachment;
pub(crate) use xdp::Attachments;
pub use xdp::XdpMode;
