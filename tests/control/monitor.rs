//! Events: which packets make one, what it holds, and what limits them. `captures.rs` tests the
//! files, `monitor_ends.rs` how a monitor begins and ends.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::ServerId;
use katran::VipFlags;
use katran::events::Event;
use katran::events::EventKind;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use katran::flows::Verdict;
use katran_lab::eventually;
use katran_lab::stay_on;

use crate::common;
use crate::common::at;
use crate::common::bpf;
use crate::common::bpf::lookup;
use crate::common::bpf::update;
use crate::common::frames::Packet;
use crate::common::frames::RST;
use crate::common::frames::SYN;
use crate::common::ip;
use crate::common::serve;

pub(super) const TCP: &str = "203.0.113.1:80";

pub(super) const QUIC: &str = "203.0.113.2:443";

fn load(features: Features) -> Katran {
    let mut katran = common::load(common::all_in_table().features(features));
    let reals = ["198.51.100.1", "2001:db8:2::1"];
    serve(
        &mut katran,
        &format!("{TCP}/tcp"),
        VipFlags::empty(),
        &reals,
    );
    serve(&mut katran, &format!("{QUIC}/udp"), VipFlags::QUIC, &reals);
    katran
}

pub(super) fn watched() -> Katran {
    load(Features::default() | Features::INTROSPECTION)
}

pub(super) fn listen(katran: &Katran, options: MonitorOptions) -> (Monitor, Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let monitor = katran
        .events()
        .start(options, move |event| sender.send(event.clone()).unwrap())
        .unwrap();
    (monitor, events)
}

pub(super) fn tcp(client: u16) -> Packet {
    Packet::new(Flow::tcp(at(&format!("192.0.2.7:{client}")), at(TCP)))
}

pub(super) fn too_big() -> Vec<u8> {
    tcp(7).payload(1600).frame()
}

/// A packet of a connection whose server has just been removed: the id is known, but has no real.
pub(super) fn real_gone(katran: &mut Katran) -> Vec<u8> {
    const ID: u32 = 0x123;
    katran
        .server_ids_mut()
        .add(&[ServerId::new(ID, ip("198.51.100.9"))])
        .unwrap();
    // Clear the real in the kernel's memory only, as between the two writes of a removal.
    let number = katran.real_index(ip("198.51.100.9")).unwrap().get() as usize;
    let reals = katran.map_fd(".data.reals").unwrap();
    let mut all = lookup(reals, &[0; 4]).unwrap();
    all[number * 24 + 16..][..4].fill(0);
    update(reals, &[0; 4], &all);
    let mut payload = vec![0x40, 0x80];
    payload.extend(&ID.to_be_bytes()[1..]);
    payload.resize(20, 0x55);
    let flow = Flow::udp(at("192.0.2.7:5000"), at(QUIC));
    Packet::new(flow).data(&payload).frame()
}

#[test]
fn each_event_comes_with_the_packet_that_made_it() {
    let mut katran = watched();
    let before = SystemTime::now();
    let (monitor, events) = listen(&katran, MonitorOptions::new());
    assert!(katran.events().is_running());
    let gone = real_gone(&mut katran);
    // A SYN makes none, nor do later packets of its flow.
    for frame in [tcp(1).flags(SYN).frame(), tcp(1).frame()] {
        assert_eq!(katran.simulate(&frame).unwrap().verdict, Verdict::Tx);
    }
    let unknown = tcp(2).frame();
    for (frame, verdict, kind) in [
        (&unknown, Verdict::Tx, EventKind::TcpNonSynMiss),
        (&too_big(), Verdict::Tx, EventKind::PacketTooBig),
        (&gone, Verdict::Drop, EventKind::QuicRealGone),
    ] {
        let ran = katran.simulate(frame).unwrap();
        assert_eq!(ran.verdict, verdict, "{kind}: {}", ran.reason);
        let event = events.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(event.kind, kind);
        assert_eq!(event.length as usize, frame.len());
        // As received, before it is wrapped or answered.
        assert_eq!(event.packet, frame[..frame.len().min(128)]);
        assert!(
            event.time >= before - Duration::from_secs(1),
            "{:?}",
            event.time
        );
        assert!(event.time <= SystemTime::now() + Duration::from_secs(1));
    }
    let stats = monitor.stop();
    assert_eq!((stats.delivered, stats.failure), (3, None));
    assert!(!katran.events().is_running());
    // No monitor runs any more.
    katran.simulate(&tcp(3).frame()).unwrap();
    let counters = katran.stats().events().unwrap();
    assert_eq!(counters.tcp_non_syn_miss, 1);
    assert_eq!(counters.packet_too_big, 1);
    assert_eq!(counters.quic_real_gone, 1);
    assert_eq!((counters.limited, counters.lost), (0, 0));
    assert_eq!(events.try_iter().count(), 0);
}

