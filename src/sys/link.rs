//! Attaches XDP programs to interfaces, and sockops programs to cgroups.
//!
//! Attachments are BPF links: the kernel removes one when its last descriptor is closed, so a
//! process that dies leaves nothing behind, unless it has pinned the link. A link never replaces
//! another owner's program.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use super::check;
use super::fdinfo::FdInfo;
use super::process::Owner;

/// Flags of linux/if_link.h.
pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// Flags of linux/if_link.h.
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// A program's attachment. Dropping it detaches the program, except in a child made by fork(2), or
/// if a pin keeps it.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd, Owner, Option<PathBuf>);

impl Link {
    /// Detaches at once. Closing the descriptor would not, while a child that was just forked holds
    /// a copy.
    pub(crate) fn detach(&self) -> io::Result<()> {
        // SAFETY: `self` owns the link's descriptor, which stays open during the call; the kernel
        // accesses no memory of ours.
        check(unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) }).map(drop)
    }
}

impl Link {
    /// Replaces the program `before`, or whatever is there, atomically: each packet meets one of
    /// the two.
    pub(crate) fn replace(
        &self,
        program: BorrowedFd<'_>,
        before: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let options = libbpf_sys::bpf_link_update_opts {
            sz: mem::size_of::<libbpf_sys::bpf_link_update_opts>() as _,
            flags: before.map_or(0, |_| libbpf_sys::BPF_F_REPLACE),
            old_prog_fd: before.map_or(0, |before| before.as_raw_fd() as _),
            ..Default::default()
        };
        // SAFETY: `self` and the borrows keep all descriptors open; the options are a local with
        // all fields and its size, so they outlive the call.
        check(unsafe {
            libbpf_sys::bpf_link_update(self.0.as_raw_fd(), program.as_raw_fd(), &options)
        })
        .map(drop)
    }
}

/// What the kernel says about a link to an interface.
pub(crate) struct LinkInfo {
    /// The link's id: a later link has a higher one.
    pub(crate) id: u32,
    /// The id of its program.
    pub(crate) program: u32,
    /// The index of its interface; 0: the interface is gone.
    pub(crate) index: u32,
}

impl Link {
    /// Asks about a link of XDP or tcx.
    pub(crate) fn info(&self) -> io::Result<LinkInfo> {
        info_of(self.0.as_fd())
    }

    /// A descriptor to ask about the link on another thread.
    pub(crate) fn witness(&self) -> io::Result<LinkWitness> {
        self.0.try_clone().map(LinkWitness)
    }
}

/// What the kernel says about a link to a cgroup.
pub(crate) struct CgroupLinkInfo {
    /// The id of its program.
    pub(crate) program: u32,
    /// The cgroup's id; 0: the cgroup is gone.
    pub(crate) cgroup: u64,
}

impl Link {
    /// Asks about a link to a cgroup.
    pub(crate) fn cgroup_info(&self) -> io::Result<CgroupLinkInfo> {
        cgroup_info_of(self.0.as_fd())
    }
}

/// A descriptor to ask about a link. It does not keep the link attached, which ends when the
/// [`Link`] is dropped.
#[derive(Debug)]
pub(crate) struct LinkWitness(OwnedFd);

impl LinkWitness {
    pub(crate) fn info(&self) -> io::Result<LinkInfo> {
        info_of(self.0.as_fd())
    }

    pub(crate) fn cgroup_info(&self) -> io::Result<CgroupLinkInfo> {
        cgroup_info_of(self.0.as_fd())
    }
}

fn ask(link: BorrowedFd<'_>) -> io::Result<libbpf_sys::bpf_link_info> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: `info` outlives the call, and is as long as `length` says.
    check(unsafe {
        libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length)
    })?;
    Ok(info)
}

fn cgroup_info_of(link: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    let info = ask(link)?;
    Ok(CgroupLinkInfo {
        program: info.prog_id,
        // SAFETY: every bit pattern is a valid number, and a link to a cgroup has it in this field
        // of the union.
        cgroup: unsafe { info.__bindgen_anon_1.cgroup.cgroup_id },
    })
}

fn info_of(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let info = ask(link)?;
    Ok(LinkInfo {
        id: info.id,
        program: info.prog_id,
        // SAFETY: every bit pattern is a valid number, and links of XDP and of tcx both begin with
        // it.
        index: unsafe { info.__bindgen_anon_1.xdp.ifindex },
    })
}

impl Link {
    /// Pins the attachment at a path, replacing what is pinned there, so that it outlives this
    /// link.
    pub(crate) fn keep_at(&mut self, path: PathBuf, meanwhile: &Path) -> io::Result<()> {
        super::pin::replace(self.0.as_fd(), &path, meanwhile)?;
        self.2 = Some(path);
        Ok(())
    }

