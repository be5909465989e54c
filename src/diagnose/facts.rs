//! The facts about an interface, from netlink, ethtool and sysctls.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::net::if_::if_nametoindex;

use super::interrupts::Interrupt;
use super::interrupts::interrupts;
use super::interrupts::sysfs_of;
use crate::attach::Attachments;
use crate::attach::FarEnd;
use crate::attach::NotNative;
use crate::attach::OnInterface;
use crate::attach::XdpLink;
use crate::attach::XdpMode;
use crate::config::Topology;
use crate::rtnetlink::Peer;
use crate::rtnetlink::Requests;
use crate::sys::ethtool::Ethtool;
use crate::sys::link;
use crate::sys::program;
use crate::sys::release;
use crate::sys::release::TELLS_XDP_FEATURES;
use crate::sys::text;
use crate::types::MacAddr;

/// The driver has native XDP. Bits as in linux/netdev.h.
pub(super) const XDP_ACT_BASIC: u64 = 1;
/// Its programs can redirect frames.
pub(super) const XDP_ACT_REDIRECT: u64 = 1 << 1;
/// Frames may come in several buffers.
pub(super) const XDP_ACT_RX_SG: u64 = 1 << 5;

/// Our own programs on the interface, as this process remembers them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ours {
    /// The id of our XDP program.
    pub(crate) program: Option<u32>,
    /// Our XDP attachment to an interface of this name.
    pub(crate) xdp: Option<OurAttachment>,
    /// We are attached in another way: at tc, or as a root entry.
    pub(crate) elsewhere: bool,
}

/// An XDP attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OurAttachment {
    /// The interface's index at that time.
    pub(crate) index: u32,
    /// Why auto mode did not choose native.
    pub(crate) not_native: Option<NotNative>,
}

impl Ours {
    /// From a program and its attachments.
    pub(crate) fn of(
        program: BorrowedFd<'_>,
        attachments: &Attachments<XdpLink>,
        interface: &str,
    ) -> Self {
        let attached = attachments.get(interface);
        Self {
            program: program::info(program).ok().map(|info| info.id),
            xdp: attached.map(|attached| OurAttachment {
                index: attached.target().place.index,
                not_native: attached.not_native().cloned(),
            }),
            elsewhere: false,
        }
    }
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) id: u32,
    pub(crate) mode: XdpMode,
    /// Empty if the kernel does not reveal it.
    pub(crate) name: String,
}

impl Present {
    /// The text for messages.
    pub(super) fn describe(&self) -> String {
        match self.name.as_str() {
            "" => format!("XDP program {}", self.id),
            name => format!("XDP program {} ({name})", self.id),
        }
    }
}

/// The other end of a virtual link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OtherEnd {
    /// In this network namespace.
    Here {
        name: String,
        leaves_checksums: Option<bool>,
    },
    /// In another one, so this process cannot examine it.
    Elsewhere,
}

/// The queues of a driver that has few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtioQueues {
    /// The queues that the network stack sends through.
    pub(crate) in_use: u32,
    /// The largest number of queues.
    pub(crate) most: u32,
    /// Possible CPUs; each needs a queue for native XDP.
    pub(crate) cpus: u32,
}

/// An interface as it is now; `None` for whatever could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InterfaceFacts {
    pub(crate) name: String,
    pub(crate) index: Option<u32>,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) mtu: u32,
    pub(crate) driver: Option<String>,
    /// The driver's XDP features, bits of linux/netdev.h.
    pub(crate) xdp_features: Option<u64>,
    /// The XDP program on it.
    pub(crate) program: Option<Present>,
    pub(crate) receive_queues: Option<u32>,
    /// The interrupts of its receive queues, if known.
    pub(crate) interrupts: Vec<Interrupt>,
    pub(crate) lro: Option<bool>,
    pub(crate) gro: Option<bool>,
    /// GRO by the device (HW-GRO).
    pub(crate) hardware_gro: Option<bool>,
    /// The other end, if it is one end of a virtual link.
    pub(crate) other_end: Option<OtherEnd>,
    /// Whether that end accepts what native XDP sends.
    pub(crate) far_end: Option<FarEnd>,
    /// The queues, for virtio_net.
    pub(crate) virtio_queues: Option<VirtioQueues>,
    /// The interface strips VLAN tags on arrival.
    pub(crate) rxvlan: Option<bool>,
    pub(crate) ours: Ours,
}

