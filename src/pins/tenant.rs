//! The tenant of a pinned directory: what kind of thing outlives its process there.

use std::path::Path;

use super::layout;
use crate::error::Error;

/// What is pinned in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tenant {
    Balancer,
    Decapsulator,
    ServerIdOption,
}

impl Tenant {
    const ALL: [Self; 3] = [Self::Balancer, Self::Decapsulator, Self::ServerIdOption];

    /// Its number in the identity of a directory, for good.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Balancer => 0,
            Self::Decapsulator => 1,
            Self::ServerIdOption => 2,
        }
    }

    /// The tenant with a number; `None`: a later version made it.
    pub(super) fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.number() == number)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Decapsulator => "decapsulator",
            Self::ServerIdOption => "server id option",
        }
    }

    /// The layout number of its programs and maps.
    pub(super) fn layout(self) -> u64 {
        match self {
            Self::Balancer => layout::LAYOUT,
            Self::Decapsulator => layout::DECAPSULATOR,
            Self::ServerIdOption => layout::SERVER_ID_OPTION,
        }
    }

    /// The same for the parts.
    pub(super) fn parts(self) -> [u64; layout::PARTS] {
        match self {
            Self::Balancer => layout::BALANCER,
            Self::Decapsulator | Self::ServerIdOption => layout::OTHERS,
        }
    }

    /// The error for a directory without one, or without a whole one.
    pub(crate) fn missing(self, directory: &Path) -> Error {
        Error::NotFound {
            what: format!("a whole {} in {}", self.name(), directory.display()),
        }
    }
}
