//! The attachments of one program, of whatever kind: one list, told apart by what they are on, that says
//! what the kernel has made of each.

use std::io;

use super::place::AttachmentState;
use super::place::Named;
use super::place::Place;
use super::place::Seen;
use super::place::Target;
use super::place::here;
use crate::error::Error;
use crate::error::Result;

/// Says of an attachment, on any thread, what the kernel has made of it: from when it was made until the
/// attachment is given another program. It keeps nothing attached.
pub(crate) type Witness = Box<dyn Fn() -> AttachmentState + Send + Sync>;

/// One attachment of one program: a link of XDP, a program at tc, or an entry of a root program. It ends
/// when it is dropped, unless something that is pinned keeps it.
pub(crate) trait Attached: Sized {
    /// How it was asked for, which is all that it takes to put it back.
    type Asked;

    /// For messages.
    const KIND: &'static str;

    fn asked(&self) -> Self::Asked;

    /// The kernel's word.
    fn state(&self) -> AttachmentState;

    /// Makes what says the same on another thread.
    fn witness(&self) -> io::Result<Witness>;

    /// Ends it, now or when it is dropped, also one that is kept, and says if that cannot be; of one that is gone
    /// nothing is left to do.
    fn detach(&mut self) -> Result<()>;

    /// It takes the place of one that is gone, of which something may be left to be done in the end.
    fn succeed(&mut self, former: Self);
}

/// An attachment to an interface.
pub(crate) trait OnInterface: Attached {
    fn target(&self) -> &Target;
}

/// An attachment that can be given another program between two packets.
pub(crate) trait Replaceable: Attached {
    type Program<'a>: Copy;

    /// A program, and what it takes to put it in place.
    type Kept;

    /// Makes what can fail ready; `None`: the attachment is gone, or somebody else's by now.
    fn prepare(&self, program: Self::Program<'_>) -> Result<Option<Self::Kept>>;

    /// Puts a program in the place of the present one, which is returned. An attachment that goes in the
    /// meantime is no error. A refusal leaves the present one.
    fn switch(&mut self, program: Self::Kept) -> std::result::Result<Self::Kept, Error>;
}

/// The attachments of one program, in the order of attaching; all that nothing keeps end on drop.
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
    /// All of them, also those that are gone.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &A> + Clone {
        self.held.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut A> {
        self.held.iter_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those that are there, as the kernel says.
    pub(crate) fn present(&self) -> impl Iterator<Item = &A> {
        self.iter()
            .filter(|attached| attached.state() == AttachmentState::Attached)
    }

    /// Adds one that was just made, in the place of those before it that `is_former` knows.
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

    /// Adds one that a pin has kept.
    pub(crate) fn resume(&mut self, kept: A) {
        self.held.push(kept);
    }
}

impl<A: OnInterface> Attachments<A> {
    /// Whether there is such an interface in the calling thread's network namespace, and we are not on it.
    pub(crate) fn check(&self, interface: &str) -> Result<Target> {
        let target = Target::find(interface)?;
        self.check_free(&target)?;
        Ok(target)
    }

    /// Whether we are not on this interface.
    pub(crate) fn check_free(&self, target: &Target) -> Result<()> {
        let held = self.iter().find(|held| held.target().place == target.place);
        match held.map(Attached::state) {
            Some(AttachmentState::Attached) => Err(Error::AlreadyExists {
                what: format!("the {} to {}", A::KIND, target.name),
            }),
            // To attach will tell what is there.
            _ => Ok(()),
        }
    }

    /// Adds one that was just made; what we had on that interface, or on a former one of its name that is
    /// gone, it takes the place of.
    pub(crate) fn add(&mut self, new: A) {
        let (place, name) = (new.target().place, new.target().name.clone());
        self.put(new, |held| is_former(held, place, &name));
    }

    /// Forgets what is gone of an interface, or of a former one of its name: another attachment takes its
    /// place.
    pub(crate) fn forget_former(&mut self, target: &Target) {
        let former = self
            .held
            .extract_if(.., |held| is_former(held, target.place, &target.name));
        former.for_each(end);
    }