impl InterfaceFacts {
    /// Facts about an interface in the calling thread's network namespace.
    pub(crate) fn gather(name: &str, ours: Ours) -> io::Result<Self> {
        let mut facts = Self {
            name: name.to_owned(),
            ours,
            ..Self::default()
        };
        let Ok(index) = if_nametoindex(name) else {
            return Ok(facts);
        };
        let mut requests = Requests::new()?;
        let Some(interface) = requests.interface(index)? else {
            return Ok(facts);
        };
        facts.index = Some(index);
        facts.up = interface.up;
        facts.carrier = interface.carrier;
        facts.mtu = interface.mtu;
        facts.interrupts = interrupts(name, index, interface.mac);
        let present = link::present(index)?;
        let ids = [present.native, present.generic, present.offloaded];
        let modes = [XdpMode::Native, XdpMode::Generic, XdpMode::Offload];
        let mut there = ids.into_iter().zip(modes);
        facts.program = there.find(|(id, _)| *id != 0).map(|(id, mode)| Present {
            id,
            mode,
            name: program::name_by_id(id),
        });
        facts.xdp_features = release::is_at_least(TELLS_XDP_FEATURES).then_some(present.features);
        let ethtool = Ethtool::new()?;
        facts.driver = ethtool.driver(name).ok();
        facts.receive_queues = ethtool
            .channels(name)
            .map(|channels| channels.receive)
            .ok()
            .filter(|queues| *queues > 0);
        facts.far_end = FarEnd::of(index)?;
        if facts.driver.as_deref() == Some("virtio_net") {
            facts.virtio_queues = virtio_queues(&ethtool, name, index, interface.mac);
        }
        if let Ok((lro, rxvlan)) = ethtool.flags(name) {
            facts.lro = Some(lro);
            facts.rxvlan = Some(rxvlan);
        }
        facts.gro = ethtool.gro(name).ok();
        facts.hardware_gro = ethtool.feature(name, "rx-gro-hw").ok();
        facts.other_end = match interface.peer {
            Some(Peer::Here(index)) => requests.interface(index)?.map(|of| OtherEnd::Here {
                leaves_checksums: ethtool.leaves_checksums(&of.name).ok(),
                name: of.name,
            }),
            Some(Peer::Elsewhere) => Some(OtherEnd::Elsewhere),
            None => None,
        };
        Ok(facts)
    }

    /// Whether the driver has native XDP.
    pub(super) fn native(&self) -> Option<bool> {
        self.xdp_features
            .map(|features| features & XDP_ACT_BASIC != 0)
    }
}

/// The queues of virtio_net. sysfs lists only those of the network stack, not those of XDP alone.
fn virtio_queues(
    ethtool: &Ethtool,
    name: &str,
    index: u32,
    mac: Option<MacAddr>,
) -> Option<VirtioQueues> {
    let channels = ethtool.channels(name).ok()?;
    let queues = sysfs_of(name, index, mac)?.join("queues");
    let names = fs::read_dir(queues).ok()?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let in_use = names.filter(|name| name.starts_with("tx-")).count();
    let cpus = Topology::read().ok()?.possible.last().copied()?;
    Some(VirtioQueues {
        in_use: u32::try_from(in_use).ok()?,
        most: channels.most_combined,
        cpus: cpus.saturating_add(1),
    })
}

/// A number in /proc/sys, for the calling thread's network namespace.
pub(crate) fn sysctl(path: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}

/// Whether this network namespace has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether the interface has an IPv6 address beyond link-local, so that tunnels may reach it by
/// IPv6.
pub(crate) fn has_ipv6_address(interface: &str) -> bool {
    let addresses = text::read("/proc/thread-self/net/if_inet6").unwrap_or_default();
    is_reachable_in(&addresses, interface)
}

fn is_reachable_in(addresses: &str, interface: &str) -> bool {
    // Columns: address, index, prefix length, scope, flags, name. Scope 20 is link-local (if_inet6
    // in proc_net(5)).
    let lines = addresses
        .lines()
        .map(|line| line.split_ascii_whitespace().collect());
    let mut of_interface = lines.filter(|words: &Vec<&str>| words.last() == Some(&interface));
    of_interface.any(|words| words.get(3) != Some(&"20"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    const ADDRESSES: &str = "\
        fe800000000000000000000000000001 02 40 20 80     eth0\n\
        20010db8000000000000000000000001 02 40 00 80     eth0\n\
        fe800000000000000000000000000002 03 40 20 80     eth1\n\
        00000000000000000000000000000001 01 80 10 80       lo\n";

    #[test]
    fn addresses_of_the_segment_do_not_count() {
        let reachable = |name| is_reachable_in(ADDRESSES, name);
        assert_eq!(
            ["eth0", "eth1", "eth2"].map(reachable),
            [true, false, false]
        );
    }

    /// Lines of other interfaces change nothing, whatever they contain.
    #[test]
    fn other_interfaces_change_nothing() {
        mutate::cases(10_000, |rng| {
            let mut others = ADDRESSES.replace("eth", "wan").into_bytes();
            for _ in 0..rng.u32(1..4) {
                mutate::text(rng, &mut others);
            }
            let others = String::from_utf8_lossy(&others).replace("eth", "ETH");
            let all = format!("{others}\n{ADDRESSES}{others}");
            let reachable = |name| is_reachable_in(&all, name);
            assert_eq!(
                ["eth0", "eth1", "eth2"].map(reachable),
                [true, false, false]
            );
        });
    }
}
