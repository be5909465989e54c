//! A root program: the program on an interface that several XDP programs share. It gives each frame
//! to the first of its entries that is set, and passes it if none is.

mod beside;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use crate::attach::Attached;
use crate::attach::Attachment;
use crate::attach::AttachmentState;
use crate::attach::Attachments;
use crate::attach::Onward;
use crate::attach::SharedEntries;
use crate::attach::XdpLink;
use crate::attach::XdpMode;
use crate::attach::beside;
use crate::attach::directory_of;
use crate::attach::made_for;
use crate::attach::put_back;
use crate::attach::special_pins;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::kernel;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::skel::katran::types::root_constant;
use crate::skel::root::RootSkelBuilder;
use crate::sys::link::Link;
use crate::sys::map::PerCpuArray;
use crate::sys::object;
use crate::sys::object::into_io;
use crate::sys::pin;
use beside::end_unfinished;
use beside::files_when_made;
use beside::own_parts;
use beside::pinned_attachments;
use beside::unlisted;
use beside::unpin;
use beside::unpinned;

/// Settings of a root program.
///
/// ```no_run
/// use katran::RootProgram;
///
/// let root = RootProgram::builder().entries(8).frags(true).load()?;
/// assert_eq!(root.entries().count(), 8);
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RootProgramBuilder {
    entries: u32,
    frags: bool,
}

impl Default for RootProgramBuilder {
    fn default() -> Self {
        Self {
            entries: root_constant::ROOT_ENTRIES.0,
            frags: false,
        }
    }
}

/// # Settings and loading
impl RootProgramBuilder {
    /// The number of programs that can share the interface. Default: 3. Range: 1 to 16.
    pub fn entries(mut self, entries: u32) -> Self {
        self.entries = entries;
        self
    }

    /// Whether frames may come in several buffers; the programs of all entries must have the same
    /// setting ([`Builder::frags`](crate::Builder::frags)). Default: off.
    pub fn frags(mut self, on: bool) -> Self {
        self.frags = on;
        self
    }

    /// Loads the program. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the number of entries; [`Error::KernelTooOld`],
    /// [`Error::BpfUnavailable`], [`Error::Privilege`], [`Error::Verifier`], [`Error::Kernel`].
    pub fn load(self) -> Result<RootProgram> {
        let most = root_constant::ROOT_MOST_ENTRIES.0;
        if !(1..=most).contains(&self.entries) {
            return Err(Error::InvalidConfig {
                setting: "entries",
                value: self.entries.to_string(),
                reason: format!("must be 1 to {most}"),
            });
        }
        environment::check_kernel()?;
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(RootSkelBuilder::default(), &mut storage)?;
        let sized = open.maps.programs.set_max_entries(self.entries);
        sized.map_err(|error| kernel_error("set the size of", "programs", into_io(error)))?;
        let constants = constants("katran_root", open.maps.rodata_data.as_deref_mut())?;
        constants.entries = self.entries;
        let program = &mut open.progs.katran_root;
        if self.frags {
            program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let skel = object::load(open, &["katran_root"])
            .map_err(|refused| load_error("katran_root", refused))?;
        let take_over = || -> io::Result<_> {
            Ok((
                skel.maps.programs.as_fd().try_clone_to_owned()?,
                skel.maps.passed.as_fd().try_clone_to_owned()?,
                skel.progs.katran_root.as_fd().try_clone_to_owned()?,
            ))
        };
        let failed = |error| kernel_error("open", "katran_root", error);
        let (array, passed, program) = take_over().map_err(failed)?;
        Ok(RootProgram {
            attachments: Attachments::default(),
            entries: SharedEntries::of(Path::new(""), array)?,
            passed: PerCpuArray::new(passed).map_err(failed)?,
            program,
            pinned: None,
        })
    }
}

/// Pinned beside the array: the program, and the map of its counters.
const PROGRAM: &str = "program";
const PASSED: &str = "passed";

/// A loaded root program. Dropping it detaches it, unless it is pinned.
///
/// The programs that share an interface are entries of its array, and find it by its pin: a
/// balancer by [`Katran::attach_shared`](crate::Katran::attach_shared), others by
/// [`SharedEntries`]. A pinned root program outlives its process and every program in it; the next
/// process continues with it by [`adopt`](Self::adopt).
///
/// ```no_run
/// use katran::RootProgram;
/// use katran::XdpMode;
///
/// let mut root = RootProgram::builder().load()?;
/// root.attach("eth0", XdpMode::Auto)?;
/// root.pin("/sys/fs/bpf/katran_root")?;
/// drop(root); // stays on the interface
/// # let mut katran = katran::Katran::builder().load()?;
/// katran.attach_shared("/sys/fs/bpf/katran_root", 2)?;
/// # Ok::<(), katran::Error>(())
/// ```
#[must_use = "a root program is gone when its handle is dropped, unless it is pinned"]
pub struct RootProgram {
    attachments: Attachments<XdpLink>,
    entries: SharedEntries,
    passed: PerCpuArray<u64>,
    program: OwnedFd,
    pinned: Option<PathBuf>,
}

/// # Attaching, entries and pinning
impl RootProgram {
    /// Settings to load a root program with.
    pub fn builder() -> RootProgramBuilder {
        RootProgramBuilder::default()
    }

