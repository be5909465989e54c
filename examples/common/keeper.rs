//! Attachments that are lost, because an interface or a cgroup was removed, or somebody has put another program in their
//! place: they are reported once, and put back as soon as that is possible, or the program ends (`--lost`). And whether a
//! balancer is still this program's.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use katran::Decap;
use katran::Katran;
use katran::ServerIdOption;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntries;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;

use super::say;

/// Between two looks. A caller without another clock wakes up as often.
pub(crate) const ROUND: Duration = Duration::from_secs(1);
/// After an attempt that was refused, which with a gateway that does not answer takes some seconds.
const RETRY: Duration = Duration::from_secs(10);

/// What to do about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IfLost {
    /// Put it back as soon as that is possible
    #[default]
    PutBack,
    /// End with an error
    Exit,
}

/// What to do about attachments that are lost.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Keep {
    /// If the program is taken off an interface, or another one is in its place: put it back, or end
    /// with an error that says who has it
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    lost: IfLost,
}

/// An attachment that is lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lost {
    place: String,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Gone,
    Replaced,
    /// An entry of a root program that another balancer has moved into, as the next one does: it stays that one's.
    TakenOver,
}

impl Lost {
    fn new(state: AttachmentState, place: String) -> Option<Self> {
        let how = match state {
            AttachmentState::Gone => How::Gone,
            AttachmentState::Replaced => How::Replaced,
            _ => return None,
        };
        Some(Self { place, how })
    }

    fn on(state: AttachmentState, interface: &str) -> Option<Self> {
        Self::new(state, format!("the program on {interface}"))
    }

    /// In a line, with the reason.
    fn describe(&self, kept: &impl Attached) -> String {
        let how = match self.how {
            How::Gone => "gone",
            How::Replaced => "replaced",
            How::TakenOver => "taken over",
        };
        let why = kept.why(&self.place).map(|why| format!(": {why}"));
        format!("{how}: {}{}", self.place, why.unwrap_or_default())
    }
}

/// What is kept attached.
pub(crate) trait Attached {
    /// What is lost.
    fn lost(&self) -> BTreeSet<Lost>;

    /// Who has a place, or what became of it, if that can be told.
    fn why(&self, place: &str) -> Option<String>;

    /// Puts back what can be.
    fn put_back(&mut self) -> katran::Result<()>;

    /// An error if it is another process's by now.
    fn check_owner(&mut self) -> katran::Result<()> {
        Ok(())
    }
}

/// Keeps something attached.
pub(crate) struct Keeper {
    options: Keep,
    lost: BTreeSet<Lost>,
    /// The words of the last refusal, which is reported once.
    refused: Option<String>,
    next: Instant,
}

impl Keeper {
    pub(crate) fn new(options: Keep) -> Self {
        Self {
            options,
            lost: BTreeSet::new(),
            refused: None,
            next: Instant::now(),
        }
    }

    /// Looks at the attachments, if it is time to, and returns what there is to report. An error if it is
    /// another process's by now, or something is lost and it is to end then: there is nothing left to do.
    pub(crate) fn look(&mut self, kept: &mut impl Attached) -> Result<Vec<String>> {
        kept.check_owner()?;
        if Instant::now() < self.next {
            return Ok(Vec::new());
        }
        self.next = Instant::now() + ROUND;
        let found = kept.lost();
        let news = found.difference(&self.lost);
        let mut news: Vec<String> = news.map(|lost| lost.describe(kept)).collect();
        if self.options.lost == IfLost::Exit && !news.is_empty() {
            anyhow::bail!("{}", news.join("; "));
        }
        self.lost = found;
        if self.lost.iter().all(|lost| lost.how == How::TakenOver) {
            self.refused = None;
            return Ok(news);
        }
        // Where there is no interface yet, this does nothing.
        let refused = kept.put_back().err().map(|error| error.to_string());
        let left = kept.lost();
        let back = self.lost.difference(&left);
        news.extend(back.map(|lost| format!("put back: {}", lost.place)));
        // Somebody who puts another program there again and again is not raced.
        let was_replaced = self.lost.iter().any(|lost| lost.how == How::Replaced);
        self.lost = left;
        if refused.is_some() || was_replaced {
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

/// What a diagnosis says of an interface that the program is not on.
fn on_interface(
    place: &str,
    diagnose: impl FnOnce(&str) -> katran::Result<Diagnosis>,
) -> Option<String> {
    let interface = place.strip_prefix("the program on ")?;
    let found = diagnose(interface).ok()?;
    let mut about = found.findings().iter().filter(|of| {
        [Subject::Interface, Subject::Program].contains(&of.subject)
            && of.severity == Severity::Problem
    });
    about.next().map(|of| of.message.clone())
}

impl Attached for Katran {
    fn lost(&self) -> BTreeSet<Lost> {
        let interfaces = self.interfaces().into_iter();
        let interfaces = interfaces.filter_map(|of| Lost::on(of.state, &of.interface));
        let entries = self.shared_entries().into_iter();
        let entries = entries.filter_map(|of| {
            let place = format!("entry {} of {}", of.position, of.path.display());
            let lost = Lost::new(of.state, place)?;
            Some(match lost.how {
                How::Replaced => Lost {
                    how: How::TakenOver,
                    ..lost
                },
                _ => lost,
            })
        });
        // A filter that somebody has put in its place stays.
        let probes = self.probes().attachment().into_iter();
        let probes = probes.filter(|of| of.state == AttachmentState::Gone);
        let probes = probes.filter_map(|of| {
            let place = format!("the path of probes on {}", of.interface);
            Lost::new(of.state, place)
        });
        interfaces.chain(entries).chain(probes).collect()
    }

    fn why(&self, place: &str) -> Option<String> {
        let mut entries = self.shared_entries().into_iter();
        let entry =
            entries.find(|of| place == format!("entry {} of {}", of.position, of.path.display()));
        let Some(entry) = entry else {
            return on_interface(place, |interface| self.diagnose(interface));
        };
        let there = SharedEntries::open(&entry.path).ok()?.programs().ok()?;
        let there = there.into_iter().nth(entry.position as usize)??;
        Some(match there.name.as_str() {
            "" => format!("XDP program {} is there", there.id),
            name => format!("XDP program {} ({name}) is there", there.id),
        })
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
    fn lost(&self) -> BTreeSet<Lost> {
        let by_xdp = self.interfaces().into_iter();
        let by_xdp = by_xdp.filter_map(|of| Lost::on(of.state, &of.interface));
        let at_tc = self.tc_interfaces().into_iter();
        let at_tc = at_tc.filter(|of| of.state == AttachmentState::Gone);
        by_xdp
            .chain(at_tc.filter_map(|of| Lost::on(of.state, &of.interface)))
            .collect()
    }

    fn why(&self, place: &str) -> Option<String> {
        on_interface(place, |interface| self.diagnose(interface, &[]))
    }

    fn put_back(&mut self) -> katran::Result<()> {
        self.reattach()
    }
}

impl Attached for ServerIdOption {
    fn lost(&self) -> BTreeSet<Lost> {
        let lost = self.cgroups().into_iter();
        let lost = lost.filter(|of| of.state == AttachmentState::Gone);
        lost.filter_map(|of| {
            let place = format!("the program of {}", of.path.display());
            Lost::new(of.state, place)
        })
        .collect()
    }

    fn why(&self, _place: &str) -> Option<String> {
        None
    }

    fn put_back(&mut self) -> katran::Result<()> {
        self.reattach()
    }
}
