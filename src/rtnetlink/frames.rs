//! Cuts datagrams of rtnetlink(7) into messages, and keeps only the parts of each message that this
//! crate reads.
//!
//! The parser refuses a whole message for one attribute that it does not understand: the congestion
//! algorithm of a route, a name that is not UTF-8, a filter of an unknown type. Most entries of a
//! list come from others on the host, so everything that this crate does not read is removed before
//! parsing.

use std::io;

use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;

/// Bytes of a message's header, which begins with its length and its type.
const HEADER: usize = 16;
/// Bytes of an attribute's header: length and type, whose upper two bits are flags about the
/// value's encoding.
const ATTRIBUTE: usize = 4;
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of a route's path before its attributes (struct rtnexthop), which begin with its length.
const PATH: usize = 8;

/// How to keep an attribute.
enum Keep {
    Whole,
    /// A name; invalid UTF-8 becomes U+FFFD.
    Text,
    /// Attributes, of which to keep these.
    Nested(&'static [(u16, Keep)]),
    /// The same, by the `KIND` among the attributes beside it.
    NestedBy(&'static [(&'static str, &'static [(u16, Keep)])]),
    /// Paths of a route, whose attributes to keep.
    Paths(&'static [(u16, Keep)]),
}

/// IFLA_INFO_KIND and TCA_KIND.
const KIND: u16 = libc::TCA_KIND;

/// linux/if_link.h: address, name, MTU, lower or peer, controller, type and table of a VRF,
/// counters, whether the peer is elsewhere, and XDP programs: how they are attached, and which is
/// in the driver.
const OF_LINKS: &[(u16, Keep)] = &[
    (1, Keep::Whole),
    (3, Keep::Text),
    (4, Keep::Whole),
    (5, Keep::Whole),
    (10, Keep::Whole),
    (18, Keep::Nested(OF_LINK_INFO)),
    (23, Keep::Whole),
    (37, Keep::Whole),
    (43, Keep::Nested(&[(2, Keep::Whole), (5, Keep::Whole)])),
];
const OF_LINK_INFO: &[(u16, Keep)] = &[
    (KIND, Keep::Text),
    (
        2,
        Keep::NestedBy(&[
            ("vrf", &[(1, Keep::Whole)]),
            ("ipip", OF_TUNNELS),
            ("sit", OF_TUNNELS),
            ("ip6tnl", OF_TUNNELS),
        ]),
    ),
];
/// linux/if_tunnel.h: local and remote address, protocol, and whether routes set the tunnels' ends
/// (`external`).
const OF_TUNNELS: &[(u16, Keep)] = &[
    (2, Keep::Whole),
    (3, Keep::Whole),
    (9, Keep::Whole),
    (19, Keep::Whole),
];

const OF_ROUTES: &[(u16, Keep)] = &[
    (libc::RTA_DST, Keep::Whole),
    (libc::RTA_OIF, Keep::Whole),
    (libc::RTA_GATEWAY, Keep::Whole),
    (libc::RTA_PRIORITY, Keep::Whole),
    (libc::RTA_METRICS, Keep::Nested(OF_METRICS)),
    (libc::RTA_MULTIPATH, Keep::Paths(OF_PATHS)),
    (libc::RTA_TABLE, Keep::Whole),
    (libc::RTA_VIA, Keep::Whole),
];
/// RTAX_MTU and RTAX_ADVMSS.
const OF_METRICS: &[(u16, Keep)] = &[(2, Keep::Whole), (8, Keep::Whole)];
const OF_PATHS: &[(u16, Keep)] = &[
    (libc::RTA_GATEWAY, Keep::Whole),
    (libc::RTA_VIA, Keep::Whole),
];

const OF_NEIGHBOURS: &[(u16, Keep)] = &[
    (libc::NDA_DST, Keep::Whole),
    (libc::NDA_LLADDR, Keep::Whole),
];

/// FRA_OIFNAME and FRA_L3MDEV.
const OF_RULES: &[(u16, Keep)] = &[(17, Keep::Text), (19, Keep::Whole)];

const OF_DISCIPLINES: &[(u16, Keep)] = &[(KIND, Keep::Text)];
const OF_FILTERS: &[(u16, Keep)] = &[
    (KIND, Keep::Text),
    (libc::TCA_OPTIONS, Keep::NestedBy(&[("bpf", OF_PROGRAMS)])),
];
/// TCA_BPF_NAME and TCA_BPF_ID.
const OF_PROGRAMS: &[(u16, Keep)] = &[(7, Keep::Text), (11, Keep::Whole)];

/// What to keep of a message type: bytes before the attributes, and the attributes. `None`:
/// everything.
fn read_of(kind: u16) -> Option<(usize, &'static [(u16, Keep)])> {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Some((16, OF_LINKS)),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Some((12, OF_ROUTES)),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Some((12, OF_NEIGHBOURS)),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some((12, OF_RULES)),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some((8, &[])),
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC => Some((20, OF_DISCIPLINES)),
        libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER => Some((20, OF_FILTERS)),
        _ => None,
    }
}

/// A message of which only the length has been checked.
pub(crate) struct Frame<'a>(&'a [u8]);

/// The messages of a datagram; ends with an error where the rest is not a message.
pub(super) fn frames(mut rest: &[u8]) -> impl Iterator<Item = io::Result<Frame<'_>>> {
    std::iter::from_fn(move || {
        let (length, _) = rest.split_first_chunk::<4>().or_else(|| {
            // The end of the last message, or less than a header.
            (!rest.is_empty()).then_some((&[0; 4], rest))
        })?;
        let length = u32::from_ne_bytes(*length) as usize;
        let frame = rest.get(..length).filter(|frame| frame.len() >= HEADER);
        let next = length.next_multiple_of(4);
        let left = rest.len();
        rest = rest
            .get(next..)
            .filter(|_| frame.is_some())
            .unwrap_or_default();
        Some(frame.map(Frame).ok_or_else(|| {
            let message = format!("a message claims to have {length} bytes, but there are {left}");
            io::Error::new(io::ErrorKind::InvalidData, message)
        }))
    })
}