    /// An attachment of XDP or tcx by the pin that keeps it; `None` if another object is pinned.
    pub(crate) fn kept_at(path: &Path) -> io::Result<Option<Self>> {
        Self::kept_of(&["xdp", "tcx"], path)
    }

    /// The same for an attachment to a cgroup.
    pub(crate) fn kept_at_cgroup(path: &Path) -> io::Result<Option<Self>> {
        Self::kept_of(&["cgroup"], path)
    }

    fn kept_of(kinds: &[&str], path: &Path) -> io::Result<Option<Self>> {
        let fd = super::pin::open(path)?;
        let info = FdInfo::of(fd.as_fd())?;
        let is_ours = info.text("link_type").is_some_and(|of| kinds.contains(&of));
        Ok(is_ours.then(|| Self(fd, Owner::new(), Some(path.to_owned()))))
    }

    /// Removes its pin, if any, so that it ends with this link again. Detaches first, so a process
    /// that dies in between has detached it.
    pub(crate) fn keep_no_more(&mut self) -> io::Result<()> {
        if let Some(path) = &self.2 {
            super::pin::remove(path)?;
        }
        self.2 = None;
        Ok(())
    }

    /// Another link has taken its pin's place: it ends with this link again, and the pin stays.
    pub(crate) fn give_up_pin_to(&mut self, other: &Self) -> io::Result<()> {
        match self.2 == other.2 {
            true => {
                self.2 = None;
                Ok(())
            }
            false => self.keep_no_more(),
        }
    }
}

impl From<PinnedXdp> for Link {
    fn from(pinned: PinnedXdp) -> Self {
        Self(pinned.fd, Owner::new(), None)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.2.is_some() || !self.1.is_here() {
            return;
        }
        // Fails if the interface is gone, when there is nothing to undo.
        if let Err(error) = self.detach() {
            log::debug!("nothing to detach: {error}");
        }
    }
}

/// A pinned XDP attachment of any owner; dropping this leaves it as it is.
#[derive(Debug)]
pub(crate) struct PinnedXdp {
    fd: OwnedFd,
    /// The id of its program.
    pub(crate) program: u32,
}

impl PinnedXdp {
    /// Opens what is pinned at a path; `None` if it is not an XDP attachment.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let fd = super::pin::open(path)?;
        let info = FdInfo::of(fd.as_fd())?;
        if info.text("link_type") != Some("xdp") {
            return Ok(None);
        }
        Ok(Some(Self {
            program: info.number("prog_id")?,
            fd,
        }))
    }
}

/// Attaches an XDP program to an interface of the calling thread's network namespace.
pub(crate) fn attach(program: BorrowedFd<'_>, index: u32, flags: u32) -> io::Result<Link> {
    create(program, index as i32, libbpf_sys::BPF_XDP, flags)
}

pub(super) fn create(
    program: BorrowedFd<'_>,
    target: i32,
    kind: libbpf_sys::bpf_attach_type,
    flags: u32,
) -> io::Result<Link> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: mem::size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: the options are initialised and outlive the call.
    let fd =
        check(unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), target, kind, &options) })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Link(fd, Owner::new(), None))
}

/// Attaches a sockops program to a cgroup, beside any others.
pub(crate) fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<Link> {
    create(
        program,
        cgroup.as_raw_fd(),
        libbpf_sys::BPF_CGROUP_SOCK_OPS,
        0,
    )
}

/// A driver sends redirected frames (linux/netdev.h).
pub(crate) const XDP_ACT_NDO_XMIT: u64 = 1 << 2;

/// The ids of the XDP programs on an interface, in native and in generic mode; 0: none.
pub(crate) struct Present {
    pub(crate) native: u32,
    pub(crate) generic: u32,
    pub(crate) offloaded: u32,
    /// The driver's features, bits of linux/netdev.h; 0 if the kernel does not report them (before
    /// 6.3).
    pub(crate) features: u64,
}

/// Asks which XDP programs run on an interface.
pub(crate) fn present(index: u32) -> io::Result<Present> {
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: mem::size_of::<libbpf_sys::bpf_xdp_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: the options are initialised and outlive the call.
    check(unsafe { libbpf_sys::bpf_xdp_query(index as i32, 0, &mut options) })?;
    Ok(Present {
        native: options.drv_prog_id,
        generic: options.skb_prog_id,
        offloaded: options.hw_prog_id,
        features: options.feature_flags,
    })
}
