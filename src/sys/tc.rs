//! Attaches tc programs: by tcx links, and as filters of a clsact queueing discipline.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use super::check;
use super::link;
use super::link::Link;

/// Which packets of an interface a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Incoming ones.
    Ingress,
    /// Outgoing ones.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl FromStr for Direction {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let both = [Self::Ingress, Self::Egress];
        both.into_iter().find(|of| of.to_string() == text).ok_or(())
    }
}

/// Attaches a program by a tcx link, after those that are there. Needs Linux 6.6; an older kernel
/// returns `EINVAL`.
pub(crate) fn attach_tcx(
    program: BorrowedFd<'_>,
    index: u32,
    direction: Direction,
) -> io::Result<Link> {
    let kind = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    link::create(program, index as i32, kind, 0)
}

/// A place for a filter: an interface of the calling thread's network namespace, a direction, and a
/// priority. Our filters have handle 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterPlace {
    pub(crate) index: u32,
    pub(crate) direction: Direction,
    pub(crate) priority: u16,
}

/// The handle of our filters.
pub(crate) const HANDLE: u32 = 1;

impl FilterPlace {
    fn hook(self) -> libbpf_sys::bpf_tc_hook {
        libbpf_sys::bpf_tc_hook {
            sz: mem::size_of::<libbpf_sys::bpf_tc_hook>() as _,
            ifindex: self.index as i32,
            attach_point: match self.direction {
                Direction::Ingress => libbpf_sys::BPF_TC_INGRESS,
                Direction::Egress => libbpf_sys::BPF_TC_EGRESS,
            },
            ..Default::default()
        }
    }

    fn options(self) -> libbpf_sys::bpf_tc_opts {
        libbpf_sys::bpf_tc_opts {
            sz: mem::size_of::<libbpf_sys::bpf_tc_opts>() as _,
            handle: HANDLE,
            priority: self.priority.into(),
            ..Default::default()
        }
    }

    /// Makes the clsact discipline; false if there is one.
    pub(crate) fn make_clsact(self) -> io::Result<bool> {
        let mut hook = self.hook();
        // SAFETY: `hook` makes a hook with all fields and its size; it is a local, so it outlives
        // the call.
        match check(unsafe { libbpf_sys::bpf_tc_hook_create(&mut hook) }) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the clsact discipline with all that is in it.
    pub(crate) fn remove_clsact(self) -> io::Result<()> {
        let mut hook = self.hook();
        hook.attach_point = libbpf_sys::BPF_TC_INGRESS | libbpf_sys::BPF_TC_EGRESS;
        // SAFETY: `hook` makes a hook with all fields and its size; it is a local, so it outlives
        // the call.
        check(unsafe { libbpf_sys::bpf_tc_hook_destroy(&mut hook) }).map(drop)
    }

    /// Makes a filter.
    pub(crate) fn make(self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.put(program, 0)
    }

    /// Replaces the program in our filter.
    pub(crate) fn replace(self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.put(program, libbpf_sys::BPF_TC_F_REPLACE)
    }

    fn put(self, program: BorrowedFd<'_>, flags: libbpf_sys::bpf_tc_flags) -> io::Result<()> {
        let (hook, mut options) = (self.hook(), self.options());
        options.prog_fd = program.as_raw_fd();
        options.flags = flags;
        // SAFETY: `hook` and `options` make structs with all fields and their sizes; they are
        // locals, so they outlive the call. The borrow keeps the program's descriptor open.
        check(unsafe { libbpf_sys::bpf_tc_attach(&hook, &mut options) }).map(drop)
    }

    /// Removes the filter that is there.
    pub(crate) fn detach(self) -> io::Result<()> {
        let (hook, options) = (self.hook(), self.options());
        // SAFETY: `hook` and `options` make structs with all fields and their sizes; they are
        // locals, so they outlive the call.
        check(unsafe { libbpf_sys::bpf_tc_detach(&hook, &options) }).map(drop)
    }
}
