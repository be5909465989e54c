//! Events in files: what is written, that tshark reads it, and what happens when a file cannot be
//! written.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;
use std::time::Duration;
use std::time::SystemTime;

use katran::Error;
use katran::events::EventKind;
use katran::events::MonitorOptions;
use katran_lab::private_bpf_fs;
use nix::errno::Errno;
use nix::libc;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;

use super::monitor::QUIC;
use super::monitor::TCP;
use super::monitor::real_gone;
use super::monitor::tcp;
use super::monitor::too_big;
use super::monitor::wait;
use super::monitor::watched;
use crate::common::at;
use crate::common::faults::without_call;

/// A directory that is removed after the test.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Left by a killed process with the same id.
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
    // Files can be read while the capture continues.
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
    // Existing files are not overwritten.
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

/// A file's packets according to tshark: captured and original length, seconds since 1970, and
/// destination.
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
        // Two clocks, read one after the other.
        assert!((before - 0.1..after + 0.1).contains(time), "{kind}: {time}");
    }
}

/// Mounts in this thread's mount namespace.
fn mount(arguments: &[&str]) {
    mount_command("mount", arguments);
}

fn mount_command(name: &str, arguments: &[&str]) {
    let status = Command::new(name).args(arguments).status().unwrap();
    assert!(status.success(), "{name} {arguments:?}");
}

/// A mount that ends with the test, so that the directory can be removed.
struct Mounted<'a>(&'a str);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        mount_command("umount", &["-l", self.0]);
    }
}

#[test]
fn a_full_disk_leaves_whole_packets() {
    let katran = watched();
    // Gives the thread its own mount namespace.
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
    // With room again, writing continues after the last whole packet.
    mount(&["-o", "remount,size=1m", path]);
    for client in 1..=5 {
        katran.simulate(&tcp(client).frame()).unwrap();
    }
    wait(&monitor, |stats| stats.delivered == fit + 5);
    whole(fit + 5);
    monitor.stop();
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
        // No monitor runs, so no event is made.
        katran.simulate(&too_big()).unwrap();
        assert_eq!(katran.stats().events().unwrap().packet_too_big, 0);
    }
    let monitor = katran.events().to_pcap(MonitorOptions::new(), &scratch.0);
    katran.simulate(&too_big()).unwrap();
    assert_eq!(monitor.unwrap().stop().delivered, 1);
}
