//! A decapsulator that outlives its handle, by XDP, tcx and a clsact filter; and changing the
//! settings of a running one.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use katran::Decap;
use katran::DecapBuilder;
use katran::Error;
use katran::ServerIdOption;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::PinnedKind;
use katran::diagnosis::PinnedOwner;
use katran::diagnosis::PinnedStage;
use katran::diagnosis::Severity;
use katran::flows::Verdict;
use katran_lab::Host;
use katran_lab::Newer;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;

use super::decap::gue;
use super::decap::inner_flows;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::LINK_UPDATE;
use crate::common::faults::MAP_CREATE;
use crate::common::faults::PROG_LOAD;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::layout::COUNTERS;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::load;
use crate::common::pins;
use crate::common::pins::tree;
use crate::common::wire::ipip;

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

/// How it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Xdp,
    Tc(TcHook),
}

fn ways() -> Vec<By> {
    let mut ways = vec![By::Xdp, By::Tc(TcHook::Clsact)];
    if Newer::Tcx.is_here() {
        ways.push(By::Tc(TcHook::Tcx));
    }
    ways
}

/// A BPF file system for this test alone, and a host with an interface.
struct Place {
    files: PathBuf,
    host: Host,
}

impl Place {
    fn new() -> Self {
        require_root();
        let files = private_bpf_fs().unwrap();
        let host = Host::new("host").unwrap();
        let place = Self { files, host };
        place.make_interface();
        place
    }

    fn make_interface(&self) {
        let ip = |words: &str| self.host.ip(words).unwrap();
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth0 up");
        ip("link set eth1 up");
    }

    fn directory(&self) -> PathBuf {
        self.files.join("decap")
    }

    fn attached(&self) -> PathBuf {
        self.directory().join("attached")
    }

    fn attach(&self, decap: &mut Decap, by: By) {
        self.host.run(|| match by {
            By::Xdp => drop(decap.attach("eth0", XdpMode::Generic).unwrap()),
            By::Tc(hook) => drop(decap.attach_tc("eth0", hook).unwrap()),
        });
    }

    /// The programs on its interface, according to the host's tools, which do not know tcx.
    fn seen(&self) -> String {
        let link = self.host.ip("link show eth0").unwrap();
        let qdiscs = self.host.tool("tc", "qdisc show dev eth0").unwrap();
        let filters = self.host.tool("tc", "filter show dev eth0 ingress");
        let has = |text: &str, word: &str| match text.contains(word) {
            true => format!("{word} "),
            false => String::new(),
        };
        let filters = filters.unwrap_or_default();
        has(&link, "xdp") + &has(&qdiscs, "clsact") + &has(&filters, "decap_tc")
    }

    /// The ids of the attachment and of its program.
    fn link(&self, by: By) -> (u32, u32) {
        let names: Vec<_> = pins_in(&self.attached());
        assert_eq!(names.len(), 1, "{names:?}");
        let pinned = pins::open(&self.attached().join(&names[0]));
        match by {
            // It has no id.
            By::Tc(TcHook::Clsact) => (0, pins::program_id(pinned.as_fd())),
            _ => pins::link(pinned.as_fd()),
        }
    }
}

fn pins_in(directory: &Path) -> Vec<String> {
    let found = tree(directory).into_iter();
    found.map(|(name, _)| name).collect()
}

fn states(decap: &Decap) -> Vec<AttachmentState> {
    let by_xdp = decap.interfaces().into_iter().map(|of| of.state);
    let at_tc = decap.tc_interfaces().into_iter().map(|of| of.state);
    by_xdp.chain(at_tc).collect()
}

/// The verdict on a frame, which all its programs share.
fn verdict(decap: &Decap, frame: &[u8]) -> Verdict {
    let verdict = bpf::run(decap.program_fd(), frame).verdict;
    if let Some(program) = decap.tc_program_fd() {
        assert_eq!(bpf::run_tc(program, frame).verdict, verdict);
    }
    verdict
}

