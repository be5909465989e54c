//! Backends without our decapsulator: whether the kernel's tunnel devices unwrap the packets, and
//! whether the reverse-path filter lets them through.

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

/// What the kernel itself unwraps.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelTunnels {
    pub(crate) devices: Vec<Device>,
    /// Ports of tunnels over UDP.
    pub(crate) ports: Vec<UdpTunnel>,
}

/// A tunnel device and its reverse-path filter: the stricter of the device's and the global
/// setting.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) tunnel: TunnelDevice,
    pub(crate) rp_filter: Option<i64>,
}

/// The surroundings of the tunnel devices.
pub(super) struct Around<'a> {
    /// The name of the interface that tunnels arrive at.
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

    /// The devices that are up and unwrap packets of a family, from any tunnel.
    fn at_work(&self, inner: Family) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(move |device| {
            device.tunnel.up
                && Family::ALL
                    .map(|outer| device.tunnel.takes(inner, outer))
                    .contains(&true)
        })
    }
}

/// Judges a host without a decapsulator of ours. False if the kernel unwraps nothing either.
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
                format!("{name} unwraps {inner} packets from {outer} tunnels{at}"),
            );
            none = false;
        }
        if none {
            found.problem(
                about,
                format!("no device unwraps {inner} packets"),
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
        "the kernel's tunnel devices accept tunnels from any source (CVE-2020-10136)",
        "have a filter drop IP protocols 4 and 41, and UDP to the GUE port, from all sources but the \
         balancers' (their source_v4, source_v6, ipip_source_v4, ipip_source_v6)",
    );
    true
}

/// The one device type that unwraps both families from IPv6; `ip6tnl0` unwraps only IPv6.
const SIX: &str =
    "ip link add katran6 type ip6tnl mode any local ADDRESS remote any; ip link set katran6 up";

/// The kernel strips GUE first; the device for the families then unwraps the packet.
fn udp(kernel: &KernelTunnels, found: &mut Diagnosis) {
    let about = Subject::TunnelEnds;
    for UdpTunnel { port, outer, gue } in &kernel.ports {
        match gue {
            true => found.ok(about, format!("UDP port {port} accepts GUE over {outer}")),
            false => found.note(
                about,
                format!("UDP port {port} accepts a bare protocol (FOU) instead of GUE"),
                format!("if that is the balancer's gue_port: ip fou del port {port}; ip fou add port {port} gue"),
            ),
        }
    }
}

/// These devices have no address and so no route to clients: the kernel drops in loose mode (2)
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
                format!("{value} for {name}: IPv4 clients' packets are dropped after unwrapping, at 2 as well as at 1"),
                format!("sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/{name}/rp_filter=0"),
            ),
        }
    }
    // Outer sources are made up. The filter drops IPv4 tunnels from sources without a route back.
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
            format!("set for {name}, which has no default route: tunnels from made-up sources are dropped"),
            format!("sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/{name}/rp_filter=0"),
        );
    }
}
