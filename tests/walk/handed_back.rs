//! After a replacement, packets without an entry continue in the replaced program while its tables
//! may know more: which packets those are, that only that program counts them, and what happens
//! when it is gone.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use katran::Builder;
use katran::Features;
use katran::Flow;
use katran::FlowTracking;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Verdict;
use katran::stats::DropReason;
use katran_lab::stay_on;

use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::flows;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::frames::unreachable;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

/// As in `bpf/shared.h`.
const BEFORE: u32 = 7;
const HANDS_BACK: u32 = 1 << 27;
const INFO_BYTES: usize = 32;
const FLAGS_AT: usize = 24;

/// Two balancers with a service of either protocol; tests see by the real which of them forwarded a
/// packet.
struct Pair {
    before: Katran,
    after: Katran,
    vips: [Vip; 2],
}

const VIPS: [&str; 2] = ["203.0.113.1:443/tcp", "203.0.113.1:443/udp"];

impl Pair {
    /// The replaced one leads all to A, the new one new flows to C and others to B.
    fn new(settings: impl Fn(Builder) -> Builder) -> Self {
        let settings = || settings(builder());
        let (mut before, mut after) = (load(settings()), load(settings()));
        stay_on(after.forwarding_cpus()[0] as usize);
        let vips = VIPS.map(|name| {
            serve(&mut before, name, VipFlags::empty(), &[A]);
            let vip = serve(&mut after, name, VipFlags::empty(), &[B]);
            after.add_real(vip, Real::new(ip(C))).unwrap();
            after.add_real(vip, Real::new(ip(B)).weight(0)).unwrap();
            vip
        });
        let array = after.map_fd("special_programs").unwrap();
        let main = before.program_fd().as_raw_fd() as u32;
        bpf::update(array, &BEFORE.to_ne_bytes(), &main.to_ne_bytes());
        let pair = Self {
            before,
            after,
            vips,
        };
        pair.turn(true);
        pair
    }

    fn turn(&self, on: bool) {
        let infos = self.after.map_fd(".data.vip_infos").unwrap();
        let mut bytes = bpf::lookup(infos, &0_u32.to_ne_bytes()).unwrap();
        for info in bytes.chunks_exact_mut(INFO_BYTES).take(self.vips.len()) {
            let flags: &mut [u8; 4] = (&mut info[FLAGS_AT..FLAGS_AT + 4]).try_into().unwrap();
            let known = u32::from_ne_bytes(*flags) & !HANDS_BACK;
            *flags = (known | if on { HANDS_BACK } else { 0 }).to_ne_bytes();
        }
        bpf::update(infos, &0_u32.to_ne_bytes(), &bytes);
    }

    /// Where the frame goes. Checks that exactly the balancer that sent it has counted it.
    fn to(&self, frame: &[u8], tags: usize) -> IpAddr {
        let sent = || {
            [&self.before, &self.after].map(|katran| {
                let totals = katran.stats().totals().unwrap();
                let of_vips = self.vips.map(|vip| katran.stats().vip(vip).unwrap());
                let forwarded = of_vips.map(|of| of.forwarded.packets).iter().sum::<u64>();
                assert_eq!(totals.tx.packets, forwarded);
                (forwarded, totals.tx.bytes)
            })
        };
        let before = sent();
        let ran = bpf::run(self.after.program_fd(), frame);
        assert_eq!(ran.verdict, Verdict::Tx);
        let at = 30 + tags;
        let real: [u8; 4] = ran.frame[at..at + 4].try_into().unwrap();
        let by = usize::from(IpAddr::from(real) != ip(A));
        let mut wanted = before;
        wanted[by].0 += 1;
        wanted[by].1 += frame.len() as u64;
        assert_eq!(sent(), wanted);
        real.into()
    }
}

fn flows_of(protocol: Protocol) -> Vec<Flow> {
    flows(protocol, "203.0.113.1:443", 12)
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0, 0, 7]);
    frame
}

fn changed(builder: Builder) -> Builder {
    builder.flow_tracking(FlowTracking::Changed)
}

