//! Attaches one program at tc: by tcx links where the kernel has them, else as filters of a clsact
//! queueing discipline.
//!
//! A tcx link ends with the process unless a pin keeps it. A filter is removed on drop; one that a
//! killed process left is recognised by the program's name and taken over. Foreign attachments are
//! never touched.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use super::kept::PinName;
use super::kept::meanwhile;
use super::link_state::link_state;
use super::link_state::link_witness;
use super::list::Attached;
use super::list::Attachments;
use super::list::OnInterface;
use super::list::Replaceable;
use super::list::Witness;
use super::place::AttachmentState;
use super::place::Target;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Requests;
use crate::rtnetlink::TcProgram;
use crate::sys::link::Link;
use crate::sys::namespace::Namespace;
use crate::sys::pin;
use crate::sys::process::Owner;
use crate::sys::program;
use crate::sys::tc;
use crate::sys::tc::Direction;
use crate::sys::tc::FilterPlace;
use crate::types::TcHook;

/// An attachment to an interface at tc.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcAttachment {
    /// The interface's name: the current one if the calling thread is in its network namespace,
    /// else the last one seen from there.
    pub interface: String,
    /// The interface's index in its network namespace.
    pub index: u32,
    /// The kernel's id of that namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// The current mechanism: tcx or clsact, never auto.
    pub hook: TcHook,
    /// Whether it is still there.
    pub state: AttachmentState,
}

/// A program and its place at tc.
#[derive(Clone, Copy)]
pub(crate) struct TcPlan<'a> {
    pub(crate) program: BorrowedFd<'a>,
    /// The program's name.
    pub(crate) name: &'static str,
    pub(crate) direction: Direction,
    /// The priority of a filter.
    pub(crate) priority: u16,
    pub(crate) hook: TcHook,
    /// The directory for a pin that keeps it.
    pub(crate) keep_in: Option<&'a Path>,
}

/// The kinds of its pins, in their names.
const KEPT_LINK: &str = "tcx";
const KEPT_FILTER: &str = "clsact";

/// A tc program on an interface; removed on drop, unless a pin keeps it.
#[derive(Debug)]
pub(crate) struct TcLink {
    target: Target,
    asked: TcHook,
    hook: TcHook,
    /// The program that it was last given.
    program: OwnedFd,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Link(Link),
    Filter(Filter),
}

impl TcLink {
    /// Attaches a program to an interface of the calling thread's network namespace.
    pub(crate) fn new(target: Target, plan: TcPlan<'_>) -> Result<Self> {
        let (interface, index) = (target.name.as_str(), target.place.index);
        let clsact = || Filter::attach(&target, plan).map(Held::Filter);
        let failed = |error| kernel_error("attach tcx to", interface, error);
        let (hook, held) = match plan.hook {
            TcHook::Clsact => (TcHook::Clsact, clsact()?),
            _ => match tc::attach_tcx(plan.program, index, plan.direction) {
                Ok(mut link) => {
                    if let Some(directory) = plan.keep_in {
                        let words = [plan.hook.to_string()];
                        let name = PinName::new(KEPT_LINK, &target, &words);
                        let (path, meanwhile) = name.paths(directory);
                        link.keep_at(path, &meanwhile).map_err(|error| {
                            kernel_error("pin the attachment to", interface, error)
                        })?;
                    }
                    (TcHook::Tcx, Held::Link(link))
                }
                Err(error) if plan.hook == TcHook::Auto && is_unknown(&error) => {
                    log::info!("{interface}: this kernel has no tcx, using clsact");
                    (TcHook::Clsact, clsact()?)
                }
                Err(error) if is_unknown(&error) => {
                    return Err(Error::Unsupported {
                        what: format!("tcx on {interface}"),
                        reason: "it needs Linux 6.6: use the hook clsact or auto",
                    });
                }
                Err(error) => return Err(failed(error)),
            },
        };
        Ok(Self {
            asked: plan.hook,
            hook,
            program: plan.program.try_clone_to_owned().map_err(failed)?,
            held,
            target,
        })
    }

