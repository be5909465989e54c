//! A loaded balancer and its model, side by side: both get each frame.

mod compare;

use std::collections::BTreeMap;
use std::mem;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::Katran;
use katran::NextHops;
use katran::State;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use katran::flows::Verdict;
use katran_lab::stay_on;
use katran_model as model;
use katran_model::Balancer;

use crate::balancers::Kind;
use crate::changes;
use crate::changes::Change;
use crate::common::at;
use crate::common::bpf;
use crate::common::frames::frame;
use crate::common::mirror;
use crate::global;
use crate::hops;
use crate::sound;
use crate::stations::Stations;

pub(crate) use compare::compared;

/// Counters by name.
pub(crate) type Counted = BTreeMap<String, u64>;

pub(crate) struct Pair {
    pub(crate) katran: Katran,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    cpu: u32,
    monitor: Option<Monitor>,
    /// Its interfaces, if attached.
    stations: Option<Stations>,
    /// Ticks of the kernel's clock in a second.
    ticks: u64,
    /// The model after the load, where each batch begins.
    fresh: Balancer,
    model: Balancer,
    before: Counted,
    started: Instant,
    /// The time skipped since the start without waiting, in milliseconds.
    skipped: u64,
    /// Whether a change, or a frame, has come since the reset.
    changed: bool,
    busy: bool,
    /// Tables may still hold entries that a change has voided.
    unswept: bool,
    /// How often each result and each counter was seen, over all batches.
    pub(crate) seen: Counted,
}

/// A step for both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A frame arrives.
    Frame(Vec<u8>),
    /// This many milliseconds pass.
    Wait(u64),
    /// A VIP changes.
    Change(Change),
    /// Waits until this many milliseconds after the batch's start.
    Until(u64),
}

/// A difference between program and model.
#[derive(Debug)]
pub(crate) struct Difference {
    /// After which step; `None`: only in counters or tables after all steps.
    pub(crate) step: Option<usize>,
    pub(crate) what: String,
}

/// More events than a batch makes, and the bytes of a frame in each.
const LISTED: usize = 30_000;
const EVENT_BYTES: usize = 128;
/// Longer than the flood guard's window.
const WINDOW: Duration = Duration::from_millis(1020);
/// Longer than a step of slots' times: what was used before a change counts as older.
const MOMENT: Duration = Duration::from_millis(80);
/// How late the library may settle a slot, in milliseconds.
const LAG: u64 = 600;
/// A start that leaves time before it, in milliseconds.
const EPOCH: u64 = 1_000_000_000;

impl Pair {
    /// Both for a kind, for frames on CPU `cpu`, which this thread stays on.
    pub(crate) fn new(kind: Kind, cpu: u32) -> Self {
        stay_on(cpu as usize);
        changes::name_thread();
        let state = kind.state(cpu);
        let mut katran = kind.load(&state);
        let mut model = mirror::of(&katran, cpu);
        let monitor = model.config.features.introspection.then(|| {
            let options = MonitorOptions::new().rate_limit(u32::MAX);
            katran.events().to_list(options, LISTED).unwrap()
        });
        model.tables.listens = monitor.is_some();
        if model.config.features.global_flow_table {
            global::fill(&mut katran, &mut model, cpu);
        }
        if kind.next_hops != NextHops::Gateway {
            hops::give(&katran, &mut model);
        }
        // The library is still removing entries of down reals, which the model would not do.
        changes::wait_for_sweeps(&katran);
        let stations = kind.attached.then(|| Stations::attach(&mut katran));
        let watched = katran.vips()[0];
        katran.stats_mut().watch_misses(watched).unwrap();
        model.tables.watched = Some(0);
        let mut pair = Self {
            katran,
            kind,
            state,
            cpu,
            monitor,
            stations,
            ticks: 0,
            fresh: model.clone(),
            model,
            before: Counted::new(),
            started: Instant::now(),
            skipped: EPOCH,
            changed: false,
            busy: false,
            unswept: false,
            seen: Counted::new(),
        };
        pair.ticks = pair.ticks_a_second();
        pair
    }

