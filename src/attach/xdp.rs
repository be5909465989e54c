//! XDP attachments of one program: on which interfaces, in which mode.
//!
//! Each is a BPF link that this process owns, so it ends with the process at the latest, and a
//! foreign program is never replaced.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::str::FromStr;

use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::link;
use crate::sys::link::Link;
use crate::sys::program;

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum XdpMode {
    /// [`Native`](Self::Native) where the driver has it, else [`Generic`](Self::Generic).
    #[default]
    Auto,
    /// In the driver, before the kernel makes a socket buffer: the fast one.
    Native,
    /// In the network stack: any interface, several times slower.
    Generic,
    /// On the network card. Always refused: no card's offload has the maps of maps that rings
    /// and flow tables are made of.
    Offload,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

impl FromStr for XdpMode {
    type Err = Error;

    /// `auto`, `native`, `generic` or `offload`.
    fn from_str(text: &str) -> Result<Self> {
        [Self::Auto, Self::Native, Self::Generic, Self::Offload]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "an XDP mode: `auto`, `native`, `generic` or `offload`",
            })
    }
}

/// An attachment in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachment {
    /// The interface's name when it was attached.
    pub interface: String,
    /// The interface's index in its network namespace.
    pub index: u32,
    /// The mode in force: native or generic, never auto.
    pub mode: XdpMode,
}

/// The attachments of one program; all are detached on drop.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    attached: Vec<Attached>,
    /// Where auto mode has become generic: the interface's index, and with what error the driver refused.
    refusals: Vec<(u32, i32)>,
}

#[derive(Debug)]
struct Attached {
    attachment: Attachment,
    link: Link,
    /// It has kept a program that it was to be rid of again.
    stray: bool,
}

impl Attachments {
    /// Whether there is such an interface, and neither we nor others are on it: its index.
    pub(crate) fn check(&mut self, interface: &str) -> Result<u32> {
        let index = self.check_own(interface)?;
        refuse_foreign(interface, index)?;
        Ok(index)
    }

    /// Whether there is such an interface, and we are not on it: its index. An attachment to a former
    /// interface of that name, which is gone, is forgotten.
    pub(crate) fn check_own(&mut self, interface: &str) -> Result<u32> {
        let index = if_nametoindex(interface).map_err(|_| Error::NoSuchInterface {
            interface: interface.to_owned(),
        })?;
        if let Some(position) = self.find(interface) {
            if !self.attached[position].link.is_gone() {
                return Err(Error::AlreadyExists {
                    what: format!("the attachment to {interface}"),
                });
            }
            drop(self.attached.remove(position));
        }
        Ok(index)
    }

    /// Attaches `program` to an interface of the calling thread's network namespace.
    pub(crate) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        interface: &str,
        mode: XdpMode,
    ) -> Result<Attachment> {
        let index = self.check(interface)?;
        if mode == XdpMode::Offload {
            return Err(Error::Unsupported {
                what: format!("XDP offload on {interface}"),
                reason: "network cards offer no maps of maps: use native or auto mode",
            });
        }
        self.refusals.retain(|(refusing, _)| *refusing != index);
        let (mode, link) = match mode {
            XdpMode::Generic => (XdpMode::Generic, generic(program, interface, index)?),
            XdpMode::Native => (XdpMode::Native, native(program, interface, index)?),
            _ => match link::attach(program, index, link::XDP_FLAGS_DRV_MODE) {
                Ok(link) => (XdpMode::Native, link),
                Err(error) if is_final(&error) => return Err(refused(interface, index, error)),
                Err(error) => {
                    log::warn!("{interface}: no native XDP ({error}), using generic mode");
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    self.refusals.push((index, errno));
                    (XdpMode::Generic, generic(program, interface, index)?)
                }
            },
        };
        let attachment = Attachment {
            interface: interface.to_owned(),
            index,
            mode,
        };
        self.attached.push(Attached {
            attachment: attachment.clone(),
            link,
            stray: false,
        });
        Ok(attachment)
    }

    /// Detaches from one interface, by the name it had when it was attached.
    pub(crate) fn detach(&mut self, interface: &str) -> Result<()> {
        let position = self.find(interface).ok_or_else(|| Error::NotFound {
            what: format!("an attachment to {interface}"),
        })?;
        self.attached.remove(position);
        Ok(())
    }

    /// Puts another program in the place of the present one on all interfaces, or on none, as far as
    /// the kernel lets it: see [`has_strays`](Self::has_strays).
    pub(crate) fn replace(&mut self, after: BorrowedFd<'_>, before: BorrowedFd<'_>) -> Result<()> {
        for at in 0..self.attached.len() {
            let Attached {
                attachment,
                link,
                stray,
            } = &mut self.attached[at];
            let Err(error) = link.replace(after, (!*stray).then_some(before)) else {
                *stray = false;
                continue;
            };
            // The link of an interface that is gone has no program any more.
            if error.raw_os_error() == Some(libc::ENOLINK) {
                log::warn!("{}: the interface is gone", attachment.interface);
                continue;
            }
            let error = not_replaced(attachment, link, before, error);
            put_back(&mut self.attached[..at], after, before);
            return Err(error);
        }
        Ok(())
    }

    /// Takes back a [`replace`](Self::replace) that has just been made.
    pub(crate) fn put_back(&mut self, after: BorrowedFd<'_>, before: BorrowedFd<'_>) {
        put_back(&mut self.attached, after, before);
    }

    /// Whether packets on an interface still meet a program that was to be taken back, as the kernel has
    /// refused that. The next [`replace`](Self::replace) sees to it.
    pub(crate) fn has_strays(&self) -> bool {
        self.attached.iter().any(|attached| attached.stray)
    }

    /// Pins one attachment at a path.
    pub(crate) fn pin(&self, interface: &str, path: &Path) -> io::Result<()> {
        match self.find(interface) {
            Some(position) => self.attached[position].link.pin(path),
            None => Ok(()),
        }
    }

    /// Removes the pin that was just made.
    pub(crate) fn unpin(&self, interface: &str, path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            log::error!("the attachment to {interface} stays pinned: {error}");
        }
    }

    /// Lets go of all attachments, which are pinned.
    pub(crate) fn leave(&mut self) {
        for attached in self.attached.drain(..) {
            attached.link.leave();
        }
    }

    /// Detaches from all interfaces.
    pub(crate) fn clear(&mut self) {
        self.attached.clear();
    }

    /// The error with which an interface's driver refused native mode, when auto mode asked for it.
    pub(crate) fn refusal(&self, index: u32) -> Option<i32> {
        let mut refusals = self.refusals.iter();
        refusals
            .find(|(refusing, _)| *refusing == index)
            .map(|(_, errno)| *errno)
    }

    /// The attachments in force.
    pub(crate) fn list(&self) -> impl Iterator<Item = &Attachment> {
        self.attached.iter().map(|attached| &attached.attachment)
    }

    fn find(&self, interface: &str) -> Option<usize> {
        self.list()
            .position(|attachment| attachment.interface == interface)
    }
}

