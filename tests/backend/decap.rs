//! The backend's decapsulator, run by the kernel on crafted frames: what it strips, byte for byte,
//! and what it passes untouched where Katran's drops it.

use std::cell::RefCell;

use katran::Decap;
use katran::DecapBuilder;
use katran::Error;
use katran::Flow;
use katran::Protocol;
use katran::VipFlags;
use katran::attachments::TcHook;
use katran::flows::Verdict;
use katran::stats::DecapCounters;
use katran_lab::Host;
use katran_lab::Newer;
use katran_lab::require_root;

use crate::common;
use crate::common::at;
use crate::common::bpf;
use crate::common::bpf::Ran;
use crate::common::builder;
use crate::common::flows;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::ethernet;
use crate::common::frames::frame;
use crate::common::frames::packet;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::wire::ipip;

const REAL4: &str = "198.51.100.1";
const REAL6: &str = "2001:db8:2::1";

thread_local! {
    /// When testing the tc program: the host it is attached on, which loads it.
    static TC: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Runs a test with the XDP program, then with the tc program.
pub(super) fn both(test: impl Fn()) {
    require_root();
    test();
    TC.set(Some(Host::new("tc").unwrap()));
    test();
    TC.set(None);
}

fn decap(destinations: &[&str]) -> Decap {
    let builder = destinations
        .iter()
        .fold(Decap::builder(), |builder, address| {
            builder.destination(ip(address))
        });
    load_decap(builder)
}

pub(super) fn load_decap(builder: DecapBuilder) -> Decap {
    let mut decap = builder.load().unwrap();
    TC.with_borrow(|host| {
        if let Some(host) = host {
            let attached = host.run(|| decap.attach_tc("lo", TcHook::Auto).unwrap());
            assert_eq!(decap.tc_interfaces(), [attached]);
            decap.detach("lo").unwrap();
        }
    });
    decap
}

pub(super) fn inner_flows() -> [Flow; 2] {
    [
        Flow::tcp(at("192.0.2.7:40001"), at("203.0.113.1:443")),
        Flow::udp(at("[2001:db8:c::7]:40001"), at("[2001:db8:1::1]:443")),
    ]
}

/// The frame that `ipip` makes, for a real of either family.
fn tunnelled(flow: Flow, real: &str) -> Vec<u8> {
    let source = flow.source;
    ipip(&frame(flow), Some(source.ip()), source.port(), ip(real))
}

pub(super) fn run(decap: &Decap, frame: &[u8]) -> Ran {
    match decap.tc_program_fd() {
        Some(program) => bpf::run_tc(program, frame),
        None => bpf::run(decap.program_fd(), frame),
    }
}

/// The verdict on a tunnel that no rule rejects: before Linux 6.3 a tc program cannot strip a
/// header of the other family.
pub(super) fn when_taken(decap: &Decap, tunnel: &[u8], inner_v6: bool) -> Verdict {
    let outer_v6 = tunnel[12..14] == [0x86, 0xdd];
    let across = Newer::DecapAcrossFamilies.is_here() || decap.tc_program_fd().is_none();
    if outer_v6 == inner_v6 || across {
        Verdict::Pass
    } else {
        Verdict::Drop
    }
}

/// Runs the program on a tunnel with this packet. Checks that the packet comes out unchanged, or is
/// dropped and counted where that is impossible. Returns whether it came out.
pub(super) fn strips(decap: &Decap, tunnel: &[u8], inner: &[u8]) -> bool {
    let before = decap.counters().unwrap();
    let ran = run(decap, tunnel);
    let verdict = when_taken(decap, tunnel, inner[0] >> 4 == 6);
    assert_eq!(ran.verdict, verdict, "{tunnel:02x?}");
    let mut expected = ethernet(inner);
    expected[..12].copy_from_slice(&tunnel[..12]);
    let stripped = verdict == Verdict::Pass;
    if stripped {
        assert_eq!(ran.frame, expected, "{tunnel:02x?}");
    }
    let now = decap.counters().unwrap();
    let head = now.drop_head - before.drop_head;
    assert_eq!(head, u64::from(!stripped));
    stripped
}

/// Inserts an option (4 bytes, "no operation") into an IPv4 header.
fn with_option(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes.splice(ETHERNET + IPV4..ETHERNET + IPV4, [1, 1, 1, 0]);
    bytes[ETHERNET] = 0x46;
    let length = u16::from_be_bytes([bytes[ETHERNET + 2], bytes[ETHERNET + 3]]) + 4;
    bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    fix_checksum(&mut bytes[ETHERNET..ETHERNET + IPV4 + 4]);
    bytes
}

/// A fragment of an IPv4 packet: with more to come, or at an offset.
fn fragment(frame: &[u8], field: u16) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&field.to_be_bytes());
    fix_checksum(&mut bytes[ETHERNET..ETHERNET + IPV4]);
    bytes
}

