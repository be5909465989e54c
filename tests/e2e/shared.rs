//! Several programs on one interface: a root program and its entries.

use std::fs;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use katran::Decap;
use katran::Error;
use katran::Features;
use katran::Katran;
use katran::MacAddr;
use katran::RootProgram;
use katran::Vip;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntries;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;

use crate::faults;
use crate::site;
use crate::site::PORT;

/// A BPF file system for this test alone.
pub(crate) struct Pins(PathBuf);

impl Pins {
    pub(crate) fn new() -> Self {
        require_root();
        Self(private_bpf_fs().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("root")
    }

    /// What the test has pinned: the file system's own entries have dots.
    pub(crate) fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.contains('.')).collect();
        names.sort();
        names
    }

    /// The same, with attachments cut to the interface.
    pub(crate) fn brief(&self) -> Vec<String> {
        let brief = |name: String| match name.split_once("_xdp_") {
            Some((root, rest)) => format!("{root}_xdp_{}", rest.rsplit('_').next().unwrap()),
            None => name,
        };
        let mut brief: Vec<_> = self.list().into_iter().map(brief).collect();
        brief.sort();
        brief
    }
}

/// A foreign program that counts frames and hands them to the next entry.
struct Foreign {
    program: OwnedFd,
    counter: OwnedFd,
}

impl Foreign {
    fn new(entries: BorrowedFd<'_>, next: i32) -> Self {
        let instruction = |code: u8, registers: u8, immediate: i32| libbpf_sys::bpf_insn {
            code,
            _bitfield_1: libbpf_sys::bpf_insn::new_bitfield_1(registers & 15, registers >> 4),
            off: 0,
            imm: immediate,
            ..Default::default()
        };
        // SAFETY: takes numbers and a name; only the caller owns the descriptors it returns.
        let counter = unsafe {
            let fd = libbpf_sys::bpf_map_create(
                libbpf_sys::BPF_MAP_TYPE_ARRAY,
                c"frames".as_ptr(),
                4,
                8,
                1,
                std::ptr::null(),
            );
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        };
        let load = 0x18; // BPF_LD | BPF_DW | BPF_IMM, two instructions
        let program = [
            instruction(0xbf, 6 | 1 << 4, 0),                   // r6 = r1
            instruction(load, 1 | 2 << 4, counter.as_raw_fd()), // r1 = &counter[0]
            instruction(0, 0, 0),
            instruction(0xb7, 2, 1),                            // r2 = 1
            instruction(0xdb, 1 | 2 << 4, 0),                   // lock *(u64 *)r1 += r2
            instruction(0xbf, 1 | 6 << 4, 0),                   // r1 = r6
            instruction(load, 2 | 1 << 4, entries.as_raw_fd()), // r2 = entries
            instruction(0, 0, 0),
            instruction(0xb7, 3, next), // r3 = next
            instruction(0x85, 0, 12),   // tail call
            instruction(0xb7, 0, 2),    // XDP_PASS
            instruction(0x95, 0, 0),
        ];
        // As libbpf sets it; the kernel allows only programs of the same kind in an array.
        let mut options = libbpf_sys::bpf_prog_load_opts {
            sz: std::mem::size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
            expected_attach_type: libbpf_sys::BPF_XDP,
            ..Default::default()
        };
        // SAFETY: instructions and options outlive the call, which gets their lengths.
        let program = unsafe {
            let fd = libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_XDP,
                c"foreign".as_ptr(),
                c"MIT".as_ptr(),
                program.as_ptr(),
                program.len() as _,
                &mut options,
            );
            assert!(fd >= 0, "{}", std::io::Error::from_raw_os_error(-fd));
            OwnedFd::from_raw_fd(fd)
        };
        Self { program, counter }
    }

    fn frames(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        // SAFETY: key and value are as long as those of the map.
        let found = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.counter.as_raw_fd(),
                std::ptr::from_ref(&key).cast(),
                std::ptr::from_mut(&mut value).cast(),
            )
        };
        assert_eq!(found, 0);
        value
    }
}

/// The pins of a root program.
pub(crate) const ROOT: [&str; 4] = ["root", "root_passed", "root_program", "root_xdp_eth0"];

/// A lab with decapsulators, and a pinned root program on the balancer's interface, whose handle is
/// dropped.
fn network(pins: &Pins) -> (Lab, Vec<Decap>) {
    let lab = Lab::new(LabConfig::default()).unwrap();
    let decaps = site::decaps(&lab, XdpMode::Native);
    let mut root = RootProgram::builder().load().unwrap();
    let host = &lab.balancers[0].host;
    host.run(|| root.attach("eth0", XdpMode::Native).unwrap());
    root.pin(pins.path()).unwrap();
    (lab, decaps)
}

