//! The directory of a pinned balancer: its contents and permissions, what is refused, who owns it,
//! and that nothing remains after removal, even if a system call failed.

use std::fs;
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::os::unix::process::parent_id;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process;

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::Katran;
use katran::NextHops;
use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::fork;

use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::flow_v4;
use crate::common::frames::syn;
use crate::common::load;
use crate::common::pins;
use crate::common::pins::tree;
use crate::common::serve;

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

/// A BPF file system for this test alone.
fn file_system() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap()
}

fn full() -> Builder {
    let features = Features::SOURCE_ROUTING | Features::INLINE_DECAP | Features::GLOBAL_FLOW_TABLE;
    builder()
        .features(Features::default() | features)
        .next_hops(NextHops::PerReal)
        .healthcheck_interface("lo")
        .source_v4("192.0.2.1".parse().unwrap())
}

#[test]
fn everything_is_pinned_for_its_user_alone_and_outlives_the_handle() {
    let files = file_system();
    let directory = files.join("katran");
    let mut katran = load(full().pin(&directory));
    assert_eq!(katran.pinned_in(), Some(directory.as_path()));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let pinned = tree(&files);
    for (path, mode) in &pinned {
        let is_directory = files.join(path).is_dir();
        assert_eq!(*mode, if is_directory { 0o700 } else { 0o600 }, "{path}");
    }
    let has = |path: &str| pinned.iter().any(|(of, _)| of == path);
    // Every map that the programs use, including those of features.
    for name in [
        "set/maps/rings",
        "set/maps/server_ids",
        "set/maps/flow_tables",
        "set/maps/data_vip_heads",
        "set/maps/data_hops",
        "set/programs/source_routes_v4",
        "set/programs/global_flows",
        "set/programs/decap_destinations",
        "set/programs/special_programs",
        "set/programs/program",
        "set/programs/explainer",
        "set/programs/clock",
        "set/probes/healthcheck",
        "set/probes/marks",
        "identity",
        "set/ledger",
        "set/contents",
        "attached",
    ] {
        assert!(has(&format!("katran/{name}")), "{name}: {pinned:?}");
    }
    let id = pins::program_id(katran.program_fd());
    let real = katran.simulate(&syn(flow_v4())).unwrap().real;
    assert!(real.is_some());
    drop(katran);
    assert_eq!(tree(&files), pinned);
    // It still forwards: the program, those it hands packets to, and the tables.
    let program = pins::open(&directory.join("set/programs/program"));
    assert_eq!(pins::program_id(program.as_fd()), id);
    let ran = bpf::run(program.as_fd(), &syn(flow_v4()));
    assert_eq!(ran.verdict, Verdict::Tx);

    // A second balancer cannot be pinned there.
    let refused = full().pin(&directory).load().unwrap_err();
    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
    assert!(refused.to_string().contains("remove it"), "{refused}");
    assert_eq!(tree(&files), pinned);

    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty(), "{:?}", tree(&files));
    let missing = katran::remove(&directory).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    // The program goes with its last descriptor.
    drop(program);
    pins::eventually_gone(id);
}

