//! Troubles with frames that do not leave, in the form of `balancer_troubles.rs`.

use super::troubles::tell;
use super::*;
use crate::attach::FarEnd;
use crate::attach::NotNative;
use crate::counters::InterfaceCounters;
use crate::diagnose::Severity::Note;
use crate::diagnose::Severity::Problem;
use crate::diagnose::Severity::Warning;
use crate::diagnose::facts::VirtioQueues;

fn takes_none() -> Option<FarEnd> {
    let name = Some("eth9".to_owned());
    Some(FarEnd::TakesNone { name })
}

fn sent(unsent: Growth, by_program: u64) -> Sends {
    Sends {
        next_hops: NextHops::Gateway,
        by_interface: Some(InterfaceCounters {
            interface: "eth0".to_owned(),
            index: 2,
            namespace: 1,
            sent: 10,
            unsent: unsent.total,
        }),
        unsent,
        by_program: Growth::now(by_program),
    }
}

#[test]
fn troubles_of_sending() {
    tell(&[
        (
            |f| {
                f.interface.far_end = takes_none();
                f.interface.xdp_features = Some(XDP_ACT_BASIC);
            },
            Problem,
            Subject::Sending,
            "eth9, has no XDP program: what is sent natively is lost",
            "auto or generic mode",
        ),
        (
            |f| f.interface.far_end = takes_none(),
            Problem,
            Subject::Sending,
            "waits there until other traffic wakes it",
            "auto or generic mode",
        ),
        (
            |f| {
                f.sends.next_hops = NextHops::Redirect;
                f.interface.far_end = takes_none();
            },
            Warning,
            Subject::Sending,
            "redirected frames arrive",
            "passes everything",
        ),
        (
            |f| {
                f.interface.far_end = takes_none();
                f.interface.program = None;
                f.interface.ours.xdp = None;
                f.interface.ours.elsewhere = true;
            },
            Warning,
            Subject::Program,
            "no root program",
            "root attach",
        ),
        (
            |f| f.interface.far_end = Some(FarEnd::Unknown),
            Note,
            Subject::Sending,
            "may not look into",
            "in native mode",
        ),
        (
            |f| {
                f.interface.far_end = takes_none();
                f.interface.gro = Some(false);
                present(f).mode = XdpMode::Generic;
                let ours = f.interface.ours.xdp.as_mut().unwrap();
                ours.not_native = Some(NotNative::OtherEnd);
            },
            Warning,
            Subject::Mode,
            "had no XDP program",
            "detach from eth0, and attach again",
        ),
        (
            |f| f.sends = sent(Growth::now(1), 100),
            Problem,
            Subject::Sending,
            "eth0 has failed to send 1 frame in the last 60 s, when the balancer counted 100 as sent; 1 since",
            "ethtool -S eth0",
        ),
        (
            |f| f.sends = sent(Growth::now(1), 101),
            Warning,
            Subject::Sending,
            "has failed to send 1 frame",
            "queue was full",
        ),
        (
            |f| {
                f.sends = sent(Growth::now(5), 10_000);
                f.interface.far_end = Some(FarEnd::Takes);
            },
            Warning,
            Subject::Sending,
            "has failed to send 5 frames",
            "the other end's queue",
        ),
        (
            |f| f.sends = sent(Growth::earlier(500), 100),
            Note,
            Subject::Sending,
            "eth0 has failed to send 500 frames since the balancer was attached, none in the last 75 s",
            "queue was full",
        ),
        (
            |f| {
                f.interface.virtio_queues = Some(VirtioQueues {
                    in_use: 8,
                    most: 8,
                    cpus: 4,
                });
            },
            Warning,
            Subject::Queues,
            "8 of 8 queues are in use, which leaves too few for 4 CPUs",
            "detach; ethtool -L eth0 combined 4",
        ),
        (
            |f| {
                f.interface.virtio_queues = Some(VirtioQueues {
                    in_use: 1,
                    most: 4,
                    cpus: 4,
                });
            },
            Warning,
            Subject::Queues,
            "slower locked mode",
            "twice as many queues as CPUs",
        ),
    ]);
}

#[test]
fn what_leaves_is_fine() {
    let mut facts = good();
    facts.sends = sent(Growth::default(), 100);
    facts.interface.far_end = Some(FarEnd::Takes);
    facts.interface.virtio_queues = Some(VirtioQueues {
        in_use: 4,
        most: 8,
        cpus: 4,
    });
    let found = judge(&facts);
    assert_eq!(found.worst(), Severity::Ok, "{found}");
    let told = found.about(Subject::Sending).next().unwrap();
    assert!(told.message.contains("has sent 10 frames"), "{found}");
    // Generic mode shares queues anyway, and the other end accepts what the network stack sends.
    present(&mut facts).mode = XdpMode::Generic;
    facts.interface.far_end = takes_none();
    facts.interface.virtio_queues = Some(VirtioQueues {
        in_use: 8,
        most: 8,
        cpus: 8,
    });
    let found = judge(&facts);
    let bad = |subject| {
        let mut about = found.about(subject);
        about.any(|of| of.severity > Severity::Ok)
    };
    assert!(!bad(Subject::Sending) && !bad(Subject::Queues), "{found}");
}

#[test]
fn the_mode_that_auto_would_choose_is_told_before_attaching() {
    let mut facts = good();
    facts.interface.ours.xdp = None;
    facts.interface.program = None;
    facts.interface.far_end = takes_none();
    let found = judge(&facts);
    let told = found.about(Subject::Sending).next().unwrap();
    assert_eq!(told.severity, Severity::Note, "{found}");
    assert!(told.message.contains("auto mode is generic"), "{found}");
}