/// A tunnel from an address, with a packet to an address.
fn tunnel(from: &str) -> Vec<u8> {
    let [inner, _] = inner_flows();
    let mut tunnel = ipip(
        &frame(inner),
        Some(inner.source.ip()),
        7,
        ip("198.51.100.1"),
    );
    let IpAddr::V4(from) = ip(from) else {
        panic!("IPv4");
    };
    tunnel[26..30].copy_from_slice(&from.octets());
    let header = &mut tunnel[14..34];
    header[10..12].fill(0);
    let check = !sum(header);
    tunnel[24..26].copy_from_slice(&check.to_be_bytes());
    tunnel
}

/// Each setting affects a result below.
fn settings() -> DecapBuilder {
    Decap::builder()
        .destination(ip("198.51.100.1"))
        .destination(ip("2001:db8:2::1"))
        .allow_sources([
            "172.16.0.0/16".parse().unwrap(),
            "100::/64".parse().unwrap(),
        ])
        .allow_destinations([
            "203.0.113.0/24".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
        ])
        .gue_port(7000)
        .server_id(77)
}

/// As another version leaves it. This version does not invent settings that it cannot read.
#[test]
fn one_of_another_layout_keeps_its_settings_or_stays() {
    let place = Place::new();
    let directory = place.directory();
    let set = directory.join("set");
    let mut decap = settings().pin(&directory).load().unwrap();
    place.attach(&mut decap, By::Xdp);
    assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Drop);
    let (link, own) = (place.link(By::Xdp), words(&set));
    for (parts, counted) in [(&[][..], 1), (&[COUNTERS], 0)] {
        drop(decap);
        relay(&set, parts);
        decap = Decap::builder().pin(&directory).adopt().unwrap();
        assert_eq!(words(&set), own);
        assert_eq!(place.link(By::Xdp).0, link.0);
        assert_eq!(decap.counters().unwrap().drop_source, counted, "{parts:?}");
        decap.reload(settings()).unwrap();
        assert_eq!(verdict(&decap, &tunnel("172.16.7.7")), Verdict::Pass);
    }
    drop(decap);
    relay(&set, &[STATE]);
    let (pinned, seen) = (tree(&place.files), place.seen());
    let refused = settings().pin(&directory).adopt_or_load().unwrap_err();
    let says = refused.to_string();
    assert!(matches!(refused, Error::Unsupported { .. }), "{says}");
    assert!(
        says.contains(env!("CARGO_PKG_VERSION")) && says.contains("remove it"),
        "{says}"
    );
    assert_eq!((tree(&place.files), place.seen()), (pinned, seen));
    katran::remove(&directory).unwrap();
    assert!(tree(&place.files).is_empty());
}

