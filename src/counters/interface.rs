//! Counters of an interface itself, beside the program's.

/// What an interface did with frames to send, since the balancer was attached to it or this process
/// adopted it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct InterfaceCounters {
    /// The interface's name.
    pub interface: String,
    /// The interface's index in its network namespace.
    pub index: u32,
    /// The kernel's number of that namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// Frames sent, including the host's (`tx_packets` of `ip -s link`). Some drivers leave out
    /// what XDP sends.
    pub sent: u64,
    /// Frames not sent. In native mode those of XDP programs, if the driver counts them: `ethtool
    /// -S` shows them under names such as `rx_queue_0_xdp_tx_errors` (veth), `tx_xdp_tx_drops`
    /// (virtio_net) or `rx_xdp_tx_full` (mlx5). Otherwise all frames that it dropped or failed to
    /// send, including the host's (`tx_dropped` and `tx_errors` of `ip -s link`).
    pub unsent: u64,
}
