//! Attachments that are gone, because an interface was removed: they are reported once, and put back
//! as soon as there is an interface of that name again. And whether the balancer is still this program's.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use katran::Katran;
use katran::attachments::AttachmentState;

use super::say;

/// Between two looks. A caller without another clock wakes up as often.
pub(crate) const ROUND: Duration = Duration::from_secs(1);
/// After an attempt that was refused, which with a gateway that does not answer takes some seconds.
const RETRY: Duration = Duration::from_secs(10);

/// Keeps a balancer attached.
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

    /// Looks at the attachments, if it is time to, and returns what there is to report. An error if the balancer is
    /// another process's by now: there is nothing left to do then.
    pub(crate) fn look(&mut self, katran: &mut Katran) -> Result<Vec<String>> {
        if katran.is_handed_over() {
            // Any call says to whom.
            katran.reattach()?;
        }
        if Instant::now() < self.next {
            return Ok(Vec::new());
        }
        self.next = Instant::now() + ROUND;
        let found = gone(katran);
        let news = found.difference(&self.gone);
        let mut news: Vec<String> = news.map(|place| format!("gone: {place}")).collect();
        self.gone = found;
        if self.gone.is_empty() {
            self.refused = None;
            return Ok(news);
        }
        // Where there is no interface yet, this does nothing.
        let refused = katran.reattach().err().map(|error| error.to_string());
        let left = gone(katran);
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
    pub(crate) fn keep(&mut self, katran: &mut Katran) -> Result<()> {
        self.look(katran)?.into_iter().for_each(say);
        Ok(())
    }
}

/// What the kernel has no more, in words.
fn gone(katran: &Katran) -> BTreeSet<String> {
    let gone = |state: AttachmentState| state == AttachmentState::Gone;
    let interfaces = katran.interfaces().into_iter();
    let interfaces = interfaces.filter(|of| gone(of.state));
    let interfaces = interfaces.map(|of| format!("the program on {}", of.interface));
    let entries = katran.shared_entries().into_iter();
    let entries = entries.filter(|of| gone(of.state));
    let entries = entries.map(|of| format!("entry {} of {}", of.position, of.path.display()));
    let probes = katran.probes().attachment().into_iter();
    let probes = probes.filter(|of| gone(of.state));
    let probes = probes.map(|of| format!("the path of probes on {}", of.interface));
    interfaces.chain(entries).chain(probes).collect()
}