fn put_back(attached: &mut [Attached], after: BorrowedFd<'_>, before: BorrowedFd<'_>) {
    for Attached {
        attachment,
        link,
        stray,
    } in attached
    {
        match link.replace(before, Some(after)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                log::error!("{}: the new program stays: {error}", attachment.interface);
                *stray = true;
            }
            _ => {}
        }
    }
}

fn native(program: BorrowedFd<'_>, interface: &str, index: u32) -> Result<Link> {
    link::attach(program, index, link::XDP_FLAGS_DRV_MODE).map_err(|error| {
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Error::Unsupported {
                what: format!("native XDP on {interface}"),
                reason: "its driver has none: use XdpMode::Generic or XdpMode::Auto",
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

/// Whether generic mode would be refused for the same reason.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENODEV | libc::EBUSY | libc::EEXIST)
    )
}

fn refuse_foreign(interface: &str, index: u32) -> Result<()> {
    let present = link::present(index)
        .map_err(|error| kernel_error("ask for the XDP programs of", interface, error))?;
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

/// The error for a link that kept its program. The kernel says of a program other than `before` that
/// to replace it is not permitted.
fn not_replaced(
    attachment: &Attachment,
    link: &Link,
    before: BorrowedFd<'_>,
    error: io::Error,
) -> Error {
    if error.raw_os_error() == Some(libc::EPERM)
        && let (Ok(present), Ok(own)) = (link.program_id(), program::info(before))
        && present != own.id
    {
        return foreign(&attachment.interface, present);
    }
    let what = "put another XDP program on";
    kernel_error(what, &attachment.interface, error)
}

fn refused(interface: &str, index: u32, error: io::Error) -> Error {
    match error.raw_os_error() {
        // Somebody else was faster since we looked.
        Some(libc::EBUSY | libc::EEXIST) => refuse_foreign(interface, index)
            .err()
            .unwrap_or_else(|| kernel_error("attach XDP to", interface, error)),
        Some(libc::ENODEV) => Error::NoSuchInterface {
            interface: interface.to_owned(),
        },
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) => kernel_error(
            "attach XDP in native mode (the MTU may be too large for one page: lower it, set \
             frags, or use generic mode) to",
            interface,
            error,
        ),
        _ => kernel_error("attach XDP to", interface, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_a_text_form() {
        for text in ["auto", "native", "generic", "offload"] {
            assert_eq!(text.parse::<XdpMode>().unwrap().to_string(), text);
        }
        let error = "Native".parse::<XdpMode>().unwrap_err().to_string();
        assert!(error.starts_with("`Native` is not an XDP mode"), "{error}");
    }
}
