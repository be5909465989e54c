//! The example `simulate`, run as a user would: the recorded vectors as a capture and a
//! configuration file, and faulty captures.

use std::fs;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;
use std::process::Output;

use katran::Features;
use katran::FlowTracking;
use katran::HashFunction;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::BalancerState;
use katran::state::VipState;
use katran_lab::require_root;
use pcap_file::DataLink;
use pcap_file::Endianness;
use pcap_file::TsResolution;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapReader;
use pcap_file::pcap::PcapWriter;
use pcap_file::pcap::RawPcapPacket;
use serde_json::Value;

const CONFIGURATION: &str = "
    [balancer]
    gateway_mac = \"0a:00:00:00:00:fe\"
    flow_table_size = 10_000
    flow_tracking = \"all\"
";

/// A directory that is removed after the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("simulate-{name}-{}", process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs `lb.toml` and `in.pcap` to `out.pcap` and `report.jsonl`.
    fn simulate(&self) -> Output {
        let mut command = simulate();
        command.current_dir(&self.0);
        command.args(["--config", "lb.toml", "--read", "in.pcap"]);
        command.args(["--write", "out.pcap", "--json", "report.jsonl"]);
        command.output().unwrap()
    }

    pub(crate) fn report(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("report.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The example, as built by `cargo test` beside this test.
fn simulate() -> Command {
    let path = std::env::current_exe().unwrap();
    let path = path.ancestors().nth(2).unwrap().join("examples/simulate");
    assert!(path.exists(), "run `cargo build --examples` first");
    let mut command = Command::new(path);
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
    command
}

fn header(endianness: Endianness, ts_resolution: TsResolution) -> PcapHeader {
    PcapHeader {
        endianness,
        ts_resolution,
        ..PcapHeader::default()
    }
}

/// A frame captured in full, `index` ticks after the start.
fn packet(index: usize, frame: &[u8]) -> RawPcapPacket<'_> {
    RawPcapPacket {
        ts_sec: 1_700_000_000,
        ts_frac: 999_000 + index as u32,
        incl_len: frame.len() as u32,
        orig_len: frame.len() as u32,
        data: frame.into(),
    }
}

fn write(path: &Path, header: PcapHeader, packets: &[RawPcapPacket]) {
    let mut writer = PcapWriter::with_header(File::create(path).unwrap(), header).unwrap();
    for packet in packets {
        writer.write_raw_packet(packet).unwrap();
    }
}

pub(crate) fn read(path: &Path) -> (PcapHeader, Vec<RawPcapPacket<'static>>) {
    let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_raw_packet() {
        packets.push(packet.unwrap().into_owned());
    }
    (reader.header(), packets)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// A recording's configuration as a file.
fn configuration(recording: &Value) -> String {
    let config = &recording["config"];
    let mut balancer = BalancerState::default();
    balancer.gateway_mac = Some(text(&config["gateway_mac"]).parse().unwrap());
    balancer.source_v4 = Some(text(&config["source_v4"]).parse().unwrap());
    balancer.source_v6 = Some(text(&config["source_v6"]).parse().unwrap());
    balancer.ring_size = Some(config["ring_size"].as_u64().unwrap() as u32);
    balancer.max_frame = Some((config["max_frame"].as_u64().unwrap() as u32).into());
    balancer.features = Some(Features::empty());
    balancer.flow_table_size = Some(10_000);
    balancer.flow_tracking = Some(FlowTracking::All);
    let mut state = State::default();
    state.balancer = Some(balancer);
    for recorded in recording["state"]["vips"].as_array().unwrap() {
        let address: IpAddr = text(&recorded["addr"]).parse().unwrap();
        let port = recorded["port"].as_u64().unwrap() as u16;
        let protocol = text(&recorded["proto"]).parse().unwrap();
        let mut vip = VipState::new(Vip::new((address, port).into(), protocol));
        vip.hash = Some(HashFunction::Maglev);
        for flag in recorded["flags"].as_array().into_iter().flatten() {
            let name = text(flag).to_lowercase().replace('_', "-");
            vip.flags |= name.parse::<VipFlags>().unwrap();
        }
        for real in recorded["reals"].as_array().unwrap() {
            let weight = real["weight"].as_u64().unwrap() as u32;
            vip.reals
                .push(Real::new(text(&real["addr"]).parse().unwrap()).weight(weight));
        }
        state.vips.push(vip);
    }
    state.to_toml().unwrap()
}

#[test]
fn recorded_packets_come_out_as_recorded() {
    require_root();
    let recording: Value = serde_json::from_str(include_str!("../vectors/core_ipip.json")).unwrap();
    let recorded = recording["packets"].as_array().unwrap();
    assert!(recorded.len() > 100);
    let frames: Vec<Vec<u8>> = recorded.iter().map(|p| bytes(text(&p["in"]))).collect();
    let packets: Vec<_> = (0..).zip(&frames).map(|(i, f)| packet(i, f)).collect();

    for header in [
        header(Endianness::Little, TsResolution::MicroSecond),
        header(Endianness::Big, TsResolution::NanoSecond),
    ] {
        let scratch = Scratch::new("recorded");
        fs::write(scratch.path("lb.toml"), configuration(&recording)).unwrap();
        write(&scratch.path("in.pcap"), header, &packets);
        let output = scratch.simulate();
        assert!(output.status.success(), "{output:?}");

        let (written, out) = read(&scratch.path("out.pcap"));
        assert_eq!(written.endianness, header.endianness);
        assert_eq!(written.ts_resolution, header.ts_resolution);
        assert_eq!(written.datalink, DataLink::ETHERNET);
        let mut report = scratch.report();
        let counters = report.pop().unwrap()["counters"].take();
        assert_eq!((out.len(), report.len()), (recorded.len(), recorded.len()));

        let [mut tx, mut pass, mut drop, mut sent_here] = [0; 4];
        for (index, recorded) in recorded.iter().enumerate() {
            let what = &recorded["desc"];
            let line = &report[index];
            let verdict = text(&recorded["verdict"]).trim_start_matches("XDP_");
            assert_eq!(line["index"], index, "{what}");
            assert_eq!(line["verdict"], verdict, "{what}: {line}");
            assert_eq!(line["length"], out[index].data.len(), "{what}");
            assert_eq!(out[index].ts_sec, packets[index].ts_sec, "{what}");
            assert_eq!(out[index].ts_frac, packets[index].ts_frac, "{what}");
            assert_eq!(out[index].orig_len, out[index].incl_len, "{what}");
            match recorded["out"].as_str() {
                _ if verdict == "DROP" => {}
                Some(expected) => assert_eq!(out[index].data[..], bytes(expected), "{what}"),
                // Sent here but not by the recorded program, so no bytes are recorded.
                None if verdict == "TX" => {
                    sent_here += 1;
                    assert!(out[index].data.ends_with(&frames[index][14..]), "{what}");
                }
                None => assert_eq!(out[index].data[..], frames[index][..], "{what}"),
            }
            match verdict {
                "TX" => tx += 1,
                "PASS" => pass += 1,
                _ => drop += 1,
            }
        }
        assert_eq!(report[0]["vip"], "203.0.113.1:80/tcp");
        assert_eq!(report[0]["real"], "198.51.100.3");

        let totals = &counters["totals"];
        assert_eq!(totals["total"]["packets"], recorded.len());
        assert_eq!(totals["tx"]["packets"], tx);
        assert_eq!(totals["pass"]["packets"], pass);
        assert_eq!(totals["drop"]["packets"], drop);
        let recorded = &recording["counters"];
        // Only the recorded program counts misses for ICMP errors: see the walk's tests.
        let of_flows = &counters["flow_table"];
        let recorded_packets = recorded["lru"][0].as_u64().unwrap();
        assert_eq!(of_flows["packets"], recorded_packets + sent_here);
        assert_eq!(of_flows["miss_syn"], recorded["lru_miss"][0]);
        for (group, first, second, name) in [
            ("icmp", "ptb_v4", "ptb_v4_small", "icmp_ptb_v4"),
            ("icmp", "ptb_v6", "ptb_v6_small", "icmp_ptb_v6"),
            ("ring_drop", "unknown_real", "empty", "ch_drop"),
        ] {
            assert_eq!(counters[group][first], recorded[name][0], "{name}");
            assert_eq!(counters[group][second], recorded[name][1], "{name}");
        }
    }
}

#[test]
fn a_line_of_the_report_begins_with_the_same_keys() {
    require_root();
    let scratch = Scratch::new("keys");
    let vip = "
        [[vip]]
        address = \"203.0.113.1\"
        port = 80
        protocol = \"tcp\"
        reals = [{ address = \"198.51.100.1\" }]
    ";
    fs::write(scratch.path("lb.toml"), format!("{CONFIGURATION}{vip}")).unwrap();
    let recording: Value = serde_json::from_str(include_str!("../vectors/core_ipip.json")).unwrap();
    let syn = bytes(text(&recording["packets"][0]["in"]));
    let arp = [[0xff; 6], [2; 6]].concat();
    let arp = [&arp[..], &[8, 6], &[0; 28]].concat();
    let header = header(Endianness::Little, TsResolution::MicroSecond);
    write(
        &scratch.path("in.pcap"),
        header,
        &[packet(0, &syn), packet(1, &arp)],
    );
    assert!(scratch.simulate().status.success());
    let report = fs::read_to_string(scratch.path("report.jsonl")).unwrap();
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(
        lines[..2],
        [
            r#"{"index":0,"verdict":"TX","length":74,"vip":"203.0.113.1:80/tcp","real":"198.51.100.1","reason":"ring"}"#,
            r#"{"index":1,"verdict":"PASS","length":42,"vip":null,"real":null,"reason":"not IP"}"#,
        ]
    );
    assert!(lines[2].starts_with(r#"{"counters":{"#));
    assert_eq!(lines.len(), 3);

    // A table on the terminal; no files written.
    let mut command = simulate();
    command.current_dir(&scratch.0);
    command.args(["--config", "lb.toml", "--read", "in.pcap"]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("198.51.100.1"), "{table}");
    assert!(
        table.ends_with("2 frames: 1 TX, 1 PASS, 0 DROP\n"),
        "{table}"
    );
}

#[test]
fn the_sample_spreads_over_its_reals() {
    require_root();
    let mut command = simulate();
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data"));
    command.args(["--config", "lb.toml", "--read", "sample.pcap"]);
    let output = command.output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{table}");
    for text in [
        "198.51.100.1 ",
        "2001:db8:2::1 ",
        "2001:db8:2::2 ",
        "settled slot",
        "ICMP echo",
        "not a VIP",
        "ipv4_fragment",
        "25 frames: 22 TX, 2 PASS, 1 DROP",
    ] {
        assert!(table.contains(text), "no {text} in {table}");
    }
}

#[test]
fn a_frame_that_cannot_run_does_not_lose_the_others() {
    require_root();
    let scratch = Scratch::new("long");
    fs::write(scratch.path("lb.toml"), CONFIGURATION).unwrap();
    let (long, tiny, cut) = (vec![0xaa; 4000], vec![0xbb; 10], vec![0xcc; 60]);
    let cut_off = RawPcapPacket {
        orig_len: 70_000,
        ..packet(2, &cut)
    };
    let packets = [packet(0, &long), packet(1, &tiny), cut_off];
    let header = header(Endianness::Little, TsResolution::MicroSecond);
    write(&scratch.path("in.pcap"), header, &packets);
    let output = scratch.simulate();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("1 of 3 frames could not be run"),
        "{stderr}"
    );
    assert!(
        stderr.contains("warning: frames shorter than on the wire: 1"),
        "{stderr}"
    );

    let report = scratch.report();
    assert_eq!(report.len(), 4);
    assert_eq!(report[0]["verdict"], "ERROR");
    assert!(text(&report[0]["error"]).contains("4000 bytes"));
    assert_eq!(report[0]["length"], 4000);
    assert_eq!(report[1]["verdict"], "DROP");
    assert_eq!(report[2]["verdict"], "PASS");
    assert_eq!(report[2]["truncated"], true);
    let (_, out) = read(&scratch.path("out.pcap"));
    for (out, packet) in out.iter().zip(&packets) {
        assert_eq!(out.data, packet.data);
        assert_eq!(out.orig_len, packet.orig_len);
    }
    assert_eq!(out.len(), 3);
}

#[test]
fn invalid_captures_are_refused() {
    require_root();
    let scratch = Scratch::new("refused");
    fs::write(scratch.path("lb.toml"), CONFIGURATION).unwrap();
    let capture = scratch.path("in.pcap");
    let complaint = |text: &str| {
        let output = scratch.simulate();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
    };

    complaint("in.pcap: No such file");
    fs::write(&capture, [0x0a, 0x0d, 0x0d, 0x0a].repeat(10)).unwrap();
    complaint("convert pcapng");
    let mut cooked = header(Endianness::Little, TsResolution::MicroSecond);
    cooked.datalink = DataLink::LINUX_SLL;
    write(&capture, cooked, &[]);
    complaint("not Ethernet");
    assert!(!scratch.path("out.pcap").exists());

    // Breaks off in the second frame: the first counts.
    let frame = [0; 60];
    let whole = header(Endianness::Big, TsResolution::MicroSecond);
    write(&capture, whole, &[packet(0, &frame), packet(1, &frame)]);
    let content = fs::read(&capture).unwrap();
    fs::write(&capture, &content[..content.len() - 10]).unwrap();
    complaint("ends within a frame, after 1 whole ones");
    assert_eq!(scratch.report().len(), 2);
    assert_eq!(read(&scratch.path("out.pcap")).1.len(), 1);

    // The capture itself is not overwritten, by whatever path.
    let before = fs::read(&capture).unwrap();
    fs::remove_file(scratch.path("out.pcap")).unwrap();
    fs::hard_link(&capture, scratch.path("out.pcap")).unwrap();
    complaint("it is the input");
    assert_eq!(fs::read(&capture).unwrap(), before);
}
