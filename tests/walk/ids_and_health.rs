//! Ids in packets lead to their real whatever its health, but entries they make lead no other
//! packet there while it is down. For all three kinds of id.

use std::net::IpAddr;

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::FlowTableKind;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Reason;
use katran_lab::eventually;
use katran_lab::stay_on;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;
use crate::common::vip;

const B: &str = "2001:db8:2::1";
const ID: u32 = 0x1234;
const IDS: Features = Features::TCP_SERVER_ID.union(Features::UDP_STABLE_ROUTING);

fn tcp(port: u16) -> Flow {
    Flow::tcp((ip("192.0.2.7"), port).into(), at("203.0.113.1:443"))
}

fn option(flow: Flow) -> Vec<u8> {
    let option = [&[0xb7, 6][..], &ID.to_le_bytes()].concat();
    Packet::new(flow).options(&option).frame()
}

/// A and B: A is down, and `ID` names it.
fn with_a_down(builder: Builder, service: &str, flags: VipFlags) -> (Katran, Vip) {
    let mut katran = load(builder);
    let vip = serve(&mut katran, service, flags, &[A, B]);
    let ids = [ServerId::new(ID, ip(A))];
    katran.server_ids_mut().add(&ids).unwrap();
    katran.mark_down(vip, ip(A)).unwrap();
    (katran, vip)
}

/// Pairs of VIP and down real in the program's map.
fn pairs(katran: &Katran) -> u64 {
    let maps = katran.stats().library().unwrap().maps;
    let of_down = maps.iter().find(|map| map.name == "down_reals");
    of_down.unwrap().entries
}

/// Waits until no void entry is left in the tables.
fn swept(katran: &Katran, vip: Vip) {
    let is_swept = || katran.flows().stats(vip).unwrap().stale == 0;
    eventually("void entries are removed", is_swept);
    // The pairs that voided them would be removed now.
    std::thread::sleep(std::time::Duration::from_millis(100));
}

#[test]
fn ids_lead_to_their_real_whatever_its_health() {
    let udp = Flow::udp(at("192.0.2.7:1"), at("203.0.113.1:443"));
    let of = |data: &[u8]| Packet::new(udp).data(data).frame();
    // A short header with a connection id of version 2: two bits, and 24 of the id from the second
    // byte on.
    let short = of(&[0x43, 0x80, 0, 0x12, 0x34, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
    // A long header, whose id the client chose.
    let first = of(&[
        0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0,
    ]);
    let stable = of(&[0x52, 0, 0x12, 0x34, 0, 0, 0, 0]);
    let cases = [
        (VipFlags::QUIC, Reason::ConnectionId, short, first),
        (
            VipFlags::UDP_STABLE_ROUTING,
            Reason::StableUdp,
            stable,
            frame(udp),
        ),
        (
            VipFlags::empty(),
            Reason::TcpServerId,
            option(tcp(1)),
            frame(tcp(1)),
        ),
    ];
    for (flags, by_id, with, without) in cases {
        for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
            let settings = builder().features(IDS).flow_table(kind);
            let service = match by_id {
                Reason::TcpServerId => "203.0.113.1:443/tcp",
                _ => "203.0.113.1:443/udp",
            };
            let (mut katran, vip) = with_a_down(settings, service, flags);
            for _ in 0..2 {
                assert_eq!(sent(&katran, &with), (Some(ip(A)), by_id));
                assert_eq!(sent(&katran, &without).0, Some(ip(B)), "{by_id:?}");
                swept(&katran, vip);
            }
            // Once the real is up, the entry that an id made counts. Stable UDP makes none, and a
            // TCP id leaves the ring's entry alone.
            assert_eq!(sent(&katran, &with), (Some(ip(A)), by_id));
            katran.mark_up(vip, ip(A)).unwrap();
            let remembered = by_id == Reason::ConnectionId;
            let to = if remembered { A } else { B };
            assert_eq!(
                sent(&katran, &without),
                (Some(ip(to)), Reason::FlowTable),
                "{by_id:?}"
            );
        }
    }
}

/// A client that repeats an id makes an entry with the dead real. No packet without the id follows
/// it: neither a SYN nor a later one.
#[test]
fn no_packet_follows_what_a_tcp_id_has_made_for_a_real_that_is_down() {
    for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
        let settings = builder().features(IDS).flow_table(kind);
        let (katran, vip) = with_a_down(settings, "203.0.113.1:443/tcp", VipFlags::empty());
        swept(&katran, vip);
        for flow in [tcp(1), tcp(2)] {
            assert_eq!(
                sent(&katran, &option(flow)),
                (Some(ip(A)), Reason::TcpServerId)
            );
        }
        assert_eq!(sent(&katran, &syn(tcp(1))), (Some(ip(B)), Reason::Ring));
        for (flow, reason) in [(tcp(1), Reason::FlowTable), (tcp(2), Reason::Ring)] {
            assert_eq!(
                katran.real_for_flow(&flow).unwrap().unwrap().real,
                Some(ip(B))
            );
            assert_eq!(sent(&katran, &frame(flow)), (Some(ip(B)), reason));
            assert_eq!(
                sent(&katran, &frame(flow)),
                (Some(ip(B)), Reason::FlowTable)
            );
        }
    }
}

