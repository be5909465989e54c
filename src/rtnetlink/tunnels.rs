//! The kernel's own tunnel devices: `ipip`, `sit` and `ip6tnl` (ip-tunnel(8)), which take packets out of IP in IP.

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

/// A device that takes packets out of tunnels that come from anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelDevice {
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) outer: Family,
    /// The only family of packets that it takes out; `None`: both.
    pub(crate) inner: Option<Family>,
    /// The only address that its tunnels end at; `None`: any of this host's.
    pub(crate) local: Option<IpAddr>,
}

impl TunnelDevice {
    /// Whether it takes packets of `inner` out of tunnels of `outer`.
    pub(crate) fn takes(&self, inner: Family, outer: Family) -> bool {
        self.outer == outer && self.inner.is_none_or(|only| only == inner)
    }
}

impl Requests {
    /// The tunnel devices that take tunnels from anywhere, as a balancer's are: each flow has an outer source of
    /// its own.
    pub(crate) fn tunnels(&mut self) -> io::Result<Vec<TunnelDevice>> {
        Ok(self.links()?.filter_map(|link| tunnel_of(&link)).collect())
    }
}

/// `None`: it is no tunnel device, or takes tunnels from one address only, or takes none by itself (`external`).
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
