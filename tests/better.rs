//! Where this balancer is better than Katran on purpose: a test for each row of that table, on
//! crafted frames through the loaded program. The decapsulator's rows are in `decap.rs`.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod common;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::at;
use common::bpf;
use common::builder;
use common::flows;
use common::frames;
use common::frames::ETHERNET;
use common::frames::IPV4;
use common::frames::IPV6;
use common::frames::Packet;
use common::frames::SYN;
use common::frames::frame;
use common::frames::sum;
use common::frames::syn;
use common::frames::unreachable;
use common::ip;
use common::load;
use common::serve;
use common::vip;
use common::wire::ipip;
use katran::DropReason;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::RealFlags;
use katran::Reason;
use katran::Verdict;
use katran::VipFlags;
use katran_lab::require_root;

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const C: &str = "198.51.100.3";
const A6: &str = "2001:db8:2::1";
const VIP4: &str = "203.0.113.1:443/tcp";
const VIP6: &str = "[2001:db8:1::1]:443/tcp";
const TO_VIP4: &str = "203.0.113.1:443";
const TO_VIP6: &str = "[2001:db8:1::1]:443";

/// A flow from one client.
fn flow_v4() -> Flow {
    Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4))
}

fn flow_v6() -> Flow {
    Flow::tcp(at("[2001:db8:c::7]:40001"), at(TO_VIP6))
}

#[test]
fn row_01_a_vip_without_reals_drops_and_counts() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    assert_eq!(katran.simulate(&syn(flow)).unwrap().real, Some(ip(A)));
    assert_eq!(
        katran.simulate(&frame(flow)).unwrap().reason,
        Reason::FlowTable
    );

    katran.remove_real(vip, ip(A)).unwrap();
    for bytes in [syn(flow), frame(flow), unreachable(flow, 20)] {
        let ran = katran.simulate(&bytes).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
        assert_eq!((ran.verdict, ran.real), (Verdict::Drop, None));
        assert_eq!(ran.vip, Some(vip));
    }
    assert_eq!(katran.ring_drops().unwrap().empty, 3);
    assert_eq!(katran.totals().unwrap().drop.packets, 3);
    assert_eq!(katran.real_for_flow(&flow).unwrap().unwrap().real, None);
}

#[test]
fn row_01_also_when_another_vip_keeps_the_real() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    katran.simulate(&frame(flow)).unwrap();
    katran.remove_real(vip, ip(A)).unwrap();
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
    assert_eq!(katran.real_for_flow(&flow).unwrap().unwrap().real, None);
}

#[test]
fn row_02_an_entry_of_a_gone_real_never_names_the_one_that_has_its_number() {
    let mut katran = load(builder().max_reals(2));
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let flows = flows(Protocol::Tcp, TO_VIP4, 200);
    let of_a: Vec<Flow> = flows
        .into_iter()
        .filter(|flow| katran.simulate(&frame(*flow)).unwrap().real == Some(ip(A)))
        .collect();
    assert!(of_a.len() > 50);
    let number = katran.real_index(ip(A)).unwrap();

    katran.remove_real(vip, ip(A)).unwrap();
    katran.add_real(vip, Real::new(ip(C))).unwrap();
    assert_eq!(
        katran.real_index(ip(C)),
        Some(number),
        "the number is reused"
    );
    let mut reals = BTreeSet::new();
    for flow in of_a {
        let answer = katran.real_for_flow(&flow).unwrap().unwrap();
        let ran = katran.simulate(&frame(flow)).unwrap();
        assert_eq!(ran.reason, Reason::Ring, "the old entry does not count");
        assert_eq!(answer.real, ran.real);
        reals.insert(ran.real.unwrap());
    }
    assert_eq!(
        reals,
        BTreeSet::from([ip(B), ip(C)]),
        "Katran sends them all to {C}"
    );
}

