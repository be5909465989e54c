//! VIPs whose ring ignores a port: a client's flows stay together, but each TCP connection has its
//! own fate.

use std::net::IpAddr;

use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran_lab::eventually;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::builder;
use crate::common::drain;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::frames::unreachable;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;
use crate::common::wire::ipip;

const A: &str = "198.51.100.1";
const B: &str = "2001:db8:2::1";
const C: &str = "198.51.100.3";

/// A VIP, and two flows of one client that its ring does not tell apart.
struct Case {
    vip: &'static str,
    flags: VipFlags,
    flows: [(&'static str, &'static str); 2],
    /// The source port in the outer header.
    port: [u16; 2],
}

fn cases() -> [Case; 4] {
    let any_port = [
        ("192.0.2.7:1000", "203.0.113.1:80"),
        ("192.0.2.7:1000", "203.0.113.1:81"),
    ];
    let both = [
        ("192.0.2.7:1001", "203.0.113.1:80"),
        ("192.0.2.7:1002", "203.0.113.1:81"),
    ];
    let both_v6 = [
        ("[2001:db8:c::7]:1001", "[2001:db8:1::9]:80"),
        ("[2001:db8:c::7]:1002", "[2001:db8:1::9]:81"),
    ];
    [
        Case {
            vip: "203.0.113.1:443",
            flags: VipFlags::NO_SRC_PORT,
            flows: [
                ("192.0.2.7:1001", "203.0.113.1:443"),
                ("192.0.2.7:1002", "203.0.113.1:443"),
            ],
            port: [0, 0],
        },
        Case {
            vip: "203.0.113.1:0",
            flags: VipFlags::empty(),
            flows: any_port,
            port: [1000, 1000],
        },
        Case {
            vip: "203.0.113.0/24:0",
            flags: VipFlags::NO_SRC_PORT,
            flows: both,
            port: [0, 0],
        },
        Case {
            vip: "[2001:db8:1::/64]:0",
            flags: VipFlags::NO_SRC_PORT,
            flows: both_v6,
            port: [0, 0],
        },
    ]
}

fn went(to: &str, reason: Reason) -> (Option<IpAddr>, Reason) {
    (Some(ip(to)), reason)
}

#[test]
fn a_connection_stays_when_its_client_opens_another() {
    // With server ids enabled, other programs handle TCP.
    for features in [
        Features::default(),
        Features::default() | Features::TCP_SERVER_ID,
    ] {
        for case in cases() {
            let mut katran = load(all_in_table().features(features));
            let name = format!("{}/tcp", case.vip);
            let vip = serve(&mut katran, &name, case.flags, &[A]);
            let [first, second] = case.flows.map(|(from, to)| Flow::tcp(at(from), at(to)));
            assert_eq!(sent(&katran, &syn(first)), went(A, Reason::Ring));
            assert_eq!(sent(&katran, &frame(first)), went(A, Reason::FlowTable));
            drain(&mut katran, vip, A, B);
            let ask = |flow| {
                let answer = katran.real_for_flow(&flow).unwrap().unwrap();
                (answer.real, answer.choice)
            };
            let in_table = Choice::FlowTable { cpu: 0 };
            assert_eq!(ask(first), (Some(ip(A)), in_table));
            assert_eq!(ask(second), (Some(ip(B)), Choice::Ring));
            assert_eq!(sent(&katran, &syn(second)), went(B, Reason::Ring));
            assert_eq!(sent(&katran, &frame(second)), went(B, Reason::FlowTable));
            assert_eq!(ask(second), (Some(ip(B)), in_table));
            for (flow, port, real) in [(first, case.port[0], A), (second, case.port[1], B)] {
                let bytes = frame(flow);
                let ran = katran.simulate(&bytes).unwrap();
                assert_eq!((ran.real, ran.reason), went(real, Reason::FlowTable));
                // The outer header does not change.
                let source = Some(flow.source.ip());
                assert_eq!(ran.frame, ipip(&bytes, source, port, ip(real)));
                // An error about a connection finds that connection's entry.
                assert_eq!(sent(&katran, &unreachable(flow, 8)).0, Some(ip(real)));
                let found = katran.flows().find(&flow).unwrap();
                assert_eq!((found.len(), found[0].flow), (1, flow));
            }
            // Flows of a down real are voided one by one, and removed.
            katran.mark_down(vip, ip(A)).unwrap();
            assert_eq!(sent(&katran, &frame(first)), went(B, Reason::Ring));
            assert_eq!(katran.flows_mut().remove(&first).unwrap(), 1);
            assert_eq!(sent(&katran, &frame(second)), went(B, Reason::FlowTable));
        }
    }
}