fn balancer(lab: &Lab) -> Katran {
    let gateway = MacAddr::new(lab.balancers[0].gateway_mac);
    let mut katran = site::small(gateway).load().unwrap();
    for vip in [lab.vip4(), lab.vip6()] {
        for service in [Vip::tcp((vip, PORT).into()), Vip::udp((vip, PORT).into())] {
            site::add_service(&mut katran, service, &site::reals(lab, vip));
        }
    }
    katran
}

fn has_xdp(host: &Host) -> bool {
    host.ip("link show dev eth0").unwrap().contains("xdp")
}

fn names(entries: &SharedEntries) -> Vec<String> {
    let programs = entries.programs().unwrap().into_iter();
    let name = |program: Option<katran::attachments::EntryProgram>| {
        program.map_or(String::new(), |of| of.name)
    };
    programs.map(name).collect()
}

fn connect(lab: &Lab, vip: std::net::IpAddr) {
    let mut connection = site::connect(&lab.client, Vip::tcp((vip, PORT).into()));
    connection.ask("who").unwrap();
}

#[test]
fn two_programs_work_in_a_chain_and_the_root_outlives_them() {
    let pins = Pins::new();
    let (lab, _decaps) = network(&pins);
    let host = &lab.balancers[0].host;
    let servers = lab.serve_tcp(PORT).unwrap();
    assert!(has_xdp(host), "pinned");
    assert_eq!(pins.brief(), ROOT);
    let entries = SharedEntries::open(pins.path()).unwrap();
    assert_eq!(names(&entries), ["", "", ""]);
    // With no entry set, the host itself answers.
    let ping = || {
        let ping = lab.client.tool("ping", "-c 1 -W 5 10.0.0.2");
        assert!(ping.is_ok(), "{ping:?}");
    };
    ping();

    let foreign = Foreign::new(entries.as_fd(), 2);
    entries.set(1, foreign.program.as_fd()).unwrap();
    let mut katran = balancer(&lab);
    katran.attach_shared(pins.path(), 2).unwrap();
    let ours = katran.shared_entries().remove(0);
    assert_eq!((ours.path, ours.position), (pins.path(), 2));
    assert_eq!(ours.state, AttachmentState::Attached);
    assert_eq!(names(&entries), ["", "foreign", "katran"]);
    // Between two readings a frame of the kernel's own may pass, such as an ARP request.
    let counted = || {
        let ours = katran.stats().totals().unwrap().total.packets;
        (foreign.frames(), ours)
    };
    let mut before = counted();
    site::eventually("no frame is under way", || {
        thread::sleep(Duration::from_millis(50));
        let now = counted();
        std::mem::replace(&mut before, now) == now
    });
    for vip in [lab.vip4(), lab.vip6()] {
        connect(&lab, vip);
    }
    let seen = foreign.frames() - before.0;
    assert!(seen >= 8);
    // Late packets of those connections may arrive between the two readings.
    site::eventually("both programs have seen the same frames", || {
        let ours = katran.stats().totals().unwrap().total.packets - before.1;
        foreign.frames() - before.0 == ours
    });

    // Other features make another program.
    katran
        .reload(Features::default() | Features::SOURCE_ROUTING)
        .unwrap();
    assert_eq!(names(&entries), ["", "foreign", "katran_full"]);
    connect(&lab, lab.vip4());

    drop(katran);
    assert_eq!(names(&entries), ["", "foreign", ""]);
    assert!(has_xdp(host));
    ping();
    assert!(foreign.frames() > before.0 + seen);
    drop(entries);
    RootProgram::remove(pins.path()).unwrap();
    assert!(!has_xdp(host) && pins.list().is_empty());
    drop(servers);
}

