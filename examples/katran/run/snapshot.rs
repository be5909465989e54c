//! A snapshot of the balancer, which its owner takes for all who ask.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::process;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::Result;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::attachments::Attachment;
use katran::attachments::SharedEntry;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran::health::RealHealth;
use katran::health::Status;
use katran::health::VipHealth;
use katran::stats::Counters;
use katran::stats::Metric;

use super::Message;
use super::Owner;
use super::Past;
use super::health;
use crate::options;
use crate::report;
use crate::report::Applied;
use crate::report::Check;
use crate::report::Drain;
use crate::report::Health;
use crate::report::NOT_SENT;
use crate::report::Report;

/// How long a client waits for a new snapshot before it gets the last one.
const PATIENCE: Duration = Duration::from_millis(250);
/// The label of findings about no interface.
const EVERYWHERE: &str = "all";
/// How long to wait for what only the owner can do.
const LONG: Duration = Duration::from_secs(600);

/// The largest number of probed reals with their own series in a scrape.
const MOST_REALS: usize = 10_000;

/// A way to ask the owner.
#[derive(Clone)]
pub(crate) struct Handle {
    sender: Sender<Message>,
    last: Arc<Mutex<Option<Arc<Snapshot>>>>,
}

impl Handle {
    pub(super) fn new(sender: Sender<Message>) -> Self {
        Self {
            sender,
            last: Arc::default(),
        }
    }

    /// Publishes a snapshot for others. Without a diagnosis it keeps the previous one.
    pub(super) fn publish(&self, mut snapshot: Snapshot) -> Arc<Snapshot> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|_| snapshot.problems.is_empty()) {
            snapshot.problems.clone_from(&last.problems);
        }
        Arc::clone(last.insert(Arc::new(snapshot)))
    }

    /// The current report, or the one from before the change in progress; with the owner's findings
    /// on its interfaces if requested and if the owner has time.
    pub(crate) fn report(&self, diagnose: bool) -> Result<Report> {
        let mut report = self.snapshot(Snapshot::take)?.report();
        if diagnose {
            let found = self.ask_for(8 * PATIENCE, problems).ok();
            report.problems = found.map(|mut found| {
                found.extend(health::findings(&report.vips));
                found
            });
        }
        Ok(report)
    }

    /// The snapshot with the number of findings.
    pub(crate) fn diagnosed(&self) -> Result<Arc<Snapshot>> {
        self.snapshot(Snapshot::diagnosed)
    }

    fn snapshot(&self, take: fn(&Owner) -> Result<Snapshot>) -> Result<Arc<Snapshot>> {
        let handle = self.clone();
        // It may be too late for this client, but the next one gets it.
        let taken = self.ask_for(PATIENCE, move |owner| {
            take(owner).map(|snapshot| handle.publish(snapshot))
        });
        match taken {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                last.clone().ok_or(error)
            }
        }
    }

    /// Makes the owner do something, and returns the result.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        wish: impl FnOnce(&mut Owner) -> T + Send + 'static,
    ) -> Result<T> {
        self.ask_for(LONG, wish)
    }

    /// The same, without waiting.
    pub(crate) fn tell(&self, wish: impl FnOnce(&mut Owner) + Send + 'static) {
        // At the program's end nobody does it.
        let _ = self.sender.send(Message::Do(Box::new(wish)));
    }

    fn ask_for<T: Send + 'static>(
        &self,
        patience: Duration,
        wish: impl FnOnce(&mut Owner) -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = mpsc::channel();
        self.tell(move |owner| {
            // The client may have gone.
            let _ = sender.send(wish(owner));
        });
        let answer = answer.recv_timeout(patience);
        answer.context("the balancer does not answer: it is ending, or a change is taking long")
    }
}

/// The balancer at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    taken: Instant,
    running: Duration,
    pub(crate) counters: Counters,
    pub(crate) vips: Vec<OfVip>,
    /// The metrics of the checks, if there are any.
    pub(crate) checks: Vec<Metric>,
    pub(crate) attachments: Vec<Attachment>,
    /// Root programs' arrays, and positions in them.
    pub(crate) shared: Vec<SharedEntry>,
    /// The number of findings by interface, if a diagnosis was requested.
    pub(crate) problems: Vec<OfInterface>,
    /// Kernel memory of the maps, in bytes.
    pub(crate) memory: u64,
    forwarding: Vec<u32>,
    pinned: Option<String>,
    pub(crate) last_apply: Option<Applied>,
    pub(crate) refused: Option<Applied>,
    pub(crate) past: Past,
}

/// An interface, and how many findings there are on it.
pub(crate) type OfInterface = (String, BTreeMap<(Subject, Severity), u64>);

