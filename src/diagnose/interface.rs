//! What follows from the facts about an interface, for balancers and backends alike: whether it is up,
//! whose program is on it and in which mode, and what changes packets before that program sees them.

use super::Diagnosis;
use super::InterfaceFacts;
use super::Subject;
use super::facts::OtherEnd;
use super::facts::Present;
use super::facts::XDP_ACT_REDIRECT;
use super::facts::XDP_ACT_RX_SG;
use crate::attach::NotNative;
use crate::attach::XdpMode;
use crate::sys::link::XDP_ACT_NDO_XMIT;

/// The longest packet that native XDP takes in one page, without frames in several buffers: what most
/// drivers have room for.
const NATIVE_MTU: u32 = 3498;

/// What has the other end of a virtual link take what is sent natively.
pub(super) const PASS_ON_PEER: &str =
    "put an XDP program that passes everything on the other end, in native mode";

/// Where a frame may lie, for the program that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    One,
    /// In several buffers: the setting `frags`.
    Many,
}

/// Whether there is an interface to say more of.
pub(super) fn interface(facts: &InterfaceFacts, found: &mut Diagnosis) -> bool {
    let name = &facts.name;
    if facts.index.is_none() {
        let (message, advice) = match facts.ours.xdp {
            None => (
                format!("{name} does not exist in this network namespace"),
                "ip link",
            ),
            Some(_) => (
                format!(
                    "{name}, which was attached to, does not exist any more: no packets come in by it"
                ),
                "ip link, dmesg: make it again, with its driver, bond or VLAN; `reattach` attaches to the next one of that name \
                 (katran run and decap do so by themselves)",
            ),
        };
        found.problem(Subject::Interface, message, advice);
        return false;
    }
    let driver = facts.driver.as_deref().unwrap_or("unknown driver");
    if !facts.up {
        let message = format!("{name} ({driver}) is down");
        found.problem(
            Subject::Interface,
            message,
            format!("ip link set {name} up"),
        );
    } else if !facts.carrier {
        let message = format!("{name} ({driver}) has no carrier");
        found.problem(
            Subject::Interface,
            message,
            "look at cable, switch port, or peer",
        );
    } else {
        found.ok(Subject::Interface, format!("{name} ({driver}) is up"));
    }
    true
}

/// Who has the interface.
pub(super) enum Holder<'a> {
    /// We, as the kernel says.
    Ours(XdpMode),
    /// We were attached, and are no longer: why.
    Lost(String),
    Other(&'a Present),
    Nobody,
}

/// The kernel's word against our own list of attachments.
pub(super) fn holder(facts: &InterfaceFacts) -> Holder<'_> {
    let name = &facts.name;
    match (&facts.program, &facts.ours.xdp) {
        (Some(present), _) if Some(present.id) == facts.ours.program => Holder::Ours(present.mode),
        (there, Some(ours)) if Some(ours.index) != facts.index => {
            let runs = there
                .as_ref()
                .map(|there| format!("; it runs {}", there.describe()));
            Holder::Lost(format!(
                "{name} is another interface than the one that was attached to, which is gone{}",
                runs.unwrap_or_default()
            ))
        }
        (None, Some(_)) => Holder::Lost(format!("the program was taken off {name}")),
        (Some(other), Some(_)) => Holder::Lost(format!(
            "{name} runs {} in the place of the program that was attached",
            other.describe()
        )),
        (Some(other), None) => Holder::Other(other),
        (None, None) => Holder::Nobody,
    }
}

/// The attachment was lost.
pub(super) fn lost(message: String, found: &mut Diagnosis) {
    let advice = "attach again (`reattach`, or restart the program); `bpftool net` and `bpftool link` \
                  show what is there";
    found.problem(Subject::Program, message, advice);
}

/// The mode in force: of our program, or of the root program that we share.
pub(super) fn mode(facts: &InterfaceFacts, pages: Pages, mode: XdpMode, found: &mut Diagnosis) {
    if mode != XdpMode::Generic {
        return found.ok(Subject::Mode, mode.to_string());
    }
    let mut message = "generic: in the network stack, several times slower than native".to_owned();
    let reason = facts
        .ours
        .xdp
        .as_ref()
        .and_then(|ours| ours.not_native.as_ref());
    if let Some(reason) = reason {
        message += &format!("; {reason}");
    }
    found.warn(Subject::Mode, message, why_not_native(facts, pages, reason));
}

