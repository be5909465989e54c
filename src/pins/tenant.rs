//! Whose a pinned directory is: each kind of thing that outlives its process has one of its own.

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

    /// That with a number; `None`: a later version has made it.
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

    /// What its programs and maps mean.
    pub(super) fn layout(self) -> u64 {
        match self {
            Self::Balancer => layout::LAYOUT,
            Self::Decapsulator => layout::DECAPSULATOR,
            Self::ServerIdOption => layout::SERVER_ID_OPTION,
        }
    }

    /// The same of the parts.
    pub(super) fn parts(self) -> [u64; layout::PARTS] {
        match self {
            Self::Balancer => layout::BALANCER,
            Self::Decapsulator | Self::ServerIdOption => layout::OTHERS,
        }
    }

    /// The error for a directory that has none of them, or none that is whole.
    pub(crate) fn missing(self, directory: &Path) -> Error {
        Error::NotFound {
            what: format!("a whole {} in {}", self.name(), directory.display()),
        }
    }
}
