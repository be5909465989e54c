//! Foreign pins where a root program and its balancers look: maps of any kind and size, programs,
//! directories, names of any bytes. Each gives an array of programs and its contents, or an error
//! that says why not, and stays unchanged. `KATRAN_SEED` chooses; a failure prints it.

use std::ffi::CStr;
use std::ffi::CString;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use fastrand::Rng;
use katran::Error;
use katran::RootProgram;
use katran::attachments::SharedEntries;
use katran_lab::private_bpf_fs;

use super::documents::one_of;
use crate::common::builder;
use crate::common::load;
use crate::common::seed::seeded;

/// Type, key and value size, entries, flags: one of each map that the kernel can make.
const MAPS: [(u32, u32, u32, u32, u32); 13] = [
    (libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1, 0),
    (libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 3, 0),
    (libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 5000, 0),
    (libbpf_sys::BPF_MAP_TYPE_ARRAY, 4, 4, 3, 0),
    (libbpf_sys::BPF_MAP_TYPE_ARRAY, 4, 65536, 1, 0),
    (
        libbpf_sys::BPF_MAP_TYPE_HASH,
        40,
        1,
        1_000_000,
        libbpf_sys::BPF_F_NO_PREALLOC,
    ),
    (libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 3, 0),
    (
        libbpf_sys::BPF_MAP_TYPE_LPM_TRIE,
        8,
        4,
        3,
        libbpf_sys::BPF_F_NO_PREALLOC,
    ),
    (libbpf_sys::BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0),
    (libbpf_sys::BPF_MAP_TYPE_QUEUE, 0, 4, 3, 0),
    (libbpf_sys::BPF_MAP_TYPE_DEVMAP, 4, 4, 3, 0),
    (libbpf_sys::BPF_MAP_TYPE_CPUMAP, 4, 4, 1, 0),
    (libbpf_sys::BPF_MAP_TYPE_CGROUP_ARRAY, 4, 4, 3, 0),
];

pub(crate) fn map(of: (u32, u32, u32, u32, u32), name: &CStr) -> OwnedFd {
    let (kind, key, value, entries, flags) = of;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: flags,
        ..Default::default()
    };
    // SAFETY: takes numbers, a name and options that outlive the call; only the caller owns the
    // result.
    unsafe {
        let fd = libbpf_sys::bpf_map_create(kind, name.as_ptr(), key, value, entries, &options);
        assert!(
            fd >= 0,
            "{of:?}: {}",
            std::io::Error::from_raw_os_error(-fd)
        );
        OwnedFd::from_raw_fd(fd)
    }
}

/// A program that returns 0.
fn program(kind: u32, attached: u32) -> OwnedFd {
    let instruction = |code: u8| libbpf_sys::bpf_insn {
        code,
        ..Default::default()
    };
    // r0 = 0; exit.
    let program = [instruction(0xb7), instruction(0x95)];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
        expected_attach_type: attached,
        ..Default::default()
    };
    let (name, license) = (c"of_others", c"MIT");
    // SAFETY: instructions and options outlive the call, and the call gets their lengths.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            license.as_ptr(),
            program.as_ptr(),
            program.len() as _,
            &mut options,
        );
        assert!(fd >= 0, "{}", std::io::Error::from_raw_os_error(-fd));
        OwnedFd::from_raw_fd(fd)
    }
}

fn xdp() -> OwnedFd {
    program(libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_XDP)
}

fn pin(object: BorrowedFd<'_>, path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: takes a descriptor and a C string that outlives the call.
    let pinned = unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) };
    assert_eq!(pinned, 0, "{path:?}");
}

/// All names without a dot.
fn list(directory: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names
        .filter(|name| !name.as_bytes().contains(&b'.'))
        .collect();
    names.sort();
    names
}

/// Checks the entries against what was put there.
fn check_entries(rng: &mut Rng, entries: &SharedEntries) {
    let programs = [xdp(), xdp()];
    let foreign = program(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER, 0);
    let mut expected = vec![None; entries.count() as usize];
    for _ in 0..20 {
        let position = match rng.u32(0..4) {
            0 => one_of(rng, &[entries.count(), entries.count() + 1, u32::MAX]),
            _ => rng.u32(0..entries.count()),
        };
        let which = rng.usize(0..4);
        let done = match which {
            0 | 1 => entries.set(position, programs[which].as_fd()),
            2 => entries.clear(position),
            // The first program decides which kind an array takes, so skip it while empty.
            _ if expected.iter().all(Option::is_none) => continue,
            _ => entries.set(position, foreign.as_fd()),
        };
        match done {
            Ok(()) => {
                assert!(which < 3);
                expected[position as usize] = (which < 2).then_some(which);
            }
            Err(error) => {
                assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
                assert!(position >= entries.count() || which == 3, "{error}");
            }
        }
    }
    let found = entries.programs().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.is_some(), expected.is_some());
        assert!(
            found
                .as_ref()
                .is_none_or(|program| program.name == "of_others")
        );
    }
    let ids = |of: usize| -> Vec<u32> {
        let of = expected
            .iter()
            .zip(&found)
            .filter(move |(expected, _)| **expected == Some(of));
        of.map(|(_, found)| found.as_ref().unwrap().id).collect()
    };
    // Each program has one number, different from the other's.
    for of in [0, 1] {
        assert!(ids(of).windows(2).all(|two| two[0] == two[1]));
        assert!(ids(of).iter().all(|id| !ids(1 - of).contains(id)));
    }
}

