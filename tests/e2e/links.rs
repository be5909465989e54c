//! Finds the kernel's links by what they hold, for tests that change a link behind the library's
//! back.

use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

/// The XDP link by which this program is on the interface with this index.
///
/// # Panics
/// If there is none.
pub(crate) fn xdp_link(program: u32, index: u32) -> OwnedFd {
    let mut id = 0;
    loop {
        // SAFETY: the place for the result outlives the call.
        let next = unsafe { libbpf_sys::bpf_link_get_next_id(id, &mut id) };
        assert_eq!(next, 0, "no such link");
        // SAFETY: takes a number.
        let fd = unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) };
        if fd < 0 {
            // Another test's link, already gone.
            continue;
        }
        // SAFETY: a descriptor that the call has just made and nobody else owns.
        let link = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut info = libbpf_sys::bpf_link_info::default();
        let mut length = size_of_val(&info) as u32;
        // SAFETY: `info` is as long as `length` says.
        let asked = unsafe {
            libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length)
        };
        if asked != 0 || info.type_ != libbpf_sys::BPF_LINK_TYPE_XDP || info.prog_id != program {
            continue;
        }
        // SAFETY: the union's member for XDP links.
        if unsafe { info.__bindgen_anon_1.xdp.ifindex } == index {
            return link;
        }
    }
}
