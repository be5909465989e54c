//! The attachments of one program, of whatever kind: a list that identifies them by what they are
//! on, and reports what the kernel has made of each.

use std::io;

use super::place::AttachmentState;
use super::place::Named;
use super::place::Place;
use super::place::Seen;
use super::place::Target;
use super::place::here;
use crate::error::Error;
use crate::error::Result;

/// Reports an attachment's state from any thread, until the attachment is given another program.
/// Keeps nothing attached.
pub(crate) type Witness = Box<dyn Fn() -> AttachmentState + Send + Sync>;

/// One attachment of one program: an XDP link, a program at tc, or a root entry. It ends on drop,
/// unless something pinned keeps it.
pub(crate) trait Attached: Sized {
    /// What was requested, which is all that restoring it needs.
    type Asked;

    /// For messages.
    const KIND: &'static str;

    fn asked(&self) -> Self::Asked;

    /// The state, as the kernel reports it.
    fn state(&self) -> AttachmentState;

    /// A function that reports the state from another thread.
    fn witness(&self) -> io::Result<Witness>;

    /// Ends it, now or on drop, even if something keeps it, and reports failures. Does nothing if
    /// it is gone.
    fn detach(&mut self) -> Result<()>;

    /// Replaces a lost attachment, which may leave something to clean up at the end.
    fn succeed(&mut self, former: Self);
}

/// An attachment to an interface.
pub(crate) trait OnInterface: Attached {
    fn target(&self) -> &Target;
}

/// An attachment that can be given another program between two packets.
pub(crate) trait Replaceable: Attached {
    type Program<'a>: Copy;

    /// A program with everything needed to switch to it.
    type Kept;

    /// Does whatever can fail; `None` if the attachment is gone or another program replaced ours.
    fn prepare(&self, program: Self::Program<'_>) -> Result<Option<Self::Kept>>;

    /// Replaces the current program, and returns it. An attachment that goes away in the meantime
    /// is no error. After a refusal the current program stays.
    fn switch(&mut self, program: Self::Kept) -> std::result::Result<Self::Kept, Error>;
}

/// The attachments of one program, in the order of attaching. Those that nothing keeps end on drop.
#[derive(Debug)]
pub(crate) struct Attachments<A> {
    held: Vec<A>,
}

impl<A> Default for Attachments<A> {
    fn default() -> Self {
        Self { held: Vec::new() }
    }
}

impl<A: Attached> Attachments<A> {
    /// All of them, including lost ones.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &A> + Clone {
        self.held.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut A> {
        self.held.iter_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those that the kernel reports as present.
    pub(crate) fn present(&self) -> impl Iterator<Item = &A> {
        self.iter()
            .filter(|attached| attached.state() == AttachmentState::Attached)
    }

    /// Adds a new one, replacing those that `is_former` selects.
    pub(super) fn put(&mut self, mut new: A, is_former: impl Fn(&A) -> bool) {
        for former in self.held.extract_if(.., |held| is_former(held)) {
            new.succeed(former);
        }
        self.held.push(new);
    }

    /// Ends one of them.
    pub(crate) fn end(&mut self, position: usize) -> Result<()> {
        self.held[position].detach()?;
        self.held.remove(position);
        Ok(())
    }

    /// Ends all of them.
    pub(crate) fn clear(&mut self) {
        self.held.drain(..).for_each(end);
    }

    /// Adds a pinned one.
    pub(crate) fn resume(&mut self, kept: A) {
        self.held.push(kept);
    }
}

impl<A: OnInterface> Attachments<A> {
    /// Checks that the interface exists in the calling thread's network namespace and is not ours
    /// yet.
    pub(crate) fn check(&self, interface: &str) -> Result<Target> {
        let target = Target::find(interface)?;
        self.check_free(&target)?;
        Ok(target)
    }

    /// Checks that this interface is not ours yet.
    pub(crate) fn check_free(&self, target: &Target) -> Result<()> {
        let held = self.iter().find(|held| held.target().place == target.place);
        match held.map(Attached::state) {
            Some(AttachmentState::Attached) => Err(Error::AlreadyExists {
                what: format!("the {} to {}", A::KIND, target.name),
            }),
            // Attaching will report what is there.
            _ => Ok(()),
        }
    }

    /// Adds a new one, replacing ours on that interface, or on a former interface of its name.
    pub(crate) fn add(&mut self, new: A) {
        let (place, name) = (new.target().place, new.target().name.clone());
        self.put(new, |held| is_former(held, place, &name));
    }

    /// Forgets lost attachments to an interface, or to a former one of its name: another one
    /// replaces them.
    pub(crate) fn forget_former(&mut self, target: &Target) {
        let former = self
            .held
            .extract_if(.., |held| is_former(held, target.place, &target.name));
        former.for_each(end);
    }

