//! Where the balancer is attached: to interfaces, as an entry of a root program, and the path of health
//! checks with it. An attachment is made as a whole or not at all, and what follows from it (which way
//! probes go, whose next hops are followed) is worked out from what the kernel says is there.

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

/// The names of the programs that a balancer attaches.
const NAMES: [&str; 2] = ["katran", "katran_full"];

impl Katran {
    /// Attaches the program to an interface of the calling thread's network namespace.
    ///
    /// One `Katran` may be attached to several interfaces; they share everything, and a frame
    /// leaves by the interface it came in on, or, with
    /// [`NextHops::Redirect`](crate::NextHops::Redirect), by the one that leads to its real. They may be in
    /// several network namespaces: what has to be found out of next hops is that of the first one, until
    /// nothing is attached there any more. If its last interface is removed, a thread of the library moves on
    /// to the next namespace at once; if somebody puts another program there, within a second.
    ///
    /// An interface that is removed takes its attachment with it, which [`interfaces`](Self::interfaces)
    /// tells. Attaching to the next one of that name, or [`reattach`](Self::reattach), puts it back; the
    /// library does not do that by itself. An interface that is renamed keeps its attachment.
    ///
    /// It blocks for 10 to 20 ms on veth; a network card may set up its queues again, which takes as long as the driver needs. A
    /// gateway that is to be found out is waited for, for three seconds at most.
    ///
    /// # Errors
    /// [`Error::NoSuchInterface`]; [`Error::ForeignProgram`] if another XDP program is there,
    /// which is left alone; [`Error::AlreadyExists`] if this `Katran` is attached there;
    /// [`Error::Unsupported`] if the driver lacks the mode, or the interface's packets have no Ethernet
    /// header (tun, WireGuard, IP in IP): attach to the interface below it; [`Error::Privilege`];
    /// [`Error::NoNextHop`] if the gateway is to be found out and cannot be within three seconds after all
    /// reals were looked at;
    /// [`Error::Kernel`] for any other refusal, such as an MTU too large for native mode. In any case
    /// nothing has changed.
    #[doc(alias = "attachBpfProgs")]
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        let _call = self.call()?;
        let target = self.attachments.check_alone(interface)?;
        let reason = Reason::Interface(target.place.index);
        self.all_or_nothing(reason, |katran| {
            let mut new = XdpLink::new(katran.programs.main.as_fd(), target, mode, Onward::Sent)?;
            // A new one that fails here is detached as it is dropped.
            katran.attach_probes_along(Some(new.target().place))?;
            if let Some(home) = &katran.home {
                new.keep_in(home.attached())?;
            }
            Ok(katran.attachments.add_new(new))
        })
    }

    /// Detaches the program from one interface: by its present name, if the calling thread is in its
    /// network namespace; else by the name that it had when it was seen last, or when it was attached to. Of
    /// several that had the name one that is gone is meant. With the last one the path of health checks goes,
    /// too.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this `Katran` is not attached there; [`Error::InvalidConfig`] if several
    /// interfaces had that name and none has it now in the calling thread's network namespace.
    #[doc(alias = "detachBpfProgs")]
    pub fn detach(&mut self, interface: &str) -> Result<()> {
        let _call = self.call()?;
        self.change_at_once(nothing_else, |katran| katran.attachments.detach(interface))?;
        self.note_detached();
        Ok(())
    }

    /// Detaches the program from all interfaces, and the path of health checks. Entries of root programs
    /// stay.
    pub fn detach_all(&mut self) {
        let Ok(_call) = self.call() else {
            return;
        };
        self.change_surely(nothing_else, |katran| katran.attachments.clear());
        self.probes_mut().detach();
    }

    /// Attaches again what is gone ([`AttachmentState::Gone`](crate::attachments::AttachmentState::Gone)): wherever
    /// there is an interface of that name again in the calling thread's network namespace, or another
    /// root program at an entry's path; and the path of health checks. What has no interface yet stays as
    /// it is, which [`interfaces`](Self::interfaces), [`shared_entries`](Self::shared_entries) and
    /// [`Probes::attachment`] tell. On interfaces where somebody has put another program in the place of ours
    /// ([`AttachmentState::Replaced`](crate::attachments::AttachmentState::Replaced)) ours runs again. An entry of another
    /// root program is put back only if it is empty: what another balancer has moved into stays that one's. Of what is there
    /// nothing else changes, but that probes leave by the first interface that there is.
    ///
    /// # Errors
    /// As [`attach`](Self::attach), [`attach_shared`](Self::attach_shared) and
    /// [`ProbesMut::attach`]: the first failure, after all have been tried.
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
        // Those of an owner before, whose root program was another one.
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

    /// Where the program was attached, in the order of attaching, and what the kernel says of that now.
    pub fn interfaces(&self) -> Vec<Attachment> {
        self.attachments.list()
    }

    /// Puts the program into an entry of a pinned program array, which a root program on an interface
    /// walks (see [`RootProgram`](crate::RootProgram)); the usual position is 2.
    ///
    /// An entry that holds a balancer's program is taken over between two packets: that of a process
    /// that has died, as entries stay, or of one that is to be replaced. Then flows stay with their reals
    /// as far as rings are the same; tables and counters are the new balancer's.
    ///
    /// To see whose program is in an entry takes `CAP_SYS_ADMIN`; without it every program there is a foreign
    /// one.
    ///
    /// What the program hands packets on to is pinned beside the array, as `PATH_POSITION_NUMBER`, so
    /// that it works on without its process. Dropping the balancer empties the entry and removes that,
    /// unless another has taken it over.
    ///
    /// Next hops are followed in the calling thread's network namespace, which should be that of the root
    /// program's interfaces.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned at the path;
    /// [`Error::InvalidConfig`] if it is no program array, there is no such
    /// position, or `frags` is not the setting of the root program;
    /// [`Error::ForeignEntry`] if another program is there, which is left
    /// alone; [`Error::AlreadyExists`] if this balancer has an entry of that
    /// array; [`Error::NoNextHop`]; [`Error::Kernel`]. In
    /// any case nothing has changed.
    #[doc(alias = "rootMapPath")]
    pub fn attach_shared(&mut self, map_path: impl AsRef<Path>, position: u32) -> Result<()> {
        self.attach_entry(map_path.as_ref(), position, &NAMES)
    }

    /// Puts the program back into an entry. One that is not empty stays, also if it has a balancer's program: another
    /// balancer has moved in meanwhile, and may live.
    pub(super) fn put_back_shared(&mut self, map_path: &Path, position: u32) -> Result<()> {
        self.attach_entry(map_path, position, &[])
    }

    /// Puts the program into an entry that is empty, or that holds a program of one of these names.
    fn attach_entry(&mut self, path: &Path, position: u32, names: &[&str]) -> Result<()> {
        let _call = self.call()?;
        let path = &absolute(path);
        let entries = self.shared.check(path, position, names)?;
        let attached = self.all_or_nothing(Reason::Entry, |katran| {
            // First, for it can be undone, other than the end of a balancer whose entry is taken over.
            katran.attach_probes_along(None)?;
            let keep_in = katran.home.as_ref().map(Home::attached);
            katran
                .shared
                .attach(entries, katran.programs.entry_set(), position, keep_in)
        });
        attached?;
        // It has taken that one's place.
        if let Err(error) = self.forget_lost(path) {
            log::warn!("the next owner will look for an entry that is lost: {error}");
        }
        Ok(())
    }

    /// Empties the entry that this balancer has in the array at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has none; [`Error::Kernel`]: then the entry is as it was.
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

    /// The entries of root programs that this balancer was put into, and what the kernel says of that now. One of an owner
    /// before whose root program is not there any more is gone.
    pub fn shared_entries(&self) -> Vec<SharedEntry> {
        let mut entries = self.shared.list();
        entries.extend(self.lost.iter().map(LostEntry::entry));
        entries
    }

    /// Attaches something, for which next hops are followed first, so that the gateway is known when the
    /// first packet comes. What has come of it or not, the reasons are those that hold then.
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

    /// The path of health checks goes with the first attachment; `new` is about to be one.
    fn attach_probes_along(&mut self, new: Option<Place>) -> Result<()> {
        let mut mains = self.attachments.places();
        mains.extend(new);
        match &mut self.healthchecks {
            Some(checks) => checks.attach_along(&mains),
            None => Ok(()),
        }
    }

    /// Something was detached: probes leave by the first interface that is left, and with the last one
    /// their path goes.
    fn note_detached(&mut self) {
        let is_last = self.attachments.is_empty() && self.shared.is_empty();
        let mains = self.attachments.places();
        if let Some(checks) = &mut self.healthchecks {
            if is_last {
                checks.detach();
            } else if let Err(error) = checks.route(&mains) {
                log::warn!("health checks leave by an interface that is not ours: {error}");
            }
        }
        self.note_attached();
    }
}

impl Probes<'_> {
    /// Where health checks are attached, if they are, and what the kernel says of that now.
    pub fn attachment(&self) -> Option<TcAttachment> {
        self.katran.healthchecks.as_ref()?.attachment()
    }
}

impl ProbesMut<'_> {
    /// Attaches the path of health checks to its interface, in the calling thread's network namespace:
    /// probes leave by the first interface of that namespace that the balancer is attached to and that is
    /// there, or by their own. [`Katran::attach`] does it; it is for hosts that balance in another
    /// way, such as a shared program, or not at all. If it is attached it only looks again which interface
    /// is the first.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without an interface for them, or if its packets have no Ethernet header;
    /// [`Error::NoSuchInterface`]; [`Error::NoNextHop`]; [`Error::ForeignTcFilter`]; [`Error::Kernel`]. In
    /// any case nothing has changed.
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

    /// Detaches the path of health checks; dropping the balancer does it, too.
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
