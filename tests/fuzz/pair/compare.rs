//! After a batch: compares counters, tables, slots and events with the model's.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::events::EventKind;
use katran::flows::FlowEntry;
use katran_model as model;
use katran_model::bytes::PROTOCOL_TCP;
use serde::Serialize;
use serde_json::Value;

use super::Counted;
use super::EVENT_BYTES;
use super::Pair;

/// Compares counters with the model's, by name; returns those that moved.
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

impl Pair {
    /// All counters since the reset.
    pub(super) fn counters(&self) -> Result<(), String> {
        let mut counted = self.counted();
        for (name, count) in &mut counted {
            *count -= self.before.get(name).copied().unwrap_or(0);
        }
        counted.retain(|_, count| *count != 0);
        let expected = self.expected();
        let names: BTreeSet<_> = counted.keys().chain(expected.keys()).collect();
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

    pub(super) fn counted(&self) -> Counted {
        let counters = self.katran.counters().unwrap();
        let mut counted = Counted::new();
        flatten("", &serde_json::to_value(&counters).unwrap(), &mut counted);
        // Leave out groups that are sums of others or not about packets, the interfaces' own
        // counters, which include the host's frames, and a value that is no sum.
        counted.retain(|name, _| {
            let (group, name) = name.split_once('.').unwrap();
            let others = [
                "ring_drop",
                "encap_fail",
                "healthcheck",
                "probes",
                "cpus",
                "library",
                "next_hops",
                "interfaces",
                "slots",
                "flow_entries",
                "flow_entries_age",
            ];
            !others.contains(&group) && name != "cid_invalid_server_id_sample"
        });
        counted
    }

    pub(super) fn expected(&self) -> Counted {
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
        for (number, of_vip) in &self.model.details {
            let vip = vips[*number as usize];
            for (name, count) in [("syns", of_vip.syns), ("unpaired", of_vip.unpaired)] {
                expected.insert(format!("vip_details.{vip}.{name}"), count);
            }
        }
        for ((number, real), of_pair) in &self.model.pairs {
            let vip = vips[*number as usize];
            let address = self.model.tables.reals[real].address;
            for (name, count) in [
                ("forwarded.packets", of_pair.packets),
                ("forwarded.bytes", of_pair.bytes),
                ("syns", of_pair.syns),
            ] {
                expected.insert(format!("vip_reals.{vip}.{address}.{name}"), count);
            }
        }
        expected.retain(|_, count| *count != 0);
        expected
    }

    /// The events, in order and with the first bytes of their frames.
    pub(super) fn events(&self) -> Result<(), String> {
        const LONGEST: Duration = Duration::from_secs(60);
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

    /// Slots, by whether they are settled.
    pub(super) fn slots(&self) -> Result<(), String> {
        for (number, vip) in (0..).zip(self.katran.vips()) {
            let unsettled = self.katran.stats().slots(vip).unwrap().unsettled as usize;
            let expected = self.model.tables.vips[&number].unsettled.len();
            if unsettled != expected {
                return Err(format!(
                    "{vip} has {unsettled} unsettled slots, the model's {expected}"
                ));
            }
        }
        Ok(())
    }

    /// The flow table: as many valid entries as the model has, and for VIPs of one address and one
    /// port the same reals and ages. An id's entry may name a real that is down for the VIP: it
    /// does not count, and is removed sooner or later.
    pub(super) fn tables(&self) -> Result<(), String> {
        let mut entries = 0;
        for vip in self.katran.vips() {
            let stats = self.katran.flows().stats(vip).unwrap();
            entries += stats.entries - stats.stale;
        }
        let mut expected = self.model.flows.0.clone();
        expected.retain(|(vip, _), entry| !self.model.tables.vips[vip].down.contains(&entry.real));
        if entries != expected.len() as u64 {
            return Err(format!(
                "the table has {entries} entries, the model's {}",
                expected.len()
            ));
        }
        let is_plain = |vip: &model::Vip| vip.prefix.is_none() && vip.port != 0;
        expected
            .iter()
            .filter(|((vip, _), _)| is_plain(&self.model.tables.vips[vip]))
            .try_for_each(|((_, flow), entry)| self.entry(flow, entry))
    }

    fn entry(&self, key: &model::Flow, expected: &model::Entry) -> Result<(), String> {
        /// Milliseconds: shorter than any wait, and longer than other processes may take the CPU.
        const SLACK: u64 = 1500;
        let source = SocketAddr::new(key.source, key.source_port);
        let destination = SocketAddr::new(key.destination, key.destination_port);
        let flow = match key.protocol {
            PROTOCOL_TCP => Flow::tcp(source, destination),
            _ => Flow::udp(source, destination),
        };
        let found = self.katran.flows().find(&flow).unwrap();
        let real = self.model.tables.reals.get(&expected.real);
        let real = real.map(|real| real.address);
        let age = self.now() - expected.used;
        let is_same = |found: &FlowEntry| {
            // `None`: the id's real is down.
            let same_real = found.real.is_none() || found.real == real;
            same_real && age.abs_diff(found.age.as_millis() as u64) < SLACK
        };
        match found.first().is_some_and(is_same) {
            true => Ok(()),
            false => Err(format!(
                "{flow}: the table has {found:?}, the model's {real:?} for {age} ms"
            )),
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
