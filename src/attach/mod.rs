//! Attaches programs: to interfaces by XDP, at tc, or through a root entry; and to cgroups.
//!
//! All kinds share one list ([`Attachments`]): it identifies interfaces by network namespace and
//! index, reports the kernel's view, and switches the program of all or none.

mod cgroup;
mod entry;
mod far_end;
mod kept;
mod link_state;
mod list;
mod mode;
mod place;
mod removal;
mod sent;
mod shared;
mod tc;
mod xdp;

pub use cgroup::CgroupAttachment;
pub(crate) use cgroup::CgroupLink;
pub(crate) use cgroup::is_forlorn;
pub(crate) use entry::Entry;
pub(crate) use entry::EntrySet;
pub use entry::SharedEntry;
pub(crate) use entry::beside;
pub(crate) use entry::directory_of;
pub(crate) use entry::files_beside;
pub(crate) use entry::special_pins;
pub(crate) use far_end::FarEnd;
pub(crate) use kept::given_up;
pub(crate) use kept::made_for;
pub(crate) use list::Attached;
pub(crate) use list::Attachments;
pub(crate) use list::OnInterface;
pub(crate) use list::Switched;
pub(crate) use list::Witness;
pub(crate) use list::put_back;
pub use mode::NotNative;
pub use mode::XdpMode;
pub use place::AttachmentState;
pub(crate) use place::Named;
pub(crate) use place::Place;
pub(crate) use place::absolute;
pub(crate) use place::here;
pub(crate) use removal::end_kept;
pub use shared::EntryProgram;
pub use shared::SharedEntries;
pub use tc::TcAttachment;
pub(crate) use tc::TcLink;
pub(crate) use tc::TcPlan;
pub use xdp::Attachment;
pub(crate) use xdp::Onward;
pub(crate) use xdp::XdpLink;
