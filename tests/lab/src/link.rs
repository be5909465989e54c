//! Virtual Ethernet between two hosts, set up so that XDP programs can forward on it.

use std::io;

use crate::Host;

/// A MAC address.
pub type MacAddr = [u8; 6];

/// One end of a [`veth`] pair, made by [`Host::port`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a port does nothing until it is given to `veth`"]
pub struct Port<'a> {
    host: &'a Host,
    interface: &'a str,
    mac: Option<MacAddr>,
    gro: bool,
}

impl Host {
    /// Describes an end of a [`veth`] pair: an interface of this host, with a random MAC address
    /// and without GRO.
    pub fn port<'a>(&'a self, interface: &'a str) -> Port<'a> {
        Port {
            host: self,
            interface,
            mac: None,
            gro: false,
        }
    }
}

impl Port<'_> {
    /// Gives the interface a fixed MAC address. Choose a locally administered one (`02:..`).
    pub fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Turns on GRO here. An end needs it if the *other* end has an XDP program that answers
    /// `XDP_TX`: the kernel drops such frames unless this end has GRO or a program of its own.
    ///
    /// Where an XDP program runs it stays off: in generic mode the program would see several
    /// frames merged into one.
    pub fn gro(mut self) -> Self {
        self.gro = true;
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
        let gro = if self.gro { "on" } else { "off" };
        host.tool(
            "ethtool",
            &format!("-K {interface} tx off tso off gso off gro {gro}"),
        )?;
        host.ip(&format!("link set {interface} up"))?;
        Ok(())
    }
}

/// Joins two hosts by a pair of virtual Ethernet interfaces, both up.
///
/// Checksums are computed by the sender and frames are no larger than the MTU (no checksum
/// offload, TSO or GSO), as on a real wire: an XDP program sees what a network card would give it,
/// and an encapsulated packet has the right checksum inside.
///
/// The pair vanishes with either host, or by [`Host::ip`]`("link del ...")`.
///
/// # Errors
///
/// What `ip` and `ethtool` say, for example that an interface of that name exists.
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
