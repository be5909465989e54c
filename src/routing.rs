//! Routing besides rings and flow tables: server ids, source routes, and tunnels that end at the
//! balancer.
//!
//! All are views that borrow a [`Katran`](crate::Katran): [`ServerIds`], [`SourceRoutes`] and
//! [`InlineDecap`] to read, the others to change.

pub use crate::katran::InlineDecap;
pub use crate::katran::InlineDecapMut;
pub use crate::katran::ServerIds;
pub use crate::katran::ServerIdsMut;
pub use crate::katran::SourceRoutes;
pub use crate::katran::SourceRoutesMut;
