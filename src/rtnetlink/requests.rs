//! Questions to the kernel's routing and neighbour tables, by rtnetlink(7): routes, Ethernet
//! addresses of neighbours, interfaces.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourAddress;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::nsid::NsidAttribute;
use netlink_packet_route::nsid::NsidMessage;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::RuleAttribute;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::answers::Interface;
use super::answers::Neighbour;
use super::answers::Route;
use super::answers::interface_of;
use super::answers::mac_of;
use super::answers::metric;
use super::answers::route_of;
use super::answers::table;
use super::exchange::MESSAGE_BYTES;
use super::exchange::exchange;
use super::frames::frames;
use crate::types::Family;
use crate::types::MacAddr;

/// The table of routes without an explicit one.
pub(crate) const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The number of a network namespace: none, or any.
const UNNUMBERED: i32 = -1;

/// How often to ask again for a list that changed while the kernel sent it.
const MOST_DUMPS: usize = 5;

/// Questions whose answers all fit the socket's buffer.
pub(crate) const MOST_QUESTIONS: usize = 32;

/// A socket that asks questions. It belongs to the network namespace of the thread
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

    /// The answers to a question; a kernel error as such.
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

    /// The same; false: the list changed while the kernel sent it.
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
        exchange(&self.socket, message, |frame| frame.parse(), answers)
    }

    /// Where packets for `address` go; `None`: nowhere.
    pub(crate) fn route(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        let mut routes = self.routes(&[address], None)?;
        routes.pop().unwrap_or(Ok(None))
    }

    /// Where packets for each address go, in one question for up to [`MOST_QUESTIONS`] of them;
    /// `None`: nowhere. With `interface`, the route for packets that must leave by that interface,
    /// or by one of that VRF, with its rules and tables.
    pub(crate) fn routes(
        &mut self,
        addresses: &[IpAddr],
        interface: Option<u32>,
    ) -> io::Result<Vec<io::Result<Option<Route>>>> {
        let mut routes = Vec::with_capacity(addresses.len());
        for addresses in addresses.chunks(MOST_QUESTIONS) {
            let questions = addresses.iter().map(|address| {
                let mut question = route_question(*address);
                if let Some(interface) = interface {
                    question.attributes.push(RouteAttribute::Oif(interface));
                    // Otherwise the kernel takes any IPv4 address without a route to be on the
                    // interface's segment.
                    question.header.flags = RouteFlags::FibMatch;
                }
                RouteNetlinkMessage::GetRoute(question)
            });
            for answer in self.ask_each(questions)? {
                routes.push(match answer {
                    Ok(Some(RouteNetlinkMessage::NewRoute(route))) => {
                        Ok(route_of(&route, interface))
                    }
                    Ok(_) => Ok(None),
                    Err(error) if is_unreachable(&error) => Ok(None),
                    Err(error) => Err(error),
                });
            }
        }
        Ok(routes)
    }

    /// Asks several questions at once that have one answer each; a kernel error as such.
    fn ask_each(
        &mut self,
        questions: impl Iterator<Item = RouteNetlinkMessage>,
    ) -> io::Result<Vec<io::Result<Option<RouteNetlinkMessage>>>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut answers = Vec::new();
        for question in questions {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(question);
            message.header.flags = NLM_F_REQUEST;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
            answers.push(None);
        }
        self.socket.send(&bytes, 0)?;
        let mut open = answers.len();
        let mut received = Vec::with_capacity(MESSAGE_BYTES);
        while open > 0 {
            received.clear();
            self.socket.recv(&mut received, 0)?;
            for frame in frames(&received) {
                let frame = frame?;
                // A leftover answer to an earlier question has another number.
                let number = frame.sequence().wrapping_sub(first);
                let Some(answer @ None) = answers.get_mut(number as usize) else {
                    continue;
                };
                *answer = Some(match frame.parse().map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(inner)) => Ok(Some(inner)),
                    Ok(NetlinkPayload::Error(error)) if error.code.is_some() => Err(error.to_io()),
                    Ok(_) => Ok(None),
                    Err(error) => Err(error),
                });
                open -= 1;
            }
        }
        Ok(answers
            .into_iter()
            .map(|answer| answer.unwrap_or(Ok(None)))
            .collect())
    }

    /// All default routes of the main table, including those without a router, by metric.
    pub(crate) fn default_routes(&mut self, of: Family) -> io::Result<Vec<Route>> {
        let mut routes = self.default_routes_of_tables(of)?;
        routes.retain(|(table, _)| *table == MAIN_TABLE);
        Ok(routes.into_iter().map(|(_, route)| route).collect())
    }

    /// The same for all tables, with the table's number.
    pub(crate) fn default_routes_of_tables(&mut self, of: Family) -> io::Result<Vec<(u32, Route)>> {
        let mut question = RouteMessage::default();
        question.header.address_family = number(of);
        let answers = self.ask(RouteNetlinkMessage::GetRoute(question), NLM_F_DUMP)?;
        Ok(default_routes_in(&answers))
    }

    /// Whether there are rules by the interface that packets leave by (policy routing, VRFs).
    pub(crate) fn has_rules_by_interface(&mut self) -> io::Result<bool> {
        for of in Family::ALL {
            let mut question = RuleMessage::default();
            question.header.family = number(of);
            let answers = self.ask(RouteNetlinkMessage::GetRule(question), NLM_F_DUMP)?;
            if has_rules_by_interface_in(&answers) {
                return Ok(true);
            }
        }
        Ok(false)
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

    /// The Ethernet addresses of all neighbours on an interface that the kernel knows.
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

    /// Makes the kernel resolve, or confirm, the Ethernet address of a neighbour. Does not wait. A
    /// permanent neighbour would lose that status.
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
        self.interface_in(None, index)
    }

    /// The same in another network namespace, by its number in this one.
    pub(crate) fn interface_in(
        &mut self,
        namespace: Option<i32>,
        index: u32,
    ) -> io::Result<Option<Interface>> {
        let link = self.link(namespace, index)?;
        Ok(link.as_ref().map(interface_of))
    }

    /// The kernel's message about an interface, by its index, perhaps in another network namespace,
    /// by its number in this one; `None`: there is none.
    pub(super) fn link(
        &mut self,
        namespace: Option<i32>,
        index: u32,
    ) -> io::Result<Option<LinkMessage>> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let namespace = namespace.map(LinkAttribute::IfNetnsId);
        question.attributes.extend(namespace);
        match self.ask(RouteNetlinkMessage::GetLink(question), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            answers => Ok(links_in(answers?).next()),
        }
    }
}

