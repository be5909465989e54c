//! Katran's own program, from an object file that the user compiled: loaded, and its maps filled,
//! so that it can be timed beside another balancer. Of Katran, only its maps' contents are known
//! here.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::ObjectBuilder;
use libbpf_rs::OpenObject;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;

const PROGRAM: &str = "balancer_ingress";
/// Slots of a ring, unless Katran was compiled with another number.
const SLOTS: u32 = 65_537;
const FLOW_KEY: u32 = 40;
const FLOW_VALUE: u32 = 16;
/// A flag in a real's record.
const REAL_IS_V6: u8 = 1;
/// A flag in a VIP's record.
const VIP_IS_QUIC: u32 = 4;

/// A map, and the sizes of its keys and values.
const MAPS: [(&str, u32, u32); 8] = [
    ("ctl_array", 4, 8),
    ("vip_map", 20, 8),
    ("ch_rings", 4, 4),
    ("reals", 4, 20),
    ("server_id_map", 4, 4),
    ("lru_mapping", 4, 4),
    ("stats", 4, 16),
    ("reals_stats", 4, 16),
];

/// Katran's program in the kernel, with a flow table for one CPU.
pub struct Peer {
    program: OwnedFd,
    maps: Vec<MapHandle>,
    vips: Vec<u32>,
    reals: Vec<u32>,
}

/// A VIP of [`Peer`]'s.
#[derive(Clone, Copy, Debug)]
pub struct PeerVip {
    /// Katran's number for it: below the 512 that it is compiled with.
    pub number: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// Whether packets name server ids in QUIC connection ids.
    pub quic: bool,
}

/// Katran's counters, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Packets to VIPs.
    pub to_vips: u64,
    /// Packets that were sent to reals.
    pub to_reals: u64,
}

impl Peer {
    /// Loads an object file of Katran's `balancer.bpf.c`, with a flow table of `flows` entries for
    /// packets on CPU `cpu`; it sends to the MAC address `gateway`.
    ///
    /// # Errors
    /// If the file or the object is unusable, with what to do about it, and those of the kernel.
    pub fn load(object: &Path, cpu: u32, flows: u32, gateway: [u8; 6]) -> io::Result<Self> {
        let name = object.display();
        let wrong = |what: String| {
            io::Error::other(format!(
                "{name}: {what}; an object made of Katran's balancer.bpf.c is needed: \
                 docs/performance.md says how to compile it"
            ))
        };
        let bytes = fs::read(object).map_err(|error| wrong(error.to_string()))?;
        let mut open = ObjectBuilder::default()
            .open_memory(&bytes)
            .map_err(|error| wrong(format!("this is no BPF object ({error})")))?;
        check(&open).map_err(wrong)?;

        let options = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let flow_table = MapHandle::create(
            MapType::LruHash,
            Some("peer_flows"),
            FLOW_KEY,
            FLOW_VALUE,
            flows,
            &options,
        )
        .map_err(|error| io::Error::other(format!("a table of {flows} flows: {error}")))?;
        for mut map in open.maps_mut() {
            if map.name() == "lru_mapping" {
                map.set_inner_map_fd(flow_table.as_fd())
                    .map_err(|error| wrong(format!("lru_mapping takes no flow table ({error})")))?;
            }
        }
        let loaded = open.load().map_err(|error| {
            io::Error::other(format!(
                "{name}: the kernel refuses it ({error}); what the kernel said of it is above. Was \
                 it compiled by a clang and with features that this kernel takes?"
            ))
        })?;

        let program = loaded.progs().find(|program| program.name() == PROGRAM);
        let program = program.ok_or_else(|| wrong(format!("the program {PROGRAM} is gone")))?;
        let mut maps = Vec::new();
        for map in loaded.maps() {
            if MAPS.iter().any(|(name, ..)| map.name() == *name) {
                maps.push(MapHandle::try_from(&map).map_err(io::Error::other)?);
            }
        }
        let peer = Self {
            program: program.as_fd().try_clone_to_owned()?,
            maps,
            vips: Vec::new(),
            reals: Vec::new(),
        };
        let descriptor = flow_table.as_fd().as_raw_fd();
        peer.set("lru_mapping", &cpu.to_ne_bytes(), &descriptor.to_ne_bytes())?;
        let [a, b, c, d, e, f] = gateway;
        let mac = [a, b, c, d, e, f, 0, 0];
        peer.set("ctl_array", &0u32.to_ne_bytes(), &mac)?;
        Ok(peer)
    }