/// An id overrides an entry that the ring made and whose real has gone down since.
#[test]
fn a_tcp_id_corrects_an_entry_of_a_real_that_is_down() {
    stay_on(0);
    for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
        let settings = builder().features(IDS).flow_table(kind);
        let mut katran = load(settings.forwarding_cpus([0]));
        let vip = serve(&mut katran, "203.0.113.1:443/tcp", VipFlags::empty(), &[A]);
        let ids = [ServerId::new(ID, ip(B))];
        katran.server_ids_mut().add(&ids).unwrap();
        assert_eq!(sent(&katran, &frame(tcp(1))), (Some(ip(A)), Reason::Ring));
        let table = katran.flows().table_fd(0).unwrap();
        let is_used = |(_, entry): &(Vec<u8>, Vec<u8>)| entry.iter().any(|byte| *byte != 0);
        let used: Vec<_> = bpf::dump(table).into_iter().filter(is_used).collect();
        katran.add_real(vip, Real::new(ip(B))).unwrap();
        katran.mark_down(vip, ip(A)).unwrap();
        swept(&katran, vip);
        // The library has removed the entry. Put it back, as if it had not got to it yet.
        let table = katran.flows().table_fd(0).unwrap();
        for (key, entry) in &used {
            bpf::update(table, key, entry);
        }
        let by_id = (Some(ip(B)), Reason::TcpServerId);
        assert_eq!(sent(&katran, &option(tcp(1))), by_id, "{kind}");
        let counters = katran.stats().tcp_server_id().unwrap();
        assert_eq!(counters.dst_mismatch_in_lru, 1, "{kind}");
        let by_entry = (Some(ip(B)), Reason::FlowTable);
        assert_eq!(sent(&katran, &frame(tcp(1))), by_entry, "{kind}");
    }
}

/// The feature is enabled and disabled while the real is down.
#[test]
fn a_reload_with_tcp_ids_keeps_flows_off_down_reals() {
    let (mut katran, vip) = with_a_down(builder(), "203.0.113.1:443/tcp", VipFlags::empty());
    let datagrams = serve(
        &mut katran,
        "203.0.113.1:443/udp",
        VipFlags::empty(),
        &[A, B],
    );
    katran.mark_down(datagrams, ip(A)).unwrap();
    eventually("void entries are removed", || pairs(&katran) == 0);
    let without = katran.features();
    for round in 1..3 {
        katran.reload(without | Features::TCP_SERVER_ID).unwrap();
        assert_eq!(pairs(&katran), 1, "only the TCP VIP's");
        swept(&katran, vip);
        assert_eq!(
            sent(&katran, &option(tcp(round))),
            (Some(ip(A)), Reason::TcpServerId)
        );
        // Disabling ids gave all slots a base.
        let first = [Reason::Ring, Reason::Base][usize::from(round > 1)];
        for reason in [first, Reason::FlowTable] {
            assert_eq!(sent(&katran, &frame(tcp(round))), (Some(ip(B)), reason));
        }
        // Disabling the feature removes the entries that are left, and then the pairs that void
        // them.
        let other = tcp(round + 100);
        sent(&katran, &option(other));
        katran.reload(without).unwrap();
        assert_eq!(sent(&katran, &frame(other)).0, Some(ip(B)));
        eventually("void entries are removed", || pairs(&katran) == 0);
        assert_eq!(sent(&katran, &frame(other)).0, Some(ip(B)));
    }
    katran.mark_up(vip, ip(A)).unwrap();
    katran.reload(without | Features::TCP_SERVER_ID).unwrap();
    assert_eq!(pairs(&katran), 0);
    assert!(katran.is_down(datagrams, ip(A)).unwrap());
}

