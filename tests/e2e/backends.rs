//! Backends that come and go: drain, removal, reuse of numbers, switching under load.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use katran::Choice;
use katran::Real;
use katran::RealChange;
use katran_lab::TcpClient;

use crate::world::Family;
use crate::world::Setup;
use crate::world::World;
use crate::world::socket;

const CONNECTIONS: usize = 30;

#[test]
fn a_drained_real_keeps_its_connections_and_gets_no_new_ones() {
    let mut world = World::new(Setup::default());
    let vip = world.vip4();
    let mut old = world.connect(vip);
    let name = old.ask("who").unwrap();
    let drained = world.real(world.named(&name), Family::V4);

    world.katrans[0]
        .add_real(vip, Real::new(drained).weight(0))
        .unwrap();
    for _ in 0..CONNECTIONS {
        assert_ne!(world.ask_once(vip), name, "a drained real got a connection");
    }
    assert_eq!(old.ask("who").unwrap(), name);
    assert!(old.ask("fill 100000").unwrap().starts_with(&name));

    world.katrans[0].add_real(vip, Real::new(drained)).unwrap();
    let back = (0..200).any(|_| world.ask_once(vip) == name);
    assert!(back, "the real gets new connections again");
    assert_eq!(old.ask("who").unwrap(), name);
}

#[test]
fn without_its_last_real_a_vip_drops_and_counts() {
    let mut world = World::new(Setup::default());
    for vip in [world.vip4(), world.vip6()] {
        let mut old = world.connect(vip);
        old.ask("who").unwrap();
        let reals = world.katrans[0].reals(vip).unwrap();
        for real in &reals {
            world.katrans[0].remove_real(vip, real.address()).unwrap();
        }
        // The reals live on in the UDP VIP: the flow's entry must not count all the same.
        let before = world.katrans[0].ring_drops().unwrap().empty;
        old.set_patience(Duration::from_millis(500)).unwrap();
        assert!(old.ask("who").is_err(), "an established flow was forwarded");
        let after = world.katrans[0].ring_drops().unwrap().empty;
        assert!(after > before, "drops are counted");

        for real in reals {
            world.katrans[0].add_real(vip, real).unwrap();
        }
        world.ask_once(vip);
    }
}

#[test]
fn clients_of_a_removed_real_move_and_the_others_stay() {
    let mut world = World::new(Setup {
        backends: 4,
        ..Setup::default()
    });
    let vip = world.vip4();
    // From fixed ports, so that a new connection is the same flow as the old one.
    let ports = 41_000..41_000 + CONNECTIONS as u16;
    let ask_from = |world: &World, port| {
        let local = ([192, 0, 2, 2], port).into();
        let mut client = TcpClient::connect_from(&world.lab.client, local, socket(vip)).unwrap();
        client.ask("who").unwrap()
    };
    let before: Vec<String> = ports.clone().map(|port| ask_from(&world, port)).collect();
    let gone = before[0].clone();
    let address = world.real(world.named(&gone), Family::V4);
    for vip in world.vips() {
        let katran = &mut world.katrans[0];
        if katran
            .reals(vip)
            .unwrap()
            .iter()
            .any(|real| real.address() == address)
        {
            katran.remove_real(vip, address).unwrap();
        }
    }
    assert_eq!(world.katrans[0].real_index(address), None);
    // Another range, for the old flows are in TIME_WAIT; the ring decides the same for it.
    let mut stayed = 0;
    for (port, before) in ports.zip(&before) {
        let flow = katran::Flow::tcp(([192, 0, 2, 2], port).into(), socket(vip));
        let answer = world.katrans[0].real_for_flow(&flow).unwrap().unwrap();
        let real = answer.real.unwrap();
        assert_ne!(real, address, "a flow stayed on the removed real");
        if before == &gone {
            assert_eq!(answer.choice, Choice::Ring, "the old entry is void");
        } else {
            let same = world.real(world.named(before), Family::V4);
            stayed += usize::from(real == same);
        }
    }
    let others = before.iter().filter(|name| **name != gone).count();
    assert!(stayed * 100 >= others * 90, "{stayed} of {others} stayed");
    for _ in 0..CONNECTIONS {
        assert_ne!(world.ask_once(vip), gone);
    }
}

#[test]
fn a_reused_number_does_not_inherit_flows() {
    // One number in all, so that the next address gets the number of the last.
    let mut world = World::new(Setup {
        backends: 0,
        configure: |builder| builder.max_reals(1),
        ..Setup::default()
    });
    let vip = world.vip4();
    let katran = &mut world.katrans[0];
    let (first, second) = (
        "198.51.100.1".parse().unwrap(),
        "198.51.100.2".parse().unwrap(),
    );
    katran.add_real(vip, Real::new(first)).unwrap();
    let number = katran.real_index(first).unwrap();
    let flow = katran::Flow::tcp("192.0.2.2:41000".parse().unwrap(), socket(vip));
    let lab = &world.lab;
    let connect = || {
        TcpClient::connect_from(&lab.client, flow.source, flow.destination)
            .expect_err("nobody is there")
    };
    thread::scope(|scope| {
        let attempt = scope.spawn(connect);
        while !matches!(
            katran.real_for_flow(&flow).unwrap().unwrap().choice,
            Choice::FlowTable { .. }
        ) {
            assert!(!attempt.is_finished(), "the flow was never remembered");
            thread::sleep(Duration::from_millis(10));
        }
        katran.remove_real(vip, first).unwrap();
        katran.add_real(vip, Real::new(second)).unwrap();
        assert_eq!(
            katran.real_index(second),
            Some(number),
            "the number is reused"
        );
        let answer = katran.real_for_flow(&flow).unwrap().unwrap();
        assert_eq!(answer.choice, Choice::Ring, "the old entry is void");
        assert_eq!(answer.real, Some(second));
    });
}

#[test]
fn rings_switch_whole_while_traffic_flows() {
    let mut world = World::new(Setup {
        backends: 4,
        ..Setup::default()
    });
    let vip = world.vip4();
    let real = |index| world.real(index, Family::V4);
    let sets = [[real(0), real(1)], [real(2), real(3)]];
    let change = |from: usize, to: usize| -> Vec<RealChange> {
        let adds = sets[to]
            .iter()
            .map(|address| RealChange::Add(Real::new(*address)));
        let removes = sets[from]
            .iter()
            .map(|address| RealChange::Remove(*address));
        adds.chain(removes).collect()
    };
    let mut katran = world.katrans.remove(0);
    for address in sets[1] {
        katran.remove_real(vip, address).unwrap();
    }
    let enough = AtomicBool::new(false);
    let names = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut names = BTreeSet::new();
            while !enough.load(Ordering::Relaxed) {
                names.insert(world.ask_once(vip));
            }
            names
        });
        for _ in 0..50 {
            katran.modify_reals(vip, &change(0, 1)).unwrap();
            katran.modify_reals(vip, &change(1, 0)).unwrap();
        }
        enough.store(true, Ordering::Relaxed);
        traffic.join().unwrap()
    });
    assert_eq!(names.len(), 4, "both sets were in force: {names:?}");
    let drops = katran.ring_drops().unwrap();
    assert_eq!((drops.empty, drops.unknown_real), (0, 0));
}
