//! What an interface is and does, as netlink, ethtool and sysctls have it.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::net::if_::if_nametoindex;

use crate::XdpMode;
use crate::environment;
use crate::next_hop::Requests;
use crate::sys::ethtool::Ethtool;
use crate::sys::link;
use crate::sys::program;

/// The driver takes XDP programs (linux/netdev.h).
const XDP_ACT_BASIC: u64 = 1;

/// From this release on the kernel tells what drivers can do.
const TELLS_XDP_FEATURES: (u32, u32) = (6, 3);

/// What is ours on the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ours {
    /// The XDP mode that we are attached in.
    pub(crate) xdp: Option<XdpMode>,
    /// We are attached in another way: at tc, or as an entry of some root program.
    pub(crate) elsewhere: bool,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) id: u32,
    pub(crate) mode: XdpMode,
    /// Empty if the kernel does not tell.
    pub(crate) name: String,
}

/// An interface as it is now; what cannot be found out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InterfaceFacts {
    pub(crate) name: String,
    pub(crate) index: Option<u32>,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) mtu: u32,
    pub(crate) driver: Option<String>,
    /// The driver has native XDP.
    pub(crate) native: Option<bool>,
    /// An XDP program that is there.
    pub(crate) program: Option<Present>,
    pub(crate) receive_queues: Option<u32>,
    pub(crate) lro: Option<bool>,
    pub(crate) gro: Option<bool>,
    /// VLAN tags are taken off on arrival.
    pub(crate) rxvlan: Option<bool>,
    pub(crate) ours: Ours,
}

impl InterfaceFacts {
    /// Of an interface of the calling thread's network namespace.
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
        if let Ok(present) = link::present(index) {
            let ids = [present.native, present.generic, present.offloaded];
            let modes = [XdpMode::Native, XdpMode::Generic, XdpMode::Offload];
            let mut there = ids.into_iter().zip(modes);
            facts.program = there.find(|(id, _)| *id != 0).map(|(id, mode)| Present {
                id,
                mode,
                name: program::by_id(id)
                    .and_then(|fd| program::info(fd.as_fd()))
                    .map(|info| info.name)
                    .unwrap_or_default(),
            });
            facts.native = environment::is_at_least(TELLS_XDP_FEATURES)
                .then_some(present.features & XDP_ACT_BASIC != 0);
        }
        let ethtool = Ethtool::new()?;
        facts.driver = ethtool.driver(name).ok();
        facts.receive_queues = ethtool
            .channels(name)
            .map(|channels| channels.receive)
            .ok()
            .filter(|queues| *queues > 0);
        if let Ok((lro, rxvlan)) = ethtool.flags(name) {
            facts.lro = Some(lro);
            facts.rxvlan = Some(rxvlan);
        }
        facts.gro = ethtool.gro(name).ok();
        Ok(facts)
    }
}

/// A number of /proc/sys, as the calling thread's network namespace has it.
pub(crate) fn sysctl(path: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}
