//! The checks that the rows of `settings.rs` name: each refuses what is outside a setting's range,
//! with the setting, the value and the range.

use std::fmt::Debug;
use std::fmt::Display;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::Error;
use crate::error::Result;
use crate::ring::RingSize;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::MaxFrame;
use crate::types::Prefix;
use crate::types::check_host;

const MOST_PREFIXES: usize = 65_536;

pub(crate) fn check_gateway(gateway: Gateway) -> Result<()> {
    match gateway {
        Gateway::Mac(mac) => check_gateway_mac(mac),
        Gateway::Auto => Ok(()),
    }
}

pub(super) fn check_event_buffer(bytes: u32) -> Result<()> {
    match bytes.is_power_of_two() && (1 << 12..=1 << 30).contains(&bytes) {
        true => Ok(()),
        false => Err(invalid(
            "event_buffer",
            bytes,
            "must be a power of two, 4096 to 1073741824",
        )),
    }
}

/// Refuses a gateway address that no single station has.
pub(crate) fn check_gateway_mac(mac: MacAddr) -> Result<()> {
    match mac.is_unicast() {
        true => Ok(()),
        false => Err(invalid(
            "gateway_mac",
            mac,
            "must be a unicast address, and not zero",
        )),
    }
}

/// Refuses an outer source address that no host has.
pub(crate) fn check_source(address: IpAddr) -> Result<()> {
    check_host(address)
}

pub(super) fn invalid(
    setting: &'static str,
    value: impl Display,
    reason: impl Into<String>,
) -> Error {
    Error::InvalidConfig {
        setting,
        value: value.to_string(),
        reason: reason.into(),
    }
}

/// A setting that has no default.
pub(super) fn missing(setting: &'static str) -> Error {
    invalid(
        setting,
        "(not set)",
        "set it to the MAC address of the router that leads to the reals (`ip neighbour` shows \
         it), or to auto",
    )
}

/// A value as it is loaded; its range has been checked.
pub(super) fn narrow<T, L>(setting: &'static str, value: T) -> Result<L>
where
    T: Clone + Debug + TryInto<L>,
{
    let shown = value.clone();
    let narrow = value.try_into();
    narrow.map_err(|_| invalid(setting, format!("{shown:?}"), "is out of range"))
}

pub(super) fn check_prefixes(setting: &'static str, prefixes: &[Prefix]) -> Result<()> {
    match prefixes.len() > MOST_PREFIXES {
        true => Err(invalid(
            setting,
            format!("{} prefixes", prefixes.len()),
            "must be at most 65,536",
        )),
        false => Ok(()),
    }
}

/// Tells a row's check the type that it checks.
pub(super) fn checked<T>(value: &T, check: impl FnOnce(&T) -> Result<()>) -> Result<()> {
    check(value)
}

pub(super) fn within<T>(setting: &'static str, value: T, range: RangeInclusive<T>) -> Result<()>
where
    T: Copy + Display + PartialOrd,
{
    match range.contains(&value) {
        true => Ok(()),
        false => Err(invalid(
            setting,
            value,
            format!("must be {} to {}", range.start(), range.end()),
        )),
    }
}

pub(super) fn check_max_frame(longest: MaxFrame) -> Result<()> {
    match longest {
        MaxFrame::Auto => Ok(()),
        MaxFrame::Bytes(bytes) => within("max_frame", bytes, 590..=65_549),
    }
}

pub(super) fn check_ipip_source_v4(first: Ipv4Addr) -> Result<()> {
    let setting = "ipip_source_v4";
    if first.to_bits() & 0xffff != 0 {
        return Err(invalid(
            setting,
            first,
            "must be the first address of a /16 prefix: each flow gets its own last 16 bits",
        ));
    }
    // 240.0.0.0/4 has no hosts either, and ends with the broadcast address.
    if first.octets()[0] >= 240 {
        return Err(invalid(setting, first, "a reserved prefix has no hosts"));
    }
    check_source(first.into())
}

pub(super) fn check_ipip_source_v6(first: Ipv6Addr) -> Result<()> {
    if first.to_bits() & 0xffff_ffff != 0 {
        return Err(invalid(
            "ipip_source_v6",
            first,
            "must be the first address of a /96 prefix: each flow gets its own last 32 bits",
        ));
    }
    check_source(first.into())
}

pub(super) fn check_udp_timeout(timeout: Duration) -> Result<()> {
    match (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&timeout) {
        true => Ok(()),
        false => Err(invalid(
            "udp_timeout",
            format!("{timeout:?}"),
            "must be 1 second to 1 day",
        )),
    }
}

pub(super) fn check_orphan_limit(limit: Duration) -> Result<()> {
    let range = Duration::from_secs(5)..=Duration::from_secs(86_400);
    match limit.is_zero() || range.contains(&limit) {
        true => Ok(()),
        false => Err(invalid(
            "orphan_limit",
            format!("{limit:?}"),
            "must be 0, for none, or 5 seconds to 1 day",
        )),
    }
}

pub(super) fn check_idle_timeout(timeout: Duration) -> Result<()> {
    match (Duration::from_secs(1)..=Duration::from_secs(7 * 86_400)).contains(&timeout) {
        true => Ok(()),
        false => Err(invalid(
            "flow_idle_timeout",
            format!("{timeout:?}"),
            "must be 1 second to 7 days",
        )),
    }
}

pub(super) fn check_ring_size(size: u32) -> Result<()> {
    RingSize::try_from(size).map(|_| ())
}

pub(super) fn check_interface_name(name: &str) -> Result<()> {
    let valid = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace());
    match valid {
        true => Ok(()),
        false => Err(invalid(
            "healthcheck_interface",
            format!("{name:?}"),
            "must be an interface name: 1 to 15 bytes without `/`, `:` and spaces",
        )),
    }
}
