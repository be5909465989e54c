//! Next hops of single reals, given instead of discovered: each real has another MAC address, some
//! have none, and with redirect some are behind other interfaces.

use katran::Katran;
use katran::NextHops;
use katran_model::Balancer;
use katran_model::Hop;
use katran_model::Port;

use crate::common::bpf;

/// As in `bpf/shared.h`: a hop is one word, a port two.
const PORT_SHIFT: u32 = 48;
const PORT_BYTES: usize = 16;
/// The interface of test runs, in every namespace.
const LOOPBACK: u32 = 1;

/// The ports by number: the interface that frames arrive on; another one; a removed one.
const PORTS: [(u32, [u8; 6], bool); 3] = [
    (LOOPBACK, [0x0a, 0, 0, 0, 1, 1], true),
    (77, [0x0a, 0, 0, 0, 1, 2], true),
    (78, [0x0a, 0, 0, 0, 1, 3], false),
];

/// Gives balancer and model the same next hops.
pub(crate) fn give(katran: &Katran, model: &mut Balancer) {
    let settings = katran.state().balancer.unwrap();
    let redirects = settings.next_hops == Some(NextHops::Redirect);
    if redirects {
        give_ports(katran);
    }
    let map = katran.map_fd(".data.hops").unwrap();
    let mut words = bpf::lookup(map, &[0; 4]).unwrap();
    for number in model.tables.reals.keys().copied() {
        let at = number as usize * 8;
        let mut word = [0; 8];
        if number % 5 != 4 {
            let mac = [0x0a, 0, 0, 0, 2, number as u8];
            // Port 0 means none.
            let port = if redirects { number % 4 } else { 0 };
            word[..6].copy_from_slice(&mac);
            let bits = u64::from_le_bytes(word) | u64::from(port) << PORT_SHIFT;
            word = bits.to_le_bytes();
            let by = PORTS.get((port as usize).wrapping_sub(1));
            let by = by.filter(|(interface, ..)| *interface != LOOPBACK);
            let by = by.map(|&(_, mac, there)| Port { mac, there });
            model.tables.hops.insert(number, Hop { mac, by });
        }
        words[at..at + 8].copy_from_slice(&word);
    }
    bpf::update(map, &[0; 4], &words);
}

fn give_ports(katran: &Katran) {
    let map = katran.map_fd(".data.ports").unwrap();
    let devices = katran.map_fd("devices").unwrap();
    let mut words = bpf::lookup(map, &[0; 4]).unwrap();
    for (number, (interface, mac, there)) in (1u32..).zip(PORTS) {
        let at = number as usize * PORT_BYTES;
        words[at..at + 6].copy_from_slice(&mac);
        words[at + 8..at + 12].copy_from_slice(&interface.to_le_bytes());
        if there {
            // A test run sends nothing, so any existing interface will do.
            bpf::update(devices, &number.to_le_bytes(), &LOOPBACK.to_le_bytes());
        }
    }
    bpf::update(map, &[0; 4], &words);
}