#[test]
fn row_03_a_packet_sees_the_old_ring_or_the_new_one() {
    const SWITCHES: usize = 30;
    let mut katran = load(builder().ring_size(65_537));
    let vip = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    let sets = [[A, B], [C, "198.51.100.4"]].map(|set| set.map(ip));
    let changes = |from: usize| {
        let [old, new] = [sets[from], sets[1 - from]];
        let mut changes: Vec<_> = old.into_iter().map(RealChange::Remove).collect();
        changes.extend(new.map(|address| RealChange::Add(Real::new(address))));
        changes
    };
    let frames: Vec<Vec<u8>> = flows(Protocol::Tcp, TO_VIP4, 500)
        .into_iter()
        .map(frame)
        .collect();
    let program = katran.program_fd().try_clone_to_owned().unwrap();
    let done = AtomicBool::new(false);
    let packets = AtomicUsize::new(0);
    let switches = Mutex::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            // Packets of one CPU, in their order: which set each saw. Every change of the set is
            // a switch; a ring that is rewritten slot by slot would show both sets by turns.
            let mut seen = None;
            for bytes in frames.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(120), "abandoned");
                let ran = bpf::run(program.as_fd(), bytes);
                assert_eq!(ran.verdict, Verdict::Tx);
                let at = ETHERNET + 16;
                let real: [u8; 4] = ran.frame[at..at + 4].try_into().unwrap();
                let set = sets.iter().position(|set| set.contains(&real.into()));
                assert!(set.is_some(), "{real:?}");
                if seen.is_some() && seen != set {
                    *switches.lock().unwrap() += 1;
                }
                seen = set;
                packets.fetch_add(1, Ordering::Relaxed);
            }
        });
        let wait = |more: usize| {
            let from = packets.load(Ordering::Relaxed);
            while packets.load(Ordering::Relaxed) < from + more {
                assert!(!runner.is_finished());
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait(100);
        for switch in 0..SWITCHES {
            katran.modify_reals(vip, &changes(switch % 2)).unwrap();
            wait(100);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(*switches.lock().unwrap(), SWITCHES);
}

#[test]
fn row_05_udp_without_a_checksum_is_forwarded_untouched() {
    let mut katran = load(builder());
    serve(
        &mut katran,
        "203.0.113.1:53/udp",
        VipFlags::empty(),
        &[A, A6],
    );
    serve(
        &mut katran,
        "[2001:db8:1::1]:53/udp",
        VipFlags::empty(),
        &[A, A6],
    );
    let mut reals = BTreeSet::new();
    for to in ["203.0.113.1:53", "[2001:db8:1::1]:53"] {
        for flow in flows(Protocol::Udp, to, 20) {
            let bytes = Packet::new(flow).without_checksum().frame();
            let ran = katran.simulate(&bytes).unwrap();
            let real = ran.real.unwrap();
            let source = flow.source;
            assert_eq!(
                ran.frame,
                ipip(&bytes, Some(source.ip()), source.port(), real)
            );
            assert!(ran.frame.ends_with(&bytes[ETHERNET..]));
            reals.insert((to, real));
        }
    }
    assert_eq!(reals.len(), 4, "all mixes of families");
}

#[test]
fn row_06_eight_quoted_bytes_are_enough() {
    let mut katran = load(builder());
    for (text, flow) in [(VIP4, flow_v4()), (VIP6, flow_v6())] {
        serve(&mut katran, text, VipFlags::empty(), &[A, A6, B, C]);
        let real = katran.simulate(&frame(flow)).unwrap().real;
        let ran = katran.simulate(&unreachable(flow, 8)).unwrap();
        assert_eq!((ran.verdict, ran.real), (Verdict::Tx, real));
        assert_eq!(ran.reason, Reason::FlowTable);
        let ran = katran.simulate(&unreachable(flow, 7)).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::QuoteTruncated));
    }
}

#[test]
fn row_07_an_ipv6_packet_reaches_an_ipv4_real() {
    let mut katran = load(builder());
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let flow = flow_v6();
    let bytes = Packet::new(flow).payload(300).tos(0xb8).frame();
    let ran = katran.simulate(&bytes).unwrap();
    let source = flow.source;
    assert_eq!(
        ran.frame,
        ipip(&bytes, Some(source.ip()), source.port(), ip(A))
    );
    let outer = &ran.frame[ETHERNET..ETHERNET + IPV4];
    assert_eq!(ran.frame[12..14], [0x08, 0x00]);
    assert_eq!(outer[9], 41, "IPv6 in IPv4");
    let length = u16::from_be_bytes([outer[2], outer[3]]);
    assert_eq!(usize::from(length), bytes.len() - ETHERNET + IPV4);
    assert_eq!(sum(outer), 0xffff, "the header's checksum is right");
}

