//! Fixed names for most tests: VIPs, their reals, and a client's flow to each.

use katran::Flow;

use super::at;

pub(crate) const A: &str = "198.51.100.1";
pub(crate) const B: &str = "198.51.100.2";
pub(crate) const C: &str = "198.51.100.3";
pub(crate) const A6: &str = "2001:db8:2::1";
pub(crate) const VIP4: &str = "203.0.113.1:443/tcp";
pub(crate) const VIP6: &str = "[2001:db8:1::1]:443/tcp";
pub(crate) const TO_VIP4: &str = "203.0.113.1:443";
pub(crate) const TO_VIP6: &str = "[2001:db8:1::1]:443";

/// A flow from one client.
pub(crate) fn flow_v4() -> Flow {
    Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4))
}

pub(crate) fn flow_v6() -> Flow {
    Flow::tcp(at("[2001:db8:c::7]:40001"), at(TO_VIP6))
}
