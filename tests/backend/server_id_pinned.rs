//! A server id option that outlives its handle: its id, cgroups, connections and counters.

use std::fs;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;

use katran::Error;
use katran::ServerIdOption;
use katran::Start;
use katran::attachments::AttachmentState;
use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;

use super::server_id_option::connect;
use super::server_id_option::rally;
use crate::common::faults::LINK_UPDATE;
use crate::common::faults::without_commands;
use crate::common::layout::COUNTERS;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::pins;
use crate::common::pins::tree;

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

fn files() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap()
}

/// The ids of the links and of their programs.
fn links(files: &std::path::Path) -> Vec<(u32, u32)> {
    let attached = files.join("option/attached");
    let names = tree(&attached).into_iter().map(|(name, _)| name);
    let names = names.filter(|name| name.starts_with("cgroup_"));
    names
        .map(|name| pins::link(pins::open(&attached.join(name)).as_fd()))
        .collect()
}

fn states(option: &ServerIdOption) -> Vec<AttachmentState> {
    option.cgroups().into_iter().map(|of| of.state).collect()
}

/// As another version leaves it. This version keeps the ids that connections have received.
#[test]
fn one_of_another_layout_keeps_its_ids_or_stays() {
    let files = files();
    let directory = files.join("option");
    let set = directory.join("set");
    let cgroup = Cgroup::new().unwrap();
    let mut option = ServerIdOption::server(7).unwrap();
    option.pin(&directory).unwrap();
    option.attach(cgroup.path()).unwrap();
    let (link, own) = (links(&files)[0], words(&set));
    for parts in [&[][..], &[COUNTERS]] {
        drop(option);
        relay(&set, parts);
        option = ServerIdOption::adopt(&directory).unwrap();
        assert_eq!((option.id(), words(&set)), (Some(7), own.clone()));
        assert_eq!(links(&files)[0].0, link.0);
        assert_eq!(states(&option), [AttachmentState::Attached]);
    }
    drop(option);
    relay(&set, &[STATE]);
    let (pinned, before) = (tree(&files), links(&files));
    let refused = ServerIdOption::adopt_or_load(&directory).unwrap_err();
    let says = refused.to_string();
    assert!(matches!(refused, Error::Unsupported { .. }), "{says}");
    assert!(says.contains("remove it"), "{says}");
    assert_eq!((tree(&files), links(&files)), (pinned, before));
    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty());
}

#[test]
fn the_next_handle_adopts_everything() {
    let files = files();
    let directory = files.join("option");
    let host = Host::new("host").unwrap();
    let [servers, clients] = [(); 2].map(|()| Cgroup::new().unwrap());
    let (mut option, start) = ServerIdOption::adopt_or_load(&directory).unwrap();
    assert_eq!((start, option.id()), (Start::Loaded, None));
    option.set_id(7).unwrap();
    option.attach(servers.path()).unwrap();
    option.attach(clients.path()).unwrap();
    assert_eq!(option.pinned_in(), Some(directory.as_path()));
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = servers.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    let (mut out, mut back) = connect(&host, &listener, &clients);
    assert_eq!(option.learned_id(&out).unwrap(), Some(7));
    let (pinned, before) = (tree(&files), links(&files));
    for (path, mode) in &pinned {
        let file = files.join(path);
        let expected = match file.symlink_metadata().unwrap() {
            of if of.is_symlink() => 0o777,
            of if of.is_dir() => 0o700,
            _ => 0o600,
        };
        assert_eq!(*mode, expected, "{path}");
    }
    let busy = ServerIdOption::adopt(&directory).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    let cgroups = option.cgroups();
    let counters = option.counters().unwrap();
    drop(option);

    // Without a handle: the existing connection, and a new one.
    rally(&mut out, &mut back, 5);
    let (mut later, mut later_back) = connect(&host, &listener, &clients);
    rally(&mut later, &mut later_back, 5);
    assert_eq!(tree(&files), pinned);
    let mut option = ServerIdOption::adopt(&directory).unwrap();
    assert_eq!((option.id(), option.cgroups()), (Some(7), cgroups));
    let now = option.counters().unwrap();
    assert_eq!(now.served, counters.served + 1);
    assert!(now.written >= counters.written + 10, "{now:?}");
    for socket in [&out, &later] {
        assert_eq!(option.learned_id(socket).unwrap(), Some(7));
    }
    let after = links(&files);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.0, after.0, "the link is the same");
        assert_ne!(before.1, after.1, "the program is this version's");
    }
    assert_eq!((after.len(), tree(&files)), (2, pinned.clone()));
    rally(&mut out, &mut back, 5);
    assert!(option.counters().unwrap().written >= now.written + 5);
    option.set_id(8).unwrap();
    let twice = option.attach(servers.path()).unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    option.detach(clients.path()).unwrap();
    assert_eq!(links(&files).len(), 1);
    drop(option);
    let option = ServerIdOption::adopt(&directory).unwrap();
    assert_eq!((option.id(), option.cgroups().len()), (Some(8), 1));

    option.remove().unwrap();
    assert!(tree(&files).is_empty());
    let missing = ServerIdOption::adopt(&directory).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    // Nothing is attached any more.
    let mut other = ServerIdOption::server(9).unwrap();
    other.attach(servers.path()).unwrap();
    let (_out, _back) = connect(&host, &listener, &clients);
    assert_eq!(other.counters().unwrap().served, 1);
}

