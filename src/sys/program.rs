//! BPF programs: what the kernel says about one, and running one on a frame.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use nix::libc;

use super::check;
use super::name_of;

/// What the kernel says about a program.
pub(crate) struct Info {
    /// The program's id.
    pub(crate) id: u32,
    pub(crate) name: String,
    /// Bytes of the program after the verifier: 8 per instruction.
    pub(crate) translated_bytes: u32,
    /// The kernel has compiled it and does not interpret it; `None`: it does not say.
    pub(crate) compiled: Option<bool>,
}

/// Asks the kernel about a program.
pub(crate) fn info(program: BorrowedFd<'_>) -> io::Result<Info> {
    let info = ask(program, &mut [])?;
    Ok(Info {
        id: info.id,
        name: name_of(&info.name),
        translated_bytes: info.xlated_prog_len,
        // Without CAP_BPF both lengths are 0.
        compiled: (info.xlated_prog_len > 0).then_some(info.jited_prog_len > 0),
    })
}

/// The program with this id; programs that cannot be asked have none.
pub(crate) fn numbered<'a>(programs: &[BorrowedFd<'a>], id: u32) -> Option<BorrowedFd<'a>> {
    let mut programs = programs.iter().copied();
    programs.find(|program| info(*program).is_ok_and(|info| info.id == id))
}

/// The ids of the maps that a program uses.
pub(crate) fn maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut maps = vec![0_u32; MOST_MAPS];
    let info = ask(program, &mut maps)?;
    maps.truncate(info.nr_map_ids as usize);
    Ok(maps)
}

/// The kernel's answer, with as many map ids as fit.
fn ask(program: BorrowedFd<'_>, maps: &mut [u32]) -> io::Result<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: maps.len() as u32,
        map_ids: maps.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is as long as `length` says. Of its pointers only the one to the maps is set,
    // to as many numbers as it says; both outlive the call.
    check(unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_raw_fd(),
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    })?;
    Ok(info)
}

/// The most maps that the verifier lets a program use (the kernel's MAX_USED_MAPS).
const MOST_MAPS: usize = 64;

/// Opens a program by its id.
pub(crate) fn by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call passes a number by value, and the kernel accesses no memory of ours.
    let fd = check(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The name of a program by its id; empty if the kernel does not say, which takes `CAP_SYS_ADMIN`.
pub(crate) fn name_by_id(id: u32) -> String {
    by_id(id)
        .and_then(|program| info(program.as_fd()))
        .map(|info| info.name)
        .unwrap_or_default()
}

/// The result of running a program on a frame.
pub(crate) struct Ran {
    /// The XDP action.
    pub(crate) action: u32,
    /// The frame as the program left it.
    pub(crate) frame: Vec<u8>,
}

/// Room for headers that a program adds to a frame: more than the kernel's own headroom.
const GROWTH: usize = 512;

/// Runs an XDP program once on `frame`, on the current CPU.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<Ran> {
    let mut out = vec![0; frame.len() + GROWTH];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: both buffers are as long as the options say and outlive the call.
    check(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    out.truncate(options.data_size_out as usize);
    Ok(Ran {
        action: options.retval,
        frame: out,
    })
}

/// Whether this process can call bpf(2) at all, whatever the answer.
pub(crate) fn has_bpf() -> bool {
    let mut next = 0;
    // SAFETY: the kernel writes one number to `next`, a local that outlives the call.
    let asked = check(unsafe { libbpf_sys::bpf_prog_get_next_id(0, &mut next) });
    !asked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
}
