//! Rows of the specification's table "where this crate is better on purpose" that the program does
//! not have from the start: `false` until the change of the program lands. The number is the row's.
//!
//! To land a row: make it `true`, and run `cargo test --test fuzz`.

/// Fragments, IPv4 options and broken lengths are dropped only if they are for a VIP.
pub const R27_ONLY_VIPS: bool = true;
/// Echo requests are answered only for VIPs, from and to addresses of single hosts.
pub const R28_ECHO_FOR_VIPS: bool = true;
/// Frames for other stations or groups pass.
pub const R29_STATION: bool = true;
/// Length fields and versions are not believed.
pub const R30_LENGTHS: bool = true;
/// IPv6 extension headers are walked.
pub const R31_EXTENSION_HEADERS: bool = true;
/// Time exceeded and parameter problem reach the real, too.
pub const R32_ALL_ICMP_ERRORS: bool = true;
/// ICMP errors leave entries, miss counters and events alone.
pub const R33_ICMP_LEAVES_NO_TRACE: bool = true;
/// The flow table tells TCP flows apart by both ports, whatever the VIP ignores.
pub const R34_TCP_BOTH_PORTS: bool = true;
/// Long headers of QUIC are read by version.
pub const R35_QUIC_VERSIONS: bool = true;
/// Congestion marks of outer headers reach the inner ones.
pub const R36_CONGESTION_MARKS: bool = true;
/// Made-up addresses and ports are usable.
pub const R37_USABLE_SOURCES: bool = true;
/// Options of TCP of a length below 2 and data offsets below 5 end the search.
pub const R44_OPTION_LENGTHS: bool = true;
/// What follows the GUE port and is neither IPv4 nor IPv6 is no tunnel, inside a tunnel either.
pub const R45_GUE_IS_IP: bool = true;
/// Decapsulated packets count for VIPs of any port and prefixes; codes of packet-too-big do not count
/// as unreachable.
pub const R46_COUNTS: bool = true;
/// The outer checksum is right whatever inner lengths and the inner header's checksum say.
pub const R47_OUTER_CHECKSUM: bool = true;
/// LRU_BYPASS keeps QUIC from making entries.
pub const R48_QUIC_BYPASS: bool = true;
/// What leaves an egress address is IP, no tunnel, and comes from where it may.
pub const R49_EGRESS: bool = true;
/// The flood guard counts what would be remembered; source routes are asked under flood.
pub const R50_FLOOD: bool = true;
/// SYNs follow entries that were used in the last five seconds; TCP ids correct what ids have made.
pub const R51_LIVE_ENTRIES: bool = true;
/// An ICMP error is for a VIP only if it was sent to the quoted packet's source.
pub const R52_ERROR_DESTINATION: bool = true;
/// An echo reply of zeros has the checksum 0xFFFF.
pub const ECHO_OF_ZEROS: bool = true;