#[test]
fn the_next_handle_adopts_everything() {
    let place = Place::new();
    for by in ways() {
        let directory = place.directory();
        let missing = Decap::builder().pin(&directory).adopt().unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
        let (mut decap, start) = settings().pin(&directory).adopt_or_load().unwrap();
        assert_eq!(start, katran::Start::Loaded);
        assert_eq!(decap.pinned_in(), Some(directory.as_path()));
        place.attach(&mut decap, by);
        assert_eq!(verdict(&decap, &tunnel("172.16.7.7")), Verdict::Pass);
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Drop);
        let counters = decap.counters().unwrap();
        let program = pins::program_id(decap.program_fd());
        let (link, seen) = (place.link(by), place.seen());
        let pinned = tree(&place.files);
        for (path, mode) in &pinned {
            let is_directory = place.files.join(path).is_dir();
            assert_eq!(*mode, if is_directory { 0o700 } else { 0o600 }, "{path}");
        }
        for error in [
            settings().pin(&directory).load().unwrap_err(),
            settings().pin(&directory).adopt().unwrap_err(),
            katran::remove(&directory).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Busy { .. }), "{error}");
        }
        drop(decap);
        assert_eq!(place.seen(), seen);
        assert_eq!(tree(&place.files), pinned);
        let there = Decap::builder().pin(&directory).load().unwrap_err();
        let says = there.to_string();
        assert!(matches!(there, Error::AlreadyExists { .. }), "{says}");
        assert!(says.contains("adopt or remove it"), "{says}");

        // The pinned settings count, not the call's, and the link is the same.
        let (mut decap, start) = Decap::builder().pin(&directory).adopt_or_load().unwrap();
        assert!(matches!(start, katran::Start::Adopted { .. }), "{start:?}");
        assert_eq!(states(&decap), [AttachmentState::Attached], "{by:?}");
        assert_eq!(tree(&place.files), pinned);
        let now = place.link(by);
        assert_eq!(now.0, link.0);
        assert_ne!(now.1, link.1, "the program is this version's");
        assert_ne!(pins::program_id(decap.program_fd()), program);
        assert!(counters.ipip_v4 > 0 && counters.drop_source > 0);
        // The total includes what the host itself sent.
        let now = decap.counters().unwrap();
        assert!(now.total >= counters.total);
        assert_eq!(
            (now.ipip_v4, now.drop_source),
            (counters.ipip_v4, counters.drop_source)
        );
        let own = |decap: &Decap| pins::program_id(decap.program_fd());
        let before = own(&decap);
        decap.reload(settings()).unwrap();
        assert_eq!(own(&decap), before, "the settings are unchanged");
        assert_eq!(verdict(&decap, &tunnel("172.16.7.7")), Verdict::Pass);
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Drop);
        let after = decap.counters().unwrap();
        assert_eq!(after.drop_source, 2 * counters.drop_source);

        // Other settings replace them, and are pinned.
        let open = settings().allow_sources(["172.17.0.0/16".parse().unwrap()]);
        decap.reload(open.clone()).unwrap();
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Pass);
        assert_eq!(states(&decap), [AttachmentState::Attached]);
        assert_eq!(place.link(by).0, link.0);
        drop(decap);
        let mut decap = Decap::builder().pin(&directory).adopt().unwrap();
        let before = own(&decap);
        decap.reload(open).unwrap();
        assert_eq!(own(&decap), before);
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Pass);

        match by {
            By::Xdp => decap.remove().unwrap(),
            By::Tc(_) => {
                drop(decap);
                katran::remove(&directory).unwrap();
            }
        }
        assert_eq!((place.seen(), tree(&place.files)), (String::new(), vec![]));
    }
}

/// Changing settings does not require pinning.
#[test]
fn settings_change_between_two_packets() {
    let place = Place::new();
    for by in ways() {
        let mut decap = Decap::builder().load().unwrap();
        place.attach(&mut decap, by);
        let seen = place.seen();
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Pass);
        let total = decap.counters().unwrap().total;
        decap.reload(settings()).unwrap();
        assert_eq!(verdict(&decap, &tunnel("172.17.7.7")), Verdict::Drop);
        assert!(decap.counters().unwrap().total > total);
        assert_eq!(place.seen(), seen);
        assert_eq!(states(&decap), [AttachmentState::Attached]);
        // GUE to a port that is no longer its own.
        let other = settings().gue_port(7001);
        let [inner, _] = inner_flows();
        let before = decap.counters().unwrap();
        let frame = gue(&Packet::new(inner).ip(), "198.51.100.1", 7001);
        assert_eq!(verdict(&decap, &frame), Verdict::Pass);
        assert_eq!(decap.counters().unwrap().gue_v4, before.gue_v4);
        decap.reload(other).unwrap();
        assert_eq!(verdict(&decap, &frame), Verdict::Pass);
        assert!(decap.counters().unwrap().gue_v4 > before.gue_v4);
        let bad = Decap::builder().destination(ip("224.0.0.1"));
        let refused = decap.reload(bad).unwrap_err();
        assert!(matches!(refused, Error::InvalidAddress { .. }), "{refused}");
        drop(decap);
        assert_eq!(place.seen(), "");
    }
}