    /// A pinned one, from its pin; `None` if the pin is not ours. Its program is one of these; a
    /// filter's may also be the one that is pinned for it. If a filter's network namespace cannot
    /// be found, the error's kind is `NotFound`.
    pub(crate) fn kept_at(path: &Path, programs: &[BorrowedFd<'_>]) -> io::Result<Option<Self>> {
        if let Some(name) = PinName::of(KEPT_LINK, path)
            && let Some(asked) = name.word(0)
        {
            let Some(link) = Link::kept_at(path)? else {
                return Ok(None);
            };
            let present = link.info()?.program;
            // If another process replaced the program, it is none of these.
            let own = program::numbered(programs, present).or(programs.first().copied());
            let Some(program) = own else {
                return Ok(None);
            };
            return Ok(Some(Self {
                target: name.target(),
                asked,
                hook: TcHook::Tcx,
                program: program.try_clone_to_owned()?,
                held: Held::Link(link),
            }));
        }
        let Some(name) = PinName::of(KEPT_FILTER, path) else {
            return Ok(None);
        };
        let (Some(asked), Some(priority), Some(made_clsact), Some(direction)) =
            (name.word(0), name.word(1), name.word(2), name.word(3))
        else {
            return Ok(None);
        };
        let target = name.target();
        let namespace = Namespace::find(target.place.namespace)?;
        let namespace = namespace.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let place = FilterPlace {
            index: target.place.index,
            direction,
            priority,
        };
        // It may have been about to get another program.
        let noted = pin::open(path)?;
        let present = match namespace.run(|| present(&mut Requests::new()?, place))? {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(error),
            present => present.ok().flatten(),
        };
        let own = present.and_then(|present| program::numbered(programs, present.id));
        let program = own.unwrap_or(noted.as_fd()).try_clone_to_owned()?;
        let filter = Filter {
            place,
            program_id: program::info(program.as_fd())?.id,
            made_clsact,
            namespace,
            is_undone: false,
            owner: Owner::new(),
            kept: Some(path.to_owned()),
        };
        Ok(Some(Self {
            target,
            asked,
            hook: TcHook::Clsact,
            program,
            held: Held::Filter(filter),
        }))
    }

    /// Whether it was requested like this.
    pub(crate) fn is_as(&self, hook: TcHook, priority: u16) -> bool {
        self.asked == hook
            && match &self.held {
                Held::Link(_) => true,
                Held::Filter(filter) => filter.place.priority == priority,
            }
    }

    fn describe(&self) -> TcAttachment {
        // First, because it looks at the name.
        let state = self.state();
        TcAttachment {
            interface: self.target.last_name(),
            index: self.target.place.index,
            namespace: self.target.place.namespace,
            hook: self.hook,
            state,
        }
    }
}

impl Attached for TcLink {
    type Asked = TcHook;
    const KIND: &'static str = "tc attachment";

    fn asked(&self) -> TcHook {
        self.asked
    }

    fn state(&self) -> AttachmentState {
        match &self.held {
            // It cannot be distinguished from another interface that arrived with the same index.
            Held::Link(link) => link_state(link, self.program.as_fd(), &self.target, |_| true),
            Held::Filter(filter) => {
                let state = filter.state();
                if state != AttachmentState::Gone {
                    self.target.is_in_place(|| true);
                }
                state
            }
        }
    }

    fn witness(&self) -> io::Result<Witness> {
        match &self.held {
            Held::Link(link) => link_witness(link, self.program.as_fd(), &self.target),
            Held::Filter(filter) => {
                let namespace = filter.namespace.try_clone()?;
                let (place, own) = (filter.place, filter.program_id);
                Ok(Box::new(move || filter_state(&namespace, place, own)))
            }
        }
    }

    fn detach(&mut self) -> Result<()> {
        match &mut self.held {
            // Dropping the link does the rest.
            Held::Link(link) => link
                .keep_no_more()
                .map_err(|error| kernel_error("unpin", &self.target.name, error)),
            Held::Filter(filter) => filter
                .undo()
                .map_err(|error| kernel_error("remove the tc filter of", &self.target.name, error)),
        }
    }

    fn succeed(&mut self, former: Self) {
        let unpinned = match (former.held, &mut self.held) {
            (Held::Link(mut link), Held::Link(own)) => link.give_up_pin_to(own),
            (Held::Link(mut link), Held::Filter(_)) => link.keep_no_more(),
            (Held::Filter(mut former), held) => {
                // This one may be at its place.
                former.is_undone = true;
                let mut own = None;
                if let Held::Filter(filter) = held {
                    filter.made_clsact |=
                        former.made_clsact && filter.place.index == former.place.index;
                    own = filter.kept.as_ref();
                }
                match former.kept.take().filter(|kept| Some(kept) != own) {
                    Some(kept) => pin::remove(&kept),
                    None => Ok(()),
                }
            }
        };
        if let Err(error) = unpinned {
            log::warn!(
                "{}: cannot remove an earlier pin: {error}",
                self.target.name
            );
        }
    }
}

impl OnInterface for TcLink {
    fn target(&self) -> &Target {
        &self.target
    }
}

impl Replaceable for TcLink {
    type Program<'a> = BorrowedFd<'a>;
    type Kept = OwnedFd;

    fn prepare(&self, program: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        if self.state() == AttachmentState::Gone {
            log::warn!("{}: the tc attachment is gone", self.target.name);
            return Ok(None);
        }
        let failed = |error| kernel_error("prepare another program for", &self.target.name, error);
        program.try_clone_to_owned().map(Some).map_err(failed)
    }

