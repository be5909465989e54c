//! UDP flow migration as in Katran: datagrams leave a real that is down for their VIP, and are
//! counted. What down means for any VIP is in `void_flows.rs`.

use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Flow;
use katran::Katran;
use katran::Real;
use katran::VipFlags;
use katran::flows::Reason;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::builder;
use crate::common::drain;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;
use crate::common::vip;

const A: &str = "198.51.100.1";
const B: &str = "2001:db8:2::1";
const UDP: &str = "203.0.113.1:443/udp";
const MIGRATES: VipFlags = VipFlags::UDP_FLOW_MIGRATION;

fn flow(port: u16, to: &str) -> Flow {
    Flow::udp((ip("192.0.2.7"), port).into(), at(to))
}

fn send(katran: &Katran, flow: Flow) -> (Option<std::net::IpAddr>, Reason) {
    sent(katran, &frame(flow))
}

fn migrated(katran: &Katran) -> u64 {
    katran.stats().udp_flow_migration().unwrap().invalidated
}

#[test]
fn remembered_flows_leave_a_real_that_is_down() {
    for (service, to) in [
        (UDP, "203.0.113.1:443"),
        // Flows of a prefix VIP with any port migrate, too.
        ("203.0.113.0/24:0/udp", "203.0.113.9:53"),
        ("[2001:db8:1::]:443/udp", "[2001:db8:1::]:443"),
    ] {
        let flow = |port| match to.starts_with('[') {
            true => Flow::udp((ip("2001:db8:c::7"), port).into(), at(to)),
            false => flow(port, to),
        };
        let mut katran = load(builder());
        let vip = serve(&mut katran, service, MIGRATES, &[A]);
        for port in 1..=3 {
            assert_eq!(send(&katran, flow(port)), (Some(ip(A)), Reason::Ring));
        }
        drain(&mut katran, vip, A, B);
        assert_eq!(send(&katran, flow(1)), (Some(ip(A)), Reason::FlowTable));
        katran.mark_down(vip, ip(A)).unwrap();
        katran.mark_down(vip, ip(A)).unwrap();
        assert!(katran.is_down(vip, ip(A)).unwrap());
        assert!(!katran.is_down(vip, ip(B)).unwrap());
        let answer = katran.real_for_flow(&flow(1)).unwrap().unwrap();
        assert_eq!(answer.real, Some(ip(B)), "also for a query");
        assert_eq!(send(&katran, flow(1)), (Some(ip(B)), Reason::Ring));
        assert_eq!(send(&katran, flow(1)), (Some(ip(B)), Reason::FlowTable));
        assert_eq!(migrated(&katran), 1);
        // The first packet of each flow is new: 3 to A, and the one that moved.
        assert_eq!(katran.stats().cpus().unwrap()[0].new_flows, 4, "{service}");

        katran.mark_up(vip, ip(A)).unwrap();
        assert_eq!(send(&katran, flow(2)), (Some(ip(A)), Reason::FlowTable));
        katran.mark_down(vip, ip(A)).unwrap();
        katran.clear_down(vip).unwrap();
        assert_eq!(send(&katran, flow(3)), (Some(ip(A)), Reason::FlowTable));
        assert_eq!(migrated(&katran), 1);
    }
}

#[test]
fn only_flows_of_that_vip_are_affected() {
    let mut katran = load(builder());
    let down = serve(&mut katran, UDP, MIGRATES, &[A]);
    let other = serve(&mut katran, "203.0.113.2:443/udp", MIGRATES, &[A]);
    let tcp = serve(&mut katran, "203.0.113.1:443/tcp", MIGRATES, &[A]);
    let of_other = flow(1, "203.0.113.2:443");
    let of_tcp = Flow::tcp(at("192.0.2.7:1"), at("203.0.113.1:443"));
    send(&katran, of_other);
    send(&katran, of_tcp);
    for vip in [down, other, tcp] {
        drain(&mut katran, vip, A, B);
    }
    katran.mark_down(down, ip(A)).unwrap();
    assert_eq!(send(&katran, of_other), (Some(ip(A)), Reason::FlowTable));
    assert_eq!(send(&katran, of_tcp), (Some(ip(A)), Reason::FlowTable));
    // TCP leaves it, too, but Katran's counter does not count that.
    katran.mark_down(tcp, ip(A)).unwrap();
    assert_eq!(send(&katran, of_tcp), (Some(ip(B)), Reason::Ring));
    assert_eq!(migrated(&katran), 0);
    assert_eq!(katran.down_reals(down).unwrap(), [ip(A)]);
    assert!(katran.down_reals(other).unwrap().is_empty());
}

