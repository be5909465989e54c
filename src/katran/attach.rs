//! Attachments: to interfaces, as an entry of a root program, and the health-check path with them.
//! Each is made as a whole or not at all. Their consequences (the interface of probes, the
//! namespace of next hops) are derived from what the kernel reports as attached.

use std::mem;
use std::os::fd::AsFd;
use std::path::Path;

use super::Katran;
use super::change::Left;
use super::change::Prepared;
use super::ground::Reason;
use super::health::Probes;
use super::health::ProbesMut;
use super::remember::nothing_else;
use super::still_attached::LostEntry;
use crate::attach::Attachment;
use crate::attach::EntryProgram;
use crate::attach::OnInterface;
use crate::attach::Onward;
use crate::attach::Place;
use crate::attach::SharedEntry;
use crate::attach::TcAttachment;
use crate::attach::XdpLink;
use crate::attach::XdpMode;
use crate::attach::absolute;
use crate::attach::put_back;
use crate::error::Error;
use crate::error::Result;
use crate::pins::Home;
use crate::sys::holders;

/// The names of the programs that a balancer attaches.
const NAMES: [&str; 2] = ["katran", "katran_full"];

/// Reports whose program has been in an entry until now.
fn report_former(former: &EntryProgram, path: &Path, position: u32) {
    let (id, name) = (former.id, &former.name);
    let entry = format!("entry {position} of {}", path.display());
    let holders: Vec<_> = holders::of_program(id).iter().map(u32::to_string).collect();
    match &holders[..] {
        [] => log::info!(
            "took {entry} from XDP program {id} ({name}), which no visible process holds"
        ),
        [..] => log::warn!(
            "took {entry} from XDP program {id} ({name}), which process {} still holds: its balancer gets no more \
             packets there; stop one of the two",
            holders.join(", ")
        ),
    }
}

