//! What the kernel's routing and neighbour tables say, by rtnetlink (rtnetlink(7)): routes, Ethernet
//! addresses of neighbours, interfaces; and being told when any of that changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_DUMP_INTR;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkLayerType;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourAddress;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteAddress;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::route::RouteMetric;
use netlink_packet_route::route::RouteNextHopFlags;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::route::RouteType;
use netlink_packet_route::route::RouteVia;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use crate::types::MacAddr;

/// Longer than any message of the kernel's, which fit into a page or two.
const MESSAGE_BYTES: usize = 64 * 1024;

/// How often a list is asked for again that has changed while it was told.
const MOST_DUMPS: usize = 5;

/// Where packets for an address go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The longest packets that others are asked to send, if the route says; bytes.
    pub(crate) mtu: Option<u32>,
    /// The index of the interface that they leave by.
    pub(crate) interface: u32,
    /// The router; `None`: the address is on the interface's own segment.
    pub(crate) gateway: Option<IpAddr>,
    /// The address is one of this host's own.
    pub(crate) local: bool,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) mac: MacAddr,
    /// An operator has entered it for good, or nobody needs to ask.
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
    /// The index of the interface that it lies on (VLAN, macvlan, ipvlan).
    pub(crate) lower: Option<u32>,
    /// It puts a VLAN tag on what it sends by that one.
    pub(crate) vlan: bool,
    /// The index of the bond, bridge or VRF that it is a member of.
    pub(crate) controller: Option<u32>,
}

/// A socket that asks questions, one at a time. It belongs to the network namespace of the thread
/// that made it.
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The answers to a question; an error of the kernel's as such.
    pub(super) fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for _ in 0..MOST_DUMPS {
            let whole = self.ask_once(question.clone(), flags, &mut answers)?;
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    /// The same; false if the list has changed while the kernel told it.
    fn ask_once(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> io::Result<bool> {
        answers.clear();
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut whole = true;
        loop {
            let mut received = Vec::with_capacity(MESSAGE_BYTES);
            self.socket.recv(&mut received, 0)?;
            let mut rest = &received[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(true),
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
                if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                    return Ok(true);
                }
            }
        }
    }

    /// Where packets for `address` go; `None`: nowhere.
    pub(crate) fn route(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address.is_ipv6());
        question.header.destination_prefix_length = if address.is_ipv6() { 128 } else { 32 };
        question
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        match self.ask(RouteNetlinkMessage::GetRoute(question), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => route_of(route),
                _ => None,
            })),
            Err(error) if is_unreachable(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All default routes, also those without a router; that with the lowest metric is first.
    pub(crate) fn default_routes(&mut self, v6: bool) -> io::Result<Vec<Route>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(v6);
        let answers = self.ask(RouteNetlinkMessage::GetRoute(question), NLM_F_DUMP)?;
        let mut routes: Vec<_> = answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .filter(|route| {
                route.header.destination_prefix_length == 0
                    && route.header.table == RouteHeader::RT_TABLE_MAIN
                    && !route
                        .header
                        .flags
                        .intersects(RouteFlags::Dead | RouteFlags::Linkdown)
            })
            .filter_map(|route| Some((metric(route), route_of(route)?)))
            .collect();
        routes.sort_by_key(|(metric, _)| *metric);
        Ok(routes.into_iter().map(|(_, route)| route).collect())
    }

    /// A neighbour, if the kernel knows its Ethernet address, however old.
    pub(crate) fn neighbour(
        &mut self,
        interface: u32,
        address: IpAddr,
    ) -> io::Result<Option<Neighbour>> {
        let question = neighbour_message(interface, address);
        match self.ask(RouteNetlinkMessage::GetNeighbour(question), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(Neighbour {
                    mac: mac_of(neighbour)?,
                    is_fixed: matches!(
                        neighbour.header.state,
                        NeighbourState::Permanent | NeighbourState::Noarp
                    ),
                }),
                _ => None,
            })),
            // There is no such entry, or no such interface any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The Ethernet addresses of all neighbours on an interface, as far as the kernel knows them.
    pub(crate) fn neighbours(&mut self, interface: u32) -> io::Result<Vec<MacAddr>> {
        let question = NeighbourMessage::default();
        let answers = self.ask(RouteNetlinkMessage::GetNeighbour(question), NLM_F_DUMP)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                _ => None,
            })
            .filter(|neighbour| neighbour.header.ifindex == interface)
            .filter_map(mac_of)
            .collect())
    }

    /// Makes the kernel find out, or confirm, the Ethernet address of a neighbour. It does not wait. A
    /// neighbour that is fixed would be so no longer.
    pub(crate) fn solicit(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        let mut question = neighbour_message(interface, address);
        question.header.flags = NeighbourFlags::Use;
        self.ask(
            RouteNetlinkMessage::NewNeighbour(question),
            NLM_F_CREATE | NLM_F_ACK,
        )
        .map(drop)
    }

    /// An interface by its index; `None`: there is none.
    pub(crate) fn interface(&mut self, index: u32) -> io::Result<Option<Interface>> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answers = match self.ask(RouteNetlinkMessage::GetLink(question), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(interface_of(link)),
            _ => None,
        }))
    }
}

