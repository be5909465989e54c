//! The kernel's side of a program executed here: a frame's context, helpers, and the loaded
//! balancer's maps, whose elements are read by system calls and never written.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use nix::errno::Errno;
use nix::time::ClockId;

use super::interpreter::Environment;
use super::memory::Memory;

/// Headroom of a frame (XDP_PACKET_HEADROOM).
const HEADROOM: usize = 256;
/// A map's address: outside all memory regions.
const MAP: u64 = 1 << 62;

// Constants for maps (RFC 9669, 5.4).
const MAP_BY_FD: u8 = 1;
const MAP_VALUE: u8 = 2;

// Fields of struct xdp_md.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const INGRESS: i16 = 12;

pub(crate) struct Kernel {
    cpu: usize,
    /// The maps' ids by the program's descriptors.
    numbers: BTreeMap<i32, u32>,
    /// Elements looked up so far: a second lookup finds what was stored after the first.
    elements: BTreeMap<(u32, Vec<u8>), u64>,
    packet: u64,
    data: u64,
    data_end: u64,
    /// Lookups by the map's name and type.
    lookups: BTreeMap<(&'static str, String), u32>,
    /// Calls of helpers other than lookups.
    pub(crate) calls: BTreeMap<&'static str, u32>,
}

impl Kernel {
    /// For one run on `frame`; `numbers` are the maps' ids by the program's descriptors.
    pub(crate) fn new(
        numbers: BTreeMap<i32, u32>,
        frame: &[u8],
        cpu: usize,
        memory: &mut Memory,
    ) -> Self {
        let mut packet = vec![0; HEADROOM];
        packet.extend(frame);
        let packet = memory.add(packet);
        Self {
            cpu,
            numbers,
            elements: BTreeMap::new(),
            packet,
            data: packet + HEADROOM as u64,
            data_end: packet + (HEADROOM + frame.len()) as u64,
            lookups: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    /// The frame as the program left it.
    pub(crate) fn frame(&self, memory: &Memory) -> Vec<u8> {
        let length = (self.data_end - self.data) as usize;
        memory.bytes(self.data, length).to_vec()
    }

    /// How often each map of this type was looked up, by name.
    pub(crate) fn lookups_of(&self, kind: &str) -> impl Iterator<Item = (&str, u32)> + Clone {
        let of_kind = self.lookups.iter().filter(move |(key, _)| key.0 == kind);
        of_kind.map(|((_, name), count)| (name.as_str(), *count))
    }

    fn lookup(&mut self, map: u64, key: u64, memory: &mut Memory) -> u64 {
        let number = (map & !MAP) as u32;
        let map = MapHandle::from_map_id(number).unwrap();
        let kind = match map.map_type() {
            MapType::Array | MapType::PercpuArray | MapType::ArrayOfMaps => "array",
            _ => "hash",
        };
        let name = map.name().to_str().unwrap().to_owned();
        *self.lookups.entry((kind, name)).or_default() += 1;
        let key = memory.bytes(key, map.key_size() as usize).to_vec();
        if let Some(found) = self.elements.get(&(number, key.clone())) {
            return *found;
        }
        let value = if map.map_type().is_percpu() {
            let values = map.lookup_percpu(&key, MapFlags::ANY).unwrap();
            values.map(|mut values| values.swap_remove(self.cpu))
        } else {
            map.lookup(&key, MapFlags::ANY).unwrap()
        };
        // A missing element may exist after an update, which is not simulated.
        let Some(value) = value else {
            return 0;
        };
        let address = if map.map_type() == MapType::ArrayOfMaps {
            MAP | u64::from(u32::from_ne_bytes(value.try_into().unwrap()))
        } else {
            memory.add(value)
        };
        self.elements.insert((number, key), address);
        address
    }

    fn adjust_head(&mut self, by: i32) -> u64 {
        let data = self.data.wrapping_add_signed(by.into());
        if !(self.packet..self.data_end).contains(&data) {
            return -(Errno::EINVAL as i64) as u64;
        }
        self.data = data;
        0
    }
}

/// The kernel's ticks, which only root sees.
fn jiffies() -> u64 {
    let timers = fs::read_to_string("/proc/timer_list").unwrap();
    let mut lines = timers.lines();
    let ticks = lines.find_map(|line| line.strip_prefix("jiffies:"));
    ticks.unwrap().trim().parse().unwrap()
}

impl Environment for Kernel {
    fn map_constant(&mut self, kind: u8, map: i32, offset: i32, memory: &mut Memory) -> u64 {
        let number = self.numbers[&map];
        match kind {
            MAP_BY_FD => MAP | u64::from(number),
            MAP_VALUE => {
                let element = (number, vec![0; 4]);
                let address = *self.elements.entry(element).or_insert_with_key(|(_, key)| {
                    let map = MapHandle::from_map_id(number).unwrap();
                    memory.add(map.lookup(key, MapFlags::ANY).unwrap().unwrap())
                });
                address + offset as u64
            }
            other => panic!("a constant of kind {other}"),
        }
    }

    fn context(&self, offset: i16) -> u64 {
        match offset {
            DATA => self.data,
            DATA_END => self.data_end,
            INGRESS => 1,
            other => panic!("the context at {other}"),
        }
    }

    /// Helpers by their number in linux/bpf.h.
    fn call(&mut self, helper: i32, arguments: [u64; 5], memory: &mut Memory) -> u64 {
        let (name, result) = match helper {
            1 => return self.lookup(arguments[0], arguments[1], memory),
            2 => ("map_update_elem", 0),
            8 => ("get_smp_processor_id", self.cpu as u64),
            44 => ("xdp_adjust_head", self.adjust_head(arguments[1] as i32)),
            118 => ("jiffies64", jiffies()),
            160 => ("ktime_get_coarse_ns", {
                let now = ClockId::CLOCK_MONOTONIC_COARSE.now().unwrap();
                Duration::from(now).as_nanos() as u64
            }),
            188 => ("xdp_get_buff_len", self.data_end - self.data),
            other => panic!("helper {other} has no counterpart here yet"),
        };
        *self.calls.entry(name).or_default() += 1;
        result
    }
}