fn fix_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let check = !sum(header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
}

#[test]
fn strips_all_four_mixes_and_keeps_the_inner_packet() {
    both(|| {
        let decap = decap(&[]);
        let mut stripped = [0, 0];
        for flow in inner_flows() {
            for (real, count) in [REAL4, REAL6].into_iter().zip(&mut stripped) {
                let tunnel = tunnelled(flow, real);
                // The frame's source becomes the balancer's gateway.
                assert_eq!(tunnel[..6], common::GATEWAY.octets());
                assert_eq!(tunnel[6..12], frames::OWN_MAC);
                // Unchanged, including the inner TTL.
                *count += u64::from(strips(&decap, &tunnel, &frame(flow)[ETHERNET..]));
            }
        }
        let counters = decap.counters().unwrap();
        assert_eq!([counters.ipip_v4, counters.ipip_v6], stripped);
        assert_eq!(counters.total, 4);
    });
}

#[test]
fn undoes_what_the_balancer_did() {
    both(|| {
        let decap = decap(&[]);
        let mut katran = load(builder());
        serve(
            &mut katran,
            "203.0.113.1:443/tcp",
            VipFlags::empty(),
            &[REAL4, REAL6],
        );
        serve(
            &mut katran,
            "[2001:db8:1::1]:443/udp",
            VipFlags::empty(),
            &[REAL4, REAL6],
        );
        let tcp = flows(Protocol::Tcp, "203.0.113.1:443", 20);
        let udp = flows(Protocol::Udp, "[2001:db8:1::1]:443", 20);
        for flow in tcp.into_iter().chain(udp) {
            let sent = katran.simulate(&frame(flow)).unwrap();
            assert_eq!(sent.verdict, Verdict::Tx);
            let _ = strips(&decap, &sent.frame, &frame(flow)[ETHERNET..]);
        }
    });
}

#[test]
fn packets_in_no_tunnel_pass_untouched() {
    both(|| {
        let decap = decap(&[]);
        let [v4, v6] = inner_flows().map(frame);
        let mut v6_fragment = v6.clone();
        v6_fragment[ETHERNET + 6] = 44;
        let arp = [&v4[..12], &[0x08, 0x06], &[0; 28]].concat();
        let mut untouched = vec![
            v4.clone(),
            v6,
            with_option(&v4),
            fragment(&v4, 0x2000),
            fragment(&v4, 0x0010),
            v6_fragment,
            v4[..ETHERNET + IPV4 - 1].to_vec(),
            arp,
        ];
        if decap.tc_program_fd().is_some() {
            // The kernel gives tc programs no packet with a truncated IP header.
            untouched.retain(|bytes| bytes.len() >= ETHERNET + IPV4);
        }
        for bytes in &untouched {
            let ran = run(&decap, bytes);
            assert_eq!(ran.verdict, Verdict::Pass);
            assert_eq!(ran.frame, *bytes);
        }
        let mut expected = DecapCounters::default();
        expected.total = untouched.len() as u64;
        assert_eq!(decap.counters().unwrap(), expected);
    });
}