#[test]
fn a_recreated_interface_is_attached_again() {
    let place = Place::new();
    for by in ways() {
        let directory = place.directory();
        let mut decap = settings().pin(&directory).load().unwrap();
        place.attach(&mut decap, by);
        drop(decap);
        let former = (by != By::Tc(TcHook::Clsact)).then(|| {
            let name = pins_in(&place.attached()).remove(0);
            let link = pins::open(&place.attached().join(&name));
            (name, link)
        });
        place.host.ip("link del eth0").unwrap();
        let mut decap = Decap::builder().pin(&directory).adopt().unwrap();
        assert_eq!(states(&decap), [AttachmentState::Gone], "{by:?}");
        // Without an interface nothing happens.
        place.host.run(|| decap.reattach().unwrap());
        assert_eq!(states(&decap), [AttachmentState::Gone]);
        place.make_interface();
        assert_eq!(place.seen(), "");
        place.host.run(|| decap.reattach().unwrap());
        assert_eq!(states(&decap), [AttachmentState::Attached]);
        assert_eq!(pins_in(&place.attached()).len(), 1, "{by:?}");
        drop(decap);
        assert_eq!(place.seen().is_empty(), by == By::Tc(TcHook::Tcx));
        if let Some((name, link)) = &former {
            // As if its process ended after reattaching, before it unpinned the old attachment.
            pins::pin(link.as_fd(), &place.attached().join(name));
        }
        let mut decap = Decap::builder().pin(&directory).adopt().unwrap();
        assert_eq!(states(&decap), [AttachmentState::Attached]);
        place.host.run(|| decap.reattach().unwrap());
        assert_eq!(pins_in(&place.attached()).len(), 1);
        place.host.run(|| decap.detach("eth0").unwrap());
        assert!(pins_in(&place.attached()).is_empty());
        assert_eq!(place.seen(), "");
        decap.remove().unwrap();
        assert!(tree(&place.files).is_empty());
    }
}

#[test]
fn failed_calls_change_nothing() {
    let place = Place::new();
    let directory = place.directory();
    let load = || settings().pin(&directory).load().map(drop);
    let failures: [(&str, &dyn Fn() -> katran::Result<()>); 4] = [
        ("pins", &|| {
            without_commands(&[OBJ_PIN], Errno::ENOSPC, load)
        }),
        ("maps", &|| {
            without_commands(&[MAP_CREATE], Errno::ENOMEM, load)
        }),
        ("mkdir", &|| {
            without_call(libc::SYS_mkdir, Errno::ENOSPC, load)
        }),
        ("programs", &|| {
            without_commands(&[PROG_LOAD], Errno::EPERM, load)
        }),
    ];
    for (what, fails) in failures {
        fails().unwrap_err();
        assert!(tree(&place.files).is_empty(), "{what}");
    }
    for by in ways() {
        let mut decap = settings().pin(&directory).load().unwrap();
        place.attach(&mut decap, by);
        let (pinned, link) = (tree(&place.files), place.link(by));
        let program = pins::program_id(decap.program_fd());
        let check = |decap: &mut Decap, what: &str, error: Error| {
            assert_eq!(tree(&place.files), pinned, "{what}: {error}");
            assert_eq!(place.link(by), link, "{what}");
            assert_eq!(pins::program_id(decap.program_fd()), program, "{what}");
            assert_eq!(verdict(decap, &tunnel("172.17.7.7")), Verdict::Drop);
            assert_eq!(states(decap), [AttachmentState::Attached], "{what}");
        };
        for command in [OBJ_PIN, MAP_CREATE, PROG_LOAD] {
            let error =
                without_commands(&[command], Errno::ENOSPC, || decap.reload(Decap::builder()));
            check(&mut decap, &command.to_string(), error.unwrap_err());
        }
        let error = without_call(libc::SYS_renameat2, Errno::EIO, || {
            decap.reload(Decap::builder())
        });
        check(&mut decap, "exchange", error.unwrap_err());
        if by != By::Tc(TcHook::Clsact) {
            let error = without_commands(&[LINK_UPDATE], Errno::EPERM, || {
                decap.reload(Decap::builder())
            });
            check(&mut decap, "switch", error.unwrap_err());
        }
        decap.remove().unwrap();
        assert_eq!((place.seen(), tree(&place.files)), (String::new(), vec![]));
    }
}