#[test]
fn a_balancer_is_replaced_under_traffic() {
    let pins = Pins::new();
    let (lab, _decaps) = network(&pins);
    let servers = (lab.serve_tcp(PORT).unwrap(), lab.serve_udp(PORT).unwrap());
    let vip = Vip::udp((lab.vip4(), PORT).into());
    let mut present = balancer(&lab);
    present.attach_shared(pins.path(), 2).unwrap();
    let mut connection = site::connect(&lab.client, Vip::tcp((lab.vip6(), PORT).into()));
    let name = connection.ask("who").unwrap();
    let socket = site::udp(&lab.client, vip);
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let name = socket.ask(b"who").unwrap();
            while !stop.load(Ordering::Relaxed) {
                // A lost datagram is not retransmitted: there would be no answer.
                assert_eq!(socket.ask(b"who").unwrap(), name);
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = StopOnDrop(&stop);
        for _ in 0..5 {
            let seen = answers.load(Ordering::Relaxed);
            let mut next = balancer(&lab);
            next.attach_shared(pins.path(), 2).unwrap();
            // The old one has lost the entry; dropping it leaves the entry alone.
            present = next;
            site::eventually("packets flow on", || {
                answers.load(Ordering::Relaxed) > seen + 200
            });
            assert_eq!(connection.ask("who").unwrap(), name);
        }
    });
    assert_eq!(present.stats().totals().unwrap().drop.packets, 0);
    present.detach_shared(pins.path()).unwrap();
    assert!(matches!(
        present.detach_shared(pins.path()),
        Err(Error::NotFound { .. })
    ));
    RootProgram::remove(pins.path()).unwrap();
    drop(servers);
}

#[test]
fn a_killed_processs_entry_is_taken_over_and_foreign_ones_are_not() {
    let pins = Pins::new();
    let (lab, _decaps) = network(&pins);
    let servers = lab.serve_tcp(PORT).unwrap();
    let mut killed = balancer(&lab);
    killed.attach_shared(pins.path(), 2).unwrap();
    // Ends without a destructor; only its entry stays.
    std::mem::forget(killed);
    let entries = SharedEntries::open(pins.path()).unwrap();
    assert_eq!(names(&entries), ["", "", "katran"]);
    connect(&lab, lab.vip4());
    let mut katran = balancer(&lab);
    katran.attach_shared(pins.path(), 2).unwrap();
    connect(&lab, lab.vip4());
    assert!(katran.stats().totals().unwrap().tx.packets > 0);

    let foreign = Foreign::new(entries.as_fd(), 2);
    entries.set(0, foreign.program.as_fd()).unwrap();
    let mut other = balancer(&lab);
    let error = other.attach_shared(pins.path(), 0).unwrap_err();
    assert!(matches!(error, Error::ForeignEntry { .. }), "{error}");
    assert_eq!(names(&entries)[0], "foreign");
    // The root program does not replace one attached directly to the interface, either.
    let host = &lab.balancers[0].host;
    let error = host.run(|| other.attach("eth0", XdpMode::Native).unwrap_err());
    assert!(matches!(error, Error::ForeignProgram { .. }), "{error}");
    connect(&lab, lab.vip6());

    // A program that replaced ours keeps the entry.
    entries.set(2, foreign.program.as_fd()).unwrap();
    let state = katran.shared_entries()[0].state;
    assert_eq!(state, AttachmentState::Replaced);
    drop(katran);
    assert_eq!(names(&entries)[2], "foreign");
    entries.clear(2).unwrap();
    entries.clear(2).unwrap();
    assert_eq!(names(&entries)[2], "");
    RootProgram::remove(pins.path()).unwrap();
    drop(servers);
}

#[test]
fn a_lost_entry_is_restored() {
    require_root();
    let pins = Pins::new();
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(pins.path()).unwrap();
    let load = || {
        site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
            .load()
            .unwrap()
    };
    let (mut first, mut second) = (load(), load());
    let entries = SharedEntries::open(pins.path()).unwrap();
    let pinned = || {
        let mut list = pins.list();
        list.retain(|pin| pin.starts_with("root_2_"));
        list.len()
    };
    let is_there = |katran: &Katran| {
        let ours = katran.shared_entries();
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0].state, AttachmentState::Attached);
        assert_eq!(names(&entries), ["", "", "katran"]);
        assert_eq!(pinned(), 1);
    };
    first.attach_shared(pins.path(), 2).unwrap();
    // The entry is cleared behind the library's back.
    entries.clear(2).unwrap();
    assert_eq!(first.shared_entries()[0].state, AttachmentState::Gone);
    first.reattach().unwrap();
    is_there(&first);
    entries.clear(2).unwrap();
    first.attach_shared(pins.path(), 2).unwrap();
    is_there(&first);
    // Another balancer takes it, and the first one takes it back.
    second.attach_shared(pins.path(), 2).unwrap();
    is_there(&second);
    assert_eq!(first.shared_entries()[0].state, AttachmentState::Replaced);
    first.attach_shared(pins.path(), 2).unwrap();
    is_there(&first);
    drop(second);
    is_there(&first);
    first.detach_shared(pins.path()).unwrap();
    assert_eq!((names(&entries), pinned()), (vec![String::new(); 3], 0));
    drop(entries);
    RootProgram::remove(pins.path()).unwrap();
}

