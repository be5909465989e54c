//! Events: which packets make one, what they hold, where they go, and what limits them.

use std::fs;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::SystemTime;

use katran::Error;
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
use katran_lab::private_bpf_fs;
use nix::errno::Errno;
use nix::libc;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;

use crate::common;
use crate::common::at;
use crate::common::bpf;
use crate::common::bpf::lookup;
use crate::common::bpf::update;
use crate::common::faults::without_call;
use crate::common::frames::Packet;
use crate::common::frames::RST;
use crate::common::frames::SYN;
use crate::common::ip;
use crate::common::serve;

const TCP: &str = "203.0.113.1:80";
const QUIC: &str = "203.0.113.2:443";

fn load(features: Features) -> Katran {
    let mut katran = common::load(common::builder().features(features));
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

fn watched() -> Katran {
    load(Features::default() | Features::INTROSPECTION)
}

fn listen(katran: &Katran, options: MonitorOptions) -> (Monitor, Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let monitor = katran
        .events()
        .start(options, move |event| sender.send(event.clone()).unwrap())
        .unwrap();
    (monitor, events)
}

fn tcp(client: u16) -> Packet {
    Packet::new(Flow::tcp(at(&format!("192.0.2.7:{client}")), at(TCP)))
}

fn too_big() -> Vec<u8> {
    tcp(7).payload(1600).frame()
}

/// A packet of a connection whose server has just gone: the id is known and names nobody.
fn real_gone(katran: &mut Katran) -> Vec<u8> {
    const ID: u32 = 0x123;
    katran
        .server_ids_mut()
        .add(&[ServerId::new(ID, ip("198.51.100.9"))])
        .unwrap();
    // The kernel's memory of the real is taken away under the library, as between the two stores
    // of a removal.
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
    // A SYN, and what follows on a known flow, make none.
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
        // As it came in: nothing is wrapped or answered yet.
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
    // Nobody listens any more.
    katran.simulate(&tcp(3).frame()).unwrap();
    let counters = katran.stats().events().unwrap();
    assert_eq!(counters.tcp_non_syn_miss, 1);
    assert_eq!(counters.packet_too_big, 1);
    assert_eq!(counters.quic_real_gone, 1);
    assert_eq!((counters.limited, counters.lost), (0, 0));
    assert_eq!(events.try_iter().count(), 0);
}

#[test]
fn only_what_was_asked_for_is_delivered_and_as_much_of_it() {
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

fn wait(
    monitor: &Monitor,
    enough: impl Fn(&katran::events::MonitorStats) -> bool,
) -> katran::events::MonitorStats {
    for _ in 0..1000 {
        let stats = monitor.stats();
        if enough(&stats) {
            return stats;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?}", monitor.stats());
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
    let (monitor, events) = listen(&katran, MonitorOptions::new().rate_limit(3));
    for client in 0..100 {
        katran.simulate(&tcp(1000 + client).frame()).unwrap();
    }
    let counters = katran.stats().events().unwrap();
    assert_eq!(counters.tcp_non_syn_miss + counters.limited, 100);
    // Three of each second that it took, and of the one that had begun.
    assert!(
        (3..=30).contains(&counters.tcp_non_syn_miss),
        "{counters:?}"
    );
    let stats = monitor.stop();
    assert_eq!(stats.delivered, counters.tcp_non_syn_miss);
    assert_eq!(events.iter().count() as u64, stats.delivered);
    // All packets went their way.
    assert_eq!(katran.stats().totals().unwrap().tx.packets, 100);
}

#[test]
fn each_kind_has_a_limit_of_its_own_on_each_cpu() {
    const LIMIT: u32 = 50;
    let katran = watched();
    let (monitor, _events) = listen(&katran, MonitorOptions::new().rate_limit(LIMIT));
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    for cpu in 0..cpus {
        bpf::pin(cpu);
        // A flow is not remembered by an RST, so it is missed each time. On a flood of the one kind
        // the other has its share.
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
    // More if seconds have passed meanwhile.
    assert!(counters.tcp_non_syn_miss >= limits);
    assert_eq!(counters.tcp_non_syn_miss + counters.limited, 2 * limits);
    let delivered = monitor.stop().delivered;
    assert_eq!(
        delivered,
        counters.packet_too_big + counters.tcp_non_syn_miss
    );
}

/// Has the program hand over all kinds, whatever a monitor has asked for.
fn tell_all(katran: &Katran) {
    const EVENTS: usize = 80;
    let live = katran.map_fd(".data.live").unwrap();
    let mut settings = lookup(live, &[0; 4]).unwrap();
    settings[EVENTS..][..4].copy_from_slice(&7_u32.to_ne_bytes());
    settings[EVENTS + 4..][..4].copy_from_slice(&1000_u32.to_ne_bytes());
    update(live, &[0; 4], &settings);
}

#[test]
fn what_came_before_a_monitor_or_was_not_asked_for_is_not_delivered() {
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
fn a_panic_of_the_callback_ends_the_events_and_nothing_else() {
    let katran = watched();
    let (sender, events) = mpsc::channel();
    let monitor = katran
        .events()
        .start(MonitorOptions::new(), move |event| {
            sender.send(event.clone()).unwrap();
            assert!(event.kind != EventKind::PacketTooBig, "this one not");
        })
        .unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    katran.simulate(&too_big()).unwrap();
    let stats = wait(&monitor, |stats| stats.failure.is_some());
    let failure = stats.failure.unwrap();
    assert!(failure.contains("panicked"), "{failure}");
    assert!(failure.contains("this one not"), "{failure}");
    assert_eq!(stats.delivered, 1);
    // The program makes no more of them.
    let ran = katran.simulate(&tcp(2).frame()).unwrap();
    assert_eq!(ran.verdict, Verdict::Tx);
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 1);
    assert!(katran.events().is_running());
    assert_eq!(monitor.stop().delivered, 1);
    assert_eq!(events.iter().count(), 2);
    // The next one is a new beginning.
    let (monitor, events) = listen(&katran, MonitorOptions::new());
    katran.simulate(&tcp(3).frame()).unwrap();
    assert_eq!(monitor.stop().delivered, 1);
    assert_eq!(events.iter().count(), 1);
}

#[test]
fn a_payload_that_panics_when_it_is_dropped_ends_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload panics");
        }
    }
    let katran = watched();
    let options = MonitorOptions::new();
    let panics = |_: &Event| std::panic::panic_any(Bomb);
    let monitor = katran.events().start(options, panics).unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    let stats = wait(&monitor, |stats| stats.failure.is_some());
    let failure = stats.failure.unwrap();
    assert!(failure.contains("without a text"), "{failure}");
    assert_eq!(monitor.stop().delivered, 0);
    // The next one listens.
    let (monitor, events) = listen(&katran, MonitorOptions::new());
    katran.simulate(&tcp(2).frame()).unwrap();
    events.recv_timeout(Duration::from_secs(5)).unwrap();
    drop(monitor);
}

#[test]
fn of_two_threads_that_start_a_monitor_at_once_one_does() {
    let katran = watched();
    for _ in 0..100 {
        let barrier = Barrier::new(2);
        let start = || {
            barrier.wait();
            katran.events().to_list(MonitorOptions::new(), 4)
        };
        let started = thread::scope(|scope| {
            let threads = [scope.spawn(start), scope.spawn(start)];
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(started.iter().filter(|of| of.is_ok()).count(), 1);
        assert!(katran.events().is_running());
        for refused in started.iter().filter_map(|of| of.as_ref().err()) {
            assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
        }
        drop(started);
        assert!(!katran.events().is_running());
    }
}

/// The next one may begin as soon as the balancer is not monitored any more, while `stop` has yet to
/// return on another thread.
#[test]
fn a_monitor_that_ends_leaves_its_successor_alone() {
    let katran = watched();
    let start = || loop {
        match katran.events().to_list(MonitorOptions::new(), 10) {
            Err(Error::AlreadyExists { .. }) => std::thread::yield_now(),
            started => return started.unwrap(),
        }
    };
    let mut monitor = start();
    for turn in 0..100 {
        let next = std::thread::scope(|scope| {
            scope.spawn(|| monitor.stop());
            start()
        });
        katran.simulate(&tcp(1000 + turn).frame()).unwrap();
        monitor = next;
        let made = katran.stats().events().unwrap().tcp_non_syn_miss;
        assert_eq!(made, u64::from(turn) + 1, "the successor is silent");
    }
}

#[test]
fn a_callback_may_end_its_own_monitor() {
    let katran = watched();
    for stop in [true, false] {
        let own = Arc::new(Mutex::new(None::<Monitor>));
        let (sender, ended) = mpsc::channel();
        let monitor = {
            let own = Arc::clone(&own);
            let callback = move |_: &Event| {
                let monitor = own.lock().unwrap().take().unwrap();
                let stats = stop.then(|| monitor.stop());
                sender.send(stats).unwrap();
            };
            katran
                .events()
                .start(MonitorOptions::new(), callback)
                .unwrap()
        };
        *own.lock().unwrap() = Some(monitor);
        katran.simulate(&tcp(10 + u16::from(stop)).frame()).unwrap();
        let stats = ended.recv_timeout(Duration::from_secs(60)).unwrap();
        // Its own event was still being delivered.
        assert_eq!(stats.map(|stats| stats.delivered), stop.then_some(0));
        for _ in 0..1000 {
            if !katran.events().is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!katran.events().is_running());
    }
}

#[test]
fn events_beyond_the_buffer_are_counted_as_lost() {
    let builder = common::builder()
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
    // A callback that does not return.
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

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of a process that had this number and was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn events_are_written_to_a_file_for_each_kind() {
    let katran = watched();
    let scratch = Scratch::new("monitor");
    let options = MonitorOptions::new().snap_length(64);
    let monitor = katran
        .events()
        .to_pcap(options.clone(), &scratch.0)
        .unwrap();
    let before = SystemTime::now();
    for client in 1..=3 {
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    katran.simulate(&too_big()).unwrap();
    let stats = wait(&monitor, |stats| stats.delivered == 4);
    assert_eq!(stats.failure, None);
    // What is there can be read while it goes on.
    for (kind, frames) in [
        (EventKind::TcpNonSynMiss, vec![tcp(1), tcp(2), tcp(3)]),
        (EventKind::PacketTooBig, vec![tcp(7).payload(1600)]),
        (EventKind::QuicRealGone, vec![]),
    ] {
        let path = scratch.0.join(format!("{kind}.pcap"));
        let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
        assert_eq!(reader.header().datalink, DataLink::ETHERNET);
        assert_eq!(reader.header().snaplen, 64);
        for frame in frames {
            let frame = frame.frame();
            let packet = reader.next_raw_packet().unwrap().unwrap();
            assert_eq!(packet.orig_len as usize, frame.len());
            assert_eq!(packet.data[..], frame[..frame.len().min(64)]);
            let since = Duration::new(packet.ts_sec.into(), packet.ts_frac);
            let time = SystemTime::UNIX_EPOCH + since;
            assert!(time + Duration::from_secs(1) >= before);
        }
        assert!(reader.next_raw_packet().is_none(), "{kind}");
    }
    monitor.stop();
    // They are not written over.
    let error = katran
        .events()
        .to_pcap(options.clone(), &scratch.0)
        .unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert!(
        error.to_string().contains("tcp_non_syn_miss.pcap"),
        "{error}"
    );
    assert!(!katran.events().is_running());
    // All files or none.
    fs::remove_file(scratch.0.join("tcp_non_syn_miss.pcap")).unwrap();
    assert!(katran.events().to_pcap(options, &scratch.0).is_err());
    assert!(!scratch.0.join("tcp_non_syn_miss.pcap").exists());
}

/// What tshark makes of a file: of each packet the bytes that are there, those of the frame, the seconds
/// since 1970, and where to.
fn tshark(file: &Path) -> Vec<(usize, usize, f64, String)> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    command.args(["-T", "fields", "-E", "separator=/s"]);
    for field in ["frame.cap_len", "frame.len", "frame.time_epoch", "ip.dst"] {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let packet = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let [captured, length, time, destination] = fields[..] else {
            panic!("{line}");
        };
        (
            captured.parse().unwrap(),
            length.parse().unwrap(),
            time.parse().unwrap(),
            destination.to_owned(),
        )
    };
    text.lines().map(packet).collect()
}

#[test]
fn tshark_reads_every_kind_of_file_and_sees_where_packets_were_cut() {
    let mut katran = watched();
    let scratch = Scratch::new("tshark");
    let gone = real_gone(&mut katran);
    let options = MonitorOptions::new().snap_length(50);
    let monitor = katran.events().to_pcap(options, &scratch.0).unwrap();
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let before = since(SystemTime::now()).as_secs_f64();
    let frames = [tcp(1).frame(), too_big(), gone];
    for frame in &frames {
        katran.simulate(frame).unwrap();
    }
    assert_eq!(monitor.stop().delivered, 3);
    let after = since(SystemTime::now()).as_secs_f64();
    for ((kind, to), frame) in EventKind::ALL.iter().zip([TCP, TCP, QUIC]).zip(&frames) {
        let packets = tshark(&scratch.0.join(format!("{kind}.pcap")));
        let [(captured, length, time, destination)] = &packets[..] else {
            panic!("{kind}: {packets:?}");
        };
        assert_eq!((*captured, *length), (50, frame.len()), "{kind}");
        assert_eq!(*destination, at(to).ip().to_string());
        // Two clocks are read one after the other.
        assert!((before - 0.1..after + 0.1).contains(time), "{kind}: {time}");
    }
}

#[test]
fn a_monitor_that_cannot_listen_is_an_error_and_leaves_nothing() {
    let katran = watched();
    let scratch = Scratch::new("deaf");
    for (call, errno) in [
        (libc::SYS_epoll_create1, Errno::EMFILE),
        (libc::SYS_clone3, Errno::EAGAIN),
    ] {
        let error = without_call(call, errno, || {
            let options = MonitorOptions::new();
            katran.events().to_pcap(options, &scratch.0).unwrap_err()
        });
        match errno {
            Errno::EMFILE => assert!(
                matches!(&error, Error::Exhausted { what, .. } if what.contains("RLIMIT_NOFILE")),
                "{error}"
            ),
            _ => assert!(matches!(error, Error::Kernel { .. }), "{error}"),
        }
        assert!(!katran.events().is_running());
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
        // Nobody listens, so nothing is handed over.
        katran.simulate(&too_big()).unwrap();
        assert_eq!(katran.stats().events().unwrap().packet_too_big, 0);
    }
    let monitor = katran.events().to_pcap(MonitorOptions::new(), &scratch.0);
    katran.simulate(&too_big()).unwrap();
    assert_eq!(monitor.unwrap().stop().delivered, 1);
}

/// Mounts in the mount namespace of this thread.
fn mount(arguments: &[&str]) {
    mount_command("mount", arguments);
}

fn mount_command(name: &str, arguments: &[&str]) {
    let status = Command::new(name).args(arguments).status().unwrap();
    assert!(status.success(), "{name} {arguments:?}");
}

/// A mount that goes with the test, so that the directory can.
struct Mounted<'a>(&'a str);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        mount_command("umount", &["-l", self.0]);
    }
}

#[test]
fn a_full_disk_leaves_whole_packets() {
    let katran = watched();
    // The thread has a mount namespace of its own then, which ends with it.
    private_bpf_fs().unwrap();
    let scratch = Scratch::new("full");
    let path = scratch.0.to_str().unwrap();
    // One page of memory.
    mount(&["-t", "tmpfs", "-o", "size=4k", "katran", path]);
    let _mounted = Mounted(path);
    let options = MonitorOptions::new().events([EventKind::TcpNonSynMiss]);
    let monitor = katran.events().to_pcap(options, path).unwrap();
    let record = 16 + tcp(1).frame().len();
    let fit = ((4096 - 24) / record) as u64;
    assert_ne!((4096 - 24) % record, 0, "a packet is cut in two");
    let sent = fit + 10;
    for client in 0..sent {
        let client = 1000 + client as u16;
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    let stats = wait(&monitor, |stats| stats.delivered + stats.failed == sent);
    assert_eq!((stats.delivered, stats.failed), (fit, 10));
    let failure = stats.failure.unwrap();
    assert!(failure.contains("tcp_non_syn_miss.pcap"), "{failure}");
    assert!(failure.contains("No space left"), "{failure}");
    let whole = |packets: u64| {
        let file = scratch.0.join("tcp_non_syn_miss.pcap");
        let length = fs::metadata(&file).unwrap().len();
        assert_eq!(length, 24 + packets * record as u64);
        let mut reader = PcapReader::new(File::open(file).unwrap()).unwrap();
        for _ in 0..packets {
            let packet = reader.next_raw_packet().unwrap().unwrap();
            assert_eq!(packet.orig_len as usize + 16, record);
        }
        assert!(reader.next_raw_packet().is_none());
    };
    whole(fit);
    // There is room again: it goes on behind the last whole one.
    mount(&["-o", "remount,size=1m", path]);
    for client in 1..=5 {
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    wait(&monitor, |stats| stats.delivered == fit + 5);
    whole(fit + 5);
    monitor.stop();
}

#[test]
fn one_monitor_at_a_time_and_only_with_the_feature() {
    let mut katran = watched();
    let (monitor, _events) = listen(&katran, MonitorOptions::new());
    let error = katran
        .events()
        .to_list(MonitorOptions::new(), 1)
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    // Nor can the feature go while one listens.
    let error = katran.reload(Features::default()).unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    // With other features it listens on.
    let more = katran.features() | Features::SOURCE_ROUTING;
    katran.simulate(&tcp(2).frame()).unwrap();
    wait(&monitor, |stats| stats.delivered == 1);
    katran.reload(more).unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    wait(&monitor, |stats| stats.delivered == 2);
    // Nor do the counters begin anew.
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 2);
    drop(monitor);
    let bad = MonitorOptions::new().rate_limit(0);
    assert!(matches!(
        katran.events().to_list(bad, 1),
        Err(Error::InvalidConfig { .. })
    ));
    assert!(katran.events().to_list(MonitorOptions::new(), 0).is_err());
    katran.reload(Features::default()).unwrap();
    assert!(matches!(
        katran.events().to_list(MonitorOptions::new(), 1),
        Err(Error::Unsupported { .. })
    ));
}

#[test]
fn off_costs_nothing() {
    let (without, with) = (load(Features::default()), watched());
    // There is no ring buffer, and no program refers to one.
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
    // The attached program holds no trace of it; switched off again it is the same.
    let plain = without.stats().program_size().unwrap();
    let mut katran = with;
    assert!(katran.stats().program_size().unwrap() > plain);
    katran.reload(Features::default()).unwrap();
    assert_eq!(katran.stats().program_size().unwrap(), plain);
    assert_eq!(ring_buffers(&katran), 0);
    let after = katran.stats().memory_in_use().unwrap();
    assert!(after.abs_diff(memory[0]) < 100_000, "{after} {memory:?}");
}