#[test]
fn tunnels_that_cannot_be_stripped_are_dropped_and_counted() {
    both(|| {
        let decap = decap(&[]);
        let [v4, v6] = inner_flows();
        let tunnel = tunnelled(v4, REAL4);
        for bytes in [
            with_option(&tunnel),
            fragment(&tunnel, 0x2000),
            fragment(&tunnel, 0x0010),
            tunnel[..ETHERNET + IPV4 + IPV4 - 1].to_vec(),
            tunnelled(v6, REAL4)[..ETHERNET + IPV4 + IPV6 - 1].to_vec(),
            tunnelled(v4, REAL6)[..ETHERNET + IPV6 + IPV4 - 1].to_vec(),
            tunnelled(v6, REAL6)[..ETHERNET + IPV6 + IPV6 - 1].to_vec(),
        ] {
            assert_eq!(run(&decap, &bytes).verdict, Verdict::Drop);
        }
        let mut expected = DecapCounters::default();
        expected.total = 7;
        expected.drop_options = 1;
        expected.drop_fragment = 2;
        expected.drop_truncated = 4;
        assert_eq!(decap.counters().unwrap(), expected);
    });
}

#[test]
fn strict_destinations_leave_the_tunnels_of_others_alone() {
    both(|| {
        let flow = inner_flows()[0];
        let both = decap(&[REAL4, REAL6]);
        let only_v4 = decap(&[REAL4]);
        for real in [REAL4, REAL6] {
            let _ = strips(&both, &tunnelled(flow, real), &frame(flow)[ETHERNET..]);
        }
        let others = [
            tunnelled(flow, "198.51.100.2"),
            tunnelled(flow, "2001:db8:2::2"),
            // Not to this host, so not for this program to drop.
            with_option(&tunnelled(flow, "198.51.100.2")),
            fragment(&tunnelled(flow, "198.51.100.2"), 0x2000),
        ];
        for bytes in &others {
            let ran = run(&both, bytes);
            assert_eq!((ran.verdict, ran.frame), (Verdict::Pass, bytes.clone()));
        }
        assert_eq!(both.counters().unwrap().foreign, others.len() as u64);
        let v6 = tunnelled(flow, REAL6);
        assert_eq!(run(&only_v4, &v6).frame, v6, "no address of that family");
        let v4 = tunnelled(flow, REAL4);
        assert!(strips(&only_v4, &v4, &frame(flow)[ETHERNET..]));
    });
}

#[test]
fn a_destination_that_no_packet_has_is_refused() {
    both(|| {
        require_root();
        for bad in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "::", "ff02::1"] {
            let error = Decap::builder().destination(ip(bad)).load().unwrap_err();
            assert!(matches!(error, Error::InvalidAddress { .. }), "{error}");
        }
    });
}

#[test]
fn only_one_layer_is_stripped() {
    both(|| {
        let decap = decap(&[]);
        let inner = Packet::new(inner_flows()[0]).ip();
        let middle = packet(ip("192.0.2.1"), ip("192.0.2.2"), 4, 0, &inner);
        let outer = packet(ip("192.0.2.3"), ip(REAL4), 4, 0, &middle);
        let ran = run(&decap, &ethernet(&outer));
        assert_eq!(ran.frame, ethernet(&middle));
    });
}

/// A packet in a GUE tunnel to this address and port.
pub(super) fn gue(inner: &[u8], to: &str, port: u16) -> Vec<u8> {
    let from = if ip(to).is_ipv4() {
        "172.16.1.1:99"
    } else {
        "[2001:db8:ff::1]:99"
    };
    let flow = Flow::udp(at(from), (ip(to), port).into());
    Packet::new(flow).data(inner).frame()
}

