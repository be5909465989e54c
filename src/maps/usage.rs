//! The fill level of maps, for monitoring.

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MapUse {
    /// The map's name, as in [`MemoryEstimate`](crate::stats::MemoryEstimate).
    pub name: &'static str,
    /// Elements that it can hold.
    pub capacity: u64,
    /// Elements in use.
    pub entries: u64,
}