impl Requests {
    /// Whether packets can leave by other routes than the main table's default ones: those that somebody
    /// has set, or defaults of other tables. Routes to the interfaces' segments, the kernel's own, do not
    /// count, nor does one to a single address there, such as the router's.
    pub(crate) fn has_other_routes(&mut self, v6: bool) -> io::Result<bool> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(v6);
        let answers = self.ask(RouteNetlinkMessage::GetRoute(question), NLM_F_DUMP)?;
        let bits = if v6 { 128 } else { 32 };
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                let of_main = route.header.destination_prefix_length == 0
                    && route.header.table == RouteHeader::RT_TABLE_MAIN;
                route.header.kind == RouteType::Unicast
                    && route.header.protocol != RouteProtocol::Kernel
                    && route.header.destination_prefix_length < bits
                    && !of_main
            }
            _ => false,
        }))
    }
}

/// A socket that is told when a route, a neighbour or an interface has changed.
pub(crate) struct Notices(Socket);

impl Notices {
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
        ] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Takes all notices that are there. What they say is asked for again, so a notice that got lost
    /// for want of room does no harm.
    pub(crate) fn drain(&self) {
        let mut buffer = Vec::with_capacity(MESSAGE_BYTES);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn family(v6: bool) -> AddressFamily {
    match v6 {
        false => AddressFamily::Inet,
        true => AddressFamily::Inet6,
    }
}

/// The kernel's ways to say that there is no route.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let mut route = Route {
        mtu: longest_packet(message),
        interface: 0,
        gateway: None,
        local: message.header.kind == RouteType::Local,
    };
    // Of several equal paths a dump lists all, also those that are down; an answer for one address has one.
    let first = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(paths) => {
                let gone = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                let mut alive = paths.iter().filter(|path| !path.flags.intersects(gone));
                alive.next()
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

/// What the route says of the length of packets: by its MTU, or by the MSS that is announced to others.
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
        RouteMetric::Advmss(mss) => Some(mss + headers),
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

fn metric(message: &RouteMessage) -> u32 {
    let mut attributes = message.attributes.iter();
    attributes
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

fn neighbour_message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.ifindex = interface;
    let address = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(address));
    message
}

fn mac_of(neighbour: &NeighbourMessage) -> Option<MacAddr> {
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

fn interface_of(link: &LinkMessage) -> Interface {
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
    };
    let (mut lower, mut kind) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) => interface.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::Controller(index) => interface.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => kind = infos.iter().find_map(kind_of).or(kind),
            _ => {}
        }
    }
    interface.vlan = kind == Some(InfoKind::Vlan);
    // Others have an index there that means something else: that of the peer.
    let lies_on_it =
        |kind: &InfoKind| matches!(kind, InfoKind::Vlan | InfoKind::MacVlan | InfoKind::IpVlan);
    interface.lower = lower.filter(|_| kind.as_ref().is_some_and(lies_on_it));
    interface
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let mut requests = Requests::new().unwrap();
        for address in ["127.0.0.1", "::1"] {
            // Where the interface is down there is no route.
            if let Some(route) = requests.route(address.parse().unwrap()).unwrap() {
                assert!(route.local, "{route:?}");
                assert_eq!(route.gateway, None);
            }
        }
        let interface = requests.interface(1).unwrap().unwrap();
        assert_eq!((interface.name.as_str(), interface.mac), ("lo", None));
        assert!(interface.mtu > 0 && interface.ethernet);
        assert_eq!(requests.interface(i32::MAX as u32).unwrap(), None);
        assert_eq!(
            requests.neighbour(1, "192.0.2.1".parse().unwrap()).unwrap(),
            None
        );
    }
}
