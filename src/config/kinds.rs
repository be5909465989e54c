//! Choices that are made once, at load: how packets are wrapped and how flows are remembered.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// How packets travel to the reals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213). The default.
    #[default]
    Ipip,
    /// Generic UDP encapsulation, variant 1. Not in this version: loading with it is an error.
    Gue,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        })
    }
}

impl FromStr for Encapsulation {
    type Err = Error;

    /// `ipip` or `gue`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "ipip" => Ok(Self::Ipip),
            "gue" => Ok(Self::Gue),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "an encapsulation, `ipip` or `gue`",
            }),
        }
    }
}

/// How the flow table is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlowTableKind {
    /// One LRU hash map of the kernel for each forwarding CPU. Entries can be listed; each takes
    /// about 120 bytes. The default.
    #[default]
    KernelLru,
}

impl fmt::Display for FlowTableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelLru => "kernel-lru",
        })
    }
}

impl FromStr for FlowTableKind {
    type Err = Error;

    /// `kernel-lru`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "kernel-lru" => Ok(Self::KernelLru),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "a kind of flow table, `kernel-lru`",
            }),
        }
    }
}