    /// Forgets lost attachments whose interface has another one: a process that ended while
    /// restoring one left the old one, too.
    pub(crate) fn forget_succeeded(&mut self) {
        let name = |held: &A| (held.target().place.namespace, held.target().last_name());
        let present: Vec<_> = self.present().map(name).collect();
        let is_succeeded =
            |held: &A| held.state() == AttachmentState::Gone && present.contains(&name(held));
        let former = self.held.extract_if(.., |held| is_succeeded(held));
        former.for_each(end);
    }

    /// The position of the one on an interface, as a caller names it.
    pub(crate) fn find(&self, interface: &Named<'_>) -> Result<Option<usize>> {
        interface.choose(&self.seen())
    }

    /// The interfaces, with the kernel's state of their attachments.
    pub(crate) fn seen(&self) -> Vec<Seen<'_>> {
        self.iter()
            .map(|held| Seen {
                target: held.target(),
                state: held.state(),
            })
            .collect()
    }

    /// The one on the interface with this name now, or on a lost one that had it, but not on a
    /// renamed one.
    pub(crate) fn get(&self, interface: &str) -> Option<&A> {
        let named = Named::new(interface);
        let position = self.find(&named).ok().flatten()?;
        let held = self.held.get(position);
        held.filter(|held| named.is(held.target()) || held.state() == AttachmentState::Gone)
    }

    /// Detaches from an interface, as a caller names it ([`Named::choose`]).
    pub(crate) fn detach(&mut self, interface: &str) -> Result<()> {
        let position = self.find(&Named::new(interface))?;
        let position = position.ok_or_else(|| Error::NotFound {
            what: format!("the {} to {interface}", A::KIND),
        })?;
        self.end(position)
    }

    /// The interfaces of present attachments.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.present().map(|held| held.target().place).collect()
    }

    /// Lost attachments that the calling thread can restore: names, and what was requested.
    pub(crate) fn lost(&self) -> Vec<(String, A::Asked)> {
        let here = here();
        self.iter()
            .filter(|held| Some(held.target().place.namespace) == here)
            .filter(|held| held.state() == AttachmentState::Gone)
            .map(|held| (held.target().last_name(), held.asked()))
            .collect()
    }
}