impl Frame<'_> {
    /// The number of the question that it answers.
    pub(super) fn sequence(&self) -> u32 {
        let bytes = self.0.get(8..12).and_then(|bytes| bytes.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }

    /// Parses the parts to keep.
    pub(super) fn parse(&self) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
        let kind = u16_at(self.0, 4);
        let sieved = kind.and_then(read_of).and_then(|(fixed, of)| {
            let (head, attributes) = self.0.split_at_checked(HEADER + fixed)?;
            let mut bytes = head.to_vec();
            sieve(attributes, of, &mut bytes);
            let length = (bytes.len() as u32).to_ne_bytes();
            bytes.splice(..length.len(), length);
            Some(bytes)
        });
        let bytes = sieved.as_deref().unwrap_or(self.0);
        whole(bytes)
    }

    /// Parses all of a message that is not rtnetlink's.
    pub(crate) fn parse_whole<M: NetlinkDeserializable>(&self) -> io::Result<NetlinkMessage<M>> {
        whole(self.0)
    }
}

fn whole<M: NetlinkDeserializable>(bytes: &[u8]) -> io::Result<NetlinkMessage<M>> {
    NetlinkMessage::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

/// Splits off the first of several items, each with its own length, and padded: returns it, and the
/// rest. `None` if it is shorter than `least` or longer than the bytes.
fn split(bytes: &[u8], least: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let first = bytes.get(..length).filter(|_| length >= least)?;
    let rest = bytes.get(length.next_multiple_of(4)..);
    Some((first, rest.unwrap_or_default()))
}

/// Appends those attributes that are kept. Copies everything unchanged from the first incomplete
/// one, for the parser to report.
fn sieve(mut rest: &[u8], of: &[(u16, Keep)], out: &mut Vec<u8>) {
    let mut beside = "";
    while let Some((attribute, next)) = split(rest, ATTRIBUTE) {
        let (header, value) = attribute.split_at(ATTRIBUTE);
        let kind = u16_at(header, 2).unwrap_or_default() & TYPE_MASK;
        if kind == KIND {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            beside = std::str::from_utf8(text).unwrap_or_default();
        }
        let keep = of.iter().find(|(of, _)| *of == kind).map(|(_, keep)| keep);
        let start = out.len();
        out.extend(header);
        match keep {
            Some(Keep::Whole) => out.extend(value),
            Some(Keep::Text) => out.extend(String::from_utf8_lossy(value).as_bytes()),
            Some(Keep::Nested(of)) => sieve(value, of, out),
            Some(Keep::NestedBy(kinds)) => {
                if let Some((_, of)) = kinds.iter().find(|(kind, _)| *kind == beside) {
                    sieve(value, of, out);
                }
            }
            Some(Keep::Paths(of)) => sieve_paths(value, of, out),
            None => {}
        }
        let is_kept =
            matches!(keep, Some(Keep::Whole | Keep::Text)) || out.len() > start + ATTRIBUTE;
        end(out, start, is_kept, attribute);
        rest = next;
    }
    out.extend(rest);
}

/// The same for the paths of a route.
fn sieve_paths(mut rest: &[u8], of: &[(u16, Keep)], out: &mut Vec<u8>) {
    while let Some((path, next)) = split(rest, PATH) {
        let (header, attributes) = path.split_at(PATH);
        let start = out.len();
        out.extend(header);
        sieve(attributes, of, out);
        end(out, start, true, path);
        rest = next;
    }
    out.extend(rest);
}

/// Writes the length of the item that begins at `start` and pads it, or removes it if it is not
/// kept. A text that has become too long for its length field stays unchanged.
fn end(out: &mut Vec<u8>, start: usize, is_kept: bool, before: &[u8]) {
    if !is_kept {
        out.truncate(start);
        return;
    }
    if out.len() - start > usize::from(u16::MAX) {
        out.truncate(start);
        out.extend(before);
    }
    let length = ((out.len() - start) as u16).to_ne_bytes();
    out.splice(start..start + length.len(), length);
    let padded = start + (out.len() - start).next_multiple_of(4);
    out.resize(padded, 0);
}