#[test]
fn what_no_entry_leads_goes_on_in_the_program_before() {
    let all = |builder: Builder| builder.flow_tracking(FlowTracking::All);
    let ids =
        |builder: Builder| changed(builder).features(Features::default() | Features::TCP_SERVER_ID);
    let settings: [fn(Builder) -> Builder; 3] = [changed, all, ids];
    for (nth, settings) in settings.into_iter().enumerate() {
        let pair = Pair::new(settings);
        for flow in flows_of(Protocol::Tcp) {
            assert_eq!(pair.to(&frame(flow), 0), ip(A), "{nth}");
            assert_eq!(pair.to(&tagged(&frame(flow)), 4), ip(A), "{nth}");
            assert_eq!(pair.to(&unreachable(flow, 8), 0), ip(A), "{nth}");
            // A new flow gets an entry.
            assert_eq!(pair.to(&syn(flow), 0), ip(C), "{nth}");
            assert_eq!(pair.to(&frame(flow), 0), ip(C), "{nth}");
            assert_eq!(pair.to(&tagged(&frame(flow)), 4), ip(C), "{nth}");
        }
        for flow in flows_of(Protocol::Udp) {
            assert_eq!(pair.to(&frame(flow), 0), ip(A), "{nth}");
        }
        assert_eq!(pair.after.stats().flow_table().unwrap().by_base, 0);
        pair.turn(false);
        for flow in flows_of(Protocol::Udp) {
            assert_ne!(pair.to(&frame(flow), 0), ip(A), "{nth}");
        }
    }
}

/// Handed back before any id counter moves.
#[test]
fn what_may_go_by_a_connection_id_does_so_there() {
    let mut pair = Pair::new(changed);
    let [_, vip] = pair.vips;
    pair.after.set_vip_flags(vip, VipFlags::QUIC).unwrap();
    pair.turn(true);
    let before = pair.after.stats().quic().unwrap();
    for flow in flows_of(Protocol::Udp) {
        assert_eq!(pair.to(&Packet::new(flow).data(&[0; 20]).frame(), 0), ip(A));
    }
    assert_eq!(pair.after.stats().quic().unwrap(), before);
}

/// Otherwise an old entry of the replaced program would catch a connection that reuses its client's
/// port.
#[test]
fn a_connection_that_begins_on_its_base_stays_here() {
    let mut pair = Pair::new(changed);
    for vip in pair.vips {
        pair.after.add_real(vip, Real::new(ip(B))).unwrap();
        pair.after
            .add_real(vip, Real::new(ip(C)).weight(0))
            .unwrap();
    }
    pair.turn(true);
    for flow in flows_of(Protocol::Tcp) {
        assert_eq!(pair.to(&syn(flow), 0), ip(B));
        assert_eq!(pair.to(&frame(flow), 0), ip(B));
    }
    let table = pair.after.stats().flow_table().unwrap();
    assert_eq!((table.settled, table.by_entry), (0, 12));
}

#[test]
fn what_a_settled_slot_leads_does_not() {
    let mut pair = Pair::new(changed);
    for vip in pair.vips {
        pair.after.flows_mut().purge(vip).unwrap();
    }
    pair.turn(true);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for flow in flows_of(protocol) {
            assert_eq!(pair.to(&frame(flow), 0), ip(C));
        }
    }
    assert_ne!(pair.after.stats().flow_table().unwrap().settled, 0);
}

#[test]
fn without_a_replaced_program_nothing_changes() {
    let pair = Pair::new(changed);
    let array = pair.after.map_fd("special_programs").unwrap();
    bpf::remove(array, &BEFORE.to_ne_bytes());
    let flow = flows_of(Protocol::Tcp)[0];
    assert_eq!(pair.to(&frame(flow), 0), ip(B));
    // A frame whose tags are restored cannot continue here.
    let ran = bpf::run(pair.after.program_fd(), &tagged(&frame(flow)));
    assert_eq!(ran.verdict, Verdict::Drop);
    let reasons = pair.after.stats().drop_reasons().unwrap();
    assert_eq!(reasons.get(DropReason::ProgramMissing), 1);
    // A simulation stays in its balancer, too.
    assert_eq!(pair.after.simulate(&frame(flow)).unwrap().real, Some(ip(B)));
}
