//! An attached balancer. It knows the addresses of two interfaces, so that frames for other hosts
//! pass; it is not attached to the third, and knows no address of it.

use katran::Katran;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::Inside;
use katran_lab::veth;

use crate::common::frames::OWN_MAC;

/// The second interface's address; at the first one it is another host's.
pub(crate) const SECOND_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const LOOPBACK: u32 = 1;
const MTU: u32 = 1500;

/// The interfaces that frames arrive on. The thread that made this stays in their network namespace
/// as long as it lives.
pub(crate) struct Stations {
    /// Each with its address, if known.
    interfaces: [(u32, Vec<[u8; 6]>); 3],
    /// Dropped first: the thread leaves the namespace before its host goes.
    _inside: Inside,
    _hosts: [Host; 2],
}

impl Stations {
    pub(crate) fn attach(katran: &mut Katran) -> Self {
        let hosts = ["stations", "peer"].map(|name| Host::new(name).unwrap());
        let inside = hosts[0].enter().unwrap();
        let [first, second] = [("eth1", OWN_MAC), ("eth2", SECOND_MAC)].map(|(name, mac)| {
            veth(hosts[0].port(name).mac(mac), hosts[1].port(name), MTU).unwrap();
            // Only test frames arrive.
            hosts[1].ip(&format!("link set {name} down")).unwrap();
            katran.attach(name, XdpMode::Generic).unwrap();
            (hosts[0].interface_index(name).unwrap(), vec![mac])
        });
        Self {
            interfaces: [first, second, (LOOPBACK, Vec::new())],
            _inside: inside,
            _hosts: hosts,
        }
    }

    /// The interface for this frame, and its known addresses: always the same for the same frame.
    pub(crate) fn of(&self, frame: &[u8]) -> (u32, &[[u8; 6]]) {
        let (interface, macs) = &self.interfaces[frame.len() % self.interfaces.len()];
        (*interface, macs)
    }
}
