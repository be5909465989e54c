//! Backends without our decapsulator: whether the kernel's own tunnel devices take the packets out, and whether they
//! let them through.

use std::io;

use super::Diagnosis;
use super::Subject;
use super::clients::Clients;
use super::clients::WayBack;
use super::facts::sysctl;
use crate::fou::UdpTunnel;
use crate::fou::udp_tunnels;
use crate::rtnetlink::Requests;
use crate::rtnetlink::TunnelDevice;
use crate::types::Family;

/// What the kernel takes out of tunnels by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelTunnels {
    pub(crate) devices: Vec<Device>,
    /// Ports of tunnels in UDP.
    pub(crate) ports: Vec<UdpTunnel>,
}

/// A tunnel device, and its reverse-path filter: the stricter of the device's setting and that for all devices.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) tunnel: TunnelDevice,
    pub(crate) rp_filter: Option<i64>,
}

/// What is around them.
pub(super) struct Around<'a> {
    /// The name of the interface that tunnels come by.
    pub(super) interface: &'a str,
    /// Its reverse-path filter.
    pub(super) rp_filter: Option<i64>,
    pub(super) clients: &'a [Clients],
}

impl KernelTunnels {
    pub(crate) fn gather(requests: &mut Requests) -> io::Result<Self> {
        let of_all = sysctl("net/ipv4/conf/all/rp_filter");
        let devices = requests.tunnels()?.into_iter().map(|tunnel| Device {
            rp_filter: of_all.max(sysctl(&format!("net/ipv4/conf/{}/rp_filter", tunnel.name))),
            tunnel,
        });
        Ok(Self {
            devices: devices.collect(),
            ports: udp_tunnels()?,
        })
    }

    /// Those that are up and take packets of a family, out of whatever tunnels.
    fn at_work(&self, inner: Family) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(move |device| {
            device.tunnel.up
                && Family::ALL
                    .map(|outer| device.tunnel.takes(inner, outer))
                    .contains(&true)
        })
    }
}

/// For a host on which no decapsulator of ours is. False: the kernel takes nothing out either.
pub(super) fn judge(kernel: &KernelTunnels, around: &Around<'_>, found: &mut Diagnosis) -> bool {
    let families = || around.clients.iter().map(|clients| clients.family);
    if families().all(|inner| kernel.at_work(inner).next().is_none()) {
        return false;
    }
    let about = Subject::TunnelEnds;
    for inner in families() {
        let mut none = true;
        for device in kernel.at_work(inner) {
            let TunnelDevice {
                name, outer, local, ..
            } = &device.tunnel;
            let at = local.map(|local| format!(" that end at {local}"));
            let at = at.unwrap_or_default();
            found.ok(
                about,
                format!("{name} takes {inner} packets out of tunnels of {outer}{at}"),
            );
            none = false;
        }
        if none {
            found.problem(
                about,
                format!("no device takes {inner} packets out of tunnels"),
                format!(
                    "for a real with an IPv4 address {}; for one with an IPv6 address: {SIX}",
                    match inner {
                        Family::V4 => "modprobe ipip; ip link set tunl0 up",
                        Family::V6 => "modprobe sit; ip link set sit0 up",
                    }
                ),
            );
        }
    }
    udp(kernel, found);
    reverse_path_filter(kernel, around, found);
    found.warn(
        about,
        "the kernel's tunnel devices take tunnels from anybody (CVE-2020-10136)",
        "have a filter drop IP protocols 4 and 41, and UDP to the port of GUE, from other sources than the \
         balancers' (their source_v4, source_v6, ipip_source_v4, ipip_source_v6)",
    );
    true
}

/// The device for both families in IPv6, which `ip6tnl0` is not: it takes IPv6 only.
const SIX: &str =
    "ip link add katran6 type ip6tnl mode any local ADDRESS remote any; ip link set katran6 up";

/// GUE is taken off first, and then the device of the families takes the packet.
fn udp(kernel: &KernelTunnels, found: &mut Diagnosis) {
    let about = Subject::TunnelEnds;
    for UdpTunnel { port, outer, gue } in &kernel.ports {
        match gue {
            true => found.ok(about, format!("UDP port {port} takes GUE in {outer}")),
            false => found.note(
                about,
                format!("UDP port {port} takes a protocol's packets as they are, and no GUE"),
                format!("if that is the balancer's port of GUE: ip fou del port {port}; ip fou add port {port} gue"),
            ),
        }
    }
}

/// A device that has an address could be told by routes; these have none, so the kernel drops in the loose mode (2),
/// too.
fn reverse_path_filter(kernel: &KernelTunnels, around: &Around<'_>, found: &mut Diagnosis) {
    let about = Subject::ReversePathFilter;
    let Some(clients) = around.clients.iter().find(|of| of.family == Family::V4) else {
        return;
    };
    for device in kernel.at_work(Family::V4) {
        let name = &device.tunnel.name;
        match device.rp_filter {
            Some(0) | None => {}
            Some(value) => found.problem(
                about,
                format!("{value} for {name}: packets of IPv4 clients are dropped behind the tunnel, by 2 as by 1"),
                format!("sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/{name}/rp_filter=0"),
            ),
        }
    }
    // Outer sources are made up: what has no way back to them takes no tunnel of IPv4.
    let of_v4 = |device: &Device| device.tunnel.up && device.tunnel.outer == Family::V4;
    let is_led_back = match around.rp_filter {
        Some(1) => clients.way_back == WayBack::Here,
        Some(2) => matches!(clients.way_back, WayBack::Here | WayBack::Elsewhere),
        _ => true,
    };
    if kernel.devices.iter().any(of_v4) && !is_led_back {
        let name = around.interface;
        found.problem(
            about,
            format!("set for {name}, and no default route there: tunnels from made-up sources are dropped"),
            format!("sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/{name}/rp_filter=0"),
        );
    }
}