    fn switch(&mut self, program: OwnedFd) -> Result<OwnedFd> {
        let replaced = match &mut self.held {
            Held::Link(link) => link.replace(program.as_fd(), Some(self.program.as_fd())),
            Held::Filter(filter) => filter.switch(program.as_fd(), self.program.as_fd()),
        };
        match replaced {
            // It went away in the meantime and has no program any more.
            Err(error) if is_gone(&error) => Ok(program),
            Err(error) => {
                let interface = &self.target.name;
                Err(kernel_error("put another tc program on", interface, error))
            }
            Ok(()) => Ok(mem::replace(&mut self.program, program)),
        }
    }
}

/// Whether an error means that there is no attachment any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV))
}

impl Attachments<TcLink> {
    /// Attaches a program to an interface of the calling thread's network namespace.
    pub(crate) fn attach(&mut self, interface: &str, plan: TcPlan<'_>) -> Result<TcAttachment> {
        let new = TcLink::new(self.check(interface)?, plan)?;
        let attachment = new.describe();
        self.add(new);
        Ok(attachment)
    }

    /// The attachments, as the kernel reports them.
    pub(crate) fn list(&self) -> Vec<TcAttachment> {
        self.iter().map(TcLink::describe).collect()
    }
}

/// Whether the kernel does not support this kind of attachment.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

/// Our filter, removed on drop unless a pin of its program keeps it.
#[derive(Debug)]
struct Filter {
    place: FilterPlace,
    program_id: u32,
    made_clsact: bool,
    /// A filter is identified by indices within a namespace.
    namespace: Namespace,
    is_undone: bool,
    owner: Owner,
    /// A filter cannot be pinned; its program is pinned as the record.
    kept: Option<PathBuf>,
}

impl Filter {
    fn attach(target: &Target, plan: TcPlan<'_>) -> Result<Self> {
        let interface = target.name.as_str();
        let place = FilterPlace {
            index: target.place.index,
            direction: plan.direction,
            priority: plan.priority,
        };
        let failed = |error| kernel_error("attach a tc filter to", interface, error);
        let namespace = Namespace::here().map_err(failed)?;
        let program_id = program::info(plan.program).map_err(failed)?.id;
        let mut requests = Requests::new().map_err(failed)?;
        let exists = match requests.clsact(place.index).map_err(failed)? {
            None => false,
            Some(true) => true,
            Some(false) => {
                return Err(Error::Unsupported {
                    what: format!("a clsact filter on {interface}"),
                    reason: "an ingress qdisc is in its place: remove it (`tc qdisc del dev ... \
                         ingress`), or use the hook tcx",
                });
            }
        };
        let name = |made_clsact: bool| {
            let words = [
                plan.hook.to_string(),
                place.priority.to_string(),
                made_clsact.to_string(),
                place.direction.to_string(),
            ];
            PinName::new(KEPT_FILTER, target, &words)
        };
        // A partly removed filter of ours may have left it.
        let is_left = |directory: &Path| name(true).paths(directory).0.exists();
        let mut made_clsact = !exists || plan.keep_in.is_some_and(is_left);
        let mut kept = None;
        let mut attach = || {
            // An empty one has nothing to ask for.
            let present = match exists {
                false => None,
                true => present(&mut requests, place).map_err(failed)?,
            };
            match &present {
                Some(of) if of.name != plan.name => {
                    return Err(Error::ForeignTcFilter {
                        interface: interface.to_owned(),
                        priority: place.priority,
                        program_id: of.id,
                        program_name: of.name.clone(),
                    });
                }
                Some(_) => {
                    log::info!("{interface}: continuing with the tc filter of an earlier process");
                }
                None => {}
            }
            // First: without a record, no process would own the discipline or the filter.
            if let Some(directory) = plan.keep_in {
                let (path, meanwhile) = name(made_clsact).paths(directory);
                pin::replace(plan.program, &path, &meanwhile).map_err(failed)?;
                kept = Some(path);
            }
            if !exists {
                let made = place.make_clsact();
                // Another process made one a moment ago.
                made_clsact =
                    made.map_err(|error| kernel_error("make a clsact qdisc on", interface, error))?;
            }
            let put = match present {
                Some(_) => place.replace(plan.program),
                None => place.make(plan.program),
            };
            put.map_err(failed)
        };
        if let Err(error) = attach() {
            if let Some(kept) = &kept
                && let Err(error) = pin::remove(kept)
            {
                log::warn!("cannot remove the pin of a filter of {interface}: {error}");
            }
            if made_clsact && let Err(error) = remove_unused_clsact(&mut requests, place) {
                log::warn!("cannot remove the clsact qdisc of {interface}: {error}");
            }
            return Err(error);
        }
        Ok(Self {
            place,
            program_id,
            made_clsact,
            namespace,
            is_undone: false,
            owner: Owner::new(),
            kept,
        })
    }

