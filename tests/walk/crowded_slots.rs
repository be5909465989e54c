//! Which entries are evicted where only changed flows are remembered: a lost entry sends its
//! connection to its slot's base, so it matters more than where all flows are. Set-associative
//! tables of one set.

use std::thread;
use std::time::Duration;

use katran::Flow;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::Protocol;
use katran::VipFlags;
use katran::flows::Reason;
use katran_lab::stay_on;

use crate::common::builder;
use crate::common::drain;
use crate::common::flows;
use crate::common::frames::ACK;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const FIN: u8 = 0x01;
/// Entries of a set.
const WAYS: usize = 8;
/// Later than five seconds after a FIN: then a packet cancels it.
const LATER: Duration = Duration::from_millis(5500);

/// A balancer whose table is a single set, with all slots moved from A to B.
fn crowded() -> Katran {
    stay_on(0);
    let mut katran = load(
        builder()
            .forwarding_cpus([0])
            .flow_table(FlowTableKind::SetAssociative)
            .flow_table_size(4)
            .flow_tracking(FlowTracking::Changed),
    );
    let vip = serve(&mut katran, "203.0.113.1:443/tcp", VipFlags::empty(), &[A]);
    drain(&mut katran, vip, A, B);
    katran
}

fn begin(katran: &Katran, flow: Flow) {
    assert_eq!(sent(katran, &syn(flow)), (Some(ip(B)), Reason::Ring));
}

/// Whether the flow has its entry, as one of its packets shows.
fn goes_on(katran: &Katran, flow: Flow) -> bool {
    match sent(katran, &frame(flow)) {
        (Some(real), Reason::FlowTable) if real == ip(B) => true,
        (Some(real), Reason::Base) if real == ip(A) => false,
        other => panic!("{flow}: {other:?}"),
    }
}

fn end(katran: &Katran, flow: Flow) {
    let packet = Packet::new(flow).flags(FIN | ACK).frame();
    assert_eq!(sent(katran, &packet), (Some(ip(B)), Reason::FlowTable));
}

#[test]
fn connections_that_begin_outlive_each_other_and_those_that_have_ended_make_room() {
    let katran = crowded();
    let flows = flows(Protocol::Tcp, "203.0.113.1:443", WAYS as u16 + 3);
    let (old, new) = flows.split_at(WAYS);
    for flow in old {
        begin(&katran, *flow);
        assert!(goes_on(&katran, *flow));
    }
    // Two that only seem to have ended: anyone can forge a FIN.
    old[4..6].iter().for_each(|flow| end(&katran, *flow));
    thread::sleep(LATER);
    assert!(old[4..6].iter().all(|flow| goes_on(&katran, *flow)));
    // Two begin at once. The second one evicts a silent flow, not the first one.
    new[..2].iter().for_each(|flow| begin(&katran, *flow));
    assert!(new[..2].iter().all(|flow| goes_on(&katran, *flow)));
    assert!(old[2..].iter().all(|flow| goes_on(&katran, *flow)));

    // Two end, with an ACK of the server's answer: now one of them is evicted, though it sent last.
    for flow in &old[6..] {
        end(&katran, *flow);
        assert!(goes_on(&katran, *flow));
    }
    begin(&katran, new[2]);
    let ended = old[6..].iter().filter(|flow| goes_on(&katran, **flow));
    assert_eq!(ended.count(), 1);
    let others = old[2..6].iter().chain(new);
    assert!(others.into_iter().all(|flow| goes_on(&katran, *flow)));
    // The first two had evicted these.
    assert!(!old[..2].iter().any(|flow| goes_on(&katran, *flow)));
}