/// # Interfaces and root programs
impl Katran {
    /// Attaches the program to an interface of the calling thread's network namespace.
    ///
    /// A balancer may be attached to several interfaces; they share VIPs, flow tables and counters.
    /// A frame leaves through the interface it arrived on or, with
    /// [`NextHops::Redirect`](crate::NextHops::Redirect), the one that leads to its real. The
    /// interfaces may be in several network namespaces. The library discovers next hops in the
    /// first one only, until nothing is attached there any more. Then it moves to the next
    /// namespace: at once if the last interface was removed, within a second if its program was
    /// replaced.
    ///
    /// Removing an interface removes its attachment, which [`interfaces`](Self::interfaces)
    /// reports. The library does not attach again when an interface of that name appears: call
    /// `attach` or [`reattach`](Self::reattach). A renamed interface keeps its attachment.
    ///
    /// It blocks for 10 to 20 ms on veth; a network card may reset its queues, which takes as long
    /// as its driver needs. With [`Gateway::Auto`](crate::Gateway::Auto) and
    /// [`NextHops::Gateway`](crate::NextHops::Gateway) it waits up to three seconds for the
    /// gateway.
    ///
    /// # Errors
    /// [`Error::NoSuchInterface`]; [`Error::ForeignProgram`] if the interface has another XDP
    /// program, which stays; [`Error::AlreadyExists`] if this balancer is attached there;
    /// [`Error::Unsupported`] if the driver lacks the mode, or the interface's packets have no
    /// Ethernet header (tun, WireGuard, IP in IP): attach to the interface below it;
    /// [`Error::Privilege`]; [`Error::NoNextHop`] if the gateway is not found within three seconds
    /// after all reals were looked at; [`Error::Kernel`] for any other refusal, such as an MTU too
    /// large for native mode. Nothing has changed then.
    #[doc(alias = "attachBpfProgs")]
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        let _call = self.call()?;
        let target = self.attachments.check_alone(interface)?;
        let reason = Reason::Interface(target.place.index);
        self.all_or_nothing(reason, |katran| {
            let mut new = XdpLink::new(katran.programs.main.as_fd(), target, mode, Onward::Sent)?;
            // If this fails, dropping the new attachment detaches it.
            katran.attach_probes_along(Some(new.target().place))?;
            if let Some(home) = &katran.home {
                new.keep_in(home.attached())?;
            }
            Ok(katran.attachments.add_new(new))
        })
    }

    /// Detaches the program from one interface. Detaching the last interface also detaches the
    /// health-check path.
    ///
    /// `interface` is the current name, if the interface is in the calling thread's network
    /// namespace. Otherwise it is the name that the library last saw, or that you attached by. If
    /// several interfaces had the name, this detaches the one that is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this balancer is not attached there; [`Error::InvalidConfig`] if
    /// several interfaces had that name and none has it now in the calling thread's network
    /// namespace.
    #[doc(alias = "detachBpfProgs")]
    pub fn detach(&mut self, interface: &str) -> Result<()> {
        let _call = self.call()?;
        self.change_at_once(nothing_else, |katran| katran.attachments.detach(interface))?;
        self.note_detached();
        Ok(())
    }

    /// Detaches the program from all interfaces, and the health-check path. Entries of root
    /// programs stay.
    pub fn detach_all(&mut self) {
        let Ok(_call) = self.call() else {
            return;
        };
        self.change_surely(nothing_else, |katran| katran.attachments.clear());
        self.probes_mut().detach();
    }

    /// Attaches again what is [gone](crate::attachments::AttachmentState::Gone): interfaces whose
    /// name exists again in the calling thread's network namespace, entries whose path holds
    /// another root program, and the health-check path.
    ///
    /// Where another program has [replaced](crate::attachments::AttachmentState::Replaced) the
    /// balancer's on an interface, the balancer's runs again. The library fills an entry of another
    /// root program only if it is empty, because another balancer may have moved in. An attachment
    /// whose interface does not exist yet stays as it is; see [`interfaces`](Self::interfaces),
    /// [`shared_entries`](Self::shared_entries) and [`Probes::attachment`]. Other attachments do
    /// not change, except that probes leave through the first interface that exists.
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach), [`attach_shared`](Self::attach_shared) and
    /// [`ProbesMut::attach`]: the first failure, after the library has tried all.
    pub fn reattach(&mut self) -> Result<()> {
        let _call = self.call()?;
        let lost = self.attachments.lost().into_iter();
        let interfaces = put_back(lost.map(|(name, mode)| self.attach(&name, mode).map(drop)));
        let taken = self.change_at_once(nothing_else, |katran| katran.attachments.take_back());
        let interfaces = interfaces.and(taken);
        let lost = self.shared.lost().into_iter();
        let entries = put_back(lost.map(|(path, position)| {
            match self.put_back_shared(&path, position) {
                // Nothing is pinned there yet.
                Err(Error::NotFound { .. }) => Ok(()),
                attached => attached,
            }
        }));
        // Entries of an earlier owner, in a root program that is gone.
        let mut of_before = Ok(());
        self.put_back_entries(|_, error| match error {
            None | Some(Error::NotFound { .. }) => {}
            Some(error) => of_before = mem::replace(&mut of_before, Ok(())).and(Err(error)),
        });
        let mains = self.attachments.places();
        let probes = self.change_at_once(nothing_else, |katran| match &mut katran.healthchecks {
            Some(checks) => checks.reattach(&mains),
            None => Ok(()),
        });
        self.note_attached();
        interfaces.and(entries).and(of_before).and(probes)
    }

    /// The interfaces that the program was attached to, in the order of attaching, each with what
    /// the kernel reports about it.
    pub fn interfaces(&self) -> Vec<Attachment> {
        self.attachments.list()
    }

    /// Puts the program into an entry of a pinned program array, through which a root program on an
    /// interface calls it (see [`RootProgram`](crate::RootProgram)). The usual position is 2.
    ///
    /// If the entry already holds a balancer's program, left by a dead process or about to be
    /// replaced, this one takes its place between two packets. Flows then stay with their reals
    /// where the rings are the same; flow tables and counters are the new balancer's. If a process
    /// still holds the old program, the log warns and names both: stop one of the two. Identifying
    /// the program in an entry takes `CAP_SYS_ADMIN`; without it every program counts as foreign.
    ///
    /// The library pins what the program needs beside the array, as `PATH_POSITION_NUMBER`, so that
    /// the entry works without its process. Dropping the balancer empties the entry and removes
    /// that pin, unless another balancer has taken the entry over.
    ///
    /// The library discovers next hops in the calling thread's network namespace, which should be
    /// that of the root program's interfaces.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned at the path; [`Error::InvalidConfig`] if it is not
    /// a program array, has no such position, or its root program has another setting of `frags`;
    /// [`Error::ForeignEntry`] if another program is there, which stays; [`Error::AlreadyExists`]
    /// if this balancer has an entry in that array; [`Error::NoNextHop`]; [`Error::Kernel`].
    /// Nothing has changed then.
    #[doc(alias = "rootMapPath")]
    pub fn attach_shared(&mut self, map_path: impl AsRef<Path>, position: u32) -> Result<()> {
        self.attach_entry(map_path.as_ref(), position, &NAMES)
    }

    /// Puts the program back into an empty entry. An occupied one stays, even with a balancer's
    /// program: another balancer has moved in and may be alive.
    pub(super) fn put_back_shared(&mut self, map_path: &Path, position: u32) -> Result<()> {
        self.attach_entry(map_path, position, &[])
    }

    /// Puts the program into an entry that is empty or holds a program of one of these names.
    fn attach_entry(&mut self, path: &Path, position: u32, names: &[&str]) -> Result<()> {
        let _call = self.call()?;
        let path = &absolute(path);
        let (entries, former) = self.shared.check(path, position, names)?;
        let attached = self.all_or_nothing(Reason::Entry, |katran| {
            // First, because it can be undone; taking over another balancer's entry cannot.
            katran.attach_probes_along(None)?;
            let keep_in = katran.home.as_ref().map(Home::attached);
            katran
                .shared
                .attach(entries, katran.programs.entry_set(), position, keep_in)
        });
        attached?;
        if let Some(former) = former {
            report_former(&former, path, position);
        }
        // It has replaced that one.
        if let Err(error) = self.forget_lost(path) {
            log::warn!(
                "cannot remove the record of a lost entry, which the next owner will look for: \
                 {error}"
            );
        }
        Ok(())
    }

    /// Empties this balancer's entry in the array at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has none; [`Error::Kernel`]: the entry has not changed then.
    pub fn detach_shared(&mut self, map_path: impl AsRef<Path>) -> Result<()> {
        let _call = self.call()?;
        let path = &absolute(map_path.as_ref());
        self.change_at_once(nothing_else, |katran| match katran.forget_lost(path)? {
            true => Ok(()),
            false => katran.shared.detach(path),
        })?;
        self.note_detached();
        Ok(())
    }

    /// This balancer's entries in root programs, each with what the kernel reports about it. An
    /// entry of an earlier owner whose root program no longer exists is gone.
    pub fn shared_entries(&self) -> Vec<SharedEntry> {
        let mut entries = self.shared.list();
        entries.extend(self.lost.iter().map(LostEntry::entry));
        entries
    }

    /// Attaches something, after starting to follow next hops for it, so that the gateway is known
    /// when the first packet comes. Afterwards, even after a failure, exactly the reasons to follow
    /// that hold remain.
    fn all_or_nothing<T>(
        &mut self,
        reason: Reason,
        attach: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.home.as_ref().map_or(Ok(()), Home::check_there)?;
        let probes = self.probes().attachment();
        let written =
            Prepared::plain(nothing_else).write(self, |katran| katran.follow_next_hops_for(reason));
        let attached = written.and_then(|written| {
            written.try_switch(self, |katran, ()| Ok((Left::Nothing, attach(katran)?)))
        });
        if attached.is_err() && probes.is_none() {
            // They were attached a moment ago, if at all.
            if let Some(checks) = &mut self.healthchecks {
                checks.detach();
            }
        }
        self.note_attached();
        let (switched, attached) = attached?;
        switched.end(self);
        Ok(attached)
    }

    /// Attaches the health-check path with the first attachment; `new` is about to be one.
    fn attach_probes_along(&mut self, new: Option<Place>) -> Result<()> {
        let mut mains = self.attachments.places();
        mains.extend(new);
        match &mut self.healthchecks {
            Some(checks) => checks.attach_along(&mains),
            None => Ok(()),
        }
    }

    /// After a detachment: probes leave by the first interface that is left; with the last one
    /// their path goes.
    fn note_detached(&mut self) {
        let is_last = self.attachments.is_empty() && self.shared.is_empty();
        let mains = self.attachments.places();
        if let Some(checks) = &mut self.healthchecks {
            if is_last {
                checks.detach();
            } else if let Err(error) = checks.route(&mains) {
                log::warn!(
                    "health checks may leave through an interface without the balancer: {error}"
                );
            }
        }
        self.note_attached();
    }
}