/// What is known of why, most certain first.
fn why_not_native(facts: &InterfaceFacts, pages: Pages, reason: Option<&NotNative>) -> String {
    let name = &facts.name;
    if reason == Some(&NotNative::OtherEnd) {
        return format!("in a lab: {PASS_ON_PEER}; then detach from {name}, and attach again");
    }
    if facts.native() == Some(false) {
        return "its driver has no native XDP: another card, or live with it".to_owned();
    }
    if facts.mtu > NATIVE_MTU && pages == Pages::One {
        return format!(
            "its MTU of {} is too large for one page: lower it to {NATIVE_MTU}, or load with frags",
            facts.mtu
        );
    }
    if facts.lro == Some(true) {
        return format!("ethtool -K {name} lro off, and attach again");
    }
    match reason {
        Some(_) => {
            "see `dmesg` for the driver's reason (often: too few free queues, see ethtool -L)"
        }
        None => "it was asked for: attach in native mode, or see why the driver refuses that",
    }
    .to_owned()
}

/// The mode that attaching would lead to.
pub(super) fn outlook(facts: &InterfaceFacts, pages: Pages, found: &mut Diagnosis) {
    match facts.native() {
        Some(false) => {
            let message = "the driver has no native XDP: generic mode would be used";
            found.warn(Subject::Mode, message, why_not_native(facts, pages, None));
        }
        _ if facts.mtu > NATIVE_MTU && pages == Pages::One => {
            let message = "native mode may be refused";
            found.warn(Subject::Mode, message, why_not_native(facts, pages, None));
        }
        Some(true) => {
            let features = facts.xdp_features.unwrap_or(0);
            let more = [
                (XDP_ACT_REDIRECT, "redirects"),
                (XDP_ACT_NDO_XMIT, "sends what is redirected to it"),
                (XDP_ACT_RX_SG, "takes frames in several buffers"),
            ];
            let more = more.iter().filter(|(bit, _)| features & bit != 0);
            let message = more.fold("the driver has native XDP".to_owned(), |text, (_, what)| {
                format!("{text}, {what}")
            });
            found.ok(Subject::Mode, message);
        }
        None => found.note(
            Subject::Mode,
            "this kernel does not tell whether the driver has native XDP (before 6.3)",
            "attach in native mode to find out",
        ),
    }
}

pub(super) fn offload(facts: &InterfaceFacts, found: &mut Diagnosis) {
    let name = &facts.name;
    let mut any = false;
    if facts.lro == Some(true) {
        any = true;
        let message = "large receive offload merges packets, beyond what can be wrapped";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} lro off"),
        );
    }
    // In force, by whatever program, or what attaching would lead to.
    let generic = match &facts.program {
        Some(program) => program.mode == XdpMode::Generic,
        None => facts.native() == Some(false),
    };
    if facts.hardware_gro == Some(true) {
        any = true;
        let message = "the device merges packets (HW-GRO), beyond what can be wrapped";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} rx-gro-hw off"),
        );
    }
    if facts.gro == Some(true) && generic {
        any = true;
        let message = "in generic mode receive offload (GRO) merges packets before the program";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} gro off"),
        );
    }
    if facts.rxvlan == Some(true) && !generic {
        any = true;
        let message = "VLAN tags are taken off before the program sees them, and not put back";
        let advice = format!(
            "if packets come with tags: ethtool -K {name} rxvlan off rx-vlan-stag-hw-parse off"
        );
        found.note(Subject::Offload, message, advice);
    }
    if !any {
        found.ok(Subject::Offload, "nothing changes packets on arrival");
    }
}

/// A virtual link can leave checksums unfinished, for the receiver to finish. What native XDP sends on keeps no note
/// of that, so nobody finishes them.
pub(super) fn checksums(facts: &InterfaceFacts, found: &mut Diagnosis) {
    let is_generic = match &facts.program {
        Some(program) => program.mode == XdpMode::Generic,
        None => facts.native() == Some(false),
    };
    match &facts.other_end {
        _ if is_generic => {}
        Some(OtherEnd::Here {
            name,
            leaves_checksums: Some(true),
        }) => found.warn(
            Subject::Offload,
            format!(
                "the other end, {name}, leaves checksums unfinished: what this host sends is forwarded \
                 with wrong ones"
            ),
            format!("ethtool -K {name} tx off"),
        ),
        Some(OtherEnd::Elsewhere) => found.note(
            Subject::Offload,
            "the other end of this virtual link is in another network namespace: if it leaves checksums \
             unfinished, packets are forwarded with wrong ones",
            "in that namespace: ethtool -k, and ethtool -K ... tx off",
        ),
        _ => {}
    }
}
