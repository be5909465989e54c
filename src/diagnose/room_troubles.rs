//! Troubles with room for packets and flows, and with VLANs.

use std::time::Duration;

use super::troubles::tell;
use super::*;
use crate::diagnose::Severity::Note;
use crate::diagnose::Severity::Warning;

/// A sample of full tables in which so many sets are crowded.
fn sample(crowded: usize) -> FlowTableFacts {
    FlowTableFacts {
        flows: 1000,
        sets: 100,
        crowded,
        silent: Duration::from_secs(59),
        wanted: Duration::from_secs(60),
        ..FlowTableFacts::default()
    }
}

/// A next hop that is known, behind an interface.
fn hop(interface: &str) -> NextHop {
    NextHop {
        real: None,
        family: Family::V4,
        address: Some([10, 0, 0, 1].into()),
        interface: Some(interface.into()),
        mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9])),
        answers: true,
        attached: true,
        here: false,
    }
}

#[test]
fn troubles_of_room() {
    tell(&[
        (
            |f| {
                f.interface.mtu = 1500;
                f.max_frame = MaxFrame::Auto;
                f.answered_too_big = 3;
            },
            Warning,
            Subject::Mtu,
            "above 1460 bytes are answered with an ICMP error, as the outer headers take 40, 3 so far",
            "mtu 1540",
        ),
        (
            |f| {
                f.interface.mtu = 1500;
                f.max_frame = MaxFrame::Auto;
                f.answered_too_big = 3;
                f.packets = Growth::now(4000);
            },
            Note,
            Subject::Mtu,
            "above 1460 bytes are answered with an ICMP error, as the outer headers take 40, 3 so far: few clients",
            "mtu 1540",
        ),
        (
            |f| f.flow_tables = sample(50),
            Warning,
            Subject::FlowTable,
            "50 % of the places for 1000 flows are full, so a flow is forgotten after 59 s of silence instead of 60 s",
            "flow_table_size = 4000",
        ),
        (
            |f| {
                f.flow_tables.flooded = 2;
                f.flow_tables.threshold = 125_000;
            },
            Warning,
            Subject::FlowTable,
            "2 CPUs are under flood: new flows above 125000",
            "flood_threshold",
        ),
    ]);
}

#[test]
fn tables_with_room_are_fine_and_so_are_those_that_forget_late() {
    let late = FlowTableFacts {
        silent: Duration::from_secs(60),
        ..sample(100)
    };
    for facts in [sample(49), late, FlowTableFacts::default()] {
        let found = judge(&Balancer {
            flow_tables: facts,
            ..good()
        });
        assert_eq!(found.worst(), Severity::Ok, "{found}");
    }
}

#[test]
fn troubles_of_vlans() {
    tell(&[
        // A gateway that was resolved, and one that was configured, are neighbours without a tag.
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![hop("eth0")];
                f.vlans.tags.recent = vec![7, 8];
            },
            Warning,
            Subject::Vlan,
            "tags of VLAN 7, 8 and leave with the same, but 10.0.0.1 is a neighbour without one",
            "tcpdump -eni eth0",
        ),
        (
            |f| f.vlans.tags.recent = vec![7],
            Warning,
            Subject::Vlan,
            "but 02:00:00:00:00:01 is a neighbour without one",
            "ip neighbour",
        ),
        (
            |f| {
                f.vlans.tags.earlier = vec![7];
                f.vlans.tags.quiet = Duration::from_secs(75);
            },
            Note,
            Subject::Vlan,
            "frames came in with tags of VLAN 7, and left with the same; none in the last 75 s",
            "must be in that VLAN",
        ),
        // A next hop behind a VLAN interface expects a tag.
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![hop("eth0.7")];
                f.vlans.tags.recent = vec![7];
                f.vlans.of_hops = vec!["eth0.7".to_owned()];
            },
            Note,
            Subject::Vlan,
            "frames have come in with tags of VLAN 7",
            "must be in that VLAN",
        ),
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![hop("eth0.7")];
                f.vlans.of_hops = vec!["eth0.7".to_owned()];
            },
            Warning,
            Subject::Vlan,
            "arrive and leave without VLAN tags, but a next hop is behind eth0.7",
            "switch's port",
        ),
    ]);
}