/// Tries all of these, and returns the first failure; a missing interface is none.
pub(crate) fn put_back(attempts: impl Iterator<Item = Result<()>>) -> Result<()> {
    let failures = attempts.filter_map(Result::err);
    let failures = failures.filter(|error| !matches!(error, Error::NoSuchInterface { .. }));
    // All of them: iterating makes the attempts.
    let failures: Vec<_> = failures.collect();
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Ends one for good, if possible.
fn end<A: Attached>(mut held: A) {
    if let Err(error) = held.detach() {
        log::warn!("cannot detach: {error}");
    }
}

/// Whether an attachment must make room for a new one on an interface: it is on it, or on a lost
/// interface of that name.
fn is_former<A: OnInterface>(held: &A, place: Place, name: &str) -> bool {
    let of_target = held.target();
    of_target.place == place
        || of_target.place.namespace == place.namespace
            && held.state() == AttachmentState::Gone
            && of_target.last_name() == name
}

/// The previous programs of attachments by position, to undo a switch.
#[must_use = "a switch is permanent unless undone"]
pub(crate) struct Switched<A: Replaceable>(Vec<(usize, A::Kept)>);

impl<A: Replaceable> Attachments<A> {
    /// Gives another program to all present attachments or to none. On failure returns the reason,
    /// and whether packets still meet the new program because the kernel refused to take it back.
    pub(crate) fn switch(
        &mut self,
        program: A::Program<'_>,
    ) -> std::result::Result<Switched<A>, (Error, bool)> {
        let mut next = Vec::new();
        for (position, held) in self.held.iter().enumerate() {
            let prepared = held.prepare(program).map_err(|error| (error, false))?;
            next.extend(prepared.map(|prepared| (position, prepared)));
        }
        let mut before = Vec::new();
        for (position, prepared) in next {
            match self.held[position].switch(prepared) {
                Ok(former) => before.push((position, former)),
                Err(error) => {
                    let strays = self.switch_back(Switched(before));
                    return Err((error, strays));
                }
            }
        }
        Ok(Switched(before))
    }

    /// The same, followed by another step; if that fails, the previous program is restored.
    pub(crate) fn switch_then<T>(
        &mut self,
        program: A::Program<'_>,
        then: impl FnOnce() -> std::result::Result<T, (Error, bool)>,
    ) -> std::result::Result<T, (Error, bool)> {
        let before = self.switch(program)?;
        then().map_err(|(error, strays)| {
            let more = self.switch_back(before);
            (error, strays || more)
        })
    }

    /// Undoes a switch; returns whether packets still meet the new program because the kernel
    /// refused to take it back. The next switch repairs that.
    pub(crate) fn switch_back(&mut self, before: Switched<A>) -> bool {
        let mut strays = false;
        for (position, former) in before.0 {
            if let Err(error) = self.held[position].switch(former) {
                log::error!("cannot restore the previous program: {error}");
                strays = true;
            }
        }
        strays
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// An attachment without a kernel.
    struct Fake {
        target: Target,
        state: AttachmentState,
        program: u32,
        refuses: &'static [u32],
        ended: Rc<RefCell<Vec<u32>>>,
    }

    impl Attached for Fake {
        type Asked = u32;
        const KIND: &'static str = "attachment";

        fn asked(&self) -> u32 {
            self.program
        }

        fn state(&self) -> AttachmentState {
            self.state
        }

        fn witness(&self) -> io::Result<Witness> {
            let state = self.state;
            Ok(Box::new(move || state))
        }

        fn detach(&mut self) -> Result<()> {
            self.ended.borrow_mut().push(self.target.place.index);
            Ok(())
        }

        fn succeed(&mut self, _former: Self) {}
    }

    impl OnInterface for Fake {
        fn target(&self) -> &Target {
            &self.target
        }
    }

    impl Replaceable for Fake {
        type Program<'a> = u32;
        type Kept = u32;

        fn prepare(&self, program: u32) -> Result<Option<u32>> {
            Ok((self.state == AttachmentState::Attached).then_some(program))
        }

        fn switch(&mut self, program: u32) -> Result<u32> {
            match self.refuses.contains(&program) {
                true => Err(Error::NotFound {
                    what: format!("program {program}"),
                }),
                false => Ok(std::mem::replace(&mut self.program, program)),
            }
        }
    }

    fn list(of: &[(u32, AttachmentState, &'static [u32])]) -> Attachments<Fake> {
        let ended = Rc::new(RefCell::new(Vec::new()));
        let mut list = Attachments::default();
        for (index, state, refuses) in of {
            list.add(Fake {
                target: Target::new(
                    Place {
                        namespace: 1,
                        index: *index,
                    },
                    &format!("eth{index}"),
                ),
                state: *state,
                program: 1,
                refuses,
                ended: Rc::clone(&ended),
            });
        }
        list
    }

    fn programs(list: &Attachments<Fake>) -> Vec<u32> {
        list.iter().map(|held| held.program).collect()
    }

    #[test]
    fn all_get_the_new_program_or_none() {
        use AttachmentState::*;
        let mut all = list(&[(1, Attached, &[]), (2, Gone, &[]), (3, Attached, &[])]);
        let before = all.switch(2).map_err(|(error, _)| error).unwrap();
        assert_eq!(programs(&all), [2, 1, 2]);
        assert!(!all.switch_back(before));
        assert_eq!(programs(&all), [1, 1, 1]);

        let mut none = list(&[(1, Attached, &[]), (2, Attached, &[]), (3, Attached, &[2])]);
        let strays = none.switch(2).map(drop).unwrap_err().1;
        assert!(!strays);
        assert_eq!(programs(&none), [1, 1, 1]);

        // The first one keeps the program that it should drop until the next switch.
        let mut stray = list(&[(1, Attached, &[1]), (2, Attached, &[2])]);
        let strays = stray.switch(2).map(drop).unwrap_err().1;
        assert!(strays);
        assert_eq!(programs(&stray), [2, 1]);
        let _ = stray.switch(3).map_err(|(error, _)| error).unwrap();
        assert_eq!(programs(&stray), [3, 3]);
    }

    #[test]
    fn one_that_is_gone_makes_room_for_the_next_of_its_name() {
        use AttachmentState::*;
        let mut attachments = list(&[(1, Gone, &[]), (2, Attached, &[]), (3, Replaced, &[])]);
        let target = |index, name: &str| {
            let place = Place {
                namespace: 1,
                index,
            };
            Target::new(place, name)
        };
        assert!(attachments.check_free(&target(2, "eth2")).is_err());
        for (index, name) in [(4, "eth1"), (4, "eth2"), (3, "eth3")] {
            attachments.check_free(&target(index, name)).unwrap();
        }
        assert_eq!(attachments.places(), [target(2, "").place]);
        let indexes = |attachments: &Attachments<Fake>| {
            let held = attachments.iter();
            held.map(|held| held.target.place.index).collect::<Vec<_>>()
        };
        let mut other = list(&[(4, Attached, &[])]).held;
        let mut fake = other.remove(0);
        fake.target.name = "eth1".to_owned();
        attachments.add(fake);
        assert_eq!(indexes(&attachments), [2, 3, 4]);
        // Two of one name, both left by a process.
        let mut left = list(&[(1, Gone, &[]), (2, Gone, &[]), (3, Attached, &[])]);
        left.held[2].target = target(3, "eth1");
        left.forget_succeeded();
        assert_eq!(indexes(&left), [2, 3]);
        // `eth2` still exists under another name.
        attachments.forget_former(&target(9, "eth2"));
        attachments.forget_former(&target(3, "eth3"));
        assert_eq!(indexes(&attachments), [2, 4]);
    }
}