#[test]
fn entries_of_such_a_vip_are_swept() {
    let mut katran = load(all_in_table());
    let vip = serve(
        &mut katran,
        "203.0.113.0/24:0/tcp",
        VipFlags::NO_SRC_PORT,
        &[A],
    );
    serve(
        &mut katran,
        "203.0.114.1:80/tcp",
        VipFlags::empty(),
        &[A, B],
    );
    for port in 1..=20 {
        let to = (ip("203.0.113.9"), port).into();
        sent(
            &katran,
            &syn(Flow::tcp((ip("192.0.2.7"), 999 + port).into(), to)),
        );
    }
    let stats = |katran: &Katran| katran.flows().stats(vip).unwrap();
    assert_eq!(stats(&katran).entries, 20);
    katran
        .modify_reals(vip, &[RealChange::Add(Real::new(ip(B)))])
        .unwrap();
    katran.remove_real(vip, ip(A)).unwrap();
    eventually("no entry is left", || stats(&katran).entries == 0);
}

#[test]
fn datagrams_of_a_client_stay_together() {
    for case in cases() {
        let mut katran = load(all_in_table());
        let name = format!("{}/udp", case.vip);
        let vip = serve(&mut katran, &name, case.flags, &[A]);
        let [first, second] = case.flows.map(|(from, to)| Flow::udp(at(from), at(to)));
        assert_eq!(sent(&katran, &frame(first)), went(A, Reason::Ring));
        drain(&mut katran, vip, A, B);
        assert_eq!(sent(&katran, &frame(second)), went(A, Reason::FlowTable));
        let answer = katran.real_for_flow(&second).unwrap().unwrap();
        assert_eq!(answer.real, Some(ip(A)));
        let found = katran.flows().find(&second).unwrap();
        assert_eq!(found[0].flow.source.port(), case.port[1]);
    }
}

#[test]
fn the_global_table_knows_connections_by_both_ports() {
    let features = Features::default() | Features::GLOBAL_FLOW_TABLE;
    let mut katran = load(builder().features(features));
    let flags = VipFlags::NO_SRC_PORT | VipFlags::GLOBAL_LRU;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let name = match protocol {
            Protocol::Tcp => "203.0.113.1:0/tcp",
            Protocol::Udp => "203.0.113.1:0/udp",
        };
        serve(&mut katran, name, flags, &[A, C]);
        let flow = |from, to| Flow {
            source: at(from),
            destination: at(to),
            protocol,
        };
        let known = flow("192.0.2.7:1001", "203.0.113.1:80");
        let other = flow("192.0.2.7:1002", "203.0.113.1:81");
        let by_ring = katran.real_for_flow(&known).unwrap().unwrap().real.unwrap();
        let elsewhere = if by_ring == ip(A) { ip(C) } else { ip(A) };
        katran.global_flows_mut().set(0, &known, elsewhere).unwrap();
        let (real, reason) = sent(&katran, &frame(known));
        assert_eq!((real, reason), (Some(elsewhere), Reason::GlobalFlowTable));
        let expected = match protocol {
            Protocol::Tcp => (Some(by_ring), Reason::Ring),
            Protocol::Udp => (Some(elsewhere), Reason::GlobalFlowTable),
        };
        assert_eq!(sent(&katran, &frame(other)), expected);
    }
}
