//! How everything is changed: a transaction whose phases are types. Each takes the one before it,
//! so none can be left out or come early:
//!
//! 1. [`Prepared`]: the change is worked out on paper. Invalid changes end here.
//! 2. [`Written`]: what it needs is written where no packet looks. If that fails, what was written
//!    is taken back. For a pinned balancer the ledger first records the intended change
//!    (`remember.rs`), and after the switch that it is made.
//! 3. [`Switched`]: packets see the change, and the library's records match. The switch is made of
//!    stores that cannot fail ([`Written::switch`]), or is a single operation that the kernel does
//!    or refuses ([`Written::try_switch`]); if it refuses, nothing has changed.
//! 4. [`News`]: what packets may still hold (rings, numbers, programs) waits for a grace period.
//! 5. [`Katran::tell`] runs the callbacks, when all else is done.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Katran;
use super::object::Programs;
use super::remember::Also;
use crate::error::Result;
use crate::maps::RingSlot;
use crate::table::Paper;
use crate::types::RealNumber;

/// A change on paper: nothing has been written.
#[must_use = "a change is made by writing and switching it"]
pub(super) struct Prepared<A> {
    paper: Option<Paper>,
    /// Its effect on the rest of what the ledger keeps.
    also: A,
}

/// A change written where no packet looks, with `T` to switch packets to.
#[must_use = "switch packets to it"]
pub(super) struct Written<T> {
    paper: Option<Paper>,
    /// Packets know the new reals already.
    published: bool,
    with: T,
}

/// A change that packets see.
#[must_use = "retire what packets may still hold"]
pub(super) struct Switched {
    left: Left,
    numbers: Numbers,
    news: News,
}

/// What a change does with the numbers of reals that nothing names any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// There are none, or something still names them.
    Kept,
    /// They are free once no packet holds them.
    GivenBack,
}

/// What packets have left and may still hold.
#[must_use = "retire what packets may still hold"]
pub(super) enum Left {
    Nothing,
    Ring(Option<RingSlot>),
    Programs(Vec<Programs>),
    /// The number of a probe, if it had one.
    Probe(Option<u32>),
    /// The previous outer sources.
    Sources,
}

/// Reals that were added and removed, for the callbacks.
#[must_use = "pass it to `Katran::tell`, for the callbacks"]
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) reals: Vec<RealNews>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RealNews {
    Added(IpAddr, RealNumber),
    Removed(IpAddr, RealNumber),
}

impl<A: Also> Prepared<A> {
    /// A change that the table has staged. `also` is its effect on the rest of what the ledger
    /// keeps, or [`nothing_else`](super::remember::nothing_else).
    pub(super) fn new(staged: impl Into<Paper>, also: A) -> Self {
        let paper = Some(staged.into());
        Self { paper, also }
    }

    /// A change without VIPs and reals.
    pub(super) fn plain(also: A) -> Self {
        Self { paper: None, also }
    }

    /// Writes what packets do not see before [`Written::switch`].
    ///
    /// # Errors
    /// Those of `write`, which must leave nothing behind, and the kernel's refusals to wait or to
    /// clear counters. Nothing has changed then.
    pub(super) fn write<T>(
        self,
        katran: &mut Katran,
        write: impl FnOnce(&mut Katran) -> Result<T>,
    ) -> Result<Written<T>> {
        self.make_way(katran)?;
        katran.intend(self.paper.as_ref(), self.also)?;
        match write(katran) {
            Ok(with) => Ok(Written {
                paper: self.paper,
                published: false,
                with,
            }),
            Err(error) => {
                katran.note_undone(false);
                Err(error)
            }
        }
    }

    /// Writes what packets see store by store, such as many routes to new reals: publishes the
    /// reals first.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) fn write_in_sight<T>(
        self,
        katran: &mut Katran,
        write: impl FnOnce(&mut Katran) -> Result<T>,
    ) -> Result<Written<T>> {
        self.make_way(katran)?;
        katran.intend(self.paper.as_ref(), self.also)?;
        let added = self.paper.as_ref().map(|paper| &*paper.added);
        katran.publish_reals(added.unwrap_or_default());
        match write(katran) {
            Ok(with) => Ok(Written {
                paper: self.paper,
                published: true,
                with,
            }),
            Err(error) => {
                katran.take_back_reals(self.paper);
                Err(error)
            }
        }
    }

    /// Prepares for new numbers. If it fails, packets have seen no change.
    fn make_way(&self, katran: &mut Katran) -> Result<()> {
        let Some(paper) = &self.paper else {
            return Ok(());
        };
        for record in &paper.added {
            katran.check_reachable(record.address)?;
        }
        if paper.unsettled {
            katran.settle()?;
        }
        katran.clear_real_counters(&paper.added)
    }
}