#[test]
fn an_entry_that_cannot_be_emptied_is_refused_and_kept() {
    require_root();
    let pins = Pins::new();
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(pins.path()).unwrap();
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    katran.attach_shared(pins.path(), 2).unwrap();
    let refused = faults::without_commands(&[faults::MAP_DELETE_ELEM], Errno::EPERM, || {
        katran.detach_shared(pins.path())
    });
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(katran.shared_entries()[0].state, AttachmentState::Attached);
    katran.detach_shared(pins.path()).unwrap();
    assert!(katran.shared_entries().is_empty());
    RootProgram::remove(pins.path()).unwrap();
}

#[test]
fn invalid_requests_are_refused() {
    let pins = Pins::new();
    let (lab, _decaps) = network(&pins);
    let mut katran = balancer(&lab);
    let invalid = |error: Error, part: &str| {
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let error = katran.attach_shared(pins.0.join("none"), 2).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    invalid(
        katran.attach_shared(pins.path(), 3).unwrap_err(),
        "has 3 entries",
    );
    invalid(
        katran
            .attach_shared(pins.0.join("root_program"), 0)
            .unwrap_err(),
        "root program's pinned array",
    );
    katran.attach_shared(pins.path(), 2).unwrap();
    let error = katran.attach_shared(pins.path(), 1).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    // Programs for multi-buffer frames cannot share an interface with others.
    let gateway = MacAddr::new(lab.balancers[0].gateway_mac);
    let mut frags = site::small(gateway).frags(true).load().unwrap();
    invalid(frags.attach_shared(pins.path(), 1).unwrap_err(), "frags");
    assert!(frags.shared_entries().is_empty());

    let mut root = RootProgram::builder()
        .frags(true)
        .entries(1)
        .load()
        .unwrap();
    let error = root.pin(pins.path()).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    invalid(root.pin("/tmp/katran-root").unwrap_err(), "mount -t bpf");
    invalid(root.pin(pins.0.join("a/b")).unwrap_err(), "No such file");
    invalid(root.pin(pins.0.join("a.b")).unwrap_err(), "dots");
    root.pin(pins.0.join("second")).unwrap();
    assert!(root.pin(pins.0.join("third")).is_err());
    frags.attach_shared(pins.0.join("second"), 0).unwrap();
    assert!(RootProgram::builder().entries(0).load().is_err());
    assert!(RootProgram::builder().entries(17).load().is_err());
    drop(frags);
    // A root whose name begins like the first one's attachments is another root.
    let host = &lab.balancers[0].host;
    let mut other = RootProgram::builder().load().unwrap();
    other.pin(pins.0.join("root_too")).unwrap();
    host.run(|| other.attach("lo", XdpMode::Generic).unwrap());
    // A recreated interface replaces the old one of its name.
    for _ in 0..2 {
        host.ip("link add anew0 type veth peer name anew1").unwrap();
        host.run(|| other.attach("anew0", XdpMode::Generic).unwrap());
        let again = host.run(|| other.attach("anew0", XdpMode::Generic).unwrap_err());
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
        host.ip("link del anew0").unwrap();
    }
    drop(other);
    RootProgram::remove(pins.0.join("second")).unwrap();
    assert!(RootProgram::remove(pins.0.join("second")).is_err());
    drop(katran);
    RootProgram::remove(pins.path()).unwrap();
    let other = [
        "root_too",
        "root_too_passed",
        "root_too_program",
        "root_too_xdp_anew0",
        "root_too_xdp_lo",
    ];
    assert_eq!(pins.brief(), other);
    assert!(!has_xdp(host));
    assert!(host.ip("link show dev lo").unwrap().contains("xdp"));
    RootProgram::remove(pins.0.join("root_too")).unwrap();
    assert!(!host.ip("link show dev lo").unwrap().contains("xdp"));
    assert!(pins.list().is_empty());

    // An unpinned root goes with its handle.
    let mut root = RootProgram::builder().load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
    assert!(has_xdp(host));
    let ping = lab.client.tool("ping", "-c 1 -W 5 10.0.0.2");
    assert!(ping.is_ok(), "{ping:?}");
    assert!(root.passed().unwrap() > 0);
    drop(root);
    assert!(!has_xdp(host));
}
