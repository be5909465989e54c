//! Attaches one program by XDP: on which interfaces, in which mode.
//!
//! Each attachment is a BPF link of this process, which ends with it unless a pin keeps it. A
//! foreign program is never replaced.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use super::entry::beside;
use super::far_end::FarEnd;
use super::kept::PinName;
use super::kept::meanwhile;
use super::link_state::link_state;
use super::link_state::link_witness;
use super::list::Attached;
use super::list::Attachments;
use super::list::OnInterface;
use super::list::Replaceable;
use super::list::Witness;
use super::list::put_back;
use super::mode::NotNative;
use super::mode::XdpMode;
use super::place::AttachmentState;
use super::place::Target;
use super::place::here;
use super::sent::Before;
use super::sent::Reading;
use super::sent::Sender;
use crate::counters::InterfaceCounters;
use crate::error::ATTACH_NATIVE;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::link;
use crate::sys::link::Link;
use crate::sys::program;

/// The kind of its pins, in their names.
const KEPT: &str = "xdp";

/// What happens to the frames that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// They leave through an interface.
    Sent,
    /// They go to the host's network stack.
    Passed,
}

/// An attachment to an interface by XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachment {
    /// The interface's name: the current one if the calling thread is in its network namespace,
    /// else the last one seen from there.
    pub interface: String,
    /// The interface's index in its network namespace.
    pub index: u32,
    /// The kernel's id of that namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// The current mode: native or generic, never auto.
    pub mode: XdpMode,
    /// Why auto mode chose generic mode.
    pub not_native: Option<NotNative>,
    /// The id of the attached program.
    pub own_program: Option<u32>,
    /// The id of whatever XDP program the interface has now. `None` if it has none, is gone, or if
    /// the calling thread is in another network namespace.
    pub program: Option<u32>,
    /// Whether it is still there.
    pub state: AttachmentState,
}

/// An XDP program on an interface; detached on drop, unless a pin keeps it.
#[derive(Debug)]
pub(crate) struct XdpLink {
    target: Target,
    asked: XdpMode,
    mode: XdpMode,
    not_native: Option<NotNative>,
    before: Before,
    link: Link,
    /// The program that the link was last given.
    program: OwnedFd,
}

impl XdpLink {
    /// Attaches `program` to an interface of the calling thread's network namespace, unless it has
    /// another program.
    pub(crate) fn new(
        program: BorrowedFd<'_>,
        target: Target,
        mode: XdpMode,
        onward: Onward,
    ) -> Result<Self> {
        let (interface, index) = (target.name.as_str(), target.place.index);
        refuse_foreign(interface, index)?;
        let before = Before::now(&target);
        let mut not_native = None;
        let (got, link) = match mode {
            XdpMode::Offload => {
                return Err(Error::Unsupported {
                    what: format!("XDP offload on {interface}"),
                    reason: "network cards do not support maps of maps: use native or auto mode",
                });
            }
            XdpMode::Generic => (XdpMode::Generic, generic(program, interface, index)?),
            XdpMode::Native => (XdpMode::Native, native(program, interface, index)?),
            XdpMode::Auto if onward == Onward::Sent && sends_in_vain(interface, index) => {
                not_native = Some(NotNative::OtherEnd);
                (XdpMode::Generic, generic(program, interface, index)?)
            }
            XdpMode::Auto => match link::attach(program, index, link::XDP_FLAGS_DRV_MODE) {
                Ok(link) => (XdpMode::Native, link),
                Err(error) if is_final(&error) => return Err(refused(interface, index, error)),
                Err(error) => {
                    log::warn!("{interface}: no native XDP ({error}), using generic mode");
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    not_native = Some(NotNative::Refused { errno });
                    (XdpMode::Generic, generic(program, interface, index)?)
                }
            },
        };
        let program = program.try_clone_to_owned();
        let program = program.map_err(|error| kernel_error("attach XDP to", interface, error))?;
        Ok(Self {
            target,
            asked: mode,
            mode: got,
            not_native,
            before,
            link,
            program,
        })
    }