#[test]
fn gue_is_stripped_in_all_four_mixes() {
    both(|| {
        require_root();
        let usual = decap(&[]);
        let other = load_decap(Decap::builder().gue_port(7000));
        let without = load_decap(Decap::builder().gue_port(0));
        let mut stripped = [0, 0];
        for flow in inner_flows() {
            let inner = Packet::new(flow).ip();
            for (real, count) in [REAL4, REAL6].into_iter().zip(&mut stripped) {
                let frame = gue(&inner, real, 6080);
                *count += u64::from(strips(&usual, &frame, &inner));
                assert_eq!(run(&other, &frame).frame, frame);
                assert_eq!(run(&without, &frame).frame, frame);
                let moved = gue(&inner, real, 7000);
                let _ = strips(&other, &moved, &inner);
                assert_eq!(run(&usual, &moved).frame, moved);
                // A truncated packet may be GUE; other payloads can be told apart.
                assert_eq!(
                    run(&usual, &gue(&inner[..9], real, 6080)).verdict,
                    Verdict::Drop
                );
                let stranger = gue(b"\x12 something else", real, 6080);
                assert_eq!(run(&usual, &stranger).frame, stranger);
            }
        }
        let counters = usual.counters().unwrap();
        assert_eq!([counters.gue_v4, counters.gue_v6], stripped);
        assert_eq!((counters.ipip_v4, counters.ipip_v6), (0, 0));
        assert_eq!(counters.drop_truncated, 4);
    });
}

#[test]
fn server_ids_are_counted_if_one_is_set() {
    both(|| {
        require_root();
        let id = 0x8000_0102_u32;
        let counting = load_decap(Decap::builder().server_id(id));
        let usual = decap(&[]);
        let with = |options: &[u8]| {
            let flow = inner_flows()[0];
            Packet::new(flow).options(options).ip()
        };
        let option = |id: u32| [&[0xb7, 6][..], &id.to_le_bytes()].concat();
        let padded = [&[1; 13][..], &option(id)].concat();
        let too_far = [&[1; 15][..], &option(id)].concat();
        for (options, ids, others) in [
            (option(id), 1, 0),
            (option(id + 1), 1, 1),
            (option(0), 0, 0),
            (padded, 1, 0),
            (too_far, 0, 0),
            // Behind timestamps; another length; behind the list's end; cut off by the header's
            // length.
            (
                [&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2][..], &option(id)].concat(),
                1,
                0,
            ),
            (vec![0xb7, 5, 1, 2, 3], 0, 0),
            ([&[0][..], &option(id)].concat(), 0, 0),
            (vec![1, 1, 0xb7, 6], 0, 0),
            (Vec::new(), 0, 0),
        ] {
            for tunnel in [
                ethernet(&packet(ip("192.0.2.3"), ip(REAL4), 4, 0, &with(&options))),
                gue(&with(&options), REAL6, 6080),
            ] {
                let before = counting.counters().unwrap();
                let stripped = strips(&counting, &tunnel, &with(&options));
                let after = counting.counters().unwrap();
                let counted = (
                    after.server_ids - before.server_ids,
                    after.other_server_ids - before.other_server_ids,
                );
                assert_eq!(counted, (ids, others), "{options:?}");
                assert_eq!(strips(&usual, &tunnel, &with(&options)), stripped);
            }
        }
        assert_eq!(usual.counters().unwrap().server_ids, 0);
        // Not in UDP.
        let udp = Packet::new(inner_flows()[1]).data(&option(id)).ip();
        let _ = run(&counting, &gue(&udp, REAL4, 6080));
        assert_eq!(counting.counters().unwrap().server_ids, 8);
    });
}

/// Several packets behind the outer header of one frame, which the program cannot take apart.
#[test]
fn gue_packets_that_the_kernel_has_merged_are_dropped_by_tc_and_counted() {
    require_root();
    TC.set(Some(Host::new("tc").unwrap()));
    let decap = decap(&[]);
    let program = decap.tc_program_fd().unwrap();
    let frame = gue(&Packet::new(inner_flows()[0]).ip(), REAL4, 6080);
    let drops = |segment| {
        let buffer = bpf::Buffer { mark: 0, segment };
        let _ = bpf::run_tc_with(program, &frame, buffer);
        let counters = decap.counters().unwrap();
        (counters.gue_v4, counters.drop_head)
    };
    assert_eq!(drops(0), (1, 0));
    assert_eq!(drops(40), (1, 1));
    TC.set(None);
}