#[test]
fn row_12_icmp_of_the_other_family_is_passed_untouched() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let before = katran.icmp_counters().unwrap();
    for (flow, protocol, kinds) in [
        (flow_v4(), frames::ICMPV6, [128, 1, 2]),
        (flow_v6(), frames::ICMP, [8, 3, 3]),
    ] {
        for (kind, code) in kinds.into_iter().zip([0, 1, 4]) {
            let mut body = vec![kind, code, 0x12, 0x34, 0, 0, 0, 1];
            body.extend(Packet::new(frames::reverse(flow)).ip());
            let (source, destination) = (flow.source.ip(), flow.destination.ip());
            let bytes = frames::ethernet(&frames::packet(source, destination, protocol, 0, &body));
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!(ran.verdict, Verdict::Pass);
            assert_eq!(ran.reason, Reason::NotTransport);
            assert_eq!(ran.frame, bytes);
        }
    }
    assert_eq!(katran.icmp_counters().unwrap(), before);
    assert_eq!(katran.totals().unwrap().pass.packets, 6);
}

#[test]
fn row_13_echo_replies_have_right_checksums_whatever_they_carry() {
    let katran = load(builder());
    for (source, destination) in [
        ("192.0.2.7", "203.0.113.1"),
        ("2001:db8:c::7", "2001:db8::1"),
    ] {
        let (source, destination) = (ip(source), ip(destination));
        let header = if source.is_ipv4() { IPV4 } else { IPV6 };
        let mut checksums = BTreeSet::new();
        for word in 0..=u16::MAX {
            let bytes = frames::echo(source, destination, &word.to_be_bytes());
            checksums.insert([bytes[ETHERNET + header + 2], bytes[ETHERNET + header + 3]]);
            let ran = bpf::run(katran.program_fd(), &bytes);
            assert_eq!(ran.verdict, Verdict::Tx);
            let message = &ran.frame[ETHERNET + header..];
            let total = if source.is_ipv4() {
                sum(message)
            } else {
                frames::pseudo_sum(destination, source, frames::ICMPV6, message)
            };
            assert_eq!(total, 0xffff, "body {word:#06x}");
            assert_eq!(message[4..], bytes[ETHERNET + header + 4..]);
        }
        assert_eq!(checksums.len(), 0xffff, "every checksum there is but one");
    }
}

