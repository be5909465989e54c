//! Decapsulators and server id options without an owner: whatever happens to their place has a
//! clear outcome, and ends nothing else.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use caps::Capability;
use katran::Decap;
use katran::Error;
use katran::ServerIdOption;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::Newer;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;

use crate::common::faults::without_capabilities;
use crate::common::pins;
use crate::common::pins::tree;

/// The tc hook; `None`: XDP.
type By = Option<TcHook>;

fn ways() -> Vec<By> {
    let mut ways = vec![None, Some(TcHook::Clsact)];
    if Newer::Tcx.is_here() {
        ways.push(Some(TcHook::Tcx));
    }
    ways
}

fn host() -> Host {
    let host = Host::new("host").unwrap();
    for words in [
        "link add eth0 type veth peer name eth1",
        "link set eth0 up",
        "link set eth1 up",
    ] {
        host.ip(words).unwrap();
    }
    host
}

/// Leaves an attached decapsulator without an owner.
fn leave(directory: &Path, host: &Host, by: By) {
    let mut decap = Decap::builder().pin(directory).load().unwrap();
    host.run(|| match by {
        None => drop(decap.attach("eth0", XdpMode::Generic).unwrap()),
        Some(hook) => drop(decap.attach_tc("eth0", hook).unwrap()),
    });
}

fn adopt(directory: &Path) -> Decap {
    Decap::builder().pin(directory).adopt().unwrap()
}

fn states(decap: &Decap) -> Vec<AttachmentState> {
    let by_xdp = decap.interfaces().into_iter().map(|of| of.state);
    let at_tc = decap.tc_interfaces().into_iter().map(|of| of.state);
    by_xdp.chain(at_tc).collect()
}

fn files() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap()
}

#[test]
fn moved_interfaces_and_removed_namespaces_are_survived() {
    let files = files();
    let directory = files.join("decap");
    for by in ways() {
        let (host, other) = (host(), Host::new("other").unwrap());
        leave(&directory, &host, by);
        let to = other.namespace_path();
        host.ip(&format!("link set eth0 netns {}", to.display()))
            .unwrap();
        let decap = adopt(&directory);
        let moved = host.run(|| states(&decap));
        match by {
            Some(TcHook::Clsact) => assert_eq!(moved, [AttachmentState::Gone]),
            _ => assert_eq!(moved, [AttachmentState::Moved], "{by:?}"),
        }
        drop(decap);
        drop((host, other));
        // Namespaces end in the background.
        eventually("it is gone", || {
            let decap = adopt(&directory);
            let states = states(&decap);
            // A filter vanishes with its namespace.
            states.is_empty() || states == [AttachmentState::Gone]
        });
        adopt(&directory).remove().unwrap();
        assert!(tree(&files).is_empty(), "{:?}", tree(&files));
    }
}