/// A VIP with its reals, in the order of their addresses.
#[derive(Debug)]
pub(crate) struct OfVip {
    pub(crate) vip: Vip,
    pub(crate) reals: Vec<OfReal>,
    panics: bool,
    falls_back: bool,
}

#[derive(Debug)]
pub(crate) struct OfReal {
    pub(crate) real: Real,
    pub(crate) down: bool,
    pub(crate) health: Health,
    check: Option<Check>,
    drain: Option<Drain>,
}

impl Snapshot {
    /// How many seconds ago it was taken.
    pub(crate) fn age(&self) -> f64 {
        self.taken.elapsed().as_secs_f64()
    }

    /// The current state, with the last count of the flow tables' entries.
    fn take(owner: &Owner) -> Result<Self> {
        // The checks lock the balancer first, so ask them before.
        let found = owner.health.as_ref().map(katran::health::Health::report);
        let checks = found.as_ref().map(|found| found.metrics(MOST_REALS));
        let (found, checks) = (found.unwrap_or_default(), checks.unwrap_or_default());
        let of_vips: BTreeMap<Vip, &VipHealth> = found.vips.iter().map(|of| (of.vip, of)).collect();
        let katran = &*owner.katran();
        let mut vips = Vec::new();
        for vip in katran.vips() {
            let down = katran.down_reals(vip)?;
            let of_vip = of_vips.get(&vip);
            let checked = |real: &Real| {
                let reals = &of_vip?.reals;
                let at = reals.binary_search_by_key(&real.address(), |of| of.real);
                at.ok().map(|at| &reals[at])
            };
            let of_real = |real: Real| OfReal {
                real,
                down: down.binary_search(&real.address()).is_ok(),
                health: health(checked(&real)),
                check: checked(&real).and_then(check),
                drain: owner.silences.drain(&owner.drains, vip, real),
            };
            let reals = katran.reals(vip)?.into_iter().map(of_real).collect();
            vips.push(OfVip {
                vip,
                reals,
                panics: of_vip.is_some_and(|of| of.panics),
                falls_back: of_vip.is_some_and(|of| of.falls_back),
            });
        }
        let mut counters = katran.counters_with(owner.recount.count())?;
        // Only forwarding CPUs, and others that did forward, count for the mean.
        let forwarding = katran.forwarding_cpus();
        counters
            .cpus
            .retain(|cpu| cpu.forwarded > 0 || forwarding.contains(&cpu.cpu));
        Ok(Self {
            taken: Instant::now(),
            running: owner.began.elapsed(),
            counters,
            vips,
            checks,
            attachments: katran.interfaces(),
            shared: katran.shared_entries(),
            problems: Vec::new(),
            memory: katran.stats().memory_in_use()?,
            forwarding,
            pinned: katran.pinned_in().map(|path| path.display().to_string()),
            last_apply: owner.last_apply.clone(),
            refused: owner.refused.clone(),
            past: owner.past.clone(),
        })
    }

    /// With a diagnosis, which asks the kernel about interfaces, routes and neighbours.
    pub(super) fn diagnosed(owner: &Owner) -> Result<Self> {
        let mut taken = Self::take(owner)?;
        taken.problems = counted(&owner.katran(), &owner.arguments.options.interface)?;
        let vips: Vec<_> = taken.vips.iter().map(|vip| taken.vip(vip)).collect();
        let of_health = health::counts(&vips);
        taken.problems.push((EVERYWHERE.to_owned(), of_health));
        Ok(taken)
    }