    /// The program, for a [`Yardstick`](crate::Yardstick) to run.
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Sets the real with this number, from 1 up.
    ///
    /// # Errors
    /// Those of the kernel, for example for numbers beyond what Katran is compiled with.
    pub fn set_real(&mut self, number: u32, address: IpAddr) -> io::Result<()> {
        let mut record = [0; 20];
        record[..16].copy_from_slice(&octets(address));
        record[16] = if address.is_ipv6() { REAL_IS_V6 } else { 0 };
        self.set("reals", &number.to_ne_bytes(), &record)?;
        self.reals.push(number);
        Ok(())
    }

    /// Adds a VIP with its ring: the number of each slot's real.
    ///
    /// # Errors
    /// If Katran is compiled with another ring size, and those of the kernel.
    pub fn add_vip(&mut self, vip: PeerVip, ring: &[u16]) -> io::Result<()> {
        let rings = self.map("ch_rings")?;
        let slots = ring.len() as u32;
        if slots != SLOTS {
            return Err(io::Error::other(format!(
                "a ring of {slots} slots; Katran's have {SLOTS}"
            )));
        }
        let first = vip.number * slots;
        let keys: Vec<u8> = (first..first + slots).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = ring
            .iter()
            .flat_map(|real| u32::from(*real).to_ne_bytes())
            .collect();
        rings
            .update_batch(&keys, &values, slots, MapFlags::ANY, MapFlags::ANY)
            .map_err(io::Error::other)?;

        let mut key = octets(vip.address.ip()).to_vec();
        key.extend(vip.address.port().to_be_bytes());
        key.extend([vip.protocol, 0]);
        let flags = if vip.quic { VIP_IS_QUIC } else { 0 };
        let value = [flags.to_ne_bytes(), vip.number.to_ne_bytes()].concat();
        self.set("vip_map", &key, &value)?;
        self.vips.push(vip.number);
        Ok(())
    }

    /// Makes packets with a server id go to a real.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_server_id(&self, id: u32, real: u32) -> io::Result<()> {
        self.set("server_id_map", &id.to_ne_bytes(), &real.to_ne_bytes())
    }

    /// The program's counters so far.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn counts(&self) -> io::Result<PeerCounts> {
        Ok(PeerCounts {
            to_vips: self.sum("stats", &self.vips)?,
            to_reals: self.sum("reals_stats", &self.reals)?,
        })
    }

    /// Packets counted under these numbers: the first of two words in each CPU's record.
    fn sum(&self, name: &str, numbers: &[u32]) -> io::Result<u64> {
        let map = self.map(name)?;
        let mut sum = 0;
        for number in numbers {
            let records = map
                .lookup_percpu(&number.to_ne_bytes(), MapFlags::ANY)
                .map_err(io::Error::other)?;
            for record in records.unwrap_or_default() {
                let word = record.first_chunk().copied().unwrap_or_default();
                sum += u64::from_ne_bytes(word);
            }
        }
        Ok(sum)
    }

    fn map(&self, name: &str) -> io::Result<&MapHandle> {
        let map = self.maps.iter().find(|map| map.name() == name);
        map.ok_or_else(|| io::Error::other(format!("no map {name}")))
    }

    fn set(&self, name: &str, key: &[u8], value: &[u8]) -> io::Result<()> {
        crate::update(self.map(name)?, key, value)
            .map_err(|error| io::Error::other(format!("{name}: {error}")))
    }
}

/// What the object lacks to be Katran's.
fn check(open: &OpenObject) -> Result<(), String> {
    if !open.progs().any(|program| program.name() == PROGRAM) {
        return Err(format!("it has no program {PROGRAM}"));
    }
    for (name, key, value) in MAPS {
        let Some(map) = open.maps().find(|map| map.name() == name) else {
            return Err(format!("it has no map {name}"));
        };
        if (map.key_size(), map.value_size()) != (key, value) {
            return Err(format!(
                "its map {name} has keys of {} and values of {} bytes, not {key} and {value}",
                map.key_size(),
                map.value_size()
            ));
        }
        if name == "ch_rings" && !map.max_entries().is_multiple_of(SLOTS) {
            return Err(format!(
                "its rings have another size: ch_rings is no multiple of {SLOTS} slots"
            ));
        }
    }
    Ok(())
}