#[test]
fn pins_removed_by_hand_are_survived() {
    let files = files();
    let directory = files.join("decap");
    let host = host();
    for by in ways() {
        leave(&directory, &host, by);
        let attached = directory.join("attached");
        let (name, _) = tree(&attached).remove(0);
        fs::remove_file(attached.join(name)).unwrap();
        let mut decap = adopt(&directory);
        assert!(states(&decap).is_empty());
        // The kernel has ended a link; a filter is taken over.
        host.run(|| match by {
            None => eventually("it can be attached again", || {
                decap.attach("eth0", XdpMode::Generic).is_ok()
            }),
            Some(hook) => drop(decap.attach_tc("eth0", hook).unwrap()),
        });
        assert_eq!(states(&decap), [AttachmentState::Attached], "{by:?}");
        decap.remove().unwrap();
        let filters = host.tool("tc", "filter show dev eth0 ingress");
        assert!(!filters.is_ok_and(|filters| filters.contains("decap_tc")));
        // The record of who made the qdisc is lost.
        let removed = host.tool("tc", "qdisc del dev eth0 clsact");
        assert_eq!(removed.is_ok(), by == Some(TcHook::Clsact));
    }
    // An attached program works without its pins, even without the one that marks the set as
    // complete: it is not taken for half made.
    let link = || host.ip("link show dev eth0").unwrap();
    for pin in ["set/maps/decap_counters", "set/contents"] {
        leave(&directory, &host, None);
        fs::remove_file(directory.join(pin)).unwrap();
        let named = pin.rsplit('/').next().unwrap();
        let decap = || Decap::builder().pin(&directory);
        for error in [
            decap().adopt(),
            decap().adopt_or_load().map(|(decap, _)| decap),
        ] {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(link().contains("xdp"));
        katran::remove(&directory).unwrap();
        assert!(!link().contains("xdp") && tree(&files).is_empty());
    }
    leave(&directory, &host, None);
    fs::remove_file(directory.join("identity")).unwrap();
    let refused = Decap::builder().pin(&directory).adopt_or_load();
    let error = refused.map(drop).unwrap_err().to_string();
    assert!(
        error.contains("`identity`") && link().contains("xdp"),
        "{error}"
    );
    fs::remove_dir_all(&directory).unwrap();
    eventually("it has ended", || !link().contains("xdp"));
}

#[test]
fn a_process_without_privileges_takes_nothing_and_ends_nothing() {
    let files = files();
    let directory = files.join("decap");
    let host = host();
    let group = Cgroup::new().unwrap();
    leave(&directory, &host, None);
    let option_at = files.join("option");
    let mut option = ServerIdOption::server(7).unwrap();
    option.attach(group.path()).unwrap();
    option.pin(&option_at).unwrap();
    drop(option);
    let before = tree(&files);
    let missing = [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN];
    for error in without_capabilities(&missing, || {
        [
            Decap::builder().pin(&directory).adopt().unwrap_err(),
            ServerIdOption::adopt(&option_at).unwrap_err(),
        ]
    }) {
        assert!(matches!(error, Error::Privilege { .. }), "{error}");
    }
    assert_eq!(tree(&files), before);
    assert!(host.ip("link show dev eth0").unwrap().contains("xdp"));
    assert_eq!(pins::programs_of_cgroup(group.path()), 1);
    // The capabilities of the guide's units are enough.
    let others: Vec<_> = caps::all().into_iter().collect();
    let enough = [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ];
    let others: Vec<_> = others
        .into_iter()
        .filter(|of| !enough.contains(of))
        .collect();
    without_capabilities(&others, || {
        assert_eq!(states(&adopt(&directory)), [AttachmentState::Attached]);
        assert_eq!(ServerIdOption::adopt(&option_at).unwrap().id(), Some(7));
        katran::remove(&directory).unwrap();
        katran::remove(&option_at).unwrap();
    });
    assert!(tree(&files).is_empty());
    assert_eq!(pins::programs_of_cgroup(group.path()), 0);
}

#[test]
fn a_file_system_that_was_unmounted_leaves_nothing_to_adopt() {
    // Gives this thread its own mounts.
    drop(files());
    let point = tempfile::tempdir().unwrap();
    const NONE: Option<&str> = None;
    let mount = || {
        mount(
            Some("bpf"),
            point.path(),
            Some("bpf"),
            MsFlags::empty(),
            NONE,
        )
        .unwrap()
    };
    // A process that another test starts may hold a copy of a descriptor until it executes.
    let unmount = || {
        let unmounted = || umount2(point.path(), MntFlags::empty()).is_ok();
        eventually("it is unmounted", unmounted);
    };
    let directory = point.path().join("decap");
    let host = host();
    for by in ways() {
        mount();
        leave(&directory, &host, by);
        unmount();
        if by.is_none() {
            eventually("its attachment has ended", || {
                !host.ip("link show dev eth0").unwrap().contains("xdp")
            });
        }
        let error = Decap::builder()
            .pin(&directory)
            .adopt_or_load()
            .unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        // As after a reboot.
        mount();
        let (mut decap, start) = Decap::builder().pin(&directory).adopt_or_load().unwrap();
        assert_eq!(start, katran::Start::Loaded);
        host.run(|| match by {
            None => drop(decap.attach("eth0", XdpMode::Generic).unwrap()),
            Some(hook) => drop(decap.attach_tc("eth0", hook).unwrap()),
        });
        let program = match by {
            None => pins::program_id(decap.program_fd()),
            Some(_) => pins::program_id(decap.tc_program_fd().unwrap().as_fd()),
        };
        decap.remove().unwrap();
        eventually("its program has gone", || !pins::has_program(program));
        unmount();
    }
}