#[test]
fn only_requested_events_and_bytes_are_delivered() {
    let katran = watched();
    let options = MonitorOptions::new()
        .events([EventKind::PacketTooBig])
        .snap_length(40)
        .packet_limit(2);
    let monitor = katran.events().to_list(options, 10).unwrap();
    katran.simulate(&tcp(2).frame()).unwrap();
    for _ in 0..5 {
        katran.simulate(&too_big()).unwrap();
    }
    let stats = wait(&monitor, |stats| stats.over_limit == 3);
    assert_eq!(stats.delivered, 2);
    let events = monitor.take();
    assert_eq!(events.len(), 2);
    for event in &events {
        assert_eq!(event.kind, EventKind::PacketTooBig);
        assert_eq!(event.packet, too_big()[..40]);
        assert_eq!(event.length as usize, too_big().len());
    }
    assert!(monitor.take().is_empty());
}

pub(super) fn wait(
    monitor: &Monitor,
    enough: impl Fn(&katran::events::MonitorStats) -> bool,
) -> katran::events::MonitorStats {
    eventually("as many events", || enough(&monitor.stats()));
    monitor.stats()
}

#[test]
fn the_list_keeps_the_last_ones() {
    let katran = watched();
    let monitor = katran.events().to_list(MonitorOptions::new(), 2).unwrap();
    for client in 1..=5 {
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    let stats = wait(&monitor, |stats| stats.delivered == 5);
    assert_eq!(stats.overwritten, 3);
    let events = monitor.take();
    let kept: Vec<_> = events.iter().map(|event| event.packet.clone()).collect();
    assert_eq!(kept, [tcp(4).frame(), tcp(5).frame()]);
}

#[test]
fn the_rate_is_limited_in_the_kernel() {
    let katran = watched();
    const LIMIT: u32 = 3;
    let (monitor, events) = listen(&katran, MonitorOptions::new().rate_limit(LIMIT));
    let began = Instant::now();
    for client in 0..100 {
        katran.simulate(&tcp(1000 + client).frame()).unwrap();
    }
    let counters = katran.stats().events().unwrap();
    assert_eq!(counters.tcp_non_syn_miss + counters.limited, 100);
    // For each second that has begun; the kernel's are shorter by a tick.
    let limit = u64::from(LIMIT);
    let most = limit * (began.elapsed().as_secs() + 2);
    assert!(
        (limit..=most).contains(&counters.tcp_non_syn_miss),
        "{counters:?}"
    );
    let stats = monitor.stop();
    assert_eq!(stats.delivered, counters.tcp_non_syn_miss);
    assert_eq!(events.iter().count() as u64, stats.delivered);
    // All packets were still forwarded.
    assert_eq!(katran.stats().totals().unwrap().tx.packets, 100);
}

#[test]
fn each_kind_has_a_limit_of_its_own_on_each_cpu() {
    const LIMIT: u32 = 50;
    let katran = watched();
    let (monitor, _events) = listen(&katran, MonitorOptions::new().rate_limit(LIMIT));
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    for cpu in 0..cpus {
        stay_on(cpu);
        // An RST makes no entry, so each misses. A flood of one kind leaves the other its share.
        let miss = tcp(9).flags(RST).frame();
        for (number, frame) in [(2 * LIMIT, miss), (LIMIT, too_big())] {
            for _ in 0..number {
                bpf::run(katran.program_fd(), &frame);
            }
        }
    }
    let counters = katran.stats().events().unwrap();
    let limits = u64::from(LIMIT) * cpus as u64;
    assert_eq!(counters.packet_too_big, limits);
    // More if a second began meanwhile.
    assert!(counters.tcp_non_syn_miss >= limits);
    assert_eq!(counters.tcp_non_syn_miss + counters.limited, 2 * limits);
    let delivered = monitor.stop().delivered;
    assert_eq!(
        delivered,
        counters.packet_too_big + counters.tcp_non_syn_miss
    );
}

/// Makes the program report all kinds, whatever a monitor asked for.
fn tell_all(katran: &Katran) {
    const EVENTS: usize = 80;
    let live = katran.map_fd(".data.live").unwrap();
    let mut settings = lookup(live, &[0; 4]).unwrap();
    settings[EVENTS..][..4].copy_from_slice(&7_u32.to_ne_bytes());
    settings[EVENTS + 4..][..4].copy_from_slice(&1000_u32.to_ne_bytes());
    update(live, &[0; 4], &settings);
}

#[test]
fn earlier_and_unrequested_events_are_not_delivered() {
    let katran = watched();
    tell_all(&katran);
    for client in 1..=3 {
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    katran.simulate(&too_big()).unwrap();
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 3);
    let options = MonitorOptions::new().events([EventKind::PacketTooBig]);
    let (monitor, events) = listen(&katran, options);
    tell_all(&katran);
    katran.simulate(&tcp(4).frame()).unwrap();
    katran.simulate(&too_big()).unwrap();
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 4);
    assert_eq!(monitor.stop().delivered, 1);
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::PacketTooBig]);
}

