//! katran: a layer-4 load balancer to embed.

mod config;
mod error;
mod state;
mod types;

pub use config::Builder;
pub use config::Encapsulation;
pub use config::Features;
pub use config::FlowTableKind;
pub use error::Error;
pub use error::Result;
pub use state::BalancerState;
pub use state::Changes;
pub use state::State;
pub use state::VipState;
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