    /// Why auto mode did not choose native.
    pub(crate) fn not_native(&self) -> Option<&NotNative> {
        self.not_native.as_ref()
    }

    /// What the interface, in the calling thread's network namespace, has sent; `None` if unknown.
    fn sent(&self) -> Option<InterfaceCounters> {
        let place = self.target.place;
        let by = match self.mode {
            XdpMode::Generic => Sender::Stack,
            _ => Sender::Driver,
        };
        let reading = Reading::take(place.index, by);
        let reading = reading
            .inspect_err(|error| log::warn!("cannot read what an interface has sent: {error}"));
        let (interface, now) = reading.ok().flatten()?;
        let (sent, unsent) = self.before.until(&now)?;
        Some(InterfaceCounters {
            interface,
            index: place.index,
            namespace: place.namespace,
            sent,
            unsent,
        })
    }

    fn pin_name(&self) -> PinName {
        let words = [
            self.asked.to_string(),
            self.mode.to_string(),
            NotNative::number(self.not_native.as_ref()).to_string(),
        ];
        PinName::new(KEPT, &self.target, &words)
    }

    /// Pins it in a directory; after that only [detaching](Attached::detach) ends it.
    pub(crate) fn keep_in(&mut self, directory: &Path) -> Result<()> {
        let (path, meanwhile) = self.pin_name().paths(directory);
        self.keep_at(path, &meanwhile)
    }

    /// The same, with a pin beside the one at `path`.
    pub(crate) fn keep_beside(&mut self, path: &Path) -> Result<()> {
        let path = beside(path, &self.pin_name().file_name());
        let meanwhile = meanwhile(&path);
        self.keep_at(path, &meanwhile)
    }

    fn keep_at(&mut self, path: PathBuf, meanwhile: &Path) -> Result<()> {
        let kept = self.link.keep_at(path, meanwhile);
        kept.map_err(|error| kernel_error("pin the attachment to", &self.target.name, error))
    }

    /// Removes the pin, if any, so that the attachment ends with this value.
    pub(crate) fn unpin(&mut self) -> io::Result<()> {
        self.link.keep_no_more()
    }

