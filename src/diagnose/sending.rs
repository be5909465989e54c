//! Judges whether the frames that the program sends leave: the far end of a virtual link, the
//! interface's counters compared with the program's, and the driver's transmit queues.

use super::Diagnosis;
use super::Growth;
use super::InterfaceFacts;
use super::Subject;
use super::counted;
use super::facts::VirtioQueues;
use super::interface::PASS_ON_PEER;
use crate::attach::FarEnd;
use crate::attach::XdpMode;
use crate::counters::InterfaceCounters;
use crate::sys::link::XDP_ACT_NDO_XMIT;
use crate::types::NextHops;

/// If one frame in so many, or more, did not leave, that is a problem; fewer are a warning.
const BEARABLE: u64 = 100;

/// The frames that the program sent, and what happened to them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sends {
    /// Through which interface frames leave.
    pub(crate) next_hops: NextHops,
    /// The interface's counters, if the balancer is attached to it.
    pub(crate) by_interface: Option<InterfaceCounters>,
    /// Frames that it failed to send.
    pub(crate) unsent: Growth,
    /// Frames that the program counted as sent, through any interface.
    pub(crate) by_program: Growth,
}

/// `in_force` is the program's mode, current or expected.
pub(super) fn judge(
    place: &InterfaceFacts,
    sends: &Sends,
    in_force: XdpMode,
    found: &mut Diagnosis,
) {
    let is_attached = place.program.is_some();
    if in_force == XdpMode::Native {
        far_end(place, sends, is_attached, found);
        if let Some(queues) = place.virtio_queues {
            virtio(place, queues, is_attached, found);
        }
    }
    if let Some(counters) = &sends.by_interface {
        unsent(counters, place, sends, in_force, found);
    }
}

fn far_end(place: &InterfaceFacts, sends: &Sends, is_attached: bool, found: &mut Diagnosis) {
    let about = Subject::Sending;
    match &place.far_end {
        Some(far @ FarEnd::TakesNone { .. }) if !is_attached => {
            let message = format!("{far} has no XDP program, so auto mode is generic mode here");
            found.note(about, message, format!("in a lab: {PASS_ON_PEER}"));
        }
        Some(far @ FarEnd::TakesNone { .. }) => takes_none(far, place, sends.next_hops, found),
        Some(far @ FarEnd::Unknown) => found.note(
            about,
            format!(
                "{far} is in a network namespace that this process may not look into: unless it has an XDP program, \
                 frames sent natively do not arrive"
            ),
            format!("check with ip link there, or {PASS_ON_PEER}"),
        ),
        Some(FarEnd::Takes) | None => {}
    }
}

/// Native XDP sends to an end without a program.
fn takes_none(far: &FarEnd, place: &InterfaceFacts, next_hops: NextHops, found: &mut Diagnosis) {
    let about = Subject::Sending;
    // Only GRO makes such an end accept frames.
    let has_gro = place
        .xdp_features
        .is_some_and(|known| known & XDP_ACT_NDO_XMIT != 0);
    let advice = format!("attach in auto or generic mode; or in a lab: {PASS_ON_PEER}");
    if has_gro && next_hops == NextHops::Redirect {
        let message = format!(
            "{far} has no XDP program, only GRO: redirected frames arrive, but the balancer's own ICMP messages \
             wait there until other traffic wakes it"
        );
        return found.warn(about, message, advice);
    }
    let fate = match has_gro {
        true => "waits there until other traffic wakes it",
        false => "is lost",
    };
    let message = format!("{far} has no XDP program: what is sent natively {fate}");
    found.problem(about, message, advice);
}

/// virtio_net gives each CPU its own queue for native XDP if enough are free; else CPUs share
/// queues under a lock.
fn virtio(place: &InterfaceFacts, queues: VirtioQueues, is_attached: bool, found: &mut Diagnosis) {
    let VirtioQueues { in_use, most, cpus } = queues;
    if in_use.saturating_add(cpus) <= most {
        return;
    }
    let name = &place.name;
    let message = format!(
        "{in_use} of {most} queues are in use, which leaves too few for {cpus} CPUs to send through: virtio_net sends \
         in a slower locked mode"
    );
    let detach = match is_attached {
        true => "detach; ",
        false => "",
    };
    let advice = match most.saturating_sub(cpus) {
        0 => format!(
            "give the virtual machine at least twice as many queues as CPUs; then ethtool -L {name} combined {cpus}, and \
             attach"
        ),
        free => format!("{detach}ethtool -L {name} combined {free}; then attach"),
    };
    found.warn(Subject::Queues, message, advice);
}

/// What the interface's own counters say.
fn unsent(
    counters: &InterfaceCounters,
    place: &InterfaceFacts,
    sends: &Sends,
    in_force: XdpMode,
    found: &mut Diagnosis,
) {
    let InterfaceCounters {
        interface, sent, ..
    } = counters;
    let unsent = &sends.unsent;
    let about = Subject::Sending;
    if unsent.total == 0 {
        let sent = counted(sent, "frame");
        let message = format!(
            "{interface} has sent {sent} since the balancer was attached, and failed to send none"
        );
        return found.ok(about, message);
    }
    let advice = match (in_force, &place.far_end) {
        (XdpMode::Native, Some(FarEnd::TakesNone { .. })) => "see above".to_owned(),
        (XdpMode::Native, Some(_)) => format!(
            "the other end's queue was full or missing (down, or no XDP program): ethtool -S {interface}"
        ),
        (XdpMode::Native, None) => {
            format!(
                "its queue was full, or it refused them: see ethtool -S {interface}; add or lengthen queues (ethtool -L, -G)"
            )
        }
        _ => format!(
            "the link was down, its queue was full, or it refused them; others' frames count too: ip -s link \
             show {interface}"
        ),
    };
    if unsent.recent == 0 {
        let message = format!(
            "{interface} has failed to send {} since the balancer was attached, {}",
            counted(unsent.total, "frame"),
            unsent.silence()
        );
        return found.note(about, message, advice);
    }
    let by_program = sends.by_program.recent;
    let message = format!(
        "{interface} has failed to send {} {}, when the balancer counted {by_program} as sent; {} since it was \
         attached",
        counted(unsent.recent, "frame"),
        unsent.lately(),
        unsent.total
    );
    match unsent.recent.saturating_mul(BEARABLE) >= by_program {
        true => found.problem(about, message, advice),
        false => found.warn(about, message, advice),
    }
}
