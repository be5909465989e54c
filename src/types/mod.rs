//! The vocabulary of the crate: VIPs, reals, flows, MAC addresses.
//!
//! Each is parsed once, on the way in; whoever takes one of these types cannot get a malformed
//! one. Nothing here needs a kernel.

mod flow;
mod mac;
mod real;
mod vip;

pub use flow::Flow;
pub use flow::Protocol;
pub use mac::MacAddr;
pub use real::Real;
pub use real::RealChange;
pub use real::RealFlags;
pub use real::RealNumber;
pub use vip::HashFunction;
pub use vip::Vip;
pub use vip::VipFlags;
