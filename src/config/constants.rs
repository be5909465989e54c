//! How settings are written into the program's load-time constants (`bpf/config.h`). The rows of
//! `settings.rs` assign settings to constants; this file has the conversions of choices, prefixes
//! and times.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use crate::skel::katran::types;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::FlowTracking;

/// `time` in ticks, rounded up.
pub(crate) fn ticks(time: Duration, tick: Duration) -> u32 {
    let ticks = time.as_nanos().div_ceil(tick.as_nanos());
    // A day, the longest time, would not fit in ticks of a microsecond; a tick is 1 to 10 ms.
    u32::try_from(ticks).unwrap_or(u32::MAX / 2)
}

/// A setting as `word` converts it, with the kernel's tick. (A function, so that the rows' closures
/// need no types.)
pub(super) fn write_by<S, T>(setting: &S, tick: Duration, word: fn(&S, Duration) -> T) -> T {
    word(setting, tick)
}

pub(super) fn encapsulation(of: Encapsulation) -> u32 {
    match of {
        Encapsulation::Ipip => types::encapsulation::ENCAPSULATION_IPIP.0,
        Encapsulation::Gue => types::encapsulation::ENCAPSULATION_GUE.0,
    }
}

pub(super) fn flow_table_kind(of: FlowTableKind) -> u32 {
    match of {
        FlowTableKind::SetAssociative => types::flow_table_constant::FLOW_TABLE_SETS.0,
        FlowTableKind::KernelLru => types::flow_table_constant::FLOW_TABLE_LRU.0,
    }
}

pub(super) fn flow_tracking(of: FlowTracking) -> u32 {
    match of {
        FlowTracking::All => types::flow_tracking::TRACK_ALL.0,
        FlowTracking::Changed => types::flow_tracking::TRACK_CHANGED.0,
    }
}

/// How far ticks are shifted to make a history's moments: so that a time-out has about 64 to 128 of
/// them where ticks are fine enough, and 15 bits last for hundreds of time-outs. The two low bits
/// of ticks have another meaning.
pub(crate) fn moment_shift(timeout: Duration, tick: Duration) -> u32 {
    (ticks(timeout, tick) / 64).max(4).ilog2()
}

/// The first half of an address, in memory order.
pub(crate) fn prefix_v4(first: Ipv4Addr) -> u16 {
    let [a, b, ..] = first.octets();
    u16::from_ne_bytes([a, b])
}

/// The first three quarters of an address, words in memory order.
pub(crate) fn prefix_v6(first: Ipv6Addr) -> [u32; 3] {
    let octets = first.octets();
    let word =
        |at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    [word(0), word(4), word(8)]
}