impl Requests {
    /// The number of a network namespace in this socket's, which assigns one if needed. The number
    /// does not keep the other namespace alive.
    pub(crate) fn number_of_namespace(&mut self, namespace: BorrowedFd<'_>) -> io::Result<i32> {
        let by_descriptor = NsidAttribute::Fd(namespace.as_raw_fd().unsigned_abs());
        let mut question = NsidMessage::default();
        question.attributes = vec![by_descriptor.clone(), NsidAttribute::Id(UNNUMBERED)];
        match self.ask(RouteNetlinkMessage::NewNsId(question), NLM_F_ACK) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut question = NsidMessage::default();
        question.attributes = vec![by_descriptor];
        let answers = self.ask(RouteNetlinkMessage::GetNsId(question), 0)?;
        let mut attributes = answers.iter().flat_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(told) => &told.attributes[..],
            _ => &[],
        });
        let number = attributes.find_map(|attribute| match attribute {
            NsidAttribute::Id(number) if *number != UNNUMBERED => Some(*number),
            _ => None,
        });
        number.ok_or_else(|| io::Error::other("the kernel gave the namespace no number"))
    }

    /// All interfaces, by their indexes.
    pub(crate) fn interfaces(&mut self) -> io::Result<BTreeMap<u32, Interface>> {
        let links = self.links()?;
        let links = links.map(|link| (link.header.index, interface_of(&link)));
        Ok(links.collect())
    }

    /// The kernel's messages about all interfaces.
    pub(super) fn links(&mut self) -> io::Result<impl Iterator<Item = LinkMessage> + use<>> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.ask(question, NLM_F_DUMP)?;
        Ok(links_in(answers))
    }

    /// Whether packets can leave by other routes than the main table's default ones: by configured
    /// routes, or by defaults of other tables. The kernel's own routes to the interfaces' segments
    /// do not count, nor does a route to a single address there, such as the router's.
    pub(crate) fn has_other_routes(&mut self, of: Family) -> io::Result<bool> {
        let mut question = RouteMessage::default();
        question.header.address_family = number(of);
        let answers = self.ask(RouteNetlinkMessage::GetRoute(question), NLM_F_DUMP)?;
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                let of_main = route.header.destination_prefix_length == 0
                    && route.header.table == RouteHeader::RT_TABLE_MAIN;
                route.header.kind == RouteType::Unicast
                    && route.header.protocol != RouteProtocol::Kernel
                    && route.header.destination_prefix_length < of.bits()
                    && !of_main
            }
            _ => false,
        }))
    }
}

/// The default routes among these answers by metric, each with its table's number.
pub(super) fn default_routes_in(answers: &[RouteNetlinkMessage]) -> Vec<(u32, Route)> {
    let mut routes: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .filter(|route| {
            let gone = RouteFlags::Dead | RouteFlags::Linkdown;
            route.header.destination_prefix_length == 0 && !route.header.flags.intersects(gone)
        })
        .filter_map(|route| Some((metric(route), table(route), route_of(route, None)?)))
        .collect();
    routes.sort_by_key(|(metric, ..)| *metric);
    let routes = routes.into_iter();
    routes.map(|(_, table, route)| (table, route)).collect()
}

/// Whether these answers contain rules by the interface that packets leave by.
pub(super) fn has_rules_by_interface_in(answers: &[RouteNetlinkMessage]) -> bool {
    answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewRule(rule) => rule.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true)
            )
        }),
        _ => false,
    })
}

/// The interfaces among these.
fn links_in(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = LinkMessage> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })
}

/// The kernel's number of a family.
fn number(of: Family) -> AddressFamily {
    match of {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The kernel's ways to say that there is no route.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

/// The question where packets for one address go.
fn route_question(address: IpAddr) -> RouteMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = number(Family::of(address));
    question.header.destination_prefix_length = Family::of(address).bits();
    let destination = RouteAttribute::Destination(address.into());
    question.attributes.push(destination);
    question
}

fn neighbour_message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number(Family::of(address));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let mut requests = Requests::new().unwrap();
        for address in ["127.0.0.1", "::1"] {
            // While the interface is down there is no route.
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
