//! Two names of different kinds swap their reals in one state: for a moment neither names them, and
//! still they stay.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;

use katran::Features;
use katran::Katran;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::state::ServerIdState;
use nix::errno::Errno;

use crate::common::builder;
use crate::common::faults;
use crate::common::faults::without_commands;
use crate::common::ip;
use crate::common::load;

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

/// One id and one route, with a real each.
fn state(id: &str, route: &str) -> State {
    let mut state = State::default();
    let id = ServerId::new(7, ip(id));
    state.server_ids.push(ServerIdState::new(id));
    let route = SourceRoute::new("192.0.2.0/24".parse().unwrap(), ip(route));
    state.source_routes.push(route);
    state
}

/// A balancer in the first state, and the reals in its callbacks' calls from then on.
fn balancer(max_reals: u32) -> (Katran, Arc<Mutex<Vec<IpAddr>>>) {
    let features = Features::SOURCE_ROUTING | Features::TCP_SERVER_ID;
    let mut katran = load(builder().features(features).max_reals(max_reals));
    katran.apply(&state(A, B)).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    for register in [Katran::on_real_added, Katran::on_real_removed] {
        let told = Arc::clone(&told);
        register(&mut katran, move |real, _| told.lock().unwrap().push(real));
    }
    (katran, told)
}

#[test]
fn an_id_and_a_route_swap_their_only_reals_and_both_stay() {
    // With spare numbers, and without.
    for max_reals in [10, 2] {
        let (mut katran, told) = balancer(max_reals);
        let numbers = katran.real_numbers();
        for (id, route) in [(B, A), (A, B)] {
            katran.apply(&state(id, route)).unwrap();
            assert_eq!(katran.real_numbers(), numbers, "{max_reals} reals");
        }
        assert_eq!(*told.lock().unwrap(), [] as [IpAddr; 0]);
        // Nothing keeps them after that.
        katran.apply(&State::default()).unwrap();
        assert_eq!(katran.real_numbers(), []);
        assert_eq!(told.lock().unwrap().len(), 2);
    }
}

#[test]
fn a_swap_that_the_kernel_refuses_leaves_nothing_behind() {
    let (mut katran, told) = balancer(10);
    let (before, numbers) = (katran.state(), katran.real_numbers());
    let mut refused = 0;
    for command in [faults::MAP_UPDATE_ELEM, faults::MAP_UPDATE_BATCH] {
        let swap = || katran.apply(&state(B, A)).map(drop);
        let swapped = without_commands(&[command], Errno::ENOMEM, swap);
        match swapped {
            Ok(()) => drop(katran.apply(&before).unwrap()),
            Err(_) => refused += 1,
        }
        assert_eq!(katran.state(), before);
        assert_eq!(katran.real_numbers(), numbers);
        assert!(told.lock().unwrap().is_empty());
    }
    assert!(refused > 0, "the kernel refused nothing");
    katran.apply(&State::default()).unwrap();
    assert_eq!(katran.real_numbers(), []);
}
