//! The only unsafe code of this crate: a hook that runs between `fork` and `exec`, and the two
//! `bpf` calls that attach a program of a few instructions to an interface.
//!
//! Everything else has a safe wrapper in `nix` or the standard library.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getpid;
use nix::unistd::getppid;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
/// `BPF_ALU64 | BPF_MOV | BPF_X`.
const MOVE_REGISTER: u8 = 0xbf;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
const SKB_VLAN_PUSH: i32 = 18;
const SKB_VLAN_POP: i32 = 19;
/// `TC_ACT_OK`.
const TC_OK: i32 = 0;

/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

/// The verdict of an [`attach_xdp`] program on every frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    /// `XDP_PASS`: as if the program were not there.
    Pass = 2,
    /// `XDP_TX`: back to where it came from.
    #[cfg(test)]
    Tx = 3,
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The start of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes the kernel kill the child with SIGKILL when the thread that starts it ends.
///
/// A child whose parent died before that fails to start.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let hook = move || -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls, both async-signal-safe, and
    // neither allocates, locks nor panics: its errors are plain numbers.
    unsafe { command.pre_exec(hook) };
}

/// Attaches a program with one verdict for all frames, in native mode, to an interface of the
/// calling thread's namespace, until the returned link is closed.
pub(crate) fn attach_xdp(interface_index: u32, verdict: Verdict) -> io::Result<OwnedFd> {
    let program = [
        instruction(MOVE, 0, verdict as i32),
        instruction(EXIT, 0, 0),
    ];
    let program = load(BPF_PROG_TYPE_XDP, &program)?;
    link(&program, interface_index, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

/// The direction of packets through an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Attaches a tcx program to an interface of the calling thread's namespace: it removes `count`
/// VLAN tags on arrival, or adds `tags` to what leaves, the inner one first.
pub(crate) fn attach_tags(
    interface_index: u32,
    direction: Direction,
    tags: &[(u16, u16)],
) -> io::Result<OwnedFd> {
    // Register 6 keeps the context, as calls clobber 1 to 5.
    let mut program = vec![instruction(MOVE_REGISTER, 6 | 1 << 4, 0)];
    for (protocol, tag) in tags {
        program.push(instruction(MOVE_REGISTER, 1 | 6 << 4, 0));
        match direction {
            Direction::Out => program.extend([
                instruction(MOVE, 2, protocol.to_be().into()),
                instruction(MOVE, 3, (*tag).into()),
                instruction(CALL, 0, SKB_VLAN_PUSH),
            ]),
            Direction::In => program.push(instruction(CALL, 0, SKB_VLAN_POP)),
        }
    }
    program.extend([instruction(MOVE, 0, TC_OK), instruction(EXIT, 0, 0)]);
    let program = load(BPF_PROG_TYPE_SCHED_CLS, &program)?;
    let attach_type = match direction {
        Direction::In => BPF_TCX_INGRESS,
        Direction::Out => BPF_TCX_EGRESS,
    };
    link(&program, interface_index, attach_type, 0)
}

fn instruction(code: u8, registers: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset: 0,
        immediate,
    }
}

fn load(prog_type: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = ProgLoad {
        prog_type,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().addr() as u64,
        license: c"MIT".as_ptr().addr() as u64,
    };
    // SAFETY: `load` is what `BPF_PROG_LOAD` takes, and its addresses are those of as many
    // instructions as it states and of a C string, all of which outlive the call.
    unsafe { bpf(BPF_PROG_LOAD, &load) }
}

fn link(
    program: &OwnedFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let create = LinkCreate {
        prog_fd: program.as_raw_fd(),
        target_ifindex,
        attach_type,
        flags,
    };
    // SAFETY: `create` is what `BPF_LINK_CREATE` takes and has no addresses.
    unsafe { bpf(BPF_LINK_CREATE, &create) }
}

/// # Safety
///
/// `attributes` must be what the kernel reads for `command`, without padding, and addresses in it
/// must be valid for that. The command must be one that returns a descriptor.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as the size says, from a reference to as many; the
    // rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, mem::size_of::<T>()) };
    let fd = RawFd::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    // SAFETY: by the caller's promise the result is a descriptor, new and owned by nobody yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