    /// Attaches to an interface of the calling thread's network namespace; if the root program is
    /// pinned, pins the attachment, too. It replaces an attachment to an earlier interface of that
    /// name that is gone.
    ///
    /// # Errors
    /// As [`Katran::attach`](crate::Katran::attach) and [`pin`](Self::pin).
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        let target = self.attachments.check(interface)?;
        let mut new = XdpLink::new(self.program.as_fd(), target, mode, Onward::Sent)?;
        if let Some(path) = &self.pinned {
            // Dropping the new attachment detaches it.
            new.keep_beside(path)?;
        }
        Ok(self.attachments.add_new(new))
    }

    /// Attaches again what is gone ([`AttachmentState::Gone`]), where the calling thread's network
    /// namespace has an interface of that name again, and where another program has replaced this
    /// one.
    ///
    /// # Errors
    /// As [`attach`](Self::attach): the first failure, after the library has tried all.
    pub fn reattach(&mut self) -> Result<()> {
        let lost = self.attachments.lost().into_iter();
        let again = put_back(lost.map(|(name, mode)| self.attach(&name, mode).map(drop)));
        again.and(self.attachments.take_back())
    }

    /// The interfaces it was attached to, in the order of attaching, each with what the kernel
    /// reports about it.
    pub fn interfaces(&self) -> Vec<Attachment> {
        self.attachments.list()
    }

    /// Its entries.
    pub fn entries(&self) -> &SharedEntries {
        &self.entries
    }