#[test]
fn under_flood_nothing_migrates() {
    let to = "203.0.113.1:443";
    // The guard acts for the rest of a window of one second: all must fall into it. Otherwise the
    // flow may have migrated.
    let within = (0..20).any(|_| {
        let mut katran = load(builder().flood_threshold(10));
        let vip = serve(&mut katran, UDP, MIGRATES, &[A]);
        send(&katran, flow(1, to));
        drain(&mut katran, vip, A, B);
        katran.mark_down(vip, ip(A)).unwrap();
        let began = Instant::now();
        for port in 0..50 {
            send(&katran, flow(100 + port, to));
        }
        let cpus = katran.stats().cpus().unwrap();
        let flooded = cpus.iter().any(|cpu| cpu.under_flood);
        let answer = send(&katran, flow(1, to));
        let migrated = migrated(&katran);
        if began.elapsed() > Duration::from_millis(900) {
            return false;
        }
        assert!(flooded);
        assert_eq!(answer, (Some(ip(A)), Reason::FlowTable));
        assert_eq!(migrated, 0);
        true
    });
    assert!(within, "this machine is too busy");
}

#[test]
fn health_goes_with_its_real() {
    let mut katran = load(builder());
    let down = serve(&mut katran, UDP, MIGRATES, &[A, B]);
    serve(&mut katran, "203.0.113.2:443/udp", VipFlags::empty(), &[A]);
    katran.mark_down(down, ip(A)).unwrap();
    katran.remove_real(down, ip(A)).unwrap();
    assert!(matches!(
        katran.is_down(down, ip(A)),
        Err(Error::NotFound { .. })
    ));
    assert!(katran.down_reals(down).unwrap().is_empty());
    katran.add_real(down, Real::new(ip(A))).unwrap();
    assert!(!katran.is_down(down, ip(A)).unwrap());

    katran.mark_down(down, ip(B)).unwrap();
    katran.remove_vip(down).unwrap();
    assert!(katran.down_reals(down).is_err());
    let again = serve(&mut katran, UDP, MIGRATES, &[A, B]);
    assert!(katran.down_reals(again).unwrap().is_empty());

    assert!(katran.mark_down(again, ip("198.51.100.99")).is_err());
    assert!(katran.mark_down(vip("203.0.113.9:1/udp"), ip(A)).is_err());
}

#[test]
fn a_real_that_is_down_and_then_removed_keeps_no_flows_though_another_vip_has_it() {
    for flags in [MIGRATES, VipFlags::empty()] {
        let mut katran = load(all_in_table());
        let vip = serve(&mut katran, UDP, flags, &[A]);
        let other = serve(&mut katran, "203.0.113.2:443/udp", flags, &[A]);
        let to = "203.0.113.1:443";
        let of_other = flow(1, "203.0.113.2:443");
        for port in 1..=3 {
            send(&katran, flow(port, to));
        }
        send(&katran, of_other);
        drain(&mut katran, vip, A, B);
        drain(&mut katran, other, A, B);
        katran.mark_down(vip, ip(A)).unwrap();
        send(&katran, flow(1, to));
        katran.remove_real(vip, ip(A)).unwrap();
        for port in 2..=3 {
            let answer = katran.real_for_flow(&flow(port, to)).unwrap().unwrap();
            assert_eq!(answer.real, Some(ip(B)));
            assert_eq!(send(&katran, flow(port, to)).0, Some(ip(B)));
        }
        // They stay away when the real is added again.
        katran.add_real(vip, Real::new(ip(A)).weight(0)).unwrap();
        for port in 1..=3 {
            assert_eq!(send(&katran, flow(port, to)).0, Some(ip(B)));
        }
        assert_eq!(send(&katran, of_other), (Some(ip(A)), Reason::FlowTable));
    }
}
