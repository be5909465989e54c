//! A loaded balancer and its model, side by side: each frame goes to both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::Katran;
use katran::NextHops;
use katran::State;
use katran::events::EventKind;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use katran_lab::eventually;
use katran_lab::is_thread_there;
use katran_lab::stay_on;
use katran_model as model;
use katran_model::Balancer;
use serde::Serialize;
use serde_json::Value;

use crate::balancers::Kind;
use crate::balancers::real;
use crate::common::at;
use crate::common::bpf;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::mirror;
use crate::hops;
use crate::sound;
use crate::stations::Stations;

/// Counters by name.
pub(crate) type Counted = BTreeMap<String, u64>;

/// Compares counters with those of the model, by name; those that have moved.
pub(crate) fn compared(counters: impl Serialize, model: &model::Counters) -> Vec<String> {
    let Value::Object(mut counted) = serde_json::to_value(counters).unwrap() else {
        panic!("counters are an object");
    };
    for (name, count) in &counted {
        let of_model = model.0.iter().find(|((_, of), _)| of == name);
        let expected = of_model.map_or(0, |(_, count)| *count);
        assert_eq!(count.as_u64(), Some(expected), "{name}");
    }
    counted.retain(|_, count| *count != 0);
    counted.into_iter().map(|(name, _)| name).collect()
}

pub(crate) struct Pair {
    pub(crate) katran: Katran,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    cpu: u32,
    monitor: Option<Monitor>,
    /// Where it is attached, if it is.
    stations: Option<Stations>,
    /// Ticks of the kernel's clock in a second.
    ticks: u64,
    /// As after load: what a batch begins with.
    fresh: Balancer,
    model: Balancer,
    before: Counted,
    started: Instant,
    /// How much has gone by since the start without anybody waiting, in milliseconds.
    skipped: u64,
    /// How often each end and each counter has been seen, over all batches.
    pub(crate) seen: Counted,
}

/// What happens to both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A frame arrives.
    Frame(Vec<u8>),
    /// So many milliseconds go by.
    Wait(u64),
}

/// What program and model differ in.
#[derive(Debug)]
pub(crate) struct Difference {
    /// After which step; none: it shows only in counters or tables after all of them.
    pub(crate) step: Option<usize>,
    pub(crate) what: String,
}

/// More events than a batch has, and the bytes of a frame that one shows.
const LISTED: usize = 30_000;
const EVENT_BYTES: usize = 128;
/// Longer than a window of the flood guard.
const WINDOW: Duration = Duration::from_millis(1020);

