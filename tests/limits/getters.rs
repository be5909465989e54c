//! Getters at the largest numbers: those that list nothing take no longer than with one VIP, and
//! none waits for a thread of the library.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Family;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::RealChange;
use katran::VipFlags;
use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::waited;

use crate::all_in_table;
use crate::all_vips;
use crate::claim;
use crate::cpu_time_of;
use crate::large;
use crate::load;
use crate::quiet;
use crate::real;
use crate::require_root;
use crate::vip;

type Getter = (&'static str, fn(&Katran));

/// Calls that report one thing.
const OF_ONE: [Getter; 16] = [
    ("vip_flags", |katran| drop(katran.vip_flags(vip(65_000)))),
    ("hash_function", |katran| {
        drop(katran.hash_function(vip(65_000)))
    }),
    ("reals", |katran| drop(katran.reals(vip(65_000)))),
    ("is_down", |katran| {
        drop(katran.is_down(vip(65_000), real(0).address()))
    }),
    ("down_reals", |katran| drop(katran.down_reals(vip(65_000)))),
    ("real_index", |katran| {
        katran.real_index(real(65_000).address());
    }),
    ("gateways().mac", |katran| {
        katran.gateways().mac(Family::V4);
    }),
    ("gateways().max_frame", |katran| {
        katran.gateways().max_frame();
    }),
    ("gateways().next_hops", |katran| {
        katran.gateways().next_hops();
    }),
    ("source_routes().count", |katran| {
        katran.source_routes().count();
    }),
    ("features", |katran| {
        katran.features();
    }),
    ("interfaces", |katran| drop(katran.interfaces())),
    ("stats().vip", |katran| {
        drop(katran.stats().vip(vip(65_000)))
    }),
    ("stats().real", |katran| {
        drop(katran.stats().real(real(65_000).address()))
    }),
    ("stats().totals", |katran| drop(katran.stats().totals())),
    ("events().is_running", |katran| {
        katran.events().is_running();
    }),
];

/// Calls that list everything.
const OF_ALL: [Getter; 4] = [
    ("vips", |katran| drop(katran.vips())),
    ("real_numbers", |katran| drop(katran.real_numbers())),
    ("reals", |katran| drop(katran.reals(vip(0)))),
    ("state", |katran| drop(katran.state())),
];

const REALS: u32 = 65_535;
const ROUTER: &str = "192.0.2.1";

/// A host behind one router, and a balancer with the maximum number of reals, all behind the
/// router.
fn behind_one_router() -> (Host, Katran) {
    require_root();
    let host = Host::new("balancer").unwrap();
    host.ip("link add eth0 type veth peer name peer0").unwrap();
    host.ip("addr add 192.0.2.2/24 dev eth0").unwrap();
    host.ip("link set peer0 up").unwrap();
    host.ip("link set eth0 up").unwrap();
    answer(&host, 1);
    host.ip(&format!("route add default via {ROUTER}")).unwrap();
    let settings = all_in_table().max_reals(REALS).ring_size(251);
    let settings = settings.gateway(Gateway::Auto).next_hops(NextHops::PerReal);
    let mut katran = load(settings);
    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    let changes: Vec<_> = (0..REALS).map(|i| RealChange::Add(real(i))).collect();
    katran.modify_reals(vip(0), &changes).unwrap();
    host.run(|| katran.gateways_mut().follow().unwrap());
    (host, katran)
}

/// Gives the router this address.
fn answer(host: &Host, last: u8) {
    let entry =
        format!("neigh replace {ROUTER} lladdr 02:00:00:00:00:{last:02x} dev eth0 nud permanent");
    host.ip(&entry).unwrap();
}

/// Whether all reals are known to be behind the router at this address.
fn are_behind(katran: &Katran, last: u8) -> bool {
    let mac = MacAddr::new([2, 0, 0, 0, 0, last]);
    let hops = katran.gateways().next_hops();
    hops.len() == REALS as usize && hops.iter().all(|hop| hop.mac == Some(mac) && hop.answers)
}

#[test]
fn getters_of_one_thing_take_below_a_millisecond() {
    let _quiet = quiet();
    let mut state = all_vips();
    state.vips[0].reals = (0..REALS).map(real).collect();
    let mut katran = large();
    let _ = katran.apply(&state).unwrap();
    let fastest = |getter: fn(&Katran)| {
        let taken = (0..10).map(|_| cpu_time_of(|| getter(&katran)).1);
        taken.min().unwrap()
    };
    for (name, getter) in OF_ONE {
        claim(name, fastest(getter), Duration::from_millis(1), 1);
    }
    for (name, getter) in OF_ALL {
        claim(name, fastest(getter), Duration::from_millis(100), 10);
    }
}

#[test]
fn next_hops_of_65_535_reals_take_below_a_millisecond() {
    let _quiet = quiet();
    let (host, mut katran) = behind_one_router();
    eventually("all next hops are known", || are_behind(&katran, 1));
    let limit = Duration::from_millis(1);
    let taken = |_| cpu_time_of(|| katran.gateways().next_hops());
    let (hops, took) = (0..100).map(taken).max_by_key(|(_, took)| *took).unwrap();
    claim("next_hops() of 65,535 reals", took, limit, 1);
    let (copy, took) = cpu_time_of(|| hops.clone());
    claim("a clone of the list", took, limit, 1);
    let whose = |hops: &katran::attachments::NextHopList| -> Vec<IpAddr> {
        hops.iter().filter_map(|hop| hop.real).collect()
    };
    let all: Vec<_> = (0..REALS).map(|i| real(i).address()).collect();
    assert_eq!(whose(&hops), all);
    assert_eq!(&*hops[65_534].interface.clone().unwrap(), "eth0");
    // The clone has the list, too.
    let (_, took) = cpu_time_of(|| copy.len());
    claim("the length of a list that was put together", took, limit, 1);
    assert_eq!(copy, hops);
    // An earlier list does not change.
    katran.remove_real(vip(0), real(0).address()).unwrap();
    let after = katran.gateways().next_hops();
    let (left, took) = cpu_time_of(|| after.len());
    println!("put together when it is looked into: {took:?}");
    assert_eq!((hops.len(), left), (65_535, 65_534));
    assert_eq!(whose(&after), all[1..]);
    drop(host);
}

/// One answer of the router changes all next hops.
#[test]
fn no_getter_waits_for_65_535_next_hops_that_change_at_once() {
    const CHANGES: u8 = 5;
    let _quiet = quiet();
    let (host, katran) = behind_one_router();
    eventually("all next hops are known", || are_behind(&katran, 1));
    let is_done = AtomicBool::new(false);
    let (mut asked, mut slow, mut longest) = (0_u32, 0_u32, Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| {
            for last in 2..2 + CHANGES {
                answer(&host, last);
                eventually("the change is followed", || are_behind(&katran, last));
            }
            is_done.store(true, Ordering::Relaxed);
        });
        // Ends the scope if the other thread panics.
        let end = Instant::now() + Duration::from_secs(300);
        while !is_done.load(Ordering::Relaxed) && Instant::now() < end {
            let waited = waited(|| {
                let hops = katran.gateways().next_hops();
                assert_eq!(katran.gateways().mac(Family::V4), MacAddr::new([0; 6]));
                drop(hops);
            });
            longest = longest.max(waited);
            slow += u32::from(waited >= Duration::from_millis(1));
            asked += 1;
        }
    });
    println!("{asked} asked, {slow} waited for more than 1 ms, {longest:?} at most");
    assert!(is_done.into_inner() && asked > 1000, "{asked}");
    // The machine may take the CPU in ways that a thread's times do not show.
    assert!(slow < u32::from(CHANGES), "{slow} of {asked}");
}