/// How many of these flows each real gets.
fn spread(katran: &Katran, flows: &[Flow]) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for flow in flows {
        let ran = katran.simulate(&frame(*flow)).unwrap();
        *counts.entry(ran.real.unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn row_14_weights_count_by_default() {
    let mut katran = load(builder().ring_size(65_537));
    let vip = vip(VIP4);
    katran.add_vip(vip, VipFlags::LRU_BYPASS).unwrap();
    assert_eq!(katran.hash_function(vip).unwrap(), HashFunction::MaglevV2);
    for (address, weight) in [(A, 1), (B, 3)] {
        let real = Real::new(ip(address)).weight(weight);
        katran.add_real(vip, real).unwrap();
    }
    let flows = flows(Protocol::Tcp, TO_VIP4, 4000);
    let share = |katran: &Katran| spread(katran, &flows)[&ip(B)] as f64 / flows.len() as f64;
    let v2 = share(&katran);
    assert!((v2 - 0.75).abs() < 0.03, "{v2} of the flows");
    katran.set_hash_function(vip, HashFunction::Maglev).unwrap();
    let v1 = share(&katran);
    assert!((v1 - 0.5).abs() < 0.03, "{v1} of the flows, as with Katran");
}

#[test]
fn row_15_prefix_vips_of_both_families() {
    let mut katran = load(builder());
    let order = [
        ("203.0.113.1:443/tcp", "198.51.100.1"),
        ("203.0.113.0/24:443/tcp", "198.51.100.2"),
        ("203.0.0.0/16:443/tcp", "198.51.100.3"),
        ("203.0.113.1:0/tcp", "198.51.100.4"),
        ("203.0.113.0/24:0/tcp", "198.51.100.5"),
        ("[2001:db8:1::1]:443/tcp", "198.51.100.6"),
        ("[2001:db8:1::/96]:443/tcp", "198.51.100.7"),
        ("[2001:db8::/33]:443/tcp", "198.51.100.8"),
        ("[2001:db8:1::1]:0/tcp", "198.51.100.9"),
        ("[2001:db8:1::/96]:0/tcp", "198.51.100.10"),
    ];
    for (text, real) in order {
        serve(&mut katran, text, VipFlags::empty(), &[real]);
    }
    let expectations = [
        ("203.0.113.1:443", Some(0)),
        ("203.0.113.2:443", Some(1)),
        ("203.0.5.5:443", Some(2)),
        ("203.0.113.1:80", Some(3)),
        ("203.0.113.2:80", Some(4)),
        ("203.0.5.5:80", None),
        ("203.1.5.5:443", None),
        ("[2001:db8:1::1]:443", Some(5)),
        ("[2001:db8:1::2]:443", Some(6)),
        ("[2001:db8:1:1::]:443", Some(7)),
        ("[2001:db8:1::1]:80", Some(8)),
        ("[2001:db8:1::2]:80", Some(9)),
        ("[2001:db8:1:1::]:80", None),
        ("[2001:db8:8000::1]:443", None),
    ];
    for (n, (to, expected)) in (1..).zip(expectations) {
        // Clients of their own: to the flow table, a client's flows to two prefix VIPs that
        // differ in their ports are one, for both have port 0.
        for flow in flows(Protocol::Tcp, to, 3 * n).split_off(3 * usize::from(n - 1)) {
            let ran = katran.simulate(&frame(flow)).unwrap();
            let expected = expected.map(|index: usize| order[index]);
            assert_eq!(ran.vip, expected.map(|(text, _)| vip(text)), "{to}");
            assert_eq!(ran.real, expected.map(|(_, real)| ip(real)), "{to}");
        }
        let udp = flows(Protocol::Udp, to, 1)[0];
        assert_eq!(
            katran.simulate(&frame(udp)).unwrap().reason,
            Reason::NotAVip
        );
    }
}

#[test]
fn row_15_a_prefix_takes_all_its_ports_and_addresses_of_a_client_to_one_real() {
    let mut katran = load(builder());
    let reals = [A, B, C, "198.51.100.4", "198.51.100.5", "198.51.100.6"];
    let any = serve(
        &mut katran,
        "203.0.113.0/24:0/tcp",
        VipFlags::empty(),
        &reals,
    );
    let reals_of = |katran: &Katran| -> BTreeSet<_> {
        (1..200)
            .map(|port| {
                let to = (ip("203.0.113.9"), port).into();
                let flow = Flow::tcp(at("192.0.2.7:40001"), to);
                katran.simulate(&syn(flow)).unwrap().real.unwrap()
            })
            .collect()
    };
    assert_eq!(
        reals_of(&katran).len(),
        1,
        "the destination port counts as 0"
    );
    for keeps in [VipFlags::SRC_DST_PORT, VipFlags::DPORT_HASH] {
        katran.set_vip_flags(any, keeps).unwrap();
        assert_eq!(reals_of(&katran).len(), reals.len(), "{keeps}");
    }
}

#[test]
fn row_16_features_are_chosen_at_load() {
    let flow = flow_v4();
    let long = Packet::new(flow).payload(1500).frame();
    for on in [true, false] {
        let features = if on {
            Features::default()
        } else {
            Features::empty()
        };
        let mut katran = load(builder().features(features));
        let vip = vip(VIP4);
        katran.add_vip(vip, VipFlags::LOCAL_VIP).unwrap();
        let real = Real::new(ip(A)).flags(RealFlags::LOCAL_REAL);
        katran.add_real(vip, real).unwrap();

        let too_big = katran.simulate(&long).unwrap();
        let local = katran.simulate(&frame(flow)).unwrap();
        if on {
            assert_eq!(
                (too_big.verdict, too_big.reason),
                (Verdict::Tx, Reason::TooBig)
            );
            assert_eq!(local.verdict, Verdict::Pass);
            assert_eq!(local.frame, frame(flow));
        } else {
            assert_eq!(too_big.reason, Reason::Dropped(DropReason::TooBig));
            assert_eq!(local.verdict, Verdict::Tx);
        }
        assert_eq!(local.real, Some(ip(A)));
    }
}

#[test]
fn row_17_each_frame_counts_once() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    let mut fragment = frame(flow);
    fragment[ETHERNET + 6] |= 0x20;
    let other = Flow::tcp(flow.source, at("203.0.113.2:443"));
    let mut bytes = [0u64; 3];
    for (frame, verdict) in [
        (syn(flow), Verdict::Tx),
        (frame(flow), Verdict::Tx),
        (unreachable(flow, 20), Verdict::Tx),
        (
            frames::echo(ip("192.0.2.7"), ip("203.0.113.1"), b"!"),
            Verdict::Tx,
        ),
        (Packet::new(flow).payload(1500).frame(), Verdict::Tx),
        (frame(other), Verdict::Pass),
        (
            frames::ethernet(&frames::packet(
                ip("192.0.2.7"),
                ip("203.0.113.1"),
                4,
                0,
                &Packet::new(flow).ip(),
            )),
            Verdict::Pass,
        ),
        (fragment, Verdict::Drop),
    ] {
        assert_eq!(katran.simulate(&frame).unwrap().verdict, verdict);
        bytes[verdict as usize] += frame.len() as u64;
    }
    let totals = katran.totals().unwrap();
    let counted = [totals.tx, totals.pass, totals.drop];
    assert_eq!(counted.map(|count| count.packets), [5, 2, 1]);
    assert_eq!(
        counted.map(|count| count.bytes),
        bytes,
        "of the frames as they came"
    );
    assert_eq!(totals.total.packets, 8);
    assert_eq!(totals.total.bytes, bytes.iter().sum::<u64>());
}

#[test]
fn row_18_asking_for_a_flow_leaves_no_trace() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    serve(
        &mut katran,
        "203.0.113.1:53/udp",
        VipFlags::empty(),
        &[A, B],
    );
    katran.watch_misses(vip).unwrap();
    let tcp = flows(Protocol::Tcp, TO_VIP4, 50);
    let udp = flows(Protocol::Udp, "203.0.113.1:53", 50);
    let trace = |katran: &Katran| {
        let table = bpf::dump(katran.flow_table_fd(0).unwrap());
        let fallback = bpf::dump(katran.map_fd("fallback_flows").unwrap());
        (katran.counters().unwrap(), table, fallback)
    };
    // Half of them are remembered, half are not.
    for flow in tcp.iter().chain(&udp).step_by(2) {
        katran.simulate(&frame(*flow)).unwrap();
    }
    let before = trace(&katran);
    assert_eq!(before.1.len(), 50);
    for flow in tcp.iter().chain(&udp) {
        assert!(katran.real_for_flow(flow).unwrap().unwrap().real.is_some());
    }
    assert_eq!(trace(&katran), before);
    // The dump would show it: a simulated frame is a frame.
    katran.simulate(&frame(tcp[1])).unwrap();
    let after = trace(&katran);
    assert_ne!(after.0, before.0);
    assert_eq!(after.1.len(), 51);
}

