//! katran: a layer-4 load balancer to embed.

mod config;
mod error;
mod ring;
mod types;

pub use config::Builder;
pub use config::Encapsulation;
pub use config::Features;
pub use config::FlowTableKind;
pub use error::Error;
pub use error::Result;
pub use ring::Endpoint;
pub use ring::Ring;
pub use ring::RingSize;
pub use ring::backend_hash;
pub use types::Flow;
pub use types::HashFunction;
pub use types::MacAddr;
pub use types::Protocol;
pub use types::Real;
pub use types::RealChange;
pub use types::RealFlags;
pub use types::RealNumber;
pub use types::Vip;
pub use types::VipFlags;