#[test]
fn foreign_pins_are_recognised_and_stay() {
    let (_seed, mut rng) = seeded();
    let rng = &mut rng;
    let mut katran = load(builder());
    let directory = private_bpf_fs().unwrap();
    let root_path = directory.join("root");
    for none in [Path::new("/proc/self/status"), Path::new("/"), &directory] {
        let error = SharedEntries::open(none).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
    let names: [&[u8]; 14] = [
        b"root_0_1",
        b"root_2_4294967295",
        b"root_0_4294967296",
        b"root_+1_+2",
        b"root_-1_2",
        b"root_0_1_2",
        b"root_99999999999999999999_1",
        b"root_",
        b"root__",
        b"root_eth0",
        b"root_\xff\xfe",
        "root_\u{e9}_1".as_bytes(),
        b"rootx",
        b"other",
    ];
    for round in 0..12 {
        let mut kept = Vec::new();
        for name in names {
            let path = directory.join(OsStr::from_bytes(name));
            let of = one_of(rng, &MAPS);
            let is_array = of.0 == libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY;
            let kind = rng.u32(0..8);
            match kind {
                0 => pin(xdp().as_fd(), &path),
                1 => fs::create_dir(&path).unwrap(),
                // A link, whatever it leads to.
                2 => std::os::unix::fs::symlink(&root_path, &path).unwrap(),
                _ => pin(map(of, c"of_others").as_fd(), &path),
            }
            kept.push((path.clone(), kind));
            // The root is not pinned yet, so the link leads nowhere.
            let found = SharedEntries::open(&path);
            match found {
                Ok(entries) => {
                    assert!(kind > 2 && is_array, "{path:?} {kind} {of:?}");
                    assert_eq!(entries.count(), of.3);
                    if of.3 > 3 {
                        // Checked all at once.
                        assert!(entries.programs().unwrap().iter().all(Option::is_none));
                    } else {
                        check_entries(rng, &entries);
                    }
                }
                Err(error) => {
                    assert!(kind <= 2 || !is_array, "{error}: {path:?} {of:?}");
                    let is_named =
                        matches!(error, Error::InvalidConfig { .. } | Error::NotFound { .. });
                    assert!(is_named, "{error}: {path:?} {kind} {of:?}");
                    let text = error.to_string();
                    let says = ["a program array at", "a root program's pinned array"];
                    assert!(says.iter().any(|part| text.contains(part)), "{text}");
                    assert!(katran.attach_shared(&path, 0).is_err());
                }
            }
        }
        let others = list(&directory);
        let mut root = RootProgram::builder().load().unwrap();
        root.pin(&root_path).unwrap();
        let position = rng.u32(0..3);
        // A foreign program is not replaced.
        if rng.bool() {
            let entries = SharedEntries::open(&root_path).unwrap();
            entries.set(position, xdp().as_fd()).unwrap();
            let before = list(&directory);
            let error = katran.attach_shared(&root_path, position).unwrap_err();
            assert!(matches!(error, Error::ForeignEntry { .. }), "{error}");
            assert_eq!(list(&directory), before);
            entries.clear(position).unwrap();
        }
        assert!(katran.shared_entries().is_empty());
        katran.attach_shared(&root_path, position).unwrap();
        drop(root);
        if rng.bool() {
            katran.detach_shared(&root_path).unwrap();
            RootProgram::remove(&root_path).unwrap();
        } else {
            RootProgram::remove(&root_path).unwrap();
            katran.detach_shared(&root_path).unwrap();
        }
        assert_eq!(list(&directory), others, "round {round}");
        for (path, kind) in kept {
            match kind {
                1 => fs::remove_dir(&path).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
        }
    }
}

/// The same path, relative to the current directory.
fn from_here(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap();
    let up = here.components().skip(1).map(|_| "..");
    let root: PathBuf = up.collect();
    root.join(path.strip_prefix("/").unwrap())
}

/// Named by a relative or an absolute path, it is the same entry, even after its root program is
/// gone.
#[test]
fn an_entry_is_found_by_whichever_path() {
    let directory = private_bpf_fs().unwrap();
    let path = directory.join("root");
    let settings = || builder().pin(directory.join("katran"));
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(&path).unwrap();
    let mut katran = load(settings());
    for (attached, detached) in [
        (from_here(&path), path.clone()),
        (path.clone(), from_here(&path)),
    ] {
        katran.attach_shared(&attached, 2).unwrap();
        assert_eq!(katran.shared_entries()[0].path, path);
        let again = katran.attach_shared(&detached, 2).unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
        katran.detach_shared(&detached).unwrap();
        assert!(katran.shared_entries().is_empty());
    }
    katran.attach_shared(from_here(&path), 2).unwrap();
    drop((katran, root));
    RootProgram::remove(&path).unwrap();
    let mut katran = settings().adopt().unwrap();
    assert_eq!(katran.shared_entries()[0].path, path);
    katran.detach_shared(from_here(&path)).unwrap();
    assert!(katran.shared_entries().is_empty());
    drop(katran);
    let katran = settings().adopt().unwrap();
    assert!(katran.shared_entries().is_empty());
    katran.remove().unwrap();
}
