//! What an interface has sent, and the other end of a virtual one, by rtnetlink(7).

use std::io;

use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::link::LinkXdp;
use netlink_packet_route::link::XdpAttached;

use super::Requests;

/// An interface, as a sender of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sending {
    pub(crate) name: String,
    /// Frames since it was made.
    pub(crate) sent: u64,
    /// Frames that it dropped or failed to send.
    pub(crate) failed: u64,
    /// The driver runs an XDP program for it.
    pub(crate) has_native: bool,
    /// If it is a virtual Ethernet link (veth).
    pub(crate) other_end: Option<OtherEnd>,
}

/// The other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherEnd {
    /// The number of its network namespace, if that is another one.
    pub(crate) namespace: Option<i32>,
    pub(crate) index: u32,
}

impl Requests {
    /// An interface by its index, perhaps in another network namespace, by its number in this one;
    /// `None`: there is none.
    pub(crate) fn sending(
        &mut self,
        namespace: Option<i32>,
        index: u32,
    ) -> io::Result<Option<Sending>> {
        let link = self.link(namespace, index)?;
        Ok(link.as_ref().map(sending_of))
    }
}

pub(super) fn sending_of(link: &LinkMessage) -> Sending {
    let mut sending = Sending::default();
    let (mut other, mut namespace, mut is_veth) = (None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => sending.name.clone_from(name),
            LinkAttribute::Stats64(counters) => {
                sending.sent = counters.tx_packets;
                sending.failed = counters.tx_dropped.saturating_add(counters.tx_errors);
            }
            LinkAttribute::Xdp(programs) => {
                sending.has_native = programs.iter().any(|of| match of {
                    LinkXdp::Attached(XdpAttached::Driver) => true,
                    // There are several.
                    LinkXdp::DrvProgId(number) => *number != 0,
                    _ => false,
                });
            }
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
            LinkAttribute::LinkInfo(infos) => {
                is_veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    let other = other.filter(|_| is_veth);
    sending.other_end = other.map(|index| OtherEnd { namespace, index });
    sending
}
