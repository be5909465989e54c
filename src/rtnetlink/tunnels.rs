//! The kernel's own tunnel devices, which unwrap IP in IP: `ipip`, `sit` and `ip6tnl`
//! (ip-tunnel(8)).

use std::io;
use std::net::IpAddr;

use netlink_packet_route::IpProtocol;
use netlink_packet_route::link::InfoData;
use netlink_packet_route::link::InfoIpTunnel;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkMessage;

use super::Requests;
use crate::types::Family;

/// A device that unwraps tunnels from any source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelDevice {
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) outer: Family,
    /// The only family of packets that it unwraps; `None`: both.
    pub(crate) inner: Option<Family>,
    /// The only address where its tunnels end; `None`: any of this host's.
    pub(crate) local: Option<IpAddr>,
}

impl TunnelDevice {
    /// Whether it unwraps packets of `inner` from tunnels of `outer`.
    pub(crate) fn takes(&self, inner: Family, outer: Family) -> bool {
        self.outer == outer && self.inner.is_none_or(|only| only == inner)
    }
}

impl Requests {
    /// The tunnel devices that accept tunnels from any source, as a balancer's need: each flow has
    /// another outer source.
    pub(crate) fn tunnels(&mut self) -> io::Result<Vec<TunnelDevice>> {
        Ok(self.links()?.filter_map(|link| tunnel_of(&link)).collect())
    }
}

/// `None`: it is not a tunnel device, or accepts tunnels from only one address, or unwraps none by
/// itself (`external`).
pub(super) fn tunnel_of(link: &LinkMessage) -> Option<TunnelDevice> {
    let (mut name, mut kind, mut settings) = (None, None, &[][..]);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(of) => kind = Some(of),
                        LinkInfo::Data(InfoData::IpTunnel(of)) => settings = of,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let mut tunnel = TunnelDevice {
        name: name?.clone(),
        up: link.header.flags.contains(LinkFlags::Up),
        outer: match kind? {
            InfoKind::IpIp | InfoKind::SitTun => Family::V4,
            InfoKind::Ip6Tnl => Family::V6,
            _ => return None,
        },
        inner: None,
        local: None,
    };
    let given = |address: IpAddr| (!address.is_unspecified()).then_some(address);
    for setting in settings {
        match setting {
            InfoIpTunnel::Local(address) => tunnel.local = given(*address),
            InfoIpTunnel::Remote(address) if given(*address).is_some() => return None,
            InfoIpTunnel::CollectMetadata => return None,
            InfoIpTunnel::Protocol(IpProtocol::Ipip) => tunnel.inner = Some(Family::V4),
            InfoIpTunnel::Protocol(IpProtocol::Ipv6) => tunnel.inner = Some(Family::V6),
            _ => {}
        }
    }
    Some(tunnel)
}