/// An address as in Katran's maps: IPv4 comes first.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use katran_lab::allowed_cpus;
    use katran_lab::require_root;
    use katran_lab::stay_on;

    use super::*;
    use crate::Yardstick;
    use crate::ipv4_check;

    const GATEWAY: [u8; 6] = [0x0a, 0, 0, 0, 0, 0xfe];
    const PASS: u32 = 2;
    const TX: u32 = 3;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SERVER_ID: u16 = 1000;

    /// An object file of `stand_in.bpf.c`.
    fn stand_in(kind: &str) -> PathBuf {
        Path::new(env!("OUT_DIR")).join(kind).with_extension("o")
    }

    fn refusal(object: &Path) -> String {
        match Peer::load(object, 0, 16, GATEWAY) {
            Ok(_) => panic!("{} was taken", object.display()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_no_object_of_katrans_is_refused_with_what_to_do() {
        require_root();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/peer.rs");
        let how = "docs/performance.md says how to compile it";
        for (object, wrong, advice) in [
            ("/nowhere/katran.o".into(), "No such file", how),
            (source, "this is no BPF object", how),
            (stand_in("LACKS_A_MAP"), "it has no map reals_stats", how),
            (
                stand_in("REFUSED"),
                "the kernel refuses it",
                "features that this kernel takes",
            ),
        ] {
            let said = refusal(&object);
            for part in [&*object.to_string_lossy(), wrong, advice] {
                assert!(said.contains(part), "{part:?} in {said:?}");
            }
        }
    }

    /// A frame to a VIP with a server id behind the ports.
    fn frame(protocol: u8, port: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 66, 0, 1, 0, 0, 64, protocol, 0, 0]);
        frame.extend([100, 64, 0, 0, 203, 0, 113, 1]);
        let check = ipv4_check(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&check);
        frame.extend([4, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(SERVER_ID.to_be_bytes());
        frame.resize(80, 0);
        frame
    }

    #[test]
    fn packets_go_where_the_maps_have_been_filled_to_send_them() {
        require_root();
        let cpu = allowed_cpus()[0];
        stay_on(cpu);
        let mut peer = Peer::load(&stand_in("COMPLETE"), cpu as u32, 16, GATEWAY).unwrap();
        let reals: [IpAddr; 3] = [
            [198, 51, 100, 1].into(),
            [198, 51, 100, 2].into(),
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 3].into(),
        ];
        for (number, real) in (1..).zip(reals) {
            peer.set_real(number, real).unwrap();
        }
        // Ports from 1024 up are flows from 0 up.
        let ring = |shift: usize| -> Vec<u16> {
            (0..SLOTS as usize)
                .map(|slot| 1 + ((slot - slot.min(1024) + shift) % 3) as u16)
                .collect()
        };
        for (number, protocol, port) in [(0, TCP, 80), (1, TCP, 8080), (2, UDP, 443)] {
            let vip = PeerVip {
                number,
                address: (IpAddr::from([203, 0, 113, 1]), port).into(),
                protocol,
                quic: protocol == UDP,
            };
            peer.add_vip(vip, &ring(number as usize)).unwrap();
        }
        peer.set_server_id(SERVER_ID.into(), 2).unwrap();

        let mut sent = 0;
        for (frame, expected) in [
            (frame(TCP, 80), [0, 1, 2].map(|flow| Some(reals[flow]))),
            (frame(TCP, 8080), [1, 2, 0].map(|flow| Some(reals[flow]))),
            (frame(UDP, 443), [Some(reals[1]); 3]),
            (frame(TCP, 81), [None; 3]),
            (frame(UDP, 80), [None; 3]),
        ] {
            let stick = Yardstick::new(&frame, 3).unwrap();
            for (flow, expected) in (0..).zip(expected) {
                let (action, out) = stick.run_flow(peer.program_fd(), flow).unwrap();
                match expected {
                    None => assert_eq!((action, out), (PASS, stick.frame(flow))),
                    Some(real) => {
                        assert_eq!(action, TX);
                        assert_eq!(out[..6], GATEWAY);
                        match real {
                            IpAddr::V4(real) => assert_eq!(out[30..34], real.octets()),
                            IpAddr::V6(real) => assert_eq!(out[38..54], real.octets()),
                        }
                        sent += 1;
                    }
                }
                let counts = PeerCounts {
                    to_vips: sent,
                    to_reals: sent,
                };
                assert_eq!(peer.counts().unwrap(), counts);
            }
        }
        assert_eq!(sent, 9);
    }
}
