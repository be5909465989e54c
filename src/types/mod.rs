//! The vocabulary of the crate: VIPs, reals, flows, MAC addresses.
//!
//! Each is parsed once, on the way in; a function that takes one of these types cannot get a
//! malformed one. Nothing here needs a kernel.

mod address;
mod decap_mode;
mod family;
mod flow;
mod kinds;
mod mac;
mod names;
mod prefix;
mod real;
mod server_id;
mod source_route;
mod stored;
mod vip;

pub(crate) use address::check_host;
pub(crate) use address::check_real;
pub(crate) use address::check_vip;
pub use decap_mode::DecapMode;
pub(crate) use family::ByFamily;
pub use family::Family;
pub use flow::Flow;
pub use flow::Protocol;
pub(crate) use flow::address_bytes;
pub use kinds::Encapsulation;
pub use kinds::FlowTableKind;
pub use kinds::FlowTracking;
pub use kinds::Gateway;
pub(crate) use kinds::Health;
pub use kinds::MaxFrame;
pub use kinds::NextHops;
pub use kinds::OuterDontFragment;
pub use kinds::ProbeSource;
pub use kinds::TcHook;
pub use mac::MacAddr;
pub(crate) use names::flag_by_name;
pub(crate) use names::flag_names;
pub(crate) use names::read_set;
pub(crate) use names::text_form;
pub(crate) use names::write_set;
pub use prefix::Prefix;
pub use real::Real;
pub use real::RealChange;
pub use real::RealFlags;
pub use real::RealNumber;
pub use server_id::ServerId;
pub(crate) use server_id::check_mark;
pub(crate) use server_id::check_server_id;
pub use source_route::SourceRoute;
pub(crate) use stored::Nonsense;
pub(crate) use stored::StoredPrefix;
pub(crate) use stored::StoredVip;
pub(crate) use stored::canonical;
pub use vip::HashFunction;
pub use vip::Vip;
pub use vip::VipFlags;
pub(crate) use vip::VipNumber;
pub(crate) use vip::check_vip_flags;
