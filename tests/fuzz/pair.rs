//! A loaded balancer and its model, side by side: each frame goes to both.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use katran::Katran;
use katran::State;
use katran::flows::Verdict;
use katran_model as model;
use katran_model::Balancer;
use katran_model::rows;
use serde_json::Value;

use crate::balancers::Kind;
use crate::common::bpf;
use crate::mirror;
use crate::sound;

/// Counters by name.
pub(crate) type Counted = BTreeMap<String, u64>;

pub(crate) struct Pair {
    pub(crate) katran: Katran,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    cpu: u32,
    /// As after load: what a batch begins with.
    fresh: Balancer,
    model: Balancer,
    before: Counted,
    started: Instant,
    /// How often each end and each counter has been seen, over all batches.
    pub(crate) seen: Counted,
}

/// What program and model differ in.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Which of the frames; none: it shows only in counters or tables after all of them.
    pub(crate) frame: Option<usize>,
    pub(crate) what: String,
}

/// Longer than a window of the flood guard.
const WINDOW: Duration = Duration::from_millis(1020);

impl Pair {
    /// Both of a kind, for frames that come to CPU `cpu`, which this thread stays on.
    pub(crate) fn new(kind: Kind, cpu: u32) -> Self {
        bpf::pin(cpu as usize);
        let state = kind.state(cpu);
        let katran = kind.load(&state);
        let model = mirror::of(&katran, cpu);
        let mut pair = Self {
            katran,
            kind,
            state,
            cpu,
            fresh: model.clone(),
            model,
            before: Counted::new(),
            started: Instant::now(),
            seen: Counted::new(),
        };
        pair.reset();
        pair
    }

    /// Forgets all flows, and begins to count.
    fn reset(&mut self) {
        let tables = match self.katran.flows().table_fd(self.cpu) {
            Some(table) => table,
            None => self.katran.map_fd("fallback_flows").unwrap(),
        };
        bpf::clear(tables);
        if self.kind.flood.is_some() {
            std::thread::sleep(WINDOW);
        }
        self.model = self.fresh.clone();
        self.before = self.counted();
    }