/// The kernel refuses the second of two pairs, as the map is full.
#[test]
fn a_reload_that_is_refused_voids_nothing() {
    let mut katran = load(builder().max_reals(3));
    for service in ["203.0.113.1:443/tcp", "203.0.113.2:443/tcp"] {
        let vip = serve(&mut katran, service, VipFlags::empty(), &[A, B]);
        katran.mark_down(vip, ip(A)).unwrap();
    }
    eventually("void entries are removed", || pairs(&katran) == 0);
    let others: Vec<[u8; 8]> = (1..=5).map(|i| [0xff, 0xff, 0, 0, i, 0, 0, 0]).collect();
    for other in &others {
        bpf::update(katran.map_fd("down_reals").unwrap(), other, &[1, 0, 0, 0]);
    }
    let in_map = |katran: &Katran| bpf::dump(katran.map_fd("down_reals").unwrap()).len();
    let before = katran.state();
    let features = katran.features() | Features::TCP_SERVER_ID;
    let refused = katran.reload(features);
    assert!(matches!(refused, Err(Error::Kernel { .. })), "{refused:?}");
    assert_eq!(katran.state(), before);
    assert_eq!((in_map(&katran), pairs(&katran)), (5, 0));
    bpf::remove(katran.map_fd("down_reals").unwrap(), &others[0]);
    katran.reload(features).unwrap();
    assert_eq!((in_map(&katran), pairs(&katran)), (6, 2));
}

/// More down reals than there is room for: the error names the limit, and nothing changes.
#[test]
fn a_reload_needs_room_for_all_down_reals() {
    const REALS: u32 = 3;
    let mut katran = load(builder().max_reals(REALS));
    let services = ["203.0.113.1:443/tcp", "203.0.113.2:443/tcp"];
    for service in services {
        let vip = serve(&mut katran, service, VipFlags::empty(), &[A, B]);
        for real in [A, B] {
            katran.mark_down(vip, ip(real)).unwrap();
        }
    }
    let features = katran.features() | Features::TCP_SERVER_ID;
    let before = katran.state();
    let refused = katran.reload(features);
    assert!(
        matches!(refused, Err(Error::Exhausted { limit: 3, .. })),
        "{refused:?}"
    );
    assert_eq!(katran.state(), before);
    eventually("void entries are removed", || pairs(&katran) == 0);
    katran.mark_up(vip(services[1]), ip(A)).unwrap();
    katran.reload(features).unwrap();
    assert_eq!(pairs(&katran), 3);
    let refused = katran.mark_down(vip(services[1]), ip(A));
    assert!(matches!(refused, Err(Error::Exhausted { limit: 3, .. })));
    // A UDP VIP has no such ids, and no such limit.
    let udp = serve(&mut katran, "203.0.113.3:443/udp", VipFlags::empty(), &[A]);
    katran.mark_down(udp, ip(A)).unwrap();
    assert_eq!(vip("203.0.113.3:443/udp").protocol(), Protocol::Udp);
}

/// A real that a state adds as down.
#[test]
fn a_real_added_as_down_gets_no_flows_by_ids() {
    let mut katran = load(builder());
    let mut wanted = katran.state();
    let balancer = wanted.balancer.as_mut().unwrap();
    balancer.features = Some(IDS);
    let mut of_vip = katran::state::VipState::new(vip("203.0.113.1:443/tcp"));
    of_vip.reals = [A, B].map(|real| Real::new(ip(real))).to_vec();
    of_vip.down = [ip(A)].into_iter().collect();
    let vip = of_vip.vip;
    wanted.vips.push(of_vip);
    let id = ServerId::new(ID, ip(A));
    wanted
        .server_ids
        .push(katran::state::ServerIdState::new(id));
    katran.apply(&wanted).unwrap();
    swept(&katran, vip);
    let to = |frame: &[u8]| -> Option<IpAddr> { sent(&katran, frame).0 };
    assert_eq!(to(&option(tcp(1))), Some(ip(A)));
    assert_eq!(to(&frame(tcp(1))), Some(ip(B)));
}
