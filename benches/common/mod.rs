//! Shared by several benches: the frames and the balancer that they time, the median of many
//! measurements, and the files that `figures` draws from.

#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod machine;
pub(crate) mod options;
pub(crate) mod peer;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use katran::Builder;
use katran::FlowTableKind;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran_yardstick::ipv4_check;
use serde::Deserialize;
use serde::Serialize;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const PORT: u16 = 80;
/// A port without a VIP.
pub(crate) const OTHER_PORT: u16 = 81;
/// A flood threshold that is never reached.
pub(crate) const NO_FLOOD_GUARD: u32 = u32::MAX;

const VIPS: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
/// Reals of each VIP, as many as Katran had when its figures were taken.
pub(crate) const REALS: u8 = 100;
/// The gateway's MAC address.
pub(crate) const GATEWAY: [u8; 6] = [0x0a, 0, 0, 0, 0, 0xfe];

/// The address family of the reals, and so of the outer headers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Reals {
    #[default]
    V4,
    V6,
}

impl Reals {
    /// The real with this number: 1 to 100, and spare ones above.
    pub(crate) fn address(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => [198, 51, 100, number].into(),
            Self::V6 => [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number.into()].into(),
        }
    }
}

/// A frame of 100 bytes to the VIP of its family. The wrapper changes source address and port but
/// not the transport checksum; nothing under test reads that.
pub(crate) fn frame(v6: bool, protocol: u8, tcp_flags: u8, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 46, protocol, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        let mut ip = [0x45, 0, 0, 86, 0, 1, 0, 0, 64, protocol, 0, 0].to_vec();
        ip.extend([100, 64, 0, 0, 203, 0, 113, 1]);
        let check = ipv4_check(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&check);
        frame.extend([8, 0]);
        frame.extend(ip);
    }
    frame.extend([4, 0]);
    frame.extend(port.to_be_bytes());
    if protocol == TCP {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp_flags, 0x20, 0, 0, 0, 0, 0]);
    } else {
        let length: u8 = if v6 { 46 } else { 66 };
        frame.extend([0, length, 0, 0]);
    }
    frame.resize(100, 0xab);
    frame
}

/// The settings of a balancer with two VIPs each for TCP and UDP.
pub(crate) fn settings(
    kind: FlowTableKind,
    flow_table_size: u64,
    flood_threshold: Option<u32>,
    cpus: &[u32],
) -> Builder {
    let builder = Katran::builder()
        .gateway_mac(GATEWAY.into())
        .forwarding_cpus(cpus.iter().copied())
        .flow_table(kind)
        .flow_table_size(flow_table_size);
    match flood_threshold {
        Some(threshold) => builder.flood_threshold(threshold),
        None => builder,
    }
}

/// Loads a balancer with these settings and adds its VIPs and reals.
pub(crate) fn serve(builder: Builder) -> Katran {
    serve_by(builder, Reals::V4)
}

/// As [`serve`], with reals of this family.
pub(crate) fn serve_by(builder: Builder, family: Reals) -> Katran {
    let mut katran = builder.load().unwrap();
    let reals: Vec<_> = (1..=REALS)
        .map(|number| RealChange::Add(Real::new(family.address(number))))
        .collect();
    for address in VIPS {
        let address = (address.parse::<IpAddr>().unwrap(), PORT).into();
        for vip in [Vip::tcp(address), Vip::udp(address)] {
            katran.add_vip(vip, VipFlags::empty()).unwrap();
            katran.modify_reals(vip, &reals).unwrap();
        }
    }
    katran
}

/// The server id in packets.
pub(crate) const SERVER_ID: u16 = 1000;

/// Makes the UDP VIPs use QUIC connection ids, with a single server id: the place where lookups
/// begin.
pub(crate) fn serve_quic(katran: &mut Katran) {
    for vip in katran.vips() {
        if vip.protocol() == Protocol::Udp {
            katran.set_vip_flags(vip, VipFlags::QUIC).unwrap();
        }
    }
    let real = [198, 51, 100, 1].into();
    let id = ServerId::new(SERVER_ID.into(), real);
    katran.server_ids_mut().add(&[id]).unwrap();
}

/// A short header with a connection id of version 1.
pub(crate) fn quic_short() -> [u8; 9] {
    let id = SERVER_ID;
    let [first, second, third] = [0x40 | id >> 10, id >> 2, id << 6].map(|bits| bits as u8);
    [0x43, first, second, third, 5, 6, 7, 8, 9]
}

/// A UDP frame with this at its payload's start.
pub(crate) fn with_payload(frame: &[u8], payload: &[u8]) -> Vec<u8> {
    let udp = match frame[12..14] {
        [0x86, 0xdd] => 14 + 40,
        _ => 14 + 20,
    };
    let mut frame = frame.to_vec();
    frame[udp + 8..][..payload.len()].copy_from_slice(payload);
    frame
}

/// Drains all reals of each VIP and adds others in the same change, so that every slot of every
/// ring changes its real.
pub(crate) fn change_every_slot(katran: &mut Katran, family: Reals) {
    let drained = (1..=REALS).map(|number| Real::new(family.address(number)).weight(0));
    let spare = (REALS + 1..=2 * REALS).map(|number| Real::new(family.address(number)));
    let changes: Vec<_> = drained.chain(spare).map(RealChange::Add).collect();
    for vip in katran.vips() {
        katran.modify_reals(vip, &changes).unwrap();
    }
}

/// A file for `figures`, in `figures` of the target directory.
pub(crate) fn results_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .with_file_name("figures")
        .join(name)
}

/// 65537 as 65,537.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// Writes a file, and creates its parent directories.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}

/// The median of many measurements, and the quartiles around it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) quartiles: [f64; 2],
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarter| values[(values.len() - 1) * quarter / 4];
        Self {
            median: at(2),
            quartiles: [at(1), at(3)],
        }
    }

    pub(crate) fn text(&self, decimals: usize) -> String {
        let [low, high] = self.quartiles;
        let median = self.median;
        format!("{median:.decimals$} ({low:.decimals$} .. {high:.decimals$})")
    }
}
