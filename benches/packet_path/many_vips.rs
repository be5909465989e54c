//! The cost of several hundred busy VIPs, whose rings together fit no cache. Packets to one VIP and
//! packets to all of them take turns, through the same balancer.

use std::net::IpAddr;

use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran_yardstick::Yardstick;
use katran_yardstick::ipv4_check;

use crate::common::ACK;
use crate::common::NO_FLOOD_GUARD;
use crate::common::PORT;
use crate::common::REALS;
use crate::common::Reals;
use crate::common::SYN;
use crate::common::Spread;
use crate::common::TCP;
use crate::common::change_every_slot;
use crate::common::frame;
use crate::common::grouped;
use crate::options::Effort;
use crate::options::Options;
use crate::timed::Balancer;
use crate::timed::Ours;
use crate::traffic::Expected;
use crate::traffic::PASS;
use crate::traffic::Slots;
use crate::traffic::Traffic;
use crate::traffic::UNSEEN;

/// Each with a ring of 65,537 slots, 128 KiB.
const VIPS: u16 = 512;
const FIRST_VIP: [u8; 4] = [198, 19, 0, 0];

/// Measures and prints all rows whose name contains the filter.
pub(crate) fn measure(options: &Options, effort: &Effort, cpu: usize) {
    let established = Traffic::new(
        "TCP/IPv4 established, 512 VIPs",
        Expected::Known,
        to_first_vip(ACK),
    );
    let mut by_ring = Traffic::new(
        "TCP/IPv4 SYN, flood guard acts, 512 VIPs",
        Expected::New,
        to_first_vip(SYN),
    );
    if by_ring.slots(&options.timed) == Slots::Unsettled {
        // This type remembers them anyway, and the first VIP's flows repeat.
        by_ring.expected = Expected::Sent;
    }
    let rows = [
        (established, NO_FLOOD_GUARD, effort.flows),
        (by_ring, 1, &[UNSEEN]),
    ];
    let mut titles = true;
    for (traffic, threshold, numbers) in rows {
        if !traffic.name.contains(&options.filter) {
            continue;
        }
        if titles {
            println!("\n| traffic | flows | one VIP, ns | {VIPS} VIPs, ns | more, ns |");
            println!("| --- | --- | --- | --- | --- |");
            titles = false;
        }
        let katran = balancer(options, effort, threshold, cpu);
        let mut known = 0;
        for &flows in numbers {
            let ours = Ours {
                katran: &katran,
                slots: traffic.slots(&options.timed),
            };
            let [one, all] = take_turns(ours, &traffic, flows, known, effort);
            known = flows;
            let more = all.iter().zip(&one).map(|(all, one)| all - one).collect();
            let flows = match flows {
                UNSEEN => "all different".to_owned(),
                _ => grouped(flows.into()),
            };
            let cells = [one, all, more].map(|times| Spread::of(times).text(1));
            println!("| {} | {flows} | {} |", traffic.name, cells.join(" | "));
        }
    }
}

/// Nanoseconds a packet for each round, to one VIP and spread over all; `known` flows of each have
/// been sent before.
fn take_turns(
    ours: Ours<'_>,
    traffic: &Traffic,
    flows: u32,
    known: u32,
    effort: &Effort,
) -> [Vec<f64>; 2] {
    let sticks = [1, VIPS.into()]
        .map(|destinations| Yardstick::spread(&traffic.frame, flows, destinations).unwrap());
    let balancer = Balancer::Ours(ours);
    let first = u64::from(flows).min(2 * effort.flow_table_size) as u32;
    // The first VIP's flows are in both.
    let others = |flows: u32| flows - flows.div_ceil(VIPS.into());
    let unknown = [flows - known, others(flows) - others(known)];
    for (stick, unknown) in sticks.iter().zip(unknown) {
        balancer.run(stick, traffic, first, unknown);
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..effort.rounds {
        for (stick, times) in sticks.iter().zip(&mut times) {
            let wrapper = stick.run(stick.nothing(), effort.packets).unwrap();
            assert_eq!(wrapper.action, PASS);
            let measured = balancer.run(stick, traffic, effort.packets, 0);
            times.push(measured.nanoseconds - wrapper.nanoseconds);
        }
    }
    for stick in &sticks {
        for flow in [0, flows / 2, flows - 1] {
            balancer.check_frame(stick, traffic, flow, ours.katran);
        }
    }
    times
}

fn balancer(options: &Options, effort: &Effort, threshold: u32, cpu: usize) -> Katran {
    let timed = &options.timed;
    let settings = timed.settings(effort.flow_table_size, Some(threshold), cpu);
    let mut katran = settings.load().unwrap();
    let reals: Vec<_> = (1..=REALS)
        .map(|number| RealChange::Add(Real::new(Reals::V4.address(number))))
        .collect();
    for number in 0..VIPS {
        let [a, b, ..] = FIRST_VIP;
        let [c, d] = number.to_be_bytes();
        let vip = Vip::tcp((IpAddr::from([a, b, c, d]), PORT).into());
        katran.add_vip(vip, VipFlags::empty()).unwrap();
        katran.modify_reals(vip, &reals).unwrap();
    }
    if timed.changed {
        change_every_slot(&mut katran, Reals::V4);
    }
    katran
}

/// A frame to the first VIP.
fn to_first_vip(tcp_flags: u8) -> Vec<u8> {
    let mut frame = frame(false, TCP, tcp_flags, PORT);
    frame[30..34].copy_from_slice(&FIRST_VIP);
    frame[24..26].fill(0);
    let check = ipv4_check(&frame[14..34]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame
}
