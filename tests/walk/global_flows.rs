//! The global flow tables: packets find what the host application puts there.

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran_lab::stay_on;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;

const A: &str = "198.51.100.1";
const B: &str = "2001:db8:2::1";
const OTHER: &str = "203.0.113.2:443/udp";

fn settings() -> Builder {
    builder()
        .features(Features::default() | Features::GLOBAL_FLOW_TABLE)
        .global_flow_table_size(100)
        .forwarding_cpus([0])
}

/// New flows go to A; another VIP has B.
fn balancer(vip: &str, flags: VipFlags) -> Katran {
    let mut katran = load(settings());
    serve(&mut katran, vip, flags, &[A]);
    serve(&mut katran, OTHER, VipFlags::empty(), &[B]);
    katran
}

fn flow(port: u16) -> Flow {
    Flow::tcp((ip("192.0.2.7"), port).into(), at("203.0.113.1:443"))
}

#[test]
fn packets_follow_the_host_applications_entries() {
    for (vip, to) in [
        ("203.0.113.1:443/tcp", "203.0.113.1:443"),
        ("203.0.113.1:0/tcp", "203.0.113.1:443"),
        ("203.0.113.0/24:443/tcp", "203.0.113.1:443"),
    ] {
        let mut katran = balancer(vip, VipFlags::GLOBAL_LRU);
        let flow = |port| Flow::tcp((ip("192.0.2.7"), port).into(), at(to));
        katran.global_flows_mut().set(0, &flow(1), ip(B)).unwrap();
        assert_eq!(katran.global_flows().get(0, &flow(1)).unwrap(), Some(ip(B)));
        let answer = katran.real_for_flow(&flow(1)).unwrap().unwrap();
        assert_eq!(answer.real, Some(ip(B)));
        assert_eq!(answer.choice, Choice::GlobalFlowTable { cpu: Some(0) });
        for _ in 0..2 {
            // Looked up for each packet: nothing else is remembered.
            assert_eq!(
                sent(&katran, &frame(flow(1))),
                (Some(ip(B)), Reason::GlobalFlowTable)
            );
        }
        assert_eq!(katran.stats().flow_table().unwrap().misses, 0);
        assert_eq!(sent(&katran, &frame(flow(2))), (Some(ip(A)), Reason::Ring));
        // A SYN skips the global table, and the entry it makes takes precedence.
        assert_eq!(sent(&katran, &syn(flow(1))), (Some(ip(A)), Reason::Ring));
        assert_eq!(
            sent(&katran, &frame(flow(1))),
            (Some(ip(A)), Reason::FlowTable)
        );
        let counters = katran.stats().global_flows().unwrap();
        assert_eq!((counters.hits, counters.no_table), (2, 0));
        assert!(katran.global_flows_mut().remove(0, &flow(1)).unwrap());
        assert!(!katran.global_flows_mut().remove(0, &flow(1)).unwrap());
        assert_eq!(katran.global_flows().get(0, &flow(1)).unwrap(), None);
    }
}

#[test]
fn a_vip_without_the_flag_ignores_it() {
    let mut katran = balancer("203.0.113.1:443/tcp", VipFlags::empty());
    katran.global_flows_mut().set(0, &flow(1), ip(B)).unwrap();
    assert_eq!(
        sent(&katran, &frame(flow(1))),
        (Some(ip(A)), Reason::SettledSlot)
    );
    assert_eq!(katran.stats().global_flows().unwrap().hits, 0);
    let answer = katran.real_for_flow(&flow(2)).unwrap().unwrap();
    assert_eq!(answer.choice, Choice::SettledSlot);
}

#[test]
fn an_entry_of_a_removed_real_is_void() {
    let mut katran = balancer("203.0.113.1:443/tcp", VipFlags::GLOBAL_LRU);
    katran.global_flows_mut().set(0, &flow(1), ip(B)).unwrap();
    let other = OTHER.parse().unwrap();
    katran.remove_real(other, ip(B)).unwrap();
    assert_eq!(katran.global_flows().get(0, &flow(1)).unwrap(), None);
    assert_eq!(sent(&katran, &frame(flow(1))), (Some(ip(A)), Reason::Ring));
    // Nor when the address is added again: it is another real.
    katran.add_real(other, katran::Real::new(ip(B))).unwrap();
    assert_eq!(katran.global_flows().get(0, &flow(1)).unwrap(), None);
}

#[test]
fn cpus_without_a_table_share_one() {
    let mut katran = balancer("203.0.113.1:443/tcp", VipFlags::GLOBAL_LRU);
    katran.global_flows_mut().set(1, &flow(1), ip(B)).unwrap();
    assert_eq!(katran.global_flows().get(1, &flow(1)).unwrap(), Some(ip(B)));
    assert_eq!(katran.global_flows().get(9, &flow(1)).unwrap(), Some(ip(B)));
    assert_eq!(katran.global_flows().get(0, &flow(1)).unwrap(), None);
    stay_on(1);
    bpf::run(katran.program_fd(), &frame(flow(1)));
    let counters = katran.stats().global_flows().unwrap();
    assert_eq!((counters.hits, counters.no_table), (1, 1));
    assert_eq!(
        katran.stats().flow_table().unwrap().fallback,
        1,
        "counted once"
    );
    let answer = katran.real_for_flow(&flow(1)).unwrap().unwrap();
    assert_eq!(answer.choice, Choice::GlobalFlowTable { cpu: None });
}

#[test]
fn invalid_requests_are_refused() {
    let mut katran = balancer("203.0.113.1:443/tcp", VipFlags::GLOBAL_LRU);
    let nowhere = Flow::tcp(at("192.0.2.7:1"), at("192.0.2.1:1"));
    assert!(matches!(
        katran.global_flows_mut().set(0, &nowhere, ip(B)),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        katran
            .global_flows_mut()
            .set(0, &flow(1), ip("198.51.100.99")),
        Err(Error::NotFound { .. })
    ));
    let mut without = load(builder());
    serve(
        &mut without,
        "203.0.113.1:443/tcp",
        VipFlags::GLOBAL_LRU,
        &[A],
    );
    let error = without
        .global_flows_mut()
        .set(0, &flow(1), ip(A))
        .unwrap_err();
    assert!(error.to_string().contains("global-flow-table"), "{error}");
    assert!(without.map_fd("global_flows").is_none());
    assert_eq!(sent(&without, &frame(flow(1))), (Some(ip(A)), Reason::Ring));
}