#[test]
fn row_19_an_error_about_a_syn_finds_its_flow() {
    let mut katran = load(builder());
    for (text, flow) in [(VIP4, flow_v4()), (VIP6, flow_v6())] {
        let vip = serve(&mut katran, text, VipFlags::empty(), &[A]);
        assert_eq!(katran.simulate(&syn(flow)).unwrap().real, Some(ip(A)));
        // The ring has another opinion from now on.
        let drained = RealChange::Add(Real::new(ip(A)).weight(0));
        let other = RealChange::Add(Real::new(ip(B)));
        katran.modify_reals(vip, &[drained, other]).unwrap();
        let misses = katran.flow_table_counters().unwrap().misses;
        for flags in [SYN, SYN | frames::ACK, frames::RST] {
            let quoted = Packet::new(frames::reverse(flow)).flags(flags).ip();
            let bytes = frames::icmp_about(flow, quoted, 20);
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!((ran.real, ran.reason), (Some(ip(A)), Reason::FlowTable));
            let outer = ipip(&bytes, Some(flow.source.ip()), flow.source.port(), ip(A));
            assert_eq!(ran.frame, outer, "the whole ICMP packet travels");
        }
        assert_eq!(katran.flow_table_counters().unwrap().misses, misses);
    }
}

#[test]
fn row_20_an_error_about_a_tunnelled_packet_is_passed_untouched() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    for flow in [flow_v4(), flow_v6()] {
        for (protocol, inner) in [(4, flow_v4()), (41, flow_v6())] {
            let (vip, client) = (flow.destination.ip(), flow.source.ip());
            let inner = Packet::new(inner).ip();
            let quoted = frames::packet(vip, client, protocol, 0, &inner);
            let bytes = frames::icmp_about(flow, quoted, 28);
            let ran = katran.simulate(&bytes).unwrap();
            assert_eq!(ran.verdict, Verdict::Pass);
            assert_eq!(ran.reason, Reason::NotTransport);
            assert_eq!(ran.frame, bytes);
        }
    }
}

