//! Virtual Ethernet between two hosts, set up so that XDP programs can forward on it.

use std::io;

use crate::Host;
use crate::sys::Verdict;

/// A MAC address.
pub type MacAddr = [u8; 6];

/// One end of a [`veth`] pair, made by [`Host::port`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a port does nothing until it is given to `veth`"]
pub struct Port<'a> {
    host: &'a Host,
    interface: &'a str,
    mac: Option<MacAddr>,
    takes_xdp_tx: bool,
}

impl Host {
    /// Describes an end of a [`veth`] pair: an interface of this host, with a random MAC
    /// address.
    pub fn port<'a>(&'a self, interface: &'a str) -> Port<'a> {
        Port {
            host: self,
            interface,
            mac: None,
            takes_xdp_tx: false,
        }
    }
}

impl Port<'_> {
    /// Gives the interface a fixed MAC address. Choose a locally administered one (`02:..`).
    pub fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Makes this end accept what a native XDP program at the *other* end sends with `XDP_TX`.
    ///
    /// The kernel delivers such frames only to an interface with its own XDP program, so this
    /// attaches one that passes everything. (GRO alone is not enough, as of Linux 6.18: it queues
    /// the frames, but nothing wakes up to fetch them.)
    pub fn takes_xdp_tx(mut self) -> Self {
        self.takes_xdp_tx = true;
        self
    }

    fn add(&self, mtu: u32) -> String {
        let mut arguments = format!("{} mtu {mtu}", self.interface);
        if let Some([a, b, c, d, e, f]) = self.mac {
            arguments += &format!(" address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        arguments
    }

    fn configure(&self) -> io::Result<()> {
        let Port {
            host, interface, ..
        } = self;
        host.tool(
            "ethtool",
            &format!("-K {interface} tx off tso off gso off gro off"),
        )?;
        if self.takes_xdp_tx {
            host.attach_xdp(interface, Verdict::Pass)?;
        }
        host.ip(&format!("link set {interface} up"))?;
        Ok(())
    }
}

/// Joins two hosts by a pair of virtual Ethernet interfaces, both up.
///
/// Checksums are computed by the sender and frames are no larger than the MTU (no checksum offload,
/// TSO, GSO or GRO), as on a real wire: an XDP program sees what a network card would give it, and
/// an encapsulated packet has the right checksum inside.
///
/// The pair vanishes with either host, or by [`Host::ip`]`("link del ...")`.
///
/// # Errors
///
/// Those of `ip` and `ethtool`, for example that an interface of that name exists.
pub fn veth(a: Port<'_>, b: Port<'_>, mtu: u32) -> io::Result<()> {
    a.host.ip(&format!(
        "link add {} type veth peer name {} netns {}",
        a.add(mtu),
        b.add(mtu),
        b.host.namespace_path().display()
    ))?;
    a.configure()?;
    b.configure()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::UdpSocket;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::eventually;
    use crate::require_root;

    const FRAMES: u64 = 500;

    fn received(host: &Host) -> u64 {
        let statistics = host.tool("ethtool", "-S eth0").unwrap();
        let packets = "rx_queue_0_xdp_packets: ";
        let (_, number) = statistics.split_once(packets).unwrap();
        number.lines().next().unwrap().parse().unwrap()
    }

    #[test]
    fn frames_sent_by_xdp_tx_arrive() {
        require_root();
        let (a, b) = (Host::new("a").unwrap(), Host::new("b").unwrap());
        let reflector = b.port("eth0").mac([2, 0, 0, 0, 0, 2]);
        veth(a.port("eth0").takes_xdp_tx(), reflector, 1500).unwrap();
        b.attach_xdp("eth0", Verdict::Tx).unwrap();
        a.ip("addr add 192.0.2.1/24 dev eth0").unwrap();
        a.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0")
            .unwrap();
        let socket = a.run(|| UdpSocket::bind("192.0.2.1:0").unwrap());
        let before = received(&a);
        for _ in 0..FRAMES {
            socket.send_to(b"frame", "192.0.2.2:9").unwrap();
            thread::sleep(Duration::from_micros(100));
        }
        eventually("all frames have come back", || {
            received(&a) >= before + FRAMES
        });
    }
}
