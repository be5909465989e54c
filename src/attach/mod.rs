//! Putting a program on an interface, and taking it off.

mod xdp;

pub use xdp::Attachment;
pub(crate) use xdp::Attachments;
pub use xdp::XdpMode;