impl Written<()> {
    /// A change without VIPs and reals, which needs only its switch.
    ///
    /// # Errors
    /// If the ledger cannot record it. Nothing has changed then.
    pub(super) fn nothing(katran: &mut Katran, also: impl Also) -> Result<Self> {
        katran.intend(None, also)?;
        Ok(Self {
            paper: None,
            published: false,
            with: (),
        })
    }

    /// The same for a change that cannot be refused.
    pub(super) fn surely(katran: &mut Katran, also: impl Also) -> Self {
        katran.intend_surely(also);
        Self {
            paper: None,
            published: false,
            with: (),
        }
    }
}

impl<T> Written<T> {
    /// Switches packets by stores that cannot fail, and commits the change. Reals are published
    /// before anything names them and withdrawn after the last name is gone.
    pub(super) fn switch(
        self,
        katran: &mut Katran,
        switch: impl FnOnce(&mut Katran, T) -> Left,
    ) -> Switched {
        if let (false, Some(paper)) = (self.published, &self.paper) {
            katran.publish_reals(&paper.added);
        }
        let left = switch(katran, self.with);
        katran.commit(self.paper, left)
    }

    /// Switches packets by one operation that the kernel does as a whole or refuses, such as adding
    /// a VIP to a map, and commits the change.
    ///
    /// # Errors
    /// Those of `switch`, which must take back what it has written. Nothing has changed then.
    pub(super) fn try_switch<O>(
        self,
        katran: &mut Katran,
        switch: impl FnOnce(&mut Katran, T) -> Result<(Left, O)>,
    ) -> Result<(Switched, O)> {
        if let (false, Some(paper)) = (self.published, &self.paper) {
            katran.publish_reals(&paper.added);
        }
        match switch(katran, self.with) {
            Ok((left, outcome)) => Ok((katran.commit(self.paper, left), outcome)),
            Err(error) => {
                katran.take_back_reals(self.paper);
                Err(error)
            }
        }
    }
}

impl Switched {
    /// Queues everything that packets may still hold, to be freed when its moment has passed. If
    /// the next change would have to wait, waits here instead.
    pub(super) fn retire(self, katran: &mut Katran) -> News {
        katran.let_go(self.left, self.numbers);
        katran.make_ready();
        self.news
    }

    pub(super) fn end(self, katran: &mut Katran) {
        let news = self.retire(katran);
        katran.tell(news);
    }
}

impl News {
    /// These, followed by those of a later change.
    pub(super) fn add(&mut self, later: Self) {
        self.reals.extend(later.reals);
    }

    /// Drops pairs that cancel out: added and removed again, or removed and added unchanged.
    pub(super) fn net(mut self) -> Self {
        let mut sums = HashMap::new();
        for real in &self.reals {
            let (key, sum) = real.sum();
            *sums.entry(key).or_insert(0) += sum;
        }
        self.reals.retain(|real| {
            let (key, sum) = real.sum();
            let left = sums.entry(key).or_insert(0);
            let told = left.signum() == sum;
            if told {
                *left -= sum;
            }
            told
        });
        self
    }
}

impl RealNews {
    /// The real, and the change in its count.
    fn sum(&self) -> ((IpAddr, RealNumber), i32) {
        match *self {
            Self::Added(address, number) => ((address, number), 1),
            Self::Removed(address, number) => ((address, number), -1),
        }
    }
}

impl Katran {
    /// A change that needs only its switch, without VIPs and real numbers: the kernel does it or
    /// refuses it; then the library records it.
    ///
    /// # Errors
    /// Those of `switch`, and as [`Written::nothing`]. Nothing has changed then.
    pub(super) fn change_at_once<O>(
        &mut self,
        also: impl Also,
        switch: impl FnOnce(&mut Self) -> Result<O>,
    ) -> Result<O> {
        self.look_at_attachments();
        let written = Written::nothing(self, also)?;
        let (switched, outcome) =
            written.try_switch(self, |katran, ()| Ok((Left::Nothing, switch(katran)?)))?;
        switched.end(self);
        Ok(outcome)
    }

    /// The same for a change that cannot be refused.
    pub(super) fn change_surely(&mut self, also: impl Also, switch: impl FnOnce(&mut Self)) {
        let switched = Written::surely(self, also).switch(self, |katran, ()| {
            switch(katran);
            Left::Nothing
        });
        switched.end(self);
    }

    /// Packets see the change: brings the library's records in line.
    fn commit(&mut self, paper: Option<Paper>, left: Left) -> Switched {
        let Some(paper) = paper else {
            self.note_done();
            return Switched {
                left,
                numbers: Numbers::Kept,
                news: News::default(),
            };
        };
        self.withdraw_reals(&paper.released);
        self.count_from_zero(&paper.added);
        let added = paper.added.iter();
        let added = added.map(|real| RealNews::Added(real.address, real.number));
        let released = paper.released.iter();
        let released = released.map(|(address, number)| RealNews::Removed(*address, *number));
        let news = News {
            reals: added.chain(released).collect(),
        };
        let numbers = match paper.gives_back() {
            true => Numbers::GivenBack,
            false => Numbers::Kept,
        };
        self.table.commit(paper);
        self.note_done();
        Switched {
            left,
            numbers,
            news,
        }
    }

