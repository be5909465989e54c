//! What can happen to a pinned balancer besides the death of its process: to its interfaces, file
//! system, pins, memory and privileges. Each case has an outcome, which `docs/operations.md` gives
//! operators, and packets are forwarded as long as the kernel can.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use caps::Capability;
use katran::Builder;
use katran::Decap;
use katran::Error;
use katran::Features;
use katran::Katran;
use katran::Prefix;
use katran::Real;
use katran::RootProgram;
use katran::Start;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran::flows::Verdict;
use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::mount::MntFlags;

use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::MAP_CREATE;
use crate::common::faults::without_capabilities;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::flow_v4;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::pins;
use crate::common::serve;
use crate::common::vip;

const OBJ_PIN: u32 = 6;

/// A host with an interface, and a BPF file system.
struct Scene {
    host: Host,
    files: PathBuf,
}

impl Scene {
    fn new() -> Self {
        require_root();
        let scene = Self {
            files: private_bpf_fs().unwrap(),
            host: Host::new("survivor").unwrap(),
        };
        scene.make_interface();
        scene
    }

    fn make_interface(&self) {
        let host = &self.host;
        host.ip("link add eth0 type veth peer name peer0").unwrap();
        host.ip("link set eth0 up").unwrap();
        host.ip("link set peer0 up").unwrap();
    }

    fn directory(&self) -> PathBuf {
        self.files.join("katran")
    }

    fn builder(&self) -> Builder {
        builder()
            .healthcheck_interface("eth0")
            .features(Features::default() | Features::SOURCE_ROUTING)
            .max_source_routes(1_000_000)
            .source_v4("192.0.2.1".parse().unwrap())
            .pin(self.directory())
    }

    /// Loads a balancer that serves on the interface.
    fn load(&self) -> Katran {
        let mut katran = self.builder().load().unwrap();
        serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
        let attach = || katran.attach("eth0", XdpMode::Native).unwrap();
        self.host.run(attach);
        katran
    }

    /// Leaves a balancer without an owner; returns its program.
    fn left(&self) -> OwnedFd {
        let katran = self.load();
        let program = katran.program_fd().try_clone_to_owned().unwrap();
        drop(katran);
        program
    }

    fn adopt(&self) -> katran::Result<Katran> {
        self.host.run(|| self.builder().adopt())
    }

    fn has_xdp(&self) -> bool {
        self.host.ip("link show").unwrap().contains("xdp")
    }

    /// The kernel releases a link without pins a grace period later.
    fn loses_xdp(&self) {
        eventually("the program is off the interface", || !self.has_xdp());
    }