#[test]
fn row_22_a_new_vip_starts_empty_and_at_zero() {
    let mut katran = load(builder().max_vips(1));
    let old = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    katran.simulate(&frame(flow_v4())).unwrap();
    assert_eq!(katran.vip_counters(old).unwrap().forwarded.packets, 1);
    katran.remove_vip(old).unwrap();
    assert_eq!(
        katran.simulate(&frame(flow_v4())).unwrap().reason,
        Reason::NotAVip
    );

    // There is one number, so this VIP has the old one's.
    for text in [VIP6, VIP4] {
        let new = vip(text);
        katran.add_vip(new, VipFlags::empty()).unwrap();
        let flow = if text == VIP6 { flow_v6() } else { flow_v4() };
        let ran = katran.simulate(&frame(flow)).unwrap();
        assert_eq!(ran.vip, Some(new));
        assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
        assert_eq!(katran.vip_counters(new).unwrap(), Default::default());
        katran.add_real(new, Real::new(ip(A))).unwrap();
        assert_eq!(katran.real_counters(ip(A)).unwrap(), Default::default());
        assert_eq!(katran.simulate(&frame(flow)).unwrap().reason, Reason::Ring);
        katran.remove_vip(new).unwrap();
    }
}

#[test]
fn row_22_weight_zero_has_no_slot_whatever_the_function() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    katran.add_real(vip, Real::new(ip(A)).weight(0)).unwrap();
    let flows = flows(Protocol::Tcp, TO_VIP4, 300);
    for function in [
        HashFunction::Maglev,
        HashFunction::MaglevV2,
        HashFunction::Maglev,
    ] {
        katran.set_hash_function(vip, function).unwrap();
        assert_eq!(spread(&katran, &flows), BTreeMap::from([(ip(B), 300)]));
    }
    // Nor has a VIP whose reals are all drained any.
    katran.add_real(vip, Real::new(ip(B)).weight(0)).unwrap();
    katran
        .set_hash_function(vip, HashFunction::MaglevV2)
        .unwrap();
    let ran = katran.simulate(&frame(flows[0])).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
}

#[test]
fn row_22_quic_on_a_tcp_vip_is_an_error() {
    require_root();
    let mut katran = load(builder());
    let refused = katran.add_vip(vip(VIP4), VipFlags::QUIC).unwrap_err();
    assert!(
        matches!(
            &refused,
            Error::InvalidConfig {
                setting: "flags",
                ..
            }
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("QUIC runs over UDP"));
    assert!(katran.vips().is_empty());
}