    /// The kernel's view, from any namespace.
    fn state(&self) -> AttachmentState {
        filter_state(&self.namespace, self.place, self.program_id)
    }

    /// Replaces a program, from any namespace. The error is `ENODEV` if neither is there.
    fn switch(&mut self, program: BorrowedFd<'_>, before: BorrowedFd<'_>) -> io::Result<()> {
        match filter_state(&self.namespace, self.place, self.program_id) {
            AttachmentState::Attached => {}
            AttachmentState::Gone => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
            _ => return Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
        let note = |program| match &self.kept {
            Some(kept) => pin::replace(program, kept, &meanwhile(kept)),
            None => Ok(()),
        };
        let id = program::info(program)?.id;
        // First: if they differ later, both are known.
        note(program)?;
        let place = self.place;
        let put = self.namespace.run(|| place.replace(program));
        if let Err(error) = put.and_then(|put| put) {
            note(before)?;
            return Err(error);
        }
        self.program_id = id;
        Ok(())
    }

    /// Removes the attachment, from any namespace; a removed interface has none.
    fn undo(&mut self) -> io::Result<()> {
        if self.is_undone {
            return Ok(());
        }
        match self
            .namespace
            .run(|| self.remove())
            .and_then(|removed| removed)
        {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => {
                if let Some(kept) = &self.kept {
                    pin::remove(kept)?;
                }
                self.kept = None;
                self.is_undone = true;
                Ok(())
            }
        }
    }

    /// Removes the attachment; call it in its namespace.
    fn remove(&self) -> io::Result<()> {
        let mut requests = Requests::new()?;
        // It may have been removed, or taken over by another process.
        let present = present(&mut requests, self.place)?;
        match present {
            Some(program) if program.id == self.program_id => self.place.detach()?,
            // An interrupted removal may have left the discipline.
            None if self.kept.is_some() && requests.clsact(self.place.index)? == Some(true) => {}
            _ => return Ok(()),
        }
        match self.made_clsact {
            true => remove_unused_clsact(&mut requests, self.place),
            false => Ok(()),
        }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if self.kept.is_some() || !self.owner.is_here() {
            return;
        }
        if let Err(error) = self.undo() {
            log::warn!("cannot remove our tc filter: {error}");
        }
    }
}

/// The state of a filter with this program in a network namespace.
fn filter_state(namespace: &Namespace, place: FilterPlace, program_id: u32) -> AttachmentState {
    let ask = || present(&mut Requests::new()?, place);
    match namespace.run(ask).and_then(|asked| asked) {
        Ok(Some(program)) if program.id == program_id => AttachmentState::Attached,
        Ok(Some(_)) => AttachmentState::Replaced,
        Ok(None) => AttachmentState::Gone,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => AttachmentState::Gone,
        Err(error) => {
            log::warn!("cannot list the tc filters of an interface: {error}");
            AttachmentState::Attached
        }
    }
}

/// Removes our clsact discipline, unless others have added filters.
fn remove_unused_clsact(requests: &mut Requests, place: FilterPlace) -> io::Result<()> {
    match requests.has_tc_filters(place.index)? {
        true => Ok(()),
        false => place.remove_clsact(),
    }
}

/// The program of the filter at our place.
fn present(requests: &mut Requests, place: FilterPlace) -> io::Result<Option<TcProgram>> {
    requests.tc_program(place.index, place.direction, place.priority, tc::HANDLE)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::CloneFlags;
    use nix::sched::unshare;

    use super::*;

    /// Runs `tc` with these words and a classic BPF program; returns its output.
    fn tc_tool(words: &str, program: &[&str]) -> String {
        let words = words.split(' ').chain(program.iter().copied());
        let output = Command::new("tc").args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_clsact_that_was_made_in_vain_is_removed_unless_others_use_it() {
        // In its own network namespace, whose first interface is the loopback one.
        let there = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let place = FilterPlace {
                index: 1,
                direction: Direction::Ingress,
                priority: 1,
            };
            let has_clsact = || tc_tool("qdisc show dev lo", &[]).contains("clsact");
            let mut requests = Requests::new().unwrap();
            for theirs in [false, true] {
                assert!(place.make_clsact().unwrap() && has_clsact());
                if theirs {
                    tc_tool("filter add dev lo egress bpf bytecode", &["1,6 0 0 0"]);
                }
                remove_unused_clsact(&mut requests, place).unwrap();
                assert_eq!(has_clsact(), theirs);
            }
        };
        thread::spawn(there).join().unwrap();
    }
}
