//! Shared by the tests of the loaded program: a small balancer, frames with right checksums, the
//! frames expected in return, and the kernel's view of programs and maps. Each test binary uses a
//! part of it.

pub(crate) mod bpf;
pub(crate) mod cgroup;
pub(crate) mod ecn;
pub(crate) mod faults;
pub(crate) mod fixtures;
pub(crate) mod frames;
pub(crate) mod layout;
pub(crate) mod logs;
pub(crate) mod mirror;
pub(crate) mod pins;
pub(crate) mod seed;
pub(crate) mod wire;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use katran::Builder;
use katran::Flow;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::MacAddr;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Reason;
use katran_lab::require_root;

pub(crate) const GATEWAY: MacAddr = MacAddr::new([0x0a, 0, 0, 0, 0, 0xfe]);
/// Prime, like every ring's size, and small, so that rings are built and written quickly.
pub(crate) const RING_SIZE: u32 = 1009;
pub(crate) const MAX_VIPS: u32 = 16;
pub(crate) const MAX_REALS: u32 = 64;

/// The flow table type to test: the one in the environment variable `KATRAN_FLOW_TABLE`, or the
/// default. `make test` runs both.
pub(crate) fn flow_table() -> FlowTableKind {
    std::env::var("KATRAN_FLOW_TABLE")
        .map_or(FlowTableKind::default(), |kind| kind.parse().unwrap())
}

/// A balancer with small tables that remembers changed flows; other settings at their defaults.
pub(crate) fn builder() -> Builder {
    Katran::builder()
        .flow_table(flow_table())
        .flow_tracking(FlowTracking::Changed)
        .gateway_mac(GATEWAY)
        .max_vips(MAX_VIPS)
        .max_reals(MAX_REALS)
        .ring_size(RING_SIZE)
        .flow_table_size(10_000)
}

/// As [`builder`], but remembers all flows: for tests of the flow table and of what reads it.
pub(crate) fn all_in_table() -> Builder {
    builder().flow_tracking(FlowTracking::All)
}

pub(crate) fn load(builder: Builder) -> Katran {
    require_root();
    builder.load().unwrap()
}

/// The CPU time that this thread has used so far, without other threads and guests.
pub(crate) fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock.now().unwrap().into()
}

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

pub(crate) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub(crate) fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

/// Adds a VIP with reals of weight 1.
pub(crate) fn serve(katran: &mut Katran, text: &str, flags: VipFlags, reals: &[&str]) -> Vip {
    let vip = vip(text);
    katran.add_vip(vip, flags).unwrap();
    let changes: Vec<RealChange> = reals
        .iter()
        .map(|address| RealChange::Add(Real::new(ip(address))))
        .collect();
    katran.modify_reals(vip, &changes).unwrap();
    vip
}

/// From here on the VIP's new flows go to `to`; `from` is drained, and keeps what is remembered.
pub(crate) fn drain(katran: &mut Katran, vip: Vip, from: &str, to: &str) {
    let drained = RealChange::Add(Real::new(ip(from)).weight(0));
    let other = RealChange::Add(Real::new(ip(to)));
    katran.modify_reals(vip, &[drained, other]).unwrap();
}

/// The real that the program sends a frame to, and the reason.
pub(crate) fn sent(katran: &Katran, frame: &[u8]) -> (Option<IpAddr>, Reason) {
    let ran = katran.simulate(frame).unwrap();
    (ran.real, ran.reason)
}

/// Flows from this many clients of the destination's family, each with its own address and port.
pub(crate) fn flows(protocol: Protocol, destination: &str, count: u16) -> Vec<Flow> {
    let destination = at(destination);
    (0..count)
        .map(|i| {
            let [high, low] = i.to_be_bytes();
            let address: IpAddr = match destination {
                SocketAddr::V4(_) => [100, 64, high, low].into(),
                SocketAddr::V6(_) => [0x2001, 0xdb8, 0xc, i, 0, 0, 0x1234, i].into(),
            };
            let port = 1024 + i.wrapping_mul(7) % 60_000;
            let source = (address, port).into();
            match protocol {
                Protocol::Tcp => Flow::tcp(source, destination),
                Protocol::Udp => Flow::udp(source, destination),
            }
        })
        .collect()
}