#[test]
fn a_handle_removes_its_balancer() {
    let files = file_system();
    let katran = load(full().pin(files.join("katran")));
    // A forked child must not remove it.
    let pinned = tree(&files);
    // SAFETY: the child makes one call with this thread's handles, and ends.
    let katran = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert_eq!(status, WaitStatus::Exited(child, 0));
            katran
        }
        ForkResult::Child => {
            let parent = parent_id();
            let removed = catch_unwind(AssertUnwindSafe(|| katran.remove()));
            let refused = matches!(
                removed,
                Ok(Err(Error::Busy { owner: Some(owner), .. })) if owner == parent
            );
            // SAFETY: takes a number and does not return.
            unsafe { libc::_exit(i32::from(!refused)) }
        }
    };
    assert_eq!(tree(&files), pinned);
    katran.remove().unwrap();
    assert!(tree(&files).is_empty());
    // An unpinned balancer goes as when its handle is dropped.
    let katran = load(builder());
    assert_eq!(katran.pinned_in(), None);
    let id = pins::program_id(katran.program_fd());
    katran.remove().unwrap();
    pins::eventually_gone(id);
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused() {
    let files = file_system();
    let outside = tempfile::tempdir().unwrap();
    let make = |name: &str, mode| {
        let path = files.join(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let group = make("group", 0o770);
    let others = make("others", 0o702);
    let readable = make("readable", 0o755);
    let open = make("open", 0o777);
    let moved = open.join("katran");
    DirBuilder::new().mode(0o700).create(&moved).unwrap();
    let sticky = make("sticky", 0o1777);
    let theirs = make("theirs", 0o755);
    chown(&theirs, Some(12345), None).unwrap();
    let dangling = outside.path().join("dangling");
    std::os::unix::fs::symlink(files.join("nothing"), &dangling).unwrap();
    let foreign = make("foreign", 0o700);
    chown(&foreign, Some(12345), None).unwrap();
    let used = make("used", 0o700);
    DirBuilder::new().create(used.join("theirs")).unwrap();
    let before = tree(&files);
    for (path, why) in [
        (group.clone(), "mode 0770"),
        (others.clone(), "mode 0702"),
        (readable.clone(), "mode 0755"),
        (moved.clone(), "mode 0777"),
        (open.join("another"), "mode 0777"),
        (theirs.join("katran"), "user 12345"),
        (dangling.clone(), "dangling symbolic link"),
        (foreign.clone(), "user 12345"),
        (used.clone(), "theirs"),
        (outside.path().join("katran"), "not on a BPF file system"),
        (outside.path().to_owned(), "not on a BPF file system"),
        (files.join("a.b"), "dots"),
        (files.join("missing/katran"), "No such file"),
    ] {
        let refused = builder().pin(&path).load().unwrap_err();
        assert!(
            matches!(&refused, Error::InvalidConfig { setting: "pin", .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains(why), "{why}: {refused}");
        let kept = katran::remove(&path).unwrap_err();
        let is_missing = !path.exists() || path == used;
        assert!(
            match &kept {
                Error::NotFound { .. } => is_missing,
                Error::InvalidConfig { .. } => !is_missing,
                _ => false,
            },
            "{kept}"
        );
    }
    assert_eq!(tree(&files), before);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    // In a sticky directory no other user can move it.
    load(builder().pin(sticky.join("katran"))).remove().unwrap();
    // By a path through a symbolic link, and by one relative to the current directory.
    let link = outside.path().join("link");
    std::os::unix::fs::symlink(&files, &link).unwrap();
    let katran = load(builder().pin(link.join("katran")));
    assert_eq!(katran.pinned_in(), Some(files.join("katran").as_path()));
    katran.remove().unwrap();
}

#[test]
fn foreign_pins_stay() {
    let files = file_system();
    let directory = files.join("katran");
    drop(load(builder().pin(&directory)));
    let theirs = [
        "set/maps/theirs",
        "attached/theirs",
        "attached/xdp_1",
        "theirs",
    ];
    let map = pins::array();
    for name in theirs {
        pins::pin(map.as_fd(), &directory.join(name));
    }
    // With the name of one of ours.
    let taken = directory.join("set/maps/cpus");
    fs::remove_file(&taken).unwrap();
    pins::pin(map.as_fd(), &taken);
    katran::remove(&directory).unwrap();
    let names: Vec<_> = tree(&directory).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "attached",
        "attached/theirs",
        "attached/xdp_1",
        "set",
        "set/maps",
        "set/maps/cpus",
        "set/maps/theirs",
        "theirs",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_balancer_has_one_owner() {
    let files = file_system();
    let directory = files.join("katran");
    let katran = load(builder().pin(&directory));
    let mine = process::id();
    let refuses = || {
        for error in [
            builder().pin(&directory).load().unwrap_err(),
            katran::remove(&directory).unwrap_err(),
        ] {
            let Error::Busy { path, owner } = &error else {
                panic!("{error}");
            };
            assert_eq!((path, owner), (&directory, &Some(mine)));
            assert!(error.to_string().contains(&mine.to_string()), "{error}");
        }
    };
    refuses();
    // From whichever path: the lock is the directory's.
    std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            let new = nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWNS;
            nix::sched::unshare(new).unwrap();
            refuses();
        });
        elsewhere.join().unwrap();
    });
    drop(katran);
    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty());
}

