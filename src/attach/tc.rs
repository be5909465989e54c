//! tc attachments of one program: by tcx links where the kernel has them, else as filters of a clsact
//! queueing discipline.
//!
//! A tcx link ends with the process at the latest. A filter does not: it is removed on drop, and what a
//! process has left that was killed is recognised by the program's name and taken over. What others have
//! attached is never touched.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::thread;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sys::stat::fstat;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Requests;
use crate::rtnetlink::TcProgram;
use crate::sys::link::Link;
use crate::sys::program;
use crate::sys::tc;
use crate::sys::tc::Direction;
use crate::sys::tc::Place;
use crate::types::TcHook;

/// A tc attachment in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcAttachment {
    /// The interface's name when it was attached.
    pub interface: String,
    /// The interface's index in its network namespace.
    pub index: u32,
    /// The mechanism in force: tcx or clsact, never auto.
    pub hook: TcHook,
}

/// The tc attachments of one program; all are undone on drop.
#[derive(Debug, Default)]
pub(crate) struct TcAttachments {
    attached: Vec<(TcAttachment, Held)>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "held for what their drop does")]
enum Held {
    Link(Link),
    Filter(Filter),
}

impl TcAttachments {
    /// Attaches `program`, whose name is `name`, to an interface of the calling thread's network
    /// namespace.
    pub(crate) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        name: &str,
        interface: &str,
        (direction, priority): (Direction, u16),
        hook: TcHook,
    ) -> Result<TcAttachment> {
        self.check(interface)?;
        let index = if_nametoindex(interface).map_err(|_| Error::NoSuchInterface {
            interface: interface.to_owned(),
        })?;
        check_ethernet(interface, index)?;
        let place = Place {
            index,
            direction,
            priority,
        };
        let clsact = || Filter::attach(program, name, interface, place).map(Held::Filter);
        let (hook, held) = match hook {
            TcHook::Clsact => (TcHook::Clsact, clsact()?),
            _ => match tc::attach_tcx(program, index, direction) {
                Ok(link) => (TcHook::Tcx, Held::Link(link)),
                Err(error) if hook == TcHook::Auto && is_unknown(&error) => {
                    log::info!("{interface}: this kernel has no tcx, using clsact");
                    (TcHook::Clsact, clsact()?)
                }
                Err(error) if is_unknown(&error) => {
                    return Err(Error::Unsupported {
                        what: format!("tcx on {interface}"),
                        reason: "it takes Linux 6.6: use TcHook::Clsact or TcHook::Auto",
                    });
                }
                Err(error) => return Err(kernel_error("attach tcx to", interface, error)),
            },
        };
        let attachment = TcAttachment {
            interface: interface.to_owned(),
            index,
            hook,
        };
        self.attached.push((attachment.clone(), held));
        Ok(attachment)
    }

    /// Whether we are not on this interface.
    pub(crate) fn check(&self, interface: &str) -> Result<()> {
        match self.list().any(|attached| attached.interface == interface) {
            false => Ok(()),
            true => Err(Error::AlreadyExists {
                what: format!("the tc attachment to {interface}"),
            }),
        }
    }

    /// Detaches from one interface, by the name it had when it was attached.
    pub(crate) fn detach(&mut self, interface: &str) -> Result<()> {
        let position = self
            .list()
            .position(|attached| attached.interface == interface);
        let position = position.ok_or_else(|| Error::NotFound {
            what: format!("a tc attachment to {interface}"),
        })?;
        if let Held::Filter(filter) = &self.attached[position].1 {
            let undone = filter.undo();
            undone.map_err(|error| kernel_error("remove the tc filter of", interface, error))?;
        }
        // Of a filter that is gone nothing is left to do.
        self.attached.remove(position);
        Ok(())
    }

    /// Detaches from all interfaces.
    pub(crate) fn clear(&mut self) {
        self.attached.clear();
    }

    /// The attachments in force.
    pub(crate) fn list(&self) -> impl Iterator<Item = &TcAttachment> {
        self.attached.iter().map(|(attachment, _)| attachment)
    }
}

/// Whether the kernel does not know this way to attach.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