    /// The report for clients.
    fn report(&self) -> Report {
        let count = |count: katran::stats::Count| report::Count {
            packets: count.packets,
            bytes: count.bytes,
        };
        let counters = &self.counters;
        let flows = &counters.flow_table;
        let drops = counters.drop_reasons.iter();
        let drops = drops.map(|(reason, frames)| (reason.name().to_owned(), frames));
        let drops = drops.filter(|(_, frames)| *frames > 0);
        let unsent = counters.interfaces.iter().filter(|of| of.unsent > 0);
        let unsent = unsent.map(|of| (format!("{NOT_SENT}{}", of.interface), of.unsent));
        let reals = counters.reals.iter().map(|(real, of)| report::Real {
            real: *real,
            sent: count(of.forwarded),
            rate: None,
        });
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: process::id(),
            running: self.running.as_secs_f64(),
            age: self.age(),
            attachments: self.places(),
            pinned: self.pinned.clone(),
            vips: self.vips.iter().map(|vip| self.vip(vip)).collect(),
            reals: reals.collect(),
            frames: report::Frames {
                received: count(counters.totals.total),
                sent: count(counters.totals.tx),
                passed: count(counters.totals.pass),
                dropped: count(counters.totals.drop),
            },
            flow_table: report::FlowTable {
                packets: flows.packets,
                settled: flows.settled,
                misses: flows.misses,
                by_base: flows.by_base,
                by_entry: flows.by_entry,
                fallback: flows.fallback,
            },
            drops: drops.chain(unsent).collect(),
            cpus: counters.cpus.iter().map(|cpu| self.cpu(cpu)).collect(),
            last_apply: self.last_apply.clone(),
            refused: self.refused.clone(),
            problems: None,
        }
    }

    fn cpu(&self, cpu: &katran::stats::CpuCounters) -> report::Cpu {
        report::Cpu {
            cpu: cpu.cpu,
            forwarded: cpu.forwarded,
            under_flood: cpu.under_flood,
            forwards: self.forwarding.contains(&cpu.cpu),
        }
    }

    fn places(&self) -> Vec<report::Attachment> {
        let attached = self.attachments.iter().map(|of| report::Attachment {
            place: of.interface.clone(),
            mode: Some(of.mode.to_string()),
            state: of.state.to_string(),
        });
        let entries = self.shared.iter().map(|of| report::Attachment {
            place: format!("entry {} of {}", of.position, of.path.display()),
            mode: None,
            state: of.state.to_string(),
        });
        attached.chain(entries).collect()
    }

    fn vip(&self, of: &OfVip) -> report::Vip {
        let name = of.vip.to_string();
        let counters = &self.counters;
        let sent = counters
            .vips
            .get(&name)
            .map(|of| of.forwarded)
            .unwrap_or_default();
        let slots = counters.slots.get(&name).map(|slots| report::Slots {
            settled: slots.settled,
            unsettled: slots.unsettled,
            oldest: slots.oldest.map(|oldest| oldest.as_secs_f64()),
        });
        let reals = of.reals.iter().map(|of| report::OfVip {
            real: of.real.address(),
            weight: of.real.get_weight(),
            down: of.down,
            health: of.health,
            check: of.check.clone(),
            drain: of.drain,
        });
        report::Vip {
            sent: report::Count {
                packets: sent.packets,
                bytes: sent.bytes,
            },
            flow_entries: counters.flow_entries.get(&name).copied(),
            vip: name,
            slots,
            reals: reals.collect(),
            panics: of.panics,
            falls_back: of.falls_back,
            rate: None,
        }
    }
}

fn health(found: Option<&RealHealth>) -> Health {
    match found.filter(|of| of.probed).map(|of| of.status) {
        None => Health::NotProbed,
        Some(Status::Up) => Health::Up,
        Some(Status::Down) => Health::Down,
        Some(_) => Health::Unknown,
    }
}

/// `None` without a result.
fn check(found: &RealHealth) -> Option<Check> {
    let history = found.history.iter().map(|of| report::Transition {
        time: seconds(of.at),
        up: of.to == Status::Up,
        reason: of.reason.clone(),
    });
    Some(Check {
        time: seconds(found.last?),
        result: found.last_result.clone()?,
        unsent: found.last_unsent,
        cause: found.last_cause.map(|cause| cause.to_string()),
        history: history.collect(),
    })
}

fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// The findings of each interface, present or not: those with an attachment, and those of the
/// options.
fn counted(katran: &Katran, named: &[String]) -> Result<Vec<OfInterface>> {
    let attached = katran.interfaces().into_iter().map(|of| of.interface);
    let names: BTreeSet<_> = attached.chain(named.iter().cloned()).collect();
    let counted = names.into_iter().map(|name| {
        let counts = katran.diagnose(&name)?.counts();
        Ok((name, counts))
    });
    counted.collect()
}

/// The findings except good ones.
fn problems(owner: &mut Owner) -> Vec<report::Problem> {
    let interfaces = &owner.arguments.options.interface;
    let diagnoses = options::diagnose(&owner.katran(), interfaces);
    let diagnoses = match diagnoses {
        Ok(diagnoses) => diagnoses,
        Err(error) => {
            return vec![report::Problem {
                severity: Severity::Note.to_string(),
                subject: "diagnosis".to_owned(),
                message: crate::common::with_causes(&error),
                ..report::Problem::default()
            }];
        }
    };
    let mut problems = Vec::new();
    for (interface, diagnosis) in diagnoses {
        let bad = diagnosis.findings().iter();
        let bad = bad.filter(|finding| finding.severity >= Severity::Note);
        problems.extend(bad.map(|finding| report::Problem {
            interface: interface.clone(),
            severity: finding.severity.to_string(),
            subject: finding.subject.to_string(),
            message: finding.message.clone(),
            advice: finding.advice.clone(),
        }));
    }
    problems
}