    /// Takes back the reals of a failed change that packets may have met.
    fn take_back_reals(&mut self, paper: Option<Paper>) {
        let paper = paper.filter(|paper| !paper.added.is_empty());
        let met = paper.is_some();
        if let Some(paper) = paper {
            let added = paper.added.iter();
            let added: Vec<_> = added.map(|real| (real.address, real.number)).collect();
            self.withdraw_reals(&added);
            // Packets may have met these numbers.
            self.table.abandon(paper);
            self.let_go(Left::Nothing, Numbers::GivenBack);
        }
        self.note_undone(met);
    }

    /// Releases what packets have just left, and numbers that the table has given back, once no
    /// packet holds them.
    pub(super) fn let_go(&mut self, left: Left, numbers: Numbers) {
        let is_awaited = match &left {
            Left::Nothing | Left::Ring(None) | Left::Probe(None) => false,
            Left::Ring(Some(_)) | Left::Probe(Some(_)) | Left::Sources => true,
            // Programs wait separately.
            Left::Programs(_) => false,
        };
        if is_awaited || numbers == Numbers::GivenBack {
            let ring = match left {
                Left::Ring(ring) => ring,
                _ => None,
            };
            let moment = self.maps.rings.retire(ring);
            if numbers == Numbers::GivenBack {
                let given_back = self.table.given_back();
                self.given_back.push_back((moment, given_back));
            }
            match &left {
                Left::Probe(Some(number)) => self.probes_given_back.push_back((moment, *number)),
                Left::Sources => self.sources_set = moment,
                _ => {}
            }
        }
        if let Left::Programs(programs) = left
            && !programs.is_empty()
        {
            self.outlast(programs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::remember::only;
    use super::super::remember::tests::assert_known;
    use super::super::remember::tests::calls::address;
    use super::super::remember::tests::calls::vip;
    use super::super::remember::tests::kept;
    use super::super::remember::tests::read;
    use super::*;
    use crate::error::Error;
    use crate::ledger::Change;
    use crate::types::Real;
    use crate::types::VipFlags;

    #[test]
    fn what_comes_and_goes_is_no_news() {
        let of = |octet: u8| {
            (
                IpAddr::from([198, 51, 100, octet]),
                RealNumber(octet.into()),
            )
        };
        let added = |octet| RealNews::Added(of(octet).0, of(octet).1);
        let removed = |octet| RealNews::Removed(of(octet).0, of(octet).1);
        let net = |reals: &[RealNews]| {
            let reals = reals.to_vec();
            News { reals }.net().reals
        };
        assert_eq!(net(&[added(1), added(2), removed(1)]), [added(2)]);
        assert_eq!(net(&[removed(1), added(2), added(1)]), [added(2)]);
        assert_eq!(net(&[removed(1), added(1), removed(1)]), [removed(1)]);
        // With another number it is another real.
        let again = RealNews::Added(of(1).0, RealNumber(9));
        assert_eq!(net(&[removed(1), again]), [removed(1), again]);
        assert_eq!(net(&[]), []);
    }

    /// Refused in each phase: the numbers of reals that packets may have met stay unused by the
    /// next owner, too.
    #[test]
    fn a_change_that_the_kernel_refuses_is_known_to_be_none() {
        let (mut katran, heap) = kept();
        katran.add_vip(vip(1), VipFlags::empty()).unwrap();
        let refusal = || Error::NotFound {
            what: "what the kernel should do".to_owned(),
        };
        let prepared = |katran: &Katran, number| {
            let deltas = [(address(number), 1)].into();
            let staged = katran.table.stage_references(&deltas).unwrap();
            Prepared::new(staged, only(Change::Mark(7, Some(address(number)))))
        };
        let mut generations = Vec::new();
        for number in 1..6 {
            let before = katran.state();
            let written = prepared(&katran, number).write(&mut katran, |_| Err::<(), _>(refusal()));
            assert!(written.is_err());
            assert_known(&katran, &heap, "written");
            let written =
                prepared(&katran, number).write_in_sight(&mut katran, |_| Err::<(), _>(refusal()));
            assert!(written.is_err());
            assert_known(&katran, &heap, "written in sight");
            let written = prepared(&katran, number).write(&mut katran, |_| Ok(()));
            let switched = written
                .unwrap()
                .try_switch(&mut katran, |_, ()| Err::<(Left, ()), _>(refusal()));
            assert!(switched.is_err());
            assert_known(&katran, &heap, "switched");
            assert_eq!(katran.state(), before);
            let numbers = read(&heap).kept.table.stored_numbers();
            generations.push(numbers);
        }
        // Each uses up two numbers.
        generations.dedup();
        assert_eq!(generations.len(), 5);
        katran.add_real(vip(1), Real::new(address(1))).unwrap();
        assert_known(&katran, &heap, "a change that is made");
    }
}