/// A failed load leaves nothing, whatever has failed, and neither does a removal that is tried
/// again.
#[test]
fn a_load_that_fails_leaves_nothing() {
    let files = file_system();
    let directory = files.join("katran");
    let load = || full().pin(&directory).load();
    let failures: [(&str, &dyn Fn() -> katran::Result<Katran>); 5] = [
        ("pins", &|| {
            without_commands(&[OBJ_PIN], Errno::ENOSPC, load)
        }),
        ("maps", &|| {
            without_commands(&[crate::common::faults::MAP_CREATE], Errno::ENOMEM, load)
        }),
        ("mkdir", &|| {
            without_call(libc::SYS_mkdir, Errno::ENOSPC, load)
        }),
        ("flock", &|| {
            without_call(libc::SYS_flock, Errno::ENOLCK, load)
        }),
        ("programs", &|| {
            without_commands(&[crate::common::faults::PROG_LOAD], Errno::EPERM, load)
        }),
    ];
    for (what, fails) in failures {
        let error = fails().map(drop).unwrap_err();
        assert!(
            tree(&files).is_empty(),
            "{what}: {error}: {:?}",
            tree(&files)
        );
    }
    // An empty directory counts as none.
    DirBuilder::new().mode(0o700).create(&directory).unwrap();
    drop(load().unwrap());
    let pinned = tree(&files);
    let kept = without_call(libc::SYS_unlink, Errno::EIO, || katran::remove(&directory));
    assert!(matches!(kept.unwrap_err(), Error::File { .. }));
    assert_eq!(tree(&files), pinned);
    let kept = without_call(libc::SYS_rmdir, Errno::EIO, || katran::remove(&directory));
    assert!(matches!(kept.unwrap_err(), Error::File { .. }));
    // A half-removed balancer is none, and the error reports that.
    let refused = load().unwrap_err().to_string();
    assert!(refused.contains("not fully removed"), "{refused}");
    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty());
}

type Reload<'a> = &'a (dyn Fn(&mut Katran) -> katran::Result<()> + Sync);

#[test]
fn the_pins_follow_a_reload() {
    let files = file_system();
    let directory = files.join("katran");
    let mut katran = load(builder().pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let before = tree(&files);
    let program = || pins::program_id(pins::open(&directory.join("set/programs/program")).as_fd());
    let special = || {
        fs::metadata(directory.join("set/programs/special_programs"))
            .unwrap()
            .ino()
    };
    let first = (program(), special());
    let more = Features::default() | Features::SOURCE_ROUTING;
    let failing: [(&str, Reload<'_>); 2] = [
        ("pins", &|katran| {
            without_commands(&[OBJ_PIN], Errno::ENOSPC, || katran.reload(more))
        }),
        ("exchange", &|katran| {
            without_call(libc::SYS_renameat2, Errno::EIO, || katran.reload(more))
        }),
    ];
    for (what, fails) in failing {
        fails(&mut katran).unwrap_err();
        assert_eq!(tree(&files), before, "{what}");
        assert_eq!((program(), special()), first, "{what}");
        assert_eq!(katran.features(), Features::default());
    }
    katran.reload(more).unwrap();
    let after = tree(&files);
    let new: Vec<_> = after.iter().filter(|of| !before.contains(of)).collect();
    assert_eq!(new.len(), 2, "{new:?}");
    assert!(new[0].0.ends_with("programs/source_routes_v4"), "{new:?}");
    assert_ne!(program(), first.0);
    assert_eq!(program(), pins::program_id(katran.program_fd()));
    katran.reload(Features::default()).unwrap();
    assert_eq!(tree(&files), before);
    let pinned = pins::open(&directory.join("set/programs/program"));
    drop(katran);
    let ran = bpf::run(pinned.as_fd(), &syn(flow_v4()));
    assert_eq!(ran.verdict, Verdict::Tx);
    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty());
}