    /// What both make of frames that come one after the other, with empty tables at first. `Ok(false)`:
    /// they took so long that time plays a part, so nothing can be said.
    pub(crate) fn play(&mut self, frames: &[Vec<u8>]) -> Result<bool, Difference> {
        const LONGEST: Duration = Duration::from_millis(700);
        self.reset();
        let begin = Instant::now();
        for (i, frame) in frames.iter().enumerate() {
            self.one(frame).map_err(|what| Difference {
                frame: Some(i),
                what,
            })?;
        }
        if self.kind.flood.is_some() && begin.elapsed() > LONGEST {
            return Ok(false);
        }
        for (name, count) in self.expected() {
            if !name.starts_with("vips") && !name.starts_with("reals") {
                *self.seen.entry(name).or_default() += count;
            }
        }
        let after = self.counters().and_then(|()| self.tables());
        after.map_err(|what| Difference { frame: None, what })?;
        Ok(true)
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

    /// One frame.
    fn one(&mut self, frame: &[u8]) -> Result<(), String> {
        let ran = bpf::run(self.program(), frame);
        let now = self.started.elapsed().as_millis() as u64;
        let expected = self.model.walk(frame, now);
        *self.seen.entry(format!("{:?}", expected.end)).or_default() += 1;
        let verdict = match expected.end.verdict() {
            model::Verdict::Tx => Verdict::Tx,
            model::Verdict::Pass => Verdict::Pass,
            model::Verdict::Drop => Verdict::Drop,
        };
        if ran.verdict != verdict {
            return Err(format!(
                "the program: {}, the model: {:?}",
                ran.verdict, expected.end
            ));
        }
        if verdict == Verdict::Drop {
            return Ok(());
        }
        if ran.frame != expected.frame {
            return Err(format!(
                "{:?}\nthe program: {}\nthe model:   {}",
                expected.end,
                hex(&ran.frame),
                hex(&expected.frame)
            ));
        }
        let gue = self.model.config.gue_port;
        let known = !rows::ECHO_OF_ZEROS && expected.end == model::End::Tx("ICMP echo");
        if known || sound::fault(frame, gue).is_some() {
            return Ok(());
        }
        match sound::fault(&ran.frame, gue) {
            None => Ok(()),
            Some(fault) => Err(format!(
                "{:?}: what came was right, what left is not: {fault}\n{}",
                expected.end,
                hex(&ran.frame)
            )),
        }
    }

    /// All counters since the reset.
    fn counters(&self) -> Result<(), String> {
        let mut counted = self.counted();
        for (name, count) in &mut counted {
            *count -= self.before.get(name).copied().unwrap_or(0);
        }
        counted.retain(|_, count| *count != 0);
        let expected = self.expected();
        let names: std::collections::BTreeSet<_> = counted.keys().chain(expected.keys()).collect();
        let of = |counters: &Counted, name: &str| counters.get(name).copied().unwrap_or(0);
        let different: Vec<String> = names
            .into_iter()
            .filter(|name| of(&counted, name) != of(&expected, name))
            .map(|name| {
                let (program, model) = (of(&counted, name), of(&expected, name));
                format!("{name}: the program {program}, the model {model}")
            })
            .collect();
        match different.is_empty() {
            true => Ok(()),
            false => Err(different.join("\n")),
        }
    }

    fn counted(&self) -> Counted {
        let counters = self.katran.counters().unwrap();
        let mut counted = Counted::new();
        flatten("", &serde_json::to_value(&counters).unwrap(), &mut counted);
        // Groups that are others' sums, or not of packets; and a value that is no sum.
        counted.retain(|name, _| {
            let (group, name) = name.split_once('.').unwrap();
            let others = [
                "ring_drop",
                "encap_fail",
                "healthcheck",
                "probes",
                "cpus",
                "library",
            ];
            !others.contains(&group) && name != "cid_invalid_server_id_sample"
        });
        counted
    }

    fn expected(&self) -> Counted {
        let mut expected = Counted::new();
        for ((group, name), count) in &self.model.counters.0 {
            if *name != "cid_invalid_server_id_sample" {
                expected.insert(format!("{group}.{name}"), *count);
            }
        }
        let vips = self.katran.vips();
        for (number, of_vip) in &self.model.of_vips {
            let vip = vips[*number as usize];
            for (name, count) in [
                ("forwarded.packets", of_vip.packets),
                ("forwarded.bytes", of_vip.bytes),
                ("decap", of_vip.decap),
                ("server_id_new", of_vip.server_id_new),
                ("server_id_moved", of_vip.server_id_moved),
            ] {
                expected.insert(format!("vips.{vip}.{name}"), count);
            }
        }
        for (number, of_real) in &self.model.of_reals {
            let address = self.model.tables.reals[number].address;
            for (name, count) in [
                ("forwarded.packets", of_real.packets),
                ("forwarded.bytes", of_real.bytes),
                ("misses", of_real.misses),
            ] {
                expected.insert(format!("reals.{address}.{name}"), count);
            }
        }
        expected.retain(|_, count| *count != 0);
        expected
    }

    /// The flow table: as many entries as the model has, and a few of them looked at.
    fn tables(&self) -> Result<(), String> {
        let mut entries = 0;
        for vip in self.katran.vips() {
            entries += self.katran.flows().stats(vip).unwrap().entries;
        }
        let expected = self.model.flows.0.len() as u64;
        if entries != expected {
            return Err(format!(
                "the table has {entries} entries, the model's {expected}"
            ));
        }
        Ok(())
    }
}

fn flatten(name: &str, value: &Value, into: &mut Counted) {
    let inner = |key: &str| match name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&inner(key), value, into);
            }
        }
        Value::Array(values) => {
            for (key, value) in values.iter().enumerate() {
                flatten(&inner(&key.to_string()), value, into);
            }
        }
        Value::Number(number) => {
            into.insert(name.to_owned(), number.as_u64().unwrap_or(0));
        }
        _ => {}
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