#[test]
fn events_beyond_the_buffer_are_counted_as_lost() {
    let builder = common::all_in_table()
        .features(Features::default() | Features::INTROSPECTION)
        .event_buffer(4096);
    let mut katran = common::load(builder);
    serve(
        &mut katran,
        &format!("{TCP}/tcp"),
        VipFlags::empty(),
        &["198.51.100.1"],
    );
    let (go, wait) = mpsc::channel::<()>();
    let options = MonitorOptions::new().rate_limit(u32::MAX);
    // A callback that hangs.
    let monitor = katran
        .events()
        .start(options, move |_| {
            let _ = wait.recv_timeout(Duration::from_secs(60));
        })
        .unwrap();
    for client in 0..200 {
        let ran = katran.simulate(&tcp(2000 + client).frame()).unwrap();
        assert_eq!(ran.verdict, Verdict::Tx);
    }
    let counters = katran.stats().events().unwrap();
    assert_eq!(counters.tcp_non_syn_miss + counters.lost, 200);
    assert!(
        (20..40).contains(&counters.tcp_non_syn_miss),
        "{counters:?}"
    );
    drop(go);
    assert_eq!(monitor.stop().delivered, counters.tcp_non_syn_miss);
}

#[test]
fn a_disabled_feature_costs_nothing() {
    let (without, with) = (load(Features::default()), watched());
    // No ring buffer exists, and no program refers to one.
    let ring_buffers = |katran: &Katran| {
        let special = bpf::programs_in(katran.map_fd("special_programs").unwrap());
        let own = katran.program_fd().try_clone_to_owned().unwrap();
        let programs = special.into_iter().chain([own]);
        let maps = programs.flat_map(|program| bpf::maps_of(program.as_fd()));
        maps.filter(|map| *map == libbpf_sys::BPF_MAP_TYPE_RINGBUF)
            .count()
    };
    assert!(without.map_fd("events").is_none() && with.map_fd("events").is_some());
    assert_eq!(ring_buffers(&without), 0);
    assert!(ring_buffers(&with) >= 4);
    let memory = [&without, &with].map(|katran| katran.stats().memory_in_use().unwrap());
    let default_buffer = 1 << 20;
    assert!(memory[1] >= memory[0] + default_buffer, "{memory:?}");
    // The attached program is smaller without the feature, also after disabling it again.
    let plain = without.stats().program_size().unwrap();
    let mut katran = with;
    assert!(katran.stats().program_size().unwrap() > plain);
    katran.reload(Features::default()).unwrap();
    assert_eq!(katran.stats().program_size().unwrap(), plain);
    assert_eq!(ring_buffers(&katran), 0);
    let after = katran.stats().memory_in_use().unwrap();
    assert!(after.abs_diff(memory[0]) < 100_000, "{after} {memory:?}");
}