    /// A pinned one, from its pin; `None` if the pin is not ours. It has one of these programs.
    pub(crate) fn kept_at(path: &Path, programs: &[BorrowedFd<'_>]) -> Result<Option<Self>> {
        Self::kept_as(path, path, programs)
    }

    /// The same for a pin beside another one; `rest` is the suffix of its name.
    pub(crate) fn kept_beside(
        path: &Path,
        rest: &str,
        programs: &[BorrowedFd<'_>],
    ) -> Result<Option<Self>> {
        Self::kept_as(path, Path::new(rest), programs)
    }

    fn kept_as(path: &Path, name: &Path, programs: &[BorrowedFd<'_>]) -> Result<Option<Self>> {
        let failed = |error| kernel_error("adopt", &path.display().to_string(), error);
        let Some(name) = PinName::of(KEPT, name) else {
            return Ok(None);
        };
        let (Some(asked), Some(mode), Some(reason)) = (name.word(0), name.word(1), name.word(2))
        else {
            return Ok(None);
        };
        let Some(link) = Link::kept_at(path).map_err(failed)? else {
            return Ok(None);
        };
        let present = link.info().map_err(failed)?.program;
        // If another process replaced the program, it is none of these.
        let own = program::numbered(programs, present).or(programs.first().copied());
        let Some(program) = own else {
            return Ok(None);
        };
        let target = name.target();
        Ok(Some(Self {
            before: Before::now(&target),
            target,
            asked,
            mode,
            not_native: NotNative::numbered(reason),
            program: program.try_clone_to_owned().map_err(failed)?,
            link,
        }))
    }

    /// The order of attaching, by link ids; unreadable ones come first.
    pub(crate) fn order(&self) -> u32 {
        self.link.info().map_or(0, |info| info.id)
    }

    fn describe(&self) -> Attachment {
        // First, because it looks at the name.
        let state = self.state();
        let program = match state {
            AttachmentState::Attached | AttachmentState::Replaced => {
                self.link.info().ok().map(|of| of.program)
            }
            AttachmentState::Gone if here() == Some(self.target.place.namespace) => {
                let present = link::present(self.target.place.index).ok();
                let programs = present.map(|of| [of.native, of.generic, of.offloaded]);
                programs.and_then(|of| of.into_iter().find(|number| *number != 0))
            }
            _ => None,
        };
        Attachment {
            own_program: program::info(self.program.as_fd()).ok().map(|of| of.id),
            program,
            interface: self.target.last_name(),
            index: self.target.place.index,
            namespace: self.target.place.namespace,
            mode: self.mode,
            not_native: self.not_native.clone(),
            state,
        }
    }
}

impl Attached for XdpLink {
    type Asked = XdpMode;
    const KIND: &'static str = "attachment";

    fn asked(&self) -> XdpMode {
        self.asked
    }

    fn state(&self) -> AttachmentState {
        let index = self.target.place.index;
        let is_it = |program| match link::present(index) {
            Ok(of) => [of.native, of.generic, of.offloaded].contains(&program),
            Err(error) => {
                log::warn!("cannot list the XDP programs of an interface: {error}");
                true
            }
        };
        link_state(&self.link, self.program.as_fd(), &self.target, is_it)
    }

    fn witness(&self) -> io::Result<Witness> {
        link_witness(&self.link, self.program.as_fd(), &self.target)
    }

    fn detach(&mut self) -> Result<()> {
        // Dropping the link does the rest.
        let unpinned = self.link.keep_no_more();
        unpinned.map_err(|error| kernel_error("unpin", &self.target.name, error))
    }

    fn succeed(&mut self, mut former: Self) {
        if let Err(error) = former.link.give_up_pin_to(&self.link) {
            log::warn!(
                "{}: cannot remove an earlier pin: {error}",
                self.target.name
            );
        }
    }
}

impl OnInterface for XdpLink {
    fn target(&self) -> &Target {
        &self.target
    }
}

impl Replaceable for XdpLink {
    type Program<'a> = BorrowedFd<'a>;
    type Kept = OwnedFd;

    fn prepare(&self, program: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        if self.state() == AttachmentState::Gone {
            log::warn!("{}: the attachment is gone", self.target.name);
            return Ok(None);
        }
        let program = program.try_clone_to_owned();
        let failed = |error| kernel_error("prepare another program for", &self.target.name, error);
        program.map(Some).map_err(failed)
    }

    fn switch(&mut self, program: OwnedFd) -> Result<OwnedFd> {
        let replaced = self
            .link
            .replace(program.as_fd(), Some(self.program.as_fd()));
        match replaced {
            // It went away in the meantime and has no program any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(program),
            Err(error) => Err(self.not_replaced(error)),
            Ok(()) => Ok(mem::replace(&mut self.program, program)),
        }
    }
}

impl XdpLink {
    /// Puts our program back into the link, whichever program it has.
    fn take_back(&self) -> Result<()> {
        let replaced = self.link.replace(self.program.as_fd(), None);
        match replaced {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(kernel_error(
                "put the previous program back on",
                &self.target.name,
                error,
            )),
            _ => Ok(()),
        }
    }

    /// The error for a link that kept its program. If the program is not ours, the kernel reports
    /// that replacing it is not permitted.
    fn not_replaced(&self, error: io::Error) -> Error {
        let interface = &self.target.name;
        if error.raw_os_error() == Some(libc::EPERM)
            && let (Ok(present), Ok(own)) = (self.link.info(), program::info(self.program.as_fd()))
            && present.program != own.id
        {
            return foreign(interface, present.program);
        }
        kernel_error("put another XDP program on", interface, error)
    }
}

impl Attachments<XdpLink> {
    /// Checks that the interface exists in the calling thread's network namespace and has no
    /// program, ours or others'.
    pub(crate) fn check_alone(&self, interface: &str) -> Result<Target> {
        let target = self.check(interface)?;
        refuse_foreign(interface, target.place.index)?;
        Ok(target)
    }

    /// Restores our program where another one replaced it in one of our links: tries all, and
    /// returns the first failure.
    pub(crate) fn take_back(&mut self) -> Result<()> {
        let replaced = self
            .iter()
            .filter(|held| held.state() == AttachmentState::Replaced);
        put_back(replaced.map(XdpLink::take_back))
    }

    /// Adds a new one and describes it.
    pub(crate) fn add_new(&mut self, new: XdpLink) -> Attachment {
        let attachment = new.describe();
        self.add(new);
        attachment
    }

    /// What the interfaces in the calling thread's network namespace have sent.
    pub(crate) fn sent(&self) -> Vec<InterfaceCounters> {
        self.here().filter_map(XdpLink::sent).collect()
    }

    fn here(&self) -> impl Iterator<Item = &XdpLink> {
        let here = here();
        self.present()
            .filter(move |held| Some(held.target.place.namespace) == here)
    }

    /// The attachments, as the kernel reports them.
    pub(crate) fn list(&self) -> Vec<Attachment> {
        self.iter().map(XdpLink::describe).collect()
    }
}

fn native(program: BorrowedFd<'_>, interface: &str, index: u32) -> Result<Link> {
    link::attach(program, index, link::XDP_FLAGS_DRV_MODE).map_err(|error| {
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Error::Unsupported {
                what: format!("native XDP on {interface}"),
                reason: "its driver has none: use mode generic or auto",
            }
        } else {
            refused(interface, index, error)
        }
    })
}

fn generic(program: BorrowedFd<'_>, interface: &str, index: u32) -> Result<Link> {
    link::attach(program, index, link::XDP_FLAGS_SKB_MODE)
        .map_err(|error| refused(interface, index, error))
}

/// Whether natively sent frames of an interface do not arrive; logs that.
fn sends_in_vain(interface: &str, index: u32) -> bool {
    match FarEnd::of(index) {
        Ok(Some(far @ FarEnd::TakesNone { .. })) => {
            log::info!(
                "{interface}: using generic mode, because {far} has no XDP program, so it would \
                 drop frames sent natively"
            );
            true
        }
        Ok(Some(far @ FarEnd::Unknown)) => {
            log::info!(
                "{interface}: {far} is in a network namespace that this process may not look \
                 into: unless it has an XDP program, frames sent natively do not arrive"
            );
            false
        }
        Ok(_) => false,
        Err(error) => {
            log::warn!("{interface}: cannot inspect the other end of the link: {error}");
            false
        }
    }
}

/// Whether generic mode would fail for the same reason.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENODEV | libc::EBUSY | libc::EEXIST)
    )
}

fn refuse_foreign(interface: &str, index: u32) -> Result<()> {
    let present = link::present(index)
        .map_err(|error| kernel_error("list the XDP programs of", interface, error))?;
    let id = [present.native, present.generic, present.offloaded]
        .into_iter()
        .find(|id| *id != 0);
    match id {
        None => Ok(()),
        Some(id) => Err(foreign(interface, id)),
    }
}

fn foreign(interface: &str, program_id: u32) -> Error {
    Error::ForeignProgram {
        interface: interface.to_owned(),
        program_id,
        program_name: program::name_by_id(program_id),
    }
}

fn refused(interface: &str, index: u32, error: io::Error) -> Error {
    match error.raw_os_error() {
        // Another process attached since we looked.
        Some(libc::EBUSY | libc::EEXIST) => refuse_foreign(interface, index)
            .err()
            .unwrap_or_else(|| kernel_error("attach XDP to", interface, error)),
        Some(libc::ENODEV) => Error::NoSuchInterface {
            interface: interface.to_owned(),
        },
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) => {
            kernel_error(ATTACH_NATIVE, interface, error)
        }
        _ => kernel_error("attach XDP to", interface, error),
    }
}
