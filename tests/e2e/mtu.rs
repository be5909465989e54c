//! Path MTU: errors about a backend's packets reach that backend, and frames that are too large
//! for the tunnel are refused so that the client learns.

use crate::world::Setup;
use crate::world::World;

#[test]
fn too_big_errors_reach_the_backend_that_sent() {
    let world = World::new(Setup::default());
    for (vip, mtu) in [(world.vip4(), 1000), (world.vip6(), 1300)] {
        // Several connections, so that errors have more than one backend to go to.
        let mut clients: Vec<_> = (0..6).map(|_| world.connect(vip)).collect();
        let names: Vec<String> = clients
            .iter_mut()
            .map(|client| client.ask("who").unwrap())
            .collect();
        world.lab.limit_client_mtu(mtu).unwrap();
        for (client, name) in clients.iter_mut().zip(&names) {
            let answer = client.ask("fill 300000").unwrap();
            assert!(answer.starts_with(name), "{vip}");
            assert_eq!(answer.len(), name.len() + 1 + 300_000);
        }
    }
    let icmp = world.katrans[0].icmp_counters().unwrap();
    assert!(icmp.ptb_v4 > 0 && icmp.ptb_v6 > 0, "{icmp:?}");
    assert_eq!(icmp.ptb_v4, icmp.ptb_v4_small, "1000 is below 1280");
    assert_eq!(icmp.ptb_v6_small, 0, "1300 is not");
}

#[test]
fn clients_adapt_to_max_frame() {
    let world = World::new(Setup {
        configure: |builder| builder.max_frame(1314),
        ..Setup::default()
    });
    for vip in [world.vip4(), world.vip6()] {
        let mut client = world.connect(vip);
        let name = client.ask("who").unwrap();
        // One long line: segments of 1500 bytes are refused, then of 1300 accepted.
        assert_eq!(client.ask(&"x".repeat(100_000)).unwrap(), name);
    }
    let icmp = world.katrans[0].icmp_counters().unwrap();
    assert!(icmp.too_big_v4 > 0 && icmp.too_big_v6 > 0, "{icmp:?}");
    assert_eq!(world.katrans[0].totals().unwrap().drop.packets, 0);
}
