//! Parses the kernel's answers: routes, neighbours and interfaces, from messages of rtnetlink(7).
//! Nothing here asks the kernel.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::InfoData;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::InfoVrf;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkLayerType;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteAddress;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::route::RouteMetric;
use netlink_packet_route::route::RouteNextHopFlags;
use netlink_packet_route::route::RouteType;
use netlink_packet_route::route::RouteVia;

use crate::types::MacAddr;

/// Where packets for an address go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The longest packet that the route allows, in bytes, if it says.
    pub(crate) mtu: Option<u32>,
    /// The index of the interface that packets leave by.
    pub(crate) interface: u32,
    /// The router; `None`: the address is on the interface's own segment.
    pub(crate) gateway: Option<IpAddr>,
    /// The address is this host's.
    pub(crate) local: bool,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) mac: MacAddr,
    /// An operator has made it permanent, or it needs no resolution.
    pub(crate) is_fixed: bool,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// If it has an Ethernet address.
    pub(crate) mac: Option<MacAddr>,
    /// Whether its packets have an Ethernet header.
    pub(crate) ethernet: bool,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    /// The index of the interface below it (VLAN, macvlan, ipvlan).
    pub(crate) lower: Option<u32>,
    /// It adds a VLAN tag to what it sends through that one.
    pub(crate) vlan: bool,
    /// The index of the bond, bridge or VRF that it is a member of.
    pub(crate) controller: Option<u32>,
    /// If it is a VRF, its routing table.
    pub(crate) vrf_table: Option<u32>,
    /// If it is a virtual Ethernet link, the other end.
    pub(crate) peer: Option<Peer>,
}

/// The other end of a virtual Ethernet link (veth).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// In the same network namespace, with this index.
    Here(u32),
    /// In another one.
    Elsewhere,
}

/// The route in a message. Of several paths the first that is alive, and one by `interface` if
/// there is one.
pub(super) fn route_of(message: &RouteMessage, interface: Option<u32>) -> Option<Route> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let mut route = Route {
        mtu: longest_packet(message),
        interface: 0,
        gateway: None,
        local: message.header.kind == RouteType::Local,
    };
    // A dump lists all of several equal paths, including those that are down; an answer for one
    // address has one.
    let first = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(paths) => {
                let gone = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                let alive = || paths.iter().filter(|path| !path.flags.intersects(gone));
                let by_it = alive().find(|path| Some(path.interface_index) == interface);
                by_it.or_else(|| alive().next())
            }
            _ => None,
        });
    if let Some(path) = first {
        route.interface = path.interface_index;
        route.gateway = path.attributes.iter().find_map(gateway_of);
    }
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(interface) = attribute {
            route.interface = *interface;
        }
        route.gateway = gateway_of(attribute).or(route.gateway);
    }
    (route.interface != 0).then_some(route)
}

/// The longest packet that the route allows: by its MTU, or by the MSS that it advertises.
fn longest_packet(message: &RouteMessage) -> Option<u32> {
    let headers = match message.header.address_family {
        AddressFamily::Inet6 => 60,
        _ => 40,
    };
    let metrics = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        });
    let lengths = metrics.flatten().filter_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        RouteMetric::Advmss(mss) => Some(mss.saturating_add(headers)),
        _ => None,
    });
    lengths.min()
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some((*v6).into()),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
    .filter(|gateway: &IpAddr| !gateway.is_unspecified())
}

pub(super) fn metric(message: &RouteMessage) -> u32 {
    let mut attributes = message.attributes.iter();
    attributes
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

pub(super) fn table(message: &RouteMessage) -> u32 {
    let mut attributes = message.attributes.iter();
    attributes
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(message.header.table.into())
}

pub(super) fn mac_of(neighbour: &NeighbourMessage) -> Option<MacAddr> {
    let known = matches!(
        neighbour.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let mut attributes = neighbour.attributes.iter().filter(|_| known);
    attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    let bytes: [u8; 6] = bytes.try_into().ok()?;
    Some(MacAddr::new(bytes)).filter(|mac| mac.is_unicast())
}

fn kind_of(info: &LinkInfo) -> Option<InfoKind> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.clone()),
        _ => None,
    }
}

fn vrf_table_of(info: &LinkInfo) -> Option<u32> {
    match info {
        LinkInfo::Data(InfoData::Vrf(data)) => data.iter().find_map(|of| match of {
            InfoVrf::TableId(table) => Some(*table),
            _ => None,
        }),
        _ => None,
    }
}

pub(super) fn interface_of(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        name: String::new(),
        mac: None,
        ethernet: matches!(
            link.header.link_layer_type,
            LinkLayerType::Ether | LinkLayerType::Loopback
        ),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
        lower: None,
        vlan: false,
        controller: None,
        vrf_table: None,
        peer: None,
    };
    let (mut lower, mut kind) = (None, None);
    let mut is_elsewhere = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) => interface.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::Controller(index) => interface.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(kind_of).or(kind);
                interface.vrf_table = infos.iter().find_map(vrf_table_of);
            }
            _ => {}
        }
    }
    interface.vlan = kind == Some(InfoKind::Vlan);
    interface.peer = match lower.filter(|_| kind == Some(InfoKind::Veth)) {
        Some(_) if is_elsewhere => Some(Peer::Elsewhere),
        peer => peer.map(Peer::Here),
    };
    // For other types this index means something else: the peer's.
    let lies_on_it =
        |kind: &InfoKind| matches!(kind, InfoKind::Vlan | InfoKind::MacVlan | InfoKind::IpVlan);
    interface.lower = lower.filter(|_| kind.as_ref().is_some_and(lies_on_it));
    interface
}
