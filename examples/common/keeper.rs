//! Keeps attachments. A lost attachment (its interface or cgroup was removed, or another program
//! took its place) is reported once and restored as soon as possible, or ends the program
//! (`--lost`). Also checks whether this program still owns the balancer.

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

/// The time between two checks. A caller without another clock wakes up this often.
pub(crate) const ROUND: Duration = Duration::from_secs(1);
/// The time after a refused attempt; with a silent gateway an attempt takes seconds.
const RETRY: Duration = Duration::from_secs(10);

/// What to do about a lost attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IfLost {
    /// Put the program back as soon as possible
    #[default]
    PutBack,
    /// Exit with an error
    Exit,
}

/// The option for lost attachments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Keep {
    /// What to do if something removes or replaces the attached program
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    lost: IfLost,
}

/// A lost attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lost {
    place: String,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Gone,
    Replaced,
    /// Another balancer took over the root entry and keeps it.
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

    /// One line with the reason.
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

/// Something with attachments.
pub(crate) trait Attached {
    /// The lost attachments.
    fn lost(&self) -> BTreeSet<Lost>;

    /// What has the place, or what happened to it, if known.
    fn why(&self, place: &str) -> Option<String>;

    /// Restores what it can.
    fn put_back(&mut self) -> katran::Result<()>;

    /// An error if another process owns it.
    fn check_owner(&mut self) -> katran::Result<()> {
        Ok(())
    }
}

/// Keeps something attached.
pub(crate) struct Keeper {
    options: Keep,
    lost: BTreeSet<Lost>,
    /// The text of the last refusal, which is reported once.
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

    /// Looks at the attachments when it is time, and returns what to report. An error if another
    /// process owns it, or if something is lost and the program should end.
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
        // Does nothing where the interface is still missing.
        let refused = kept.put_back().err().map(|error| error.to_string());
        let left = kept.lost();
        let back = self.lost.difference(&left);
        news.extend(back.map(|lost| format!("put back: {}", lost.place)));
        // No race with a program that keeps replacing ours.
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

    /// The same, and prints the report.
    pub(crate) fn keep(&mut self, kept: &mut impl Attached) -> Result<()> {
        self.look(kept)?.into_iter().for_each(say);
        Ok(())
    }
}

/// What the diagnosis says about an interface without the program.
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
        // A filter that replaced ours stays.
        let probes = self.probes().attachment().into_iter();
        let probes = probes.filter(|of| of.state == AttachmentState::Gone);
        let probes = probes.filter_map(|of| {
            let place = format!("the healthcheck program on {}", of.interface);
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
        // Any call reports the new owner.
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