/// # Attachment
impl Probes<'_> {
    /// Where the health-check path is attached, if it is, with what the kernel reports about it.
    pub fn attachment(&self) -> Option<TcAttachment> {
        self.katran.healthchecks.as_ref()?.attachment()
    }
}

/// # Attaching
impl ProbesMut<'_> {
    /// Attaches the health-check path to its interface, in the calling thread's network namespace.
    /// Probes leave through the first interface there that the balancer is attached to and that
    /// exists, or else through their own.
    ///
    /// [`Katran::attach`] does this for you. Call it if the host balances with another program,
    /// such as a shared one, or not at all. If the path is attached already, the call only chooses
    /// the first interface again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if no interface is set for it, or the interface's packets have no
    /// Ethernet header; [`Error::NoSuchInterface`]; [`Error::NoNextHop`];
    /// [`Error::ForeignTcFilter`]; [`Error::Kernel`]. Nothing has changed then.
    pub fn attach(&mut self) -> Result<()> {
        let _call = self.katran.call()?;
        let checks = self.katran.loaded_healthchecks()?;
        if !checks.has_interface() {
            return Err(Katran::no_healthchecks());
        }
        let mains = self.katran.attachments.places();
        self.katran.all_or_nothing(Reason::HealthChecks, |katran| {
            katran.loaded_healthchecks()?.attach(&mains)
        })
    }

    /// Detaches the health-check path, as dropping the balancer does.
    pub fn detach(&mut self) {
        let Ok(_call) = self.katran.call() else {
            return;
        };
        self.katran.change_surely(nothing_else, |katran| {
            if let Some(checks) = &mut katran.healthchecks {
                checks.detach();
            }
        });
        self.katran.note_attached();
    }
}
