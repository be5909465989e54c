//! The path of health checks of a pinned balancer: it wraps probes and keeps its state without a
//! handle and with the next one, whether it was loaded with the balancer or when first needed.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use katran::Katran;
use katran::Vip;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;

use super::health_wire::MARK;
use super::health_wire::REAL4;
use super::health_wire::REAL6;
use super::health_wire::counters;
use super::health_wire::probes;
use super::health_wire::send;
use super::health_wire::settings;
use crate::common::at;
use crate::common::bpf::Buffer;
use crate::common::bpf::run_tc_with;
use crate::common::builder;
use crate::common::faults::without_commands;
use crate::common::frames::Packet;
use crate::common::frames::RST;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::pins;
use crate::common::pins::tree;

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

/// Everything that can be asked about probes.
fn known(katran: &Katran) -> impl PartialEq + std::fmt::Debug + use<> {
    let probes = katran.probes();
    let counted = probes.list().into_iter();
    let counted: Vec<(Vip, u64)> = counted
        .map(|vip| (vip, probes.counter(vip).unwrap()))
        .collect();
    (
        probes.marks(),
        probes.destination_matches(),
        probes.source_matches(),
        counted,
        counters(katran),
    )
}

/// Whether a packet with this mark counts as a probe.
fn wraps(katran: &Katran, frame: &[u8], mark: u32) -> bool {
    send(katran, frame, mark).1 != frame
}

/// Sends probes by mark, destination and source, in both families.
fn probe(katran: &Katran) {
    for flow in probes() {
        assert!(wraps(katran, &syn(flow), MARK), "{flow}");
    }
    let by_destination = katran::Flow::udp(at("10.0.0.2:1"), at("203.0.113.9:53"));
    let by_source = katran::Flow::udp(at("[2001:db8:b::2]:7"), at("[2001:db8:1::9]:53"));
    for flow in [by_destination, by_source] {
        assert!(wraps(katran, &frame(flow), 0), "{flow}");
    }
}

/// Whether the pinned program wraps a probe, without a handle.
fn is_wrapped(directory: &Path) -> bool {
    let program = pins::open(&directory.join("set/probes/healthcheck"));
    let buffer = Buffer {
        mark: MARK,
        segment: 0,
    };
    let probe = frame(probes()[0]);
    run_tc_with(program.as_fd(), &probe, buffer).1 != probe
}

#[test]
fn marks_matches_and_counters_survive() {
    require_root();
    let files = private_bpf_fs().unwrap();
    let directory = files.join("katran");
    for interface in [Some("lo"), None] {
        let builder_of = || match interface {
            Some(name) => settings().healthcheck_interface(name),
            None => settings(),
        };
        let mut katran = load(builder_of().pin(&directory));
        let [v4, v6]: [IpAddr; 2] = [ip(REAL4), ip(REAL6)];
        let vip = Vip::tcp(at("203.0.113.1:443"));
        if interface.is_none() {
            // Loaded when first needed: if it cannot be pinned, nothing has changed.
            let before = tree(&files);
            let error = without_commands(&[OBJ_PIN], Errno::ENOSPC, || {
                katran.probes_mut().map_mark(MARK, v4)
            });
            error.unwrap_err();
            assert_eq!((tree(&files), katran.probes().marks()), (before, vec![]));
        }
        katran.probes_mut().map_mark(MARK, v4).unwrap();
        let (to, from) = (at("203.0.113.9:53"), at("[2001:db8:b::2]:7"));
        katran.probes_mut().match_destination(to, v6).unwrap();
        katran.probes_mut().match_source(from, v4).unwrap();
        katran.probes_mut().register(vip).unwrap();
        probe(&katran);
        let (before, state) = (known(&katran), katran.state());
        assert!(katran.probes().counter(vip).unwrap() > 0);
        drop(katran);

        assert!(is_wrapped(&directory));
        let mut katran = builder().pin(&directory).adopt().unwrap();
        let counted = counters(&katran);
        assert_eq!(katran.state(), state);
        // Packets wrapped without a handle count, too.
        assert_ne!(known(&katran), before);
        let program = katran.probes().program_fd().unwrap();
        let pinned = pins::open(&directory.join("set/probes/healthcheck"));
        assert_eq!(pins::program_id(program), pins::program_id(pinned.as_fd()));
        // A late RST without a mark follows its connection, which began earlier.
        let rst = Packet::new(probes()[0]).flags(RST).frame();
        assert!(wraps(&katran, &rst, 0));
        probe(&katran);
        assert!(counters(&katran).processed > counted.processed);
        // Everything can be changed.
        let other = Vip::udp(at("203.0.113.1:443"));
        katran.probes_mut().register(other).unwrap();
        katran.probes_mut().unregister(vip).unwrap();
        katran.probes_mut().map_mark(8, v6).unwrap();
        katran.probes_mut().unmap_mark(MARK).unwrap();
        katran.probes_mut().unmatch_source(from).unwrap();
        assert!(!wraps(&katran, &syn(probes()[0]), MARK));
        assert!(wraps(&katran, &syn(probes()[0]), 8));
        let (before, pinned) = (known(&katran), tree(&files));
        drop(katran);
        let katran = builder().pin(&directory).adopt().unwrap();
        assert_eq!((known(&katran), tree(&files)), (before, pinned));
        katran.remove().unwrap();
        assert!(tree(&files).is_empty(), "{:?}", tree(&files));
    }
}
