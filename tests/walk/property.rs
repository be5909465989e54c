//! Random flows through random VIPs: the program, `real_for_flow` and the model of the walk agree.

use std::cell::RefCell;
use std::net::IpAddr;

use katran::Flow;
use katran::HashFunction;
use katran::Real;
use katran::State;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran::state::VipState;
use katran::stats::DropReason;
use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest::test_runner::TestRunner;

use crate::common::all_in_table;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::load;
use crate::common::mirror;
use crate::common::vip;

/// A VIP from few addresses and ports, so that VIPs collide.
fn vips() -> impl Strategy<Value = Vec<VipState>> {
    let address = prop::sample::select(vec![
        "203.0.113.1",
        "203.0.113.0/24",
        "203.0.113.0/30",
        "203.0.0.0/16",
        "[2001:db8:1::1]",
        "[2001:db8:1::/64]",
        "[2001:db8::/32]",
    ]);
    let flags = prop::collection::vec(
        prop::sample::select(vec![
            VipFlags::NO_SRC_PORT,
            VipFlags::LRU_BYPASS,
            VipFlags::DPORT_HASH,
            VipFlags::SRC_DST_PORT,
        ]),
        0..3,
    );
    let reals = prop::collection::btree_map(0..8u16, 0..5u32, 0..6);
    let entry = (address, 0..3u16, any::<bool>(), flags, any::<bool>(), reals);
    prop::collection::vec(entry, 1..8).prop_map(|vips| {
        let mut states: Vec<VipState> = Vec::new();
        for (address, port, tcp, flags, v2, reals) in vips {
            let protocol = if tcp { "tcp" } else { "udp" };
            let mut state = VipState::new(vip(&format!("{address}:{port}/{protocol}")));
            state.flags = flags.into_iter().collect();
            state.hash = Some(if v2 {
                HashFunction::MaglevV2
            } else {
                HashFunction::Maglev
            });
            state.reals = reals
                .into_iter()
                .map(|(number, weight)| {
                    let address: IpAddr = if number % 2 == 0 {
                        [198, 51, 100, number as u8 + 1].into()
                    } else {
                        [0x2001, 0xdb8, 2, 0, 0, 0, 0, number].into()
                    };
                    Real::new(address).weight(weight)
                })
                .collect();
            if states.iter().all(|known| known.vip != state.vip) {
                states.push(state);
            }
        }
        states
    })
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let to = prop::sample::select(vec![
        "203.0.113.1",
        "203.0.113.2",
        "203.0.113.9",
        "203.0.5.5",
        "192.0.2.1",
        "2001:db8:1::1",
        "2001:db8:1::2",
        "2001:db8:7::7",
        "2001:db9::1",
    ]);
    (to, 0..4u16, any::<bool>(), any::<u16>(), any::<u32>()).prop_map(
        |(to, port, tcp, source_port, client)| {
            let to = ip(to);
            let [a, b, c, d] = client.to_be_bytes();
            let source: IpAddr = match to {
                IpAddr::V4(_) => [100 + a % 64, b, c, d].into(),
                // An IPv4-mapped source in an IPv6 packet.
                IpAddr::V6(_) if a % 4 == 0 => {
                    let [high, low] = [u16::from_be_bytes([192, b]), u16::from_be_bytes([c, d])];
                    [0, 0, 0, 0, 0, 0xffff, high, low].into()
                }
                IpAddr::V6(_) => [
                    0x2001,
                    0xdb8,
                    0xc,
                    (client >> 16) as u16,
                    0,
                    0,
                    1,
                    client as u16,
                ]
                .into(),
            };
            let (source, to) = ((source, source_port).into(), (to, port).into());
            if tcp {
                Flow::tcp(source, to)
            } else {
                Flow::udp(source, to)
            }
        },
    )
}

#[test]
fn program_model_and_real_for_flow_agree_on_any_flow() {
    let katran = RefCell::new(load(all_in_table()));
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let cases = (vips(), prop::collection::vec(any_flow(), 1..40));
    let tried = RefCell::new([0; 3]);
    TestRunner::new(config)
        .run(&cases, |(vips, flows)| {
            let katran = &mut *katran.borrow_mut();
            // Start empty: removed reals take their flow entries with them.
            let _ = katran.apply(&State::default()).unwrap();
            let mut state = State::default();
            state.vips = vips;
            let _ = katran.apply(&state).unwrap();
            let mut model = mirror::of(katran, 0);
            let numbered = katran.vips();
            for flow in flows {
                let bytes = frame(flow);
                // A new flow, then one that may be remembered.
                for first in [true, false] {
                    let answer = katran.real_for_flow(&flow).unwrap();
                    let ran = katran.simulate(&bytes).unwrap();
                    let said = model.walk(&bytes, 0);
                    let vip = said.vip.map(|number| numbered[number as usize]);
                    let real = said.real.map(|number| model.tables.reals[&number].address);
                    prop_assert_eq!((ran.vip, ran.real), (vip, real));
                    prop_assert_eq!(answer.map(|answer| answer.vip), vip);
                    let Some(answer) = answer else {
                        prop_assert_eq!(ran.reason, Reason::NotAVip);
                        tried.borrow_mut()[0] += 1;
                        continue;
                    };
                    prop_assert_eq!(answer.real, real);
                    if real.is_none() {
                        prop_assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
                        continue;
                    }
                    prop_assert_eq!(&ran.frame, &said.frame);
                    match answer.choice {
                        Choice::Ring => {
                            prop_assert_eq!(ran.reason, Reason::Ring);
                            tried.borrow_mut()[1] += 1;
                        }
                        choice => {
                            prop_assert_eq!(choice, Choice::FlowTable { cpu: 0 });
                            prop_assert_eq!(ran.reason, Reason::FlowTable);
                            tried.borrow_mut()[2] += usize::from(!first);
                        }
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let tried = tried.into_inner();
    assert!(tried.iter().all(|count| *count > 100), "{tried:?}");
}
