//! Putting a program on an interface, and taking it off: by XDP, at tc, or as an entry of a root program.
//!
//! All kinds are links to the same list ([`Attachments`]): it tells them apart by network namespace and
//! index, says what the kernel has made of them, and gives all of them another program or none.

mod list;
mod place;
mod shared;
mod tc;
mod xdp;

pub(crate) use list::Attached;
pub use list::AttachmentState;
pub(crate) use list::Attachments;
pub(crate) use list::OnInterface;
pub(crate) use list::put_back;
pub(crate) use place::Named;
pub(crate) use place::Namespace;
pub(crate) use place::Place;
pub(crate) use place::here;
pub(crate) use shared::Entry;
pub use shared::EntryProgram;
pub(crate) use shared::EntrySet;
pub use shared::SharedEntries;
pub use shared::SharedEntry;
pub(crate) use shared::beside;
pub(crate) use shared::directory_of;
pub(crate) use shared::files_beside;
pub(crate) use shared::special_pins;
pub use tc::TcAttachment;
pub(crate) use tc::TcLink;
pub(crate) use tc::TcPlan;
pub use xdp::Attachment;
pub(crate) use xdp::XdpLink;
pub use xdp::XdpMode;