    /// Frames that no entry took.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn passed(&self) -> Result<u64> {
        let counts = self.passed.get(0);
        let counts = counts.map_err(|error| kernel_error("read", "passed", error))?;
        Ok(counts.iter().sum())
    }

    /// Pins the array of programs at `path`, in a BPF file system, and the program and each
    /// attachment beside it, under names that begin with `path_`. From then on they stay when this
    /// handle is dropped or the process ends.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if something is pinned there, or this root program is pinned
    /// already (to continue with it, use [`adopt`](Self::adopt)); [`Error::InvalidConfig`] if the
    /// directory does not exist or is not in a BPF file system; [`Error::Kernel`]. Nothing is
    /// pinned then.
    pub fn pin(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if let Some(pinned) = &self.pinned {
            return Err(Error::AlreadyExists {
                what: format!("the pinned array {}", pinned.display()),
            });
        }
        check_directory(path)?;
        let array = self.entries.as_fd().try_clone_to_owned();
        let array = array.map_err(|error| pin_error(path, error))?;
        let entries = SharedEntries::of(path, array)?;
        // The array first: it leads to the rest.
        let mut done = Vec::new();
        for (path, object) in [
            (path.to_owned(), entries.as_fd()),
            (beside(path, PROGRAM), self.program.as_fd()),
            (beside(path, PASSED), self.passed.as_fd()),
        ] {
            if let Err(error) = pin::pin(object, &path) {
                unpin(&done);
                return Err(pin_error(&path, error));
            }
            done.push(path);
        }
        // One that is gone has nothing to keep.
        let is_there = |of: &&mut XdpLink| of.state() != AttachmentState::Gone;
        let kept = self.attachments.iter_mut().filter(is_there);
        let kept = { kept }.try_for_each(|attached| attached.keep_beside(path));
        if let Err(error) = kept {
            for attached in self.attachments.iter_mut() {
                if let Err(error) = attached.unpin() {
                    log::error!("cannot unpin an attachment: {error}");
                }
            }
            unpin(&done);
            return Err(error);
        }
        self.entries = entries;
        self.pinned = Some(path.to_owned());
        Ok(())
    }

    /// Continues with the root program that is pinned at a path: to see where it is attached and
    /// what it has [passed](Self::passed), and to attach it elsewhere or [again](Self::reattach).
    ///
    /// Several processes may do so at once, because only the kernel keeps the state: the kernel
    /// lets one of them attach to an interface. If another process is about to pin an attachment,
    /// the call waits for it, at most half a second; it ends an attachment whose process died
    /// before pinning it. The program stays the one that was pinned, by whatever version of the
    /// crate: it is a loop over the entries. To change the number of entries or `frags`,
    /// [`remove`](Self::remove) it and load a new one.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned there, or only a part, because a process was killed
    /// while pinning: then [`remove`](Self::remove) the rest; [`Error::InvalidConfig`] if it is
    /// something else; [`Error::Privilege`]; [`Error::Kernel`]; [`Error::File`].
    pub fn adopt(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let entries = SharedEntries::open(path)?;
        let open = |name: &str| {
            let part = beside(path, name);
            pin::open(&part).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::NotFound {
                    what: format!(
                        "{} (the root program at {} is incomplete: remove it)",
                        part.display(),
                        path.display()
                    ),
                },
                _ => kernel_error("open", &part.display().to_string(), error),
            })
        };
        let failed = |error| kernel_error("adopt", &path.display().to_string(), error);
        let (program, passed) = (open(PROGRAM)?, open(PASSED)?);
        let mut attachments = Attachments::default();
        for (pin, rest) in files_when_made(path, &program)? {
            if made_for(&pin).is_some() {
                end_unfinished(&pin, &program).map_err(|error| unpinned(&pin, error))?;
                continue;
            }
            match XdpLink::kept_beside(&pin, &rest, &[program.as_fd()]) {
                Ok(link) => link.into_iter().for_each(|link| attachments.resume(link)),
                // Another process has put it back, or is removing everything.
                Err(_) if !pin.exists() => {}
                Err(error) => return Err(error),
            }
        }
        attachments.forget_succeeded();
        Ok(Self {
            attachments,
            entries,
            passed: PerCpuArray::new(passed).map_err(failed)?,
            program,
            pinned: Some(path.to_owned()),
        })
    }

    /// Removes a pinned root program: detaches it, and removes the pins of its attachments, of its
    /// array and of balancers in it. The programs in it end with it, unless another process has the
    /// array open. Other pins stay, whatever their names.
    ///
    /// Identifying an attachment's program takes `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned there; [`Error::InvalidConfig`] if it is something
    /// else; [`Error::Privilege`]; [`Error::Kernel`]; [`Error::File`]. Nothing is removed then,
    /// unless a file could not be removed.
    pub fn remove(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let array = SharedEntries::open(path)?;
        // A balancer that has just left has removed its own.
        let unlink = |path: &Path| pin::remove(path).map_err(|error| unpinned(path, error));
        let attachments = pinned_attachments(path, array.id())?;
        let of_entries = special_pins(path, None).map_err(|error| unlisted(path, error))?;
        // After unlinking alone the kernel would detach later.
        for (pin, attachment) in attachments {
            drop(Link::from(attachment));
            unlink(&pin)?;
        }
        of_entries.iter().try_for_each(|pin| unlink(pin))?;
        for pin in own_parts(path, array.id())? {
            unlink(&pin)?;
        }
        // Last: it leads to the rest.
        unlink(path)
    }
}

impl fmt::Debug for RootProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootProgram")
            .field("interfaces", &self.attachments)
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}

fn check_directory(path: &Path) -> Result<()> {
    let directory = directory_of(path);
    let reason = match pin::is_bpf_fs(directory) {
        Ok(true)
            if !path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .contains('.') =>
        {
            return Ok(());
        }
        Ok(true) => "names in a BPF file system must not contain dots".to_owned(),
        Ok(false) => format!(
            "{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and choose a path \
             there",
            directory.display()
        ),
        Err(error) => format!("{}: {error}", directory.display()),
    };
    Err(Error::InvalidConfig {
        setting: "map_path",
        value: path.display().to_string(),
        reason,
    })
}

fn pin_error(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists {
            what: path.display().to_string(),
        },
        _ => kernel_error("pin", &path.display().to_string(), error),
    }
}
