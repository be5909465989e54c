//! Objects pinned in a BPF file system, and whether the kernel still has a program.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use katran_lab::eventually;

fn owned(fd: i32) -> io::Result<OwnedFd> {
    match fd < 0 {
        true => Err(io::Error::from_raw_os_error(-fd)),
        // SAFETY: a descriptor that the kernel has just made and nobody else owns.
        false => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Opens a pinned object.
pub(crate) fn open(path: &Path) -> OwnedFd {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: takes a C string that outlives the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) }).unwrap()
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: takes a descriptor and a C string that outlives the call.
    let pinned = unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) };
    assert_eq!(pinned, 0);
}

/// A foreign map.
pub(crate) fn array() -> OwnedFd {
    // SAFETY: takes numbers, a name and no options.
    let map = unsafe {
        libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_ARRAY,
            c"theirs".as_ptr(),
            4,
            8,
            1,
            std::ptr::null(),
        )
    };
    owned(map).unwrap()
}

/// A program's id.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> u32 {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: `length` is the size of `info`, and both outlive the call.
    let asked = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_raw_fd(),
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    };
    assert_eq!(asked, 0);
    info.id
}

/// Waits until the kernel has no program with this id: a child that another test has just forked
/// may hold a copy of a descriptor for a moment.
pub(crate) fn eventually_gone(id: u32) {
    eventually("the program is gone", || !has_program(id));
}

/// Whether the kernel has a program with this id.
pub(crate) fn has_program(id: u32) -> bool {
    // SAFETY: takes a number.
    owned(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) }).is_ok()
}

/// The program with this id.
pub(crate) fn program(id: u32) -> OwnedFd {
    // SAFETY: takes a number.
    owned(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) }).unwrap()
}

/// The ids of a link and of its program.
pub(crate) fn link(link: BorrowedFd<'_>) -> (u32, u32) {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: `length` is the size of `info`, and both outlive the call.
    let asked =
        unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length) };
    assert_eq!(asked, 0);
    (info.id, info.prog_id)
}

/// Everything in a directory, with modes, except names with dots, which are the file system's own.
pub(crate) fn tree(directory: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.contains('.') {
            continue;
        }
        let metadata = entry.path().symlink_metadata().unwrap();
        found.push((name.clone(), metadata.mode() & 0o7777));
        if metadata.is_dir() {
            let inside = tree(&entry.path()).into_iter();
            found.extend(inside.map(|(of, mode)| (format!("{name}/{of}"), mode)));
        }
    }
    found.sort();
    found
}

/// How many sockops programs are attached to a directory's cgroup.
pub(crate) fn programs_of_cgroup(directory: &Path) -> u32 {
    let directory = fs::File::open(directory).unwrap();
    let mut count = 0;
    // SAFETY: takes a descriptor, numbers and a pointer to a number; it asks for no ids.
    let asked = unsafe {
        libbpf_sys::bpf_prog_query(
            directory.as_raw_fd(),
            libbpf_sys::BPF_CGROUP_SOCK_OPS,
            0,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &mut count,
        )
    };
    assert_eq!(asked, 0);
    count
}