    fn attached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory().join("attached")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn forwards(program: &OwnedFd) -> bool {
    bpf::run(program.as_fd(), &syn(flow_v4())).verdict == Verdict::Tx
}

/// The states of the program on the interface, and of the probes' path.
fn states(katran: &Katran) -> (AttachmentState, AttachmentState) {
    let interfaces = katran.interfaces();
    assert_eq!(interfaces.len(), 1, "{interfaces:?}");
    let probes = katran.probes().attachment().unwrap();
    (interfaces[0].state, probes.state)
}

const ATTACHED: (AttachmentState, AttachmentState) =
    (AttachmentState::Attached, AttachmentState::Attached);
const GONE: (AttachmentState, AttachmentState) = (AttachmentState::Gone, AttachmentState::Gone);

type Case = fn(&Scene);

const CASES: [(&str, Case); 18] = [
    ("the interface goes down and up", |scene| {
        let program = scene.left();
        scene.host.ip("link set eth0 down").unwrap();
        let katran = scene.adopt().unwrap();
        assert_eq!(states(&katran), ATTACHED);
        scene.host.ip("link set eth0 up").unwrap();
        assert_eq!(states(&katran), ATTACHED);
        assert!(scene.has_xdp() && forwards(&program));
    }),
    ("the interface is renamed", |scene| {
        drop(scene.left());
        scene.host.ip("link set eth0 down").unwrap();
        scene.host.ip("link set eth0 name wan0").unwrap();
        let katran = scene.adopt().unwrap();
        assert_eq!(states(&katran), ATTACHED);
        assert_eq!(scene.host.run(|| katran.interfaces())[0].interface, "wan0");
    }),
    ("the interface is removed", |scene| {
        let program = scene.left();
        scene.host.ip("link del eth0").unwrap();
        let mut katran = scene.adopt().unwrap();
        assert_eq!(states(&katran), GONE);
        assert!(forwards(&program));
        scene.make_interface();
        scene.host.run(|| katran.reattach().unwrap());
        assert_eq!(states(&katran), ATTACHED);
        assert!(scene.has_xdp());
    }),
    ("the interface is removed and made again", |scene| {
        drop(scene.left());
        let before = scene.attached();
        scene.host.ip("link del eth0").unwrap();
        scene.make_interface();
        let katran = scene.adopt().unwrap();
        assert_eq!(states(&katran), ATTACHED);
        assert!(scene.has_xdp());
        let after = scene.attached();
        assert!(after.len() == 2 && after != before, "{before:?} {after:?}");
        // The next owner finds it.
        drop(katran);
        assert_eq!(states(&scene.adopt().unwrap()), ATTACHED);
    }),
    ("it is made again, and probes go by clsact", |scene| {
        let mut katran = scene
            .builder()
            .healthcheck_hook(TcHook::Clsact)
            .load()
            .unwrap();
        let attach = || katran.attach("eth0", XdpMode::Native).unwrap();
        scene.host.run(attach);
        drop(katran);
        scene.host.ip("link del eth0").unwrap();
        scene.make_interface();
        let katran = scene.adopt().unwrap();
        assert_eq!(states(&katran), ATTACHED);
        let filters = || {
            scene
                .host
                .tool("tc", "filter show dev eth0 egress")
                .unwrap()
        };
        assert!(filters().contains("healthcheck"), "{}", filters());
        assert_eq!(scene.attached().len(), 2, "{:?}", scene.attached());
        katran.remove().unwrap();
        assert!(filters().is_empty() && !scene.has_xdp());
    }),
    ("it is made again and has another program", |scene| {
        drop(scene.left());
        scene.host.ip("link del eth0").unwrap();
        scene.make_interface();
        let mut foreign = Decap::builder().load().unwrap();
        let attach = || foreign.attach("eth0", XdpMode::Native).unwrap();
        scene.host.run(attach);
        let mut katran = scene.adopt().unwrap();
        assert_eq!(states(&katran).0, AttachmentState::Gone);
        let refused = scene.host.run(|| katran.reattach().unwrap_err());
        assert!(matches!(refused, Error::ForeignProgram { .. }), "{refused}");
        assert!(refused.to_string().contains("(decap)"), "{refused}");
        drop(foreign);
        scene.host.run(|| katran.reattach().unwrap());
        assert_eq!(states(&katran), ATTACHED);
    }),
    ("another program is in the pinned link", |scene| {
        drop(scene.left());
        let foreign = Decap::builder().load().unwrap();
        let names = scene.attached();
        let name = names.iter().find(|name| name.starts_with("xdp")).unwrap();
        let link = pins::open(&scene.directory().join("attached").join(name));
        put(&link, foreign.program_fd());
        for refused in [
            scene.adopt().unwrap_err(),
            scene
                .host
                .run(|| scene.builder().adopt_or_load())
                .unwrap_err(),
        ] {
            assert!(matches!(refused, Error::ForeignProgram { .. }), "{refused}");
            assert!(refused.to_string().contains("(decap)"), "{refused}");
        }
        assert_eq!(scene.attached(), names);
        // Removed by hand, as the error says.
        drop(link);
        fs::remove_file(scene.directory().join("attached").join(name)).unwrap();
        scene.loses_xdp();
        let mut katran = scene.adopt().unwrap();
        assert!(katran.interfaces().is_empty());
        let attach = || katran.attach("eth0", XdpMode::Native).unwrap();
        scene.host.run(attach);
    }),
    ("a root program is removed and made again", |scene| {
        let path = scene.files.join("shared");
        let root = || {
            let mut root = RootProgram::builder().load().unwrap();
            root.pin(&path).unwrap();
            root
        };
        let first = root();
        let mut katran = scene.load();
        katran.attach_shared(&path, 2).unwrap();
        drop(katran);
        drop(first);
        RootProgram::remove(&path).unwrap();
        let katran = scene.adopt().unwrap();
        assert_eq!(katran.shared_entries()[0].state, AttachmentState::Gone);
        drop(katran);
        let _second = root();
        for _ in 0..2 {
            let katran = scene.adopt().unwrap();
            let entries = katran.shared_entries();
            assert_eq!(entries.len(), 1);
            assert_eq!(entries[0].state, AttachmentState::Attached);
            assert_eq!(scene.attached().len(), 3, "{:?}", scene.attached());
        }
    }),
    ("the file system is unmounted while it is owned", |scene| {
        let mut katran = scene.load();
        let program = katran.program_fd().try_clone_to_owned().unwrap();
        nix::mount::umount2(&scene.files, MntFlags::MNT_DETACH).unwrap();
        // What is attached works on, as it needs no pin.
        assert!(forwards(&program) && scene.has_xdp());
        katran
            .add_real(vip(VIP4), Real::new(ip(A)).weight(3))
            .unwrap();
        let refused = katran.reload(Features::default()).unwrap_err();
        assert!(refused.to_string().contains("unmounted"), "{refused}");
        assert!(katran.features().contains(Features::SOURCE_ROUTING));
        scene
            .host
            .ip("link add eth1 type veth peer name peer1")
            .unwrap();
        let attach = || katran.attach("eth1", XdpMode::Generic).unwrap_err();
        let refused = scene.host.run(attach);
        assert!(refused.to_string().contains("unmounted"), "{refused}");
        assert!(forwards(&program) && scene.has_xdp());
        // That was its last holder.
        drop(katran);
        scene.loses_xdp();
        let missing = scene.adopt().unwrap_err();
        assert!(!matches!(missing, Error::Kernel { .. }), "{missing}");
    }),
    (
        "the file system is unmounted while nobody owns it",
        |scene| {
            drop(scene.left());
            assert!(scene.has_xdp());
            nix::mount::umount2(&scene.files, MntFlags::MNT_DETACH).unwrap();
            scene.loses_xdp();
            let missing = scene.adopt().unwrap_err();
            assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
            // As after a boot.
            let files = private_bpf_fs().unwrap();
            assert_eq!(files, scene.files);
            let (_, start) = scene.builder().adopt_or_load().unwrap();
            assert_eq!(start, Start::Loaded);
        },
    ),
    ("any pin is removed by hand", |scene| {
        let program = scene.left();
        let directory = scene.directory();
        let mut kept = Vec::new();
        for path in files(&directory) {
            if path.starts_with(directory.join("attached")) {
                continue;
            }
            let object = pins::open(&path);
            fs::remove_file(&path).unwrap();
            let name = path.strip_prefix(&directory).unwrap();
            match scene.adopt() {
                Ok(_) => kept.push(name.to_owned()),
                Err(refused) => {
                    let text = refused.to_string();
                    let last = name.file_name().unwrap().to_str().unwrap();
                    assert!(text.contains(last), "{name:?}: {text}");
                    assert!(text.contains("continue to work"), "{name:?}: {text}");
                    let refused = scene.builder().adopt_or_load().unwrap_err();
                    let other = refused.to_string();
                    assert!(other.contains("continue to work"), "{name:?}: {other}");
                }
            }
            assert!(scene.has_xdp() && forwards(&program), "{name:?}");
            match kept.iter().any(|of| of == name) {
                true => assert!(path.exists()),
                false => pins::pin(object.as_fd(), &path),
            }
        }
        // Without this file, programs are loaded again.
        assert_eq!(kept, [Path::new("set/programs/constants")]);
        assert_eq!(states(&scene.adopt().unwrap()), ATTACHED);
    }),
    ("a pin is removed by hand, and then the rest", |scene| {
        for name in [
            "set/programs/program",
            "set/programs/special_programs",
            "set/maps/rings",
            "set/probes/healthcheck",
            "set/contents",
            "set/ledger",
        ] {
            drop(scene.left());
            fs::remove_file(scene.directory().join(name)).unwrap();
            katran::remove(scene.directory()).unwrap();
            assert!(!scene.directory().exists(), "{name}");
            scene.loses_xdp();
        }
        // By hand as well, as the kind of object is unknown.
        drop(scene.left());
        fs::remove_file(scene.directory().join("identity")).unwrap();
        let refused = katran::remove(scene.directory()).unwrap_err();
        assert!(refused.to_string().contains("rm -r"), "{refused}");
        fs::remove_dir_all(scene.directory()).unwrap();
        scene.loses_xdp();
        drop(scene.left());
    }),
    ("the pin of an attachment is removed by hand", |scene| {
        drop(scene.left());
        for name in scene.attached() {
            fs::remove_file(scene.directory().join("attached").join(name)).unwrap();
        }
        // Removing the directory ends the link, as always.
        scene.loses_xdp();
        let mut katran = scene.adopt().unwrap();
        assert!(katran.interfaces().is_empty());
        assert_eq!(katran.probes().attachment(), None);
        let attach = || katran.attach("eth0", XdpMode::Native).unwrap();
        scene.host.run(attach);
        assert_eq!(states(&katran), ATTACHED);
    }),
    (
        "there is no memory for the ledger, nor room for its pin",
        |scene| {
            let mut katran = scene.load();
            let program = katran.program_fd().try_clone_to_owned().unwrap();
            let mut prefixes = (0_u128..)
                .map(|nth| Ipv6Addr::from(0x2001_0db8 << 96 | nth << 64))
                .map(|address| Prefix::new(address.into(), 64).unwrap());
            for (command, errno) in [(MAP_CREATE, Errno::ENOMEM), (OBJ_PIN, Errno::ENOSPC)] {
                let refused = loop {
                    let some: Vec<_> = prefixes.by_ref().take(2000).collect();
                    let before = katran.source_routes().count();
                    let add = || katran.source_routes_mut().add(&some, ip(A));
                    if let Err(error) = without_commands(&[command], errno, add) {
                        assert_eq!(katran.source_routes().count(), before);
                        break error.to_string();
                    }
                };
                assert!(refused.contains("record a change"), "{refused}");
                assert!(refused.contains("ledger"), "{refused}");
                // The next owner knows what was made, and continues when there is room.
                let state = katran.state();
                drop(katran);
                katran = scene.adopt().unwrap();
                assert!(katran.state() == state && forwards(&program));
                let some: Vec<_> = prefixes.by_ref().take(2000).collect();
                katran.source_routes_mut().add(&some, ip(A)).unwrap();
            }
        },
    ),
    ("it is adopted without privileges", |scene| {
        let program = scene.left();
        let before = files(&scene.directory());
        let all = [Capability::CAP_SYS_ADMIN, Capability::CAP_BPF];
        for missing in [&all[..1], &all] {
            let refused = without_capabilities(missing, || scene.builder().adopt().unwrap_err());
            assert!(matches!(refused, Error::Privilege { .. }), "{refused}");
            let text = refused.to_string();
            assert!(text.contains(&missing[0].to_string()), "{text}");
            assert_eq!(files(&scene.directory()), before);
        }
        let refused = as_other_user(|| scene.builder().adopt().unwrap_err());
        let text = refused.to_string();
        assert!(
            text.contains("ermission denied") || text.contains("user"),
            "{text}"
        );
        assert!(scene.has_xdp() && forwards(&program));
        assert_eq!(states(&scene.adopt().unwrap()), ATTACHED);
    }),
    ("the machine has booted", |scene| {
        let missing = scene.adopt().unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
        let (katran, start) = scene.builder().adopt_or_load().unwrap();
        assert_eq!(start, Start::Loaded);
        katran.remove().unwrap();
        // The same if the directory exists already.
        use std::os::unix::fs::DirBuilderExt;
        let mut empty = fs::DirBuilder::new();
        empty.mode(0o700).create(scene.directory()).unwrap();
        let missing = scene.adopt().unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
        let (_, start) = scene.builder().adopt_or_load().unwrap();
        assert_eq!(start, Start::Loaded);
    }),
    ("the network namespace is gone", |scene| {
        let mut katran = scene.load();
        let gone = Host::new("gone").unwrap();
        // The other end shows when the kernel has removed the namespace.
        let here = scene.host.namespace_path();
        let pair = format!(
            "link add eth9 type veth peer name peer9 netns {}",
            here.display()
        );
        gone.ip(&pair).unwrap();
        let attach = || katran.attach("eth9", XdpMode::Generic).unwrap();
        gone.run(attach);
        drop(katran);
        drop(gone);
        eventually("the namespace is gone", || {
            scene.host.ip("link show dev peer9").is_err()
        });
        let katran = scene.adopt().unwrap();
        let states: Vec<_> = katran.interfaces().iter().map(|of| of.state).collect();
        assert_eq!(states, [AttachmentState::Attached, AttachmentState::Gone]);
    }),
    (
        "another process has made something in the directory",
        |scene| {
            let program = scene.left();
            let theirs = scene.directory().join("theirs");
            pins::pin(pins::array().as_fd(), &theirs);
            assert_eq!(states(&scene.adopt().unwrap()), ATTACHED);
            assert!(theirs.exists() && forwards(&program));
        },
    ),
];

/// Replaces a link's program.
fn put(link: &OwnedFd, program: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    let (link, program) = (link.as_raw_fd(), program.as_raw_fd());
    // SAFETY: takes descriptors and no options.
    let done = unsafe { libbpf_sys::bpf_link_update(link, program, std::ptr::null()) };
    assert_eq!(done, 0);
}

/// All pins below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.retain(|path| !path.file_name().unwrap().to_string_lossy().contains('.'));
    found.sort();
    found
}

/// Runs `f` on a thread of another user.
fn as_other_user<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let keep = u32::MAX;
            // SAFETY: takes numbers; the raw call affects this thread alone.
            let set = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 12345, 12345, keep) };
            assert_eq!(set, 0);
            f()
        });
        thread.join().unwrap()
    })
}

/// `KATRAN_CASE`, part of a name, selects cases.
#[test]
fn each_case_has_an_answer() {
    let chosen = std::env::var("KATRAN_CASE").unwrap_or_default();
    for (name, case) in CASES {
        if name.contains(&chosen) {
            // Printed if it fails.
            eprintln!("{name}");
            // A thread, and so a mount namespace, for each.
            std::thread::scope(|scope| {
                let ran = scope.spawn(|| case(&Scene::new())).join();
                ran.unwrap_or_else(|why| std::panic::resume_unwind(why));
            });
        }
    }
}
