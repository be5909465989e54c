//! Attachments that are gone, because an interface or a cgroup was removed: they are reported once, and put back
//! as soon as there is one of that name again. And whether a balancer is still this program's.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use katran::Decap;
use katran::Katran;
use katran::ServerIdOption;
use katran::attachments::AttachmentState;

use super::say;

/// Between two looks. A caller without another clock wakes up as often.
pub(crate) const ROUND: Duration = Duration::from_secs(1);
/// After an attempt that was refused, which with a gateway that does not answer takes some seconds.
const RETRY: Duration = Duration::from_secs(10);

/// What is kept attached.
pub(crate) trait Attached {
    /// What the kernel has no more, in words.
    fn gone(&self) -> BTreeSet<String>;

    /// Puts back what can be.
    fn put_back(&mut self) -> katran::Result<()>;

    /// An error if it is another process's by now.
    fn check_owner(&mut self) -> katran::Result<()> {
        Ok(())
    }
}

/// Keeps something attached.
pub(crate) struct Keeper {
    gone: BTreeSet<String>,
    /// The words of the last refusal, which is reported once.
    refused: Option<String>,
    next: Instant,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self {
            gone: BTreeSet::new(),
            refused: None,
            next: Instant::now(),
        }
    }

    /// Looks at the attachments, if it is time to, and returns what there is to report. An error if it is
    /// another process's by now: there is nothing left to do then.
    pub(crate) fn look(&mut self, kept: &mut impl Attached) -> Result<Vec<String>> {
        kept.check_owner()?;
        if Instant::now() < self.next {
            return Ok(Vec::new());
        }
        self.next = Instant::now() + ROUND;
        let found = kept.gone();
        let news = found.difference(&self.gone);
        let mut news: Vec<String> = news.map(|place| format!("gone: {place}")).collect();
        self.gone = found;
        if self.gone.is_empty() {
            self.refused = None;
            return Ok(news);
        }
        // Where there is no interface yet, this does nothing.
        let refused = kept.put_back().err().map(|error| error.to_string());
        let left = kept.gone();
        let back = self.gone.difference(&left);
        news.extend(back.map(|place| format!("put back: {place}")));
        self.gone = left;
        if refused.is_some() {
            self.next = Instant::now() + RETRY;
        }
        if self.refused != refused {
            news.extend(refused.clone());
            self.refused = refused;
        }
        Ok(news)
    }

    /// The same, printed.
    pub(crate) fn keep(&mut self, kept: &mut impl Attached) -> Result<()> {
        self.look(kept)?.into_iter().for_each(say);
        Ok(())
    }
}

fn is_gone(state: AttachmentState) -> bool {
    state == AttachmentState::Gone
}

impl Attached for Katran {
    fn gone(&self) -> BTreeSet<String> {
        let interfaces = self.interfaces().into_iter();
        let interfaces = interfaces.filter(|of| is_gone(of.state));
        let interfaces = interfaces.map(|of| format!("the program on {}", of.interface));
        let entries = self.shared_entries().into_iter();
        let entries = entries.filter(|of| is_gone(of.state));
        let entries = entries.map(|of| format!("entry {} of {}", of.position, of.path.display()));
        let probes = self.probes().attachment().into_iter();
        let probes = probes.filter(|of| is_gone(of.state));
        let probes = probes.map(|of| format!("the path of probes on {}", of.interface));
        interfaces.chain(entries).chain(probes).collect()
    }

    fn put_back(&mut self) -> katran::Result<()> {
        self.reattach()
    }

    fn check_owner(&mut self) -> katran::Result<()> {
        // Any call says to whom.
        match self.is_handed_over() {
            true => self.reattach(),
            false => Ok(()),
        }
    }
}

impl Attached for Decap {
    fn gone(&self) -> BTreeSet<String> {
        let by_xdp = self.interfaces().into_iter();
        let by_xdp = by_xdp.map(|of| (of.state, of.interface));
        let at_tc = self.tc_interfaces().into_iter();
        let all = by_xdp.chain(at_tc.map(|of| (of.state, of.interface)));
        let gone = all.filter(|(state, _)| is_gone(*state));
        gone.map(|(_, interface)| format!("the program on {interface}"))
            .collect()
    }

    fn put_back(&mut self) -> katran::Result<()> {
        self.reattach()
    }
}

impl Attached for ServerIdOption {
    fn gone(&self) -> BTreeSet<String> {
        let gone = self.cgroups().into_iter();
        let gone = gone.filter(|of| is_gone(of.state));
        gone.map(|of| format!("the program of {}", of.path.display()))
            .collect()
    }

    fn put_back(&mut self) -> katran::Result<()> {
        self.reattach()
    }
}