impl Pair {
    /// Both of a kind, for frames that come to CPU `cpu`, which this thread stays on.
    pub(crate) fn new(kind: Kind, cpu: u32) -> Self {
        stay_on(cpu as usize);
        let state = kind.state(cpu);
        let mut katran = kind.load(&state);
        let mut model = mirror::of(&katran, cpu);
        let monitor = model.config.features.introspection.then(|| {
            let options = MonitorOptions::new().rate_limit(u32::MAX);
            katran.events().to_list(options, LISTED).unwrap()
        });
        model.tables.listens = monitor.is_some();
        if model.config.features.global_flow_table {
            fill_global_table(&mut katran, &mut model, cpu);
        }
        if kind.next_hops != NextHops::Gateway {
            hops::give(&katran, &mut model);
        }
        // Reals are down, and the library is still taking out what tables might hold of them: that the model
        // would not do.
        eventually("the sweep is over", || !is_thread_there("katran-sweep"));
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
            skipped: 0,
            seen: Counted::new(),
        };
        pair.ticks = pair.ticks_a_second();
        pair
    }

    /// The tables that packets to this CPU are remembered in.
    fn table(&self) -> BorrowedFd<'_> {
        let own = self.katran.flows().table_fd(self.cpu);
        own.unwrap_or_else(|| self.katran.map_fd("fallback_flows").unwrap())
    }

    /// Found out by making an entry older: the library says how old it is.
    fn ticks_a_second(&mut self) -> u64 {
        const TICKS: u32 = 100_000;
        self.reset();
        let flow = Flow::udp(at("192.0.2.9:1024"), at("203.0.113.1:5000"));
        // If the two differ on this, they do so on frames that are compared.
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

    /// Forgets all flows, and begins to count.
    fn reset(&mut self) {
        bpf::clear(self.table());
        if self.kind.flood.is_some() {
            std::thread::sleep(WINDOW);
        }
        if let Some(monitor) = &self.monitor {
            let _ = monitor.take();
        }
        self.model = self.fresh.clone();
        self.before = self.counted();
        self.model.sent = self.before["totals.tx.packets"];
    }

    /// What both make of steps that come one after the other, with empty tables at first. `Ok(false)`:
    /// they took so long that time plays a part, so nothing can be said.
    pub(crate) fn play(&mut self, steps: &[Step]) -> Result<bool, Difference> {
        const LONGEST: Duration = Duration::from_millis(700);
        self.reset();
        let begin = Instant::now();
        let mut result = Ok(());
        for (i, step) in steps.iter().enumerate() {
            let done = match step {
                Step::Frame(frame) => self.one(frame),
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
        let waits = steps.iter().any(|step| matches!(step, Step::Wait(_)));
        if (waits || self.kind.flood.is_some()) && begin.elapsed() > LONGEST {
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
            .and_then(|()| self.events());
        after.map_err(|what| Difference { step: None, what })?;
        Ok(true)
    }

    /// Time goes by: the clock is the kernel's, so entries become older instead.
    fn wait(&mut self, milliseconds: u64) {
        let ticks = milliseconds * self.ticks / 1000;
        bpf::age_flows(self.table(), ticks as u32);
        self.skipped += milliseconds;
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

    /// What the program makes of a frame. The model hears of the interface that it comes in by.
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

    /// One frame.
    fn one(&mut self, frame: &[u8]) -> Result<(), String> {
        let (action, out) = self.run(frame);
        let now = self.started.elapsed().as_millis() as u64 + self.skipped;
        let expected = self.model.walk(frame, now);
        *self.seen.entry(format!("{:?}", expected.end)).or_default() += 1;
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

    /// What the host application is told of, in the same order and with the first bytes.
    fn events(&self) -> Result<(), String> {
        const LONGEST: Duration = Duration::from_secs(5);
        let Some(monitor) = &self.monitor else {
            return Ok(());
        };
        let expected: Vec<(EventKind, &[u8], u32)> = self
            .model
            .events
            .iter()
            .map(|event| {
                let kind = match event.kind {
                    "tcp_non_syn_miss" => EventKind::TcpNonSynMiss,
                    "packet_too_big" => EventKind::PacketTooBig,
                    _ => EventKind::QuicRealGone,
                };
                let most = event.frame.len().min(EVENT_BYTES);
                (kind, &event.frame[..most], event.frame.len() as u32)
            })
            .collect();
        let mut told = Vec::new();
        let begin = Instant::now();
        while told.len() < expected.len() && begin.elapsed() < LONGEST {
            told.extend(monitor.take());
            std::thread::yield_now();
        }
        let told: Vec<_> = told
            .iter()
            .map(|event| (event.kind, event.packet.as_slice(), event.length))
            .collect();
        match told == expected {
            true => Ok(()),
            false => Err(format!(
                "{} events, the model has {}; the first difference: {:?}",
                told.len(),
                expected.len(),
                told.iter()
                    .zip(&expected)
                    .find(|(told, model)| told != model)
            )),
        }
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

/// What the global table of the CPU says of some flows of VIPs that ask it.
fn fill_global_table(katran: &mut Katran, model: &mut Balancer, cpu: u32) {
    for (port, tcp) in [(80, true), (53, false)] {
        for (client, service) in [
            ("100.64.0.", "203.0.113.4"),
            ("2001:db8:c:0:0:0:4000:", "2001:db8:1::4"),
        ] {
            for host in 0..12u16 {
                let client = match client.contains(':') {
                    true => format!("{client}{:x}", host << 8),
                    false => format!("{client}{host}"),
                };
                let source = SocketAddr::new(ip(&client), 1024 + host % 6);
                let destination = SocketAddr::new(ip(service), port);
                let flow = match tcp {
                    true => Flow::tcp(source, destination),
                    false => Flow::udp(source, destination),
                };
                let address = real(host);
                let Some(number) = katran.real_index(address) else {
                    continue;
                };
                katran.global_flows_mut().set(cpu, &flow, address).unwrap();
                let vip = katran.vips().into_iter().position(|vip| {
                    vip.address() == destination.ip()
                        && vip.port() == port
                        && vip.protocol() == flow.protocol
                });
                let key = model::Flow {
                    source: source.ip(),
                    destination: destination.ip(),
                    source_port: source.port(),
                    destination_port: port,
                    protocol: flow.protocol.number(),
                };
                let key = (vip.unwrap() as u32, key);
                model.tables.global_flows.insert(key, number.get());
            }
        }
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