/// A filter of ours, removed on drop.
#[derive(Debug)]
struct Filter {
    place: Place,
    program_id: u32,
    made_clsact: bool,
    /// Filters are told by indices, which are those of a namespace.
    namespace: File,
}

impl Filter {
    fn attach(program: BorrowedFd<'_>, name: &str, interface: &str, place: Place) -> Result<Self> {
        let failed = |error| kernel_error("attach a tc filter to", interface, error);
        let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        let program_id = program::info(program).map_err(failed)?.id;
        let mut requests = Requests::new().map_err(failed)?;
        let made_clsact = match requests.clsact(place.index).map_err(failed)? {
            None => place
                .make_clsact()
                .map_err(|error| kernel_error("make a clsact qdisc on", interface, error))?,
            Some(true) => false,
            Some(false) => {
                return Err(Error::Unsupported {
                    what: format!("a clsact filter on {interface}"),
                    reason: "an ingress qdisc has its place: remove that (`tc qdisc del dev ... \
                             ingress`), or use TcHook::Tcx",
                });
            }
        };
        // An empty one has nothing to ask for.
        let mut attach = || {
            let present = match made_clsact {
                true => None,
                false => present(&mut requests, place).map_err(failed)?,
            };
            match &present {
                Some(of) if of.name != name => {
                    return Err(Error::ForeignTcFilter {
                        interface: interface.to_owned(),
                        priority: place.priority,
                        program_id: of.id,
                        program_name: of.name.clone(),
                    });
                }
                Some(_) => {
                    log::info!("{interface}: takes over the tc filter that a process has left");
                }
                None => {}
            }
            place.attach(program, present.is_some()).map_err(failed)
        };
        if let Err(error) = attach() {
            if made_clsact && let Err(error) = place.remove_clsact() {
                log::warn!("cannot remove the clsact qdisc of {interface}: {error}");
            }
            return Err(error);
        }
        Ok(Self {
            place,
            program_id,
            made_clsact,
            namespace,
        })
    }

    /// Undoes the attachment; to be called in its namespace.
    fn remove(&self) -> io::Result<()> {
        let mut requests = Requests::new()?;
        // It may have been removed, or another process have taken it over.
        let present = present(&mut requests, self.place)?;
        if present.is_none_or(|program| program.id != self.program_id) {
            return Ok(());
        }
        self.place.detach()?;
        if self.made_clsact && !requests.has_tc_filters(self.place.index)? {
            self.place.remove_clsact()?;
        }
        Ok(())
    }

    fn is_here(&self) -> io::Result<bool> {
        let here = File::open("/proc/thread-self/ns/net")?;
        let (here, there) = (fstat(here.as_fd())?, fstat(self.namespace.as_fd())?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }
}

impl Filter {
    /// Undoes the attachment, wherever the caller is; an interface that is gone has none.
    fn undo(&self) -> io::Result<()> {
        let removed = self.is_here().and_then(|is_here| match is_here {
            true => self.remove(),
            // On a thread of its own: the caller's stays where it is.
            false => thread::scope(|scope| {
                let there = || {
                    setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    self.remove()
                };
                let thread = thread::Builder::new().spawn_scoped(scope, there)?;
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
            }),
        });
        match removed {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            log::warn!("a tc filter of ours stays: {error}");
        }
    }
}

/// The program of the filter that is at our place.
fn present(requests: &mut Requests, place: Place) -> io::Result<Option<TcProgram>> {
    let egress = place.direction == Direction::Egress;
    requests.tc_program(place.index, egress, place.priority, tc::HANDLE)
}

/// Refuses an interface whose packets have no Ethernet header, such as a tunnel.
fn check_ethernet(interface: &str, index: u32) -> Result<()> {
    let found = Requests::new().and_then(|mut requests| requests.interface(index));
    let found = found.map_err(|error| kernel_error("ask for the address of", interface, error))?;
    match found.is_some_and(|interface| interface.ethernet) {
        true => Ok(()),
        false => Err(Error::Unsupported {
            what: format!("a tc program on {interface}"),
            reason: "its packets have no Ethernet header: choose an interface whose packets have one, \
                     such as that below a tunnel",
        }),
    }
}
