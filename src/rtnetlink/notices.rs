//! The kernel's notices of changes, by rtnetlink(7). A notice only says which entry has changed;
//! its user then asks for the current entry, so old notices in a long queue do no harm.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourAddress;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteAddress;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::exchange::MESSAGE_BYTES;
use super::frames::frames;
use crate::types::Family;

/// Room for some thousand notices; without the privilege, the kernel's default.
const QUEUE_BYTES: usize = 4 << 20;

/// Datagrams to take at a time, so that a flood does not keep the thread from other work.
const MOST_TAKEN: usize = 1024;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A route to this prefix was added, removed or changed, in any table.
    Route { prefix: IpAddr, length: u8 },
    /// An entry of the neighbour table.
    Neighbour { interface: u32, address: IpAddr },
    /// An interface.
    Link { index: u32 },
    /// An address of this host is gone. The kernel does not report the IPv4 routes that go with it.
    AddressGone { family: Family },
    /// Anything: rules, next-hop objects, unknown messages; or notices were lost.
    Anything,
}

/// The multicast groups of these changes.
const GROUPS: [u32; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
];

/// A socket that receives notices while it listens. It belongs to the network namespace of the
/// thread that made it.
pub(crate) struct Notices(Socket);

impl Notices {
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // A smaller queue overflows sooner, and then everything is asked for once.
        let _ = setsockopt(&socket, RcvBufForce, &QUEUE_BYTES);
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Starts to receive notices; the caller must take them.
    pub(crate) fn listen(&mut self) -> io::Result<()> {
        GROUPS
            .into_iter()
            .try_for_each(|group| self.0.add_membership(group))?;
        // Kernels without next-hop objects have no such group.
        let _ = self.0.add_membership(libc::RTNLGRP_NEXTHOP);
        Ok(())
    }

    /// Starts to receive notices of interfaces, also in other network namespaces if they have a
    /// number in this one: see
    /// [`Requests::number_of_namespace`](super::Requests::number_of_namespace).
    pub(crate) fn listen_to_links(&mut self) -> io::Result<()> {
        self.0.add_membership(libc::RTNLGRP_LINK)?;
        // Without the privilege other namespaces are not reported. A number that was taken back is
        // a change, too.
        let _ = self.0.set_listen_all_namespaces(true);
        let _ = self.0.add_membership(libc::RTNLGRP_NSID);
        Ok(())
    }

    /// Stops receiving.
    pub(crate) fn rest(&mut self) {
        for group in GROUPS.into_iter().chain([libc::RTNLGRP_NEXTHOP]) {
            if let Err(error) = self.0.drop_membership(group)
                && group != libc::RTNLGRP_NEXTHOP
            {
                log::warn!("cannot stop the kernel's notices: {error}");
            }
        }
        while !self.take().is_empty() {}
    }

    /// Takes the notices that are there, or many of them; some may repeat.
    pub(crate) fn take(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut buffer = Vec::with_capacity(MESSAGE_BYTES);
        for _ in 0..MOST_TAKEN {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => parse(&buffer, &mut notices),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    notices.push(Notice::Anything);
                }
                Err(_) => break,
            }
        }
        notices
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The notices in a datagram.
pub(super) fn parse(datagram: &[u8], notices: &mut Vec<Notice>) {
    for frame in frames(datagram) {
        let message = frame.and_then(|frame| frame.parse());
        notices.extend(match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => notice_of(&message),
            _ => Some(Notice::Anything),
        });
    }
}

/// `None`: it does not matter.
fn notice_of(message: &RouteNetlinkMessage) -> Option<Notice> {
    use RouteNetlinkMessage as Message;

    match message {
        Message::NewRoute(route) | Message::DelRoute(route) => of_route(route),
        Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
            of_neighbour(neighbour)
        }
        // Also a bridge's messages, which report that a port has left it, not that the interface is
        // gone.
        Message::NewLink(link) | Message::DelLink(link) => Some(Notice::Link {
            index: link.header.index,
        }),
        // Its routes have their own notices.
        Message::NewAddress(_) => None,
        Message::DelAddress(address) => Some(Notice::AddressGone {
            family: match address.header.family {
                AddressFamily::Inet6 => Family::V6,
                _ => Family::V4,
            },
        }),
        _ => Some(Notice::Anything),
    }
}

fn of_route(route: &RouteMessage) -> Option<Notice> {
    if route.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let destination = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
            _ => None,
        });
    let any: IpAddr = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        // MPLS, multicast.
        _ => return None,
    };
    Some(Notice::Route {
        prefix: destination.unwrap_or(any),
        length: route.header.destination_prefix_length,
    })
}

fn of_neighbour(neighbour: &NeighbourMessage) -> Option<Notice> {
    let mut attributes = neighbour.attributes.iter();
    let address = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        // Learnt by a bridge.
        _ => None,
    });
    Some(Notice::Neighbour {
        interface: neighbour.header.ifindex,
        address: address?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message as the kernel sends it: header, body.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    pub(in crate::rtnetlink) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn told(datagram: &[u8]) -> Vec<Notice> {
        let mut notices = Vec::new();
        parse(datagram, &mut notices);
        notices
    }

    #[test]
    fn a_datagram_tells_what_has_changed() {
        // RTM_NEWROUTE 198.51.100.0/24 dev 3, table main; RTM_DELROUTE ::/0; RTM_NEWNEIGH;
        // RTM_NEWLINK; RTM_DELADDR; RTM_NEWRULE; RTM_NEWNEXTHOP, which the parser does not know.
        let route = [
            &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0][..],
            &attribute(1, &[198, 51, 100, 0]),
            &attribute(4, &3u32.to_ne_bytes()),
        ]
        .concat();
        let default = [10, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        let cloned = [2, 32, 0, 0, 254, 0, 0, 1, 0, 2, 0, 0];
        let neighbour = [
            &[2, 0, 0, 0][..],
            &7u32.to_ne_bytes(),
            &[2, 0, 0, 1],
            &attribute(1, &[192, 0, 2, 9]),
        ]
        .concat();
        let link = [&[0, 0, 1, 0][..], &9u32.to_ne_bytes(), &[0; 8]].concat();
        let address = [&[2, 24, 0, 0][..], &9u32.to_ne_bytes()].concat();
        let datagram = [
            message(24, &route),
            message(25, &default),
            message(24, &cloned),
            message(28, &neighbour),
            message(16, &link),
            message(20, &address),
            message(21, &address),
            message(32, &[2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0]),
            message(104, &[0; 8]),
        ]
        .concat();
        let expected = [
            Notice::Route {
                prefix: "198.51.100.0".parse().unwrap(),
                length: 24,
            },
            Notice::Route {
                prefix: "::".parse().unwrap(),
                length: 0,
            },
            Notice::Neighbour {
                interface: 7,
                address: "192.0.2.9".parse().unwrap(),
            },
            Notice::Link { index: 9 },
            Notice::AddressGone { family: Family::V4 },
            Notice::Anything,
            Notice::Anything,
        ];
        assert_eq!(told(&datagram), expected);
        // A truncated datagram, or one that is not a message, counts as anything, and parsing ends.
        assert_eq!(told(&datagram[..30]), [Notice::Anything]);
        assert_eq!(told(&[0; 8]), [Notice::Anything]);
        assert_eq!(told(&[]), []);
    }
}