    /// Forgets what is gone of interfaces that others are attached to: a process that ended as it put one back has left
    /// the one before, too.
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

    /// The interfaces, and what the kernel says of the attachments to them.
    pub(crate) fn seen(&self) -> Vec<Seen<'_>> {
        self.iter()
            .map(|held| Seen {
                target: held.target(),
                state: held.state(),
            })
            .collect()
    }

    /// The one on the interface that has this name now, or that is gone and had it: not one that was
    /// renamed.
    pub(crate) fn get(&self, interface: &str) -> Option<&A> {
        let named = Named::new(interface);
        let position = self.find(&named).ok().flatten()?;
        let held = self.held.get(position);
        held.filter(|held| named.is(held.target()) || held.state() == AttachmentState::Gone)
    }

    /// Ends the one on an interface, as a caller names it ([`Named::choose`]).
    pub(crate) fn detach(&mut self, interface: &str) -> Result<()> {
        let position = self.find(&Named::new(interface))?;
        let position = position.ok_or_else(|| Error::NotFound {
            what: format!("the {} to {interface}", A::KIND),
        })?;
        self.end(position)
    }

    /// The interfaces of those that are there, as the kernel says.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.present().map(|held| held.target().place).collect()
    }

    /// Those that are gone and can be put back from the calling thread: names, and how they were asked for.
    pub(crate) fn lost(&self) -> Vec<(String, A::Asked)> {
        let here = here();
        self.iter()
            .filter(|held| Some(held.target().place.namespace) == here)
            .filter(|held| held.state() == AttachmentState::Gone)
            .map(|held| (held.target().last_name(), held.asked()))
            .collect()
    }
}

/// Has all of these tried, and tells the first failure; that an interface has not come back is none.
pub(crate) fn put_back(attempts: impl Iterator<Item = Result<()>>) -> Result<()> {
    let failures = attempts.filter_map(Result::err);
    let failures = failures.filter(|error| !matches!(error, Error::NoSuchInterface { .. }));
    // All of them, for it is asking that has them tried.
    let failures: Vec<_> = failures.collect();
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Ends one for good, as far as that can be.
fn end<A: Attached>(mut held: A) {
    if let Err(error) = held.detach() {
        log::warn!("an attachment of ours may stay: {error}");
    }
}

/// Whether one has to make room for another that is attached to an interface: it is there, or on a former
/// interface of the name that is gone.
fn is_former<A: OnInterface>(held: &A, place: Place, name: &str) -> bool {
    let of_target = held.target();
    of_target.place == place
        || of_target.place.namespace == place.namespace
            && held.state() == AttachmentState::Gone
            && of_target.last_name() == name
}

/// The programs that attachments had before a switch, by their positions: what it takes to undo it.
#[must_use = "a switch that is not undone is for good"]
pub(crate) struct Switched<A: Replaceable>(Vec<(usize, A::Kept)>);

impl<A: Replaceable> Attachments<A> {
    /// Gives another program to all attachments that are there, or to none. If it has failed: why, and
    /// whether packets still meet the new one somewhere, as the kernel has refused to take it back.
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

    /// The same, with what comes after it: if that fails they have the program before again.
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

    /// Undoes a switch; whether packets still meet the new program somewhere, as the kernel has refused to
    /// take it back. The next switch sees to that.
    pub(crate) fn switch_back(&mut self, before: Switched<A>) -> bool {
        let mut strays = false;
        for (position, former) in before.0 {
            if let Err(error) = self.held[position].switch(former) {
                log::error!("the new program stays: {error}");
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

        // The first one keeps what it was to be rid of again, until the next time.
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
        // Two of a name, of which a process has left both.
        let mut left = list(&[(1, Gone, &[]), (2, Gone, &[]), (3, Attached, &[])]);
        left.held[2].target = target(3, "eth1");
        left.forget_succeeded();
        assert_eq!(indexes(&left), [2, 3]);
        // `eth2` is still there, though renamed.
        attachments.forget_former(&target(9, "eth2"));
        attachments.forget_former(&target(3, "eth3"));
        assert_eq!(indexes(&attachments), [2, 4]);
    }
}