    /// The flow table for packets on this CPU.
    fn table(&self) -> BorrowedFd<'_> {
        let own = self.katran.flows().table_fd(self.cpu);
        own.unwrap_or_else(|| self.katran.map_fd("fallback_flows").unwrap())
    }

    /// Measured by making an entry older and asking the library for its age.
    fn ticks_a_second(&mut self) -> u64 {
        const TICKS: u32 = 100_000;
        self.reset();
        // A VIP of which all flows are remembered.
        let flow = Flow::tcp(at("192.0.2.9:1024"), at("203.0.113.4:80"));
        // Differences here would also show in frames that are compared.
        let _ = self.one(&frame(flow));
        let age = || match self.katran.flows().find(&flow).unwrap().first() {
            Some(entry) => entry.age,
            None => panic!("balancer `{}`\nit makes no entry", self.kind.name),
        };
        let before = age();
        bpf::age_flows(self.table(), TICKS);
        let seconds = (age() - before).as_secs_f64();
        (f64::from(TICKS) / seconds).round() as u64
    }

    /// Forgets all flows, and restarts the counters.
    fn reset(&mut self) {
        bpf::clear(self.table());
        if mem::take(&mut self.changed) {
            changes::undo(&mut self.katran, &self.state);
            self.unswept = true;
        }
        self.busy = false;
        if self.kind.flood.is_some() {
            std::thread::sleep(WINDOW);
        }
        if let Some(monitor) = &self.monitor {
            let _ = monitor.take();
        }
        if let Some(pairs) = self.katran.map_fd("vip_reals") {
            bpf::clear(pairs);
        }
        self.model = self.fresh.clone();
        self.before = self.counted();
        self.model.sent = self.before["totals.tx.packets"];
    }

    /// Compares both over successive steps, starting with empty tables. `Ok(false)`: a timeout may
    /// have passed during the steps, so their results cannot be compared.
    pub(crate) fn play(&mut self, steps: &[Step]) -> Result<bool, Difference> {
        // Within this, no timeout and no window ends, and no slot settles.
        let longest = match self.kind.flood {
            None if self.kind.changes() => Duration::from_millis(1500),
            _ => Duration::from_millis(700),
        };
        self.reset();
        let mut begin = Instant::now();
        let mut result = Ok(());
        let mut is_clear = true;
        for (i, step) in steps.iter().enumerate() {
            let done = match step {
                Step::Frame(frame) => {
                    self.wait_for_sweeps();
                    if !mem::replace(&mut self.busy, true) && self.kind.flood.is_some() {
                        // The first frame begins the window.
                        begin = Instant::now();
                    }
                    self.one(frame)
                }
                Step::Change(change) => {
                    self.change(change);
                    Ok(())
                }
                Step::Until(milliseconds) => {
                    is_clear &= self.settle();
                    let till = Duration::from_millis(*milliseconds);
                    std::thread::sleep(till.saturating_sub(begin.elapsed()));
                    is_clear &= self.settle();
                    Ok(())
                }
                Step::Wait(milliseconds) => {
                    self.wait(*milliseconds);
                    Ok(())
                }
            };
            result = done.map_err(|what| Difference {
                step: Some(i),
                what,
            });
            if result.is_err() {
                break;
            }
        }
        let is_frame = |step: &Step| matches!(step, Step::Frame(_));
        let settles = steps.iter().any(|step| matches!(step, Step::Until(_)));
        if settles && !(is_clear && self.settle()) {
            return Ok(false);
        }
        let in_time = self.kind.flood.is_some() || !steps.iter().all(is_frame);
        if in_time && !settles && begin.elapsed() > longest {
            return Ok(false);
        }
        result?;
        for (name, count) in self.expected() {
            if !name.starts_with("vips") && !name.starts_with("reals") {
                *self.seen.entry(name).or_default() += count;
            }
        }
        let after = self
            .counters()
            .and_then(|()| self.tables())
            .and_then(|()| self.slots())
            .and_then(|()| self.events());
        after.map_err(|what| Difference { step: None, what })?;
        Ok(true)
    }

    /// Lets time pass. The clock is the kernel's, so entries are made older instead.
    fn wait(&mut self, milliseconds: u64) {
        let ticks = milliseconds * self.ticks / 1000;
        bpf::age_flows(self.table(), ticks as u32);
        self.skipped += milliseconds;
        // Slots' changes do not age, as if they had settled and changed again meanwhile.
        for vip in self.model.tables.vips.values_mut() {
            for before in vip.unsettled.values_mut() {
                before.since += milliseconds;
                before.deviated += milliseconds;
            }
        }
    }

    /// Settles the model's slots as the library has; returns whether it is certain for all of them.
    fn settle(&mut self) -> bool {
        let now = self.now();
        self.model.settle(now, LAG)
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + self.skipped
    }

    /// Changes a VIP in both.
    fn change(&mut self, change: &Change) {
        if self.busy {
            std::thread::sleep(MOMENT);
        }
        self.changed = true;
        let now = self.now();
        change.make(&mut self.katran, &mut self.model, now);
        self.unswept = true;
        if self.busy {
            self.wait_for_sweeps();
        }
    }

    /// Waits until nothing of an earlier change is in the tables.
    fn wait_for_sweeps(&mut self) {
        if mem::take(&mut self.unswept) {
            changes::wait_for_sweeps(&self.katran);
        }
    }

    /// The VIPs that may change.
    pub(crate) fn changeable(&self) -> Vec<usize> {
        changes::changeable(&self.katran)
    }

    pub(crate) fn gue_port(&self) -> u16 {
        self.model.config.gue_port
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.model.config.max_frame
    }

    fn program(&self) -> BorrowedFd<'_> {
        self.katran.program_fd()
    }

    /// Runs the program on a frame, and tells the model the frame's interface.
    fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let Some(stations) = &self.stations else {
            return bpf::run_raw(self.program(), frame, None);
        };
        let (interface, macs) = stations.of(frame);
        self.model.config.own_macs = macs.to_vec();
        let mut context = libbpf_sys::xdp_md {
            data_end: frame.len() as u32,
            ingress_ifindex: interface,
            ..Default::default()
        };
        bpf::run_raw(self.program(), frame, Some(&mut context))
    }

    fn see(&mut self, outcome: &model::Outcome) {
        *self.seen.entry(format!("{:?}", outcome.end)).or_default() += 1;
        let (Some(vip), Some(by)) = (outcome.vip, outcome.chosen) else {
            return;
        };
        let vip = &self.model.tables.vips[&vip];
        let what = match vip.tracks_changes(&self.model.config) {
            true => in_slots(by, vip.address.is_ipv4(), vip.protocol),
            false => format!("chosen by: {by}"),
        };
        *self.seen.entry(what).or_default() += 1;
    }

    /// Runs one frame through the explaining twin, which also says what chose its real.
    fn one_explained(&mut self, frame: &[u8]) -> Result<(), String> {
        let ran = self.katran.simulate(frame).unwrap();
        let now = self.now();
        let expected = self.model.walk(frame, now);
        self.see(&expected);
        let verdict = match expected.end.verdict() {
            model::Verdict::Tx | model::Verdict::Redirect => Verdict::Tx,
            model::Verdict::Pass => Verdict::Pass,
            model::Verdict::Drop => Verdict::Drop,
        };
        let reals = &self.model.tables.reals;
        let real = expected.real.map(|real| reals[&real].address);
        let chosen = expected.chosen.filter(|_| real.is_some());
        let said = chosen.map(|_| ran.reason.to_string());
        let same_frame = verdict == Verdict::Drop || ran.frame == expected.frame;
        let same_choice = real.is_none() || ran.real == real && said.as_deref() == chosen;
        match ran.verdict == verdict && same_frame && same_choice {
            true => Ok(()),
            false => Err(format!(
                "explained: {ran:?}\nthe model: {expected:?}, {real:?}"
            )),
        }
    }

    /// Compares both on one frame.
    fn one(&mut self, frame: &[u8]) -> Result<(), String> {
        if self.kind.explained {
            return self.one_explained(frame);
        }
        let (action, out) = self.run(frame);
        let now = self.now();
        let expected = self.model.walk(frame, now);
        self.see(&expected);
        let verdict = expected.end.verdict();
        let expects = match verdict {
            model::Verdict::Tx => libbpf_sys::XDP_TX,
            model::Verdict::Redirect => libbpf_sys::XDP_REDIRECT,
            model::Verdict::Pass => libbpf_sys::XDP_PASS,
            model::Verdict::Drop => libbpf_sys::XDP_DROP,
        };
        if action != expects {
            return Err(format!(
                "the program: XDP action {action}, the model: {:?}",
                expected.end
            ));
        }
        if verdict == model::Verdict::Drop {
            return Ok(());
        }
        if out != expected.frame {
            return Err(format!(
                "{:?}\nthe program: {}\nthe model:   {}",
                expected.end,
                hex(&out),
                hex(&expected.frame)
            ));
        }
        let gue = self.model.config.gue_port;
        if sound::fault(frame, gue).is_some() {
            return Ok(());
        }
        match sound::fault(&out, gue) {
            None => Ok(()),
            Some(fault) => Err(format!(
                "{:?}: what came was right, what left is not: {fault}\n{}",
                expected.end,
                hex(&out)
            )),
        }
    }
}

/// The name of the count for packets whose slot has chosen the real.
pub(crate) fn in_slots(by: &str, ipv4: bool, protocol: u8) -> String {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let protocol = if protocol == model::bytes::PROTOCOL_TCP {
        "TCP"
    } else {
        "UDP"
    };
    format!("in slots, {protocol} over {family}: {by}")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