/// As when a service restarts: its cgroup is recreated at the same path.
#[test]
fn a_recreated_cgroup_is_attached_again() {
    let files = files();
    let directory = files.join("option");
    let parent = Cgroup::new().unwrap();
    let path = parent.path().join("service");
    fs::create_dir(&path).unwrap();
    let (mut option, _) = ServerIdOption::adopt_or_load(&directory).unwrap();
    option.attach(&path).unwrap();
    drop(option);
    fs::remove_dir(&path).unwrap();
    let mut option = ServerIdOption::adopt(&directory).unwrap();
    assert_eq!(states(&option), [AttachmentState::Gone]);
    assert_eq!(option.cgroups()[0].path, path);
    // Without a cgroup nothing happens.
    option.reattach().unwrap();
    assert_eq!(states(&option), [AttachmentState::Gone]);
    fs::create_dir(&path).unwrap();
    assert_eq!(states(&option), [AttachmentState::Gone], "another one");
    option.reattach().unwrap();
    assert_eq!(states(&option), [AttachmentState::Attached]);
    let names: Vec<_> = tree(&directory.join("attached"));
    assert_eq!(names.len(), 2, "{names:?}");
    drop(option);
    // The same while the handle lives.
    let mut option = ServerIdOption::adopt(&directory).unwrap();
    assert_eq!(states(&option), [AttachmentState::Attached]);
    fs::remove_dir(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(states(&option), [AttachmentState::Gone]);
    option.attach(&path).unwrap();
    assert_eq!(states(&option), [AttachmentState::Attached]);
    drop(option);
    katran::remove(&directory).unwrap();
    assert!(tree(&files).is_empty());
    fs::remove_dir(&path).unwrap();
}

#[test]
fn failed_calls_change_nothing() {
    let files = files();
    let directory = files.join("option");
    let group = Cgroup::new().unwrap();
    let mut option = ServerIdOption::server(7).unwrap();
    option.attach(group.path()).unwrap();
    without_commands(&[OBJ_PIN], Errno::ENOSPC, || option.pin(&directory)).unwrap_err();
    assert!(tree(&files).is_empty(), "{:?}", tree(&files));
    assert_eq!(states(&option), [AttachmentState::Attached]);
    assert_eq!(option.pinned_in(), None);
    option.pin(&directory).unwrap();
    let twice = option.pin(files.join("other")).unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    let (pinned, before) = (tree(&files), links(&files));
    drop(option);
    for command in [OBJ_PIN, LINK_UPDATE] {
        let adopted = || ServerIdOption::adopt(&directory).map(drop);
        without_commands(&[command], Errno::ENOSPC, adopted).unwrap_err();
        assert_eq!(
            (tree(&files), links(&files)),
            (pinned.clone(), before.clone())
        );
    }
    // An attachment that another process has half made: the record of a cgroup, without a link.
    let attached = directory.join("attached");
    std::os::unix::fs::symlink("/nowhere", attached.join("path_77")).unwrap();
    let option = ServerIdOption::adopt(&directory).unwrap();
    assert_eq!(tree(&files), pinned);
    assert_eq!(states(&option), [AttachmentState::Attached]);
    option.remove().unwrap();
    assert!(tree(&files).is_empty());
}