type Adopt<'a> = &'a dyn Fn(&Path) -> katran::Result<()>;

/// Each kind of object has its own directories, and reports another kind's.
#[test]
fn a_directory_of_another_kind_is_refused_and_named() {
    let place = Place::new();
    let [of_decap, of_katran, of_option] =
        ["decap", "katran", "option"].map(|name| place.files.join(name));
    drop(settings().pin(&of_decap).load().unwrap());
    drop(load(builder().pin(&of_katran)));
    let mut option = ServerIdOption::server(7).unwrap();
    option.pin(&of_option).unwrap();
    drop(option);
    let before = tree(&place.files);
    let adopts: [(&str, Adopt<'_>); 3] = [
        ("a balancer", &|path| {
            builder().pin(path).adopt_or_load().map(drop)
        }),
        ("a decapsulator", &|path| {
            Decap::builder().pin(path).adopt_or_load().map(drop)
        }),
        ("a server id option", &|path| {
            ServerIdOption::adopt_or_load(path).map(drop)
        }),
    ];
    let all = [&of_katran, &of_decap, &of_option];
    for (own, (_, adopt)) in all.iter().zip(&adopts) {
        for (path, (names, _)) in all.iter().zip(&adopts).filter(|(path, _)| *path != own) {
            let error = adopt(path).unwrap_err();
            let says = error.to_string();
            assert!(matches!(error, Error::InvalidConfig { .. }), "{says}");
            assert!(says.contains(&format!("{names} is pinned there")), "{says}");
        }
        adopt(own).unwrap();
    }
    assert_eq!(tree(&place.files), before);
    // Each lists its kind, owner and since when; only a balancer needs an owner.
    let (decap, _) = settings().pin(&of_decap).adopt_or_load().unwrap();
    let process = PinnedOwner::Process(std::process::id());
    for (path, kind, owner) in [
        (&of_katran, PinnedKind::Balancer, PinnedOwner::Nobody),
        (&of_decap, PinnedKind::Decapsulator, process),
        (&of_option, PinnedKind::ServerIdOption, PinnedOwner::Nobody),
    ] {
        let found = katran::pinned(path).unwrap();
        assert_eq!((found.kind, found.owner), (kind, owner));
        assert_eq!(found.stage, PinnedStage::Whole);
        assert!(found.age > Duration::ZERO);
        assert_eq!(found.silence.is_some(), kind == PinnedKind::Balancer);
        let judged = Diagnosis::of_pinned(path);
        let text = judged.to_string();
        assert!(text.contains(&kind.to_string()), "{text}");
        assert_eq!(
            judged.worst() < Severity::Warning,
            kind != PinnedKind::Balancer
        );
    }
    drop(decap);
    for path in all {
        katran::remove(path).unwrap();
    }
    assert!(tree(&place.files).is_empty());
}

/// Foreign pins stay; a missing pin is named; a later version's is left alone.
#[test]
fn changes_to_pins_are_reported() {
    let place = Place::new();
    let directory = place.directory();
    drop(settings().pin(&directory).load().unwrap());
    let map = pins::array();
    let theirs = ["set/maps/theirs", "attached/theirs", "theirs"];
    for name in theirs {
        pins::pin(map.as_fd(), &directory.join(name));
    }
    fs::remove_file(directory.join("set/maps/allowed_sources")).unwrap();
    let error = Decap::builder().pin(&directory).adopt().unwrap_err();
    let says = error.to_string();
    assert!(says.contains("allowed_sources"), "{says}");
    katran::remove(&directory).unwrap();
    let left = [
        "attached",
        "attached/theirs",
        "set",
        "set/maps",
        "set/maps/theirs",
        "theirs",
    ];
    assert_eq!(pins_in(&directory), left);
}
