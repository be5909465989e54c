//! Judges the facts about an interface, for balancers and backends alike: whether it is up, which
//! program is on it in which mode, and which offloads change packets before the program sees them.

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

/// The MTU up to which a frame fits into one page, with what most drivers reserve there.
const NATIVE_MTU: u32 = 3498;

/// Makes the other end of a virtual link accept natively sent frames.
pub(super) const PASS_ON_PEER: &str =
    "on the other end, attach an XDP program that passes everything, in native mode";

/// How many buffers a frame may span, for the loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    One,
    /// Several: the setting `frags`.
    Many,
}

/// Whether the interface exists, so that there is more to judge.
pub(super) fn interface(facts: &InterfaceFacts, found: &mut Diagnosis) -> bool {
    let name = &facts.name;
    if facts.index.is_none() {
        let (message, advice) = match facts.ours.xdp {
            None => (
                format!("{name} does not exist in this network namespace"),
                "check the name: ip link",
            ),
            Some(_) => (
                format!(
                    "{name}, where the program was attached, no longer exists: no packets come in \
                     through it"
                ),
                "see why (ip link, dmesg) and create it again, with its driver, bond or VLAN; \
                 your program must then attach to the new one (katran run and katran decap do)",
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
            "check the cable, the switch port or the peer",
        );
    } else {
        found.ok(Subject::Interface, format!("{name} ({driver}) is up"));
    }
    true
}

/// What is on the interface.
pub(super) enum Holder<'a> {
    /// Our program, as the kernel reports.
    Ours(XdpMode),
    /// Our program was there and no longer is, with the reason.
    Lost(String),
    Other(&'a Present),
    Nobody,
}

/// Compares what the kernel reports with our own list of attachments.
pub(super) fn holder(facts: &InterfaceFacts) -> Holder<'_> {
    let name = &facts.name;
    match (&facts.program, &facts.ours.xdp) {
        (Some(present), _) if Some(present.id) == facts.ours.program => Holder::Ours(present.mode),
        (there, Some(ours)) if Some(ours.index) != facts.index => {
            let runs = there
                .as_ref()
                .map(|there| format!("; it runs {}", there.describe()));
            Holder::Lost(format!(
                "{name} is a new interface: the one that the program was attached to is gone{}",
                runs.unwrap_or_default()
            ))
        }
        (None, Some(_)) => Holder::Lost(format!("the program was removed from {name}")),
        (Some(other), Some(_)) => Holder::Lost(format!(
            "{name} runs {} in the place of the program that was attached",
            other.describe()
        )),
        (Some(other), None) => Holder::Other(other),
        (None, None) => Holder::Nobody,
    }
}

/// Reports a lost attachment.
pub(super) fn lost(message: String, found: &mut Diagnosis) {
    let advice = "attach again, or restart the control plane; `bpftool net` and `bpftool link` \
                  show what is there";
    found.problem(Subject::Program, message, advice);
}

/// Judges the mode of our program, or of the root program that we share.
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

/// Why it is not native, most certain reason first.
fn why_not_native(facts: &InterfaceFacts, pages: Pages, reason: Option<&NotNative>) -> String {
    let name = &facts.name;
    if reason == Some(&NotNative::OtherEnd) {
        return format!("in a lab: {PASS_ON_PEER}; then detach from {name}, and attach again");
    }
    if facts.native() == Some(false) {
        return "its driver has no native XDP: use another card, or accept generic mode".to_owned();
    }
    if facts.mtu > NATIVE_MTU && pages == Pages::One {
        return format!(
            "its MTU of {} is too large for one page: lower it to {NATIVE_MTU}, or set frags = true",
            facts.mtu
        );
    }
    if facts.lro == Some(true) {
        return format!("ethtool -K {name} lro off, and attach again");
    }
    match reason {
        Some(_) => "see the driver's reason in `dmesg` (often too few free queues: ethtool -L)",
        None => {
            "generic mode was requested, here or for the root program: attach in native mode, or \
             see why the driver refuses it"
        }
    }
    .to_owned()
}

/// The mode that attaching would use.
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
                (XDP_ACT_NDO_XMIT, "sends frames redirected to it"),
                (XDP_ACT_RX_SG, "accepts frames in several buffers"),
            ];
            let more = more.iter().filter(|(bit, _)| features & bit != 0);
            let message = more.fold("the driver has native XDP".to_owned(), |text, (_, what)| {
                format!("{text}, {what}")
            });
            found.ok(Subject::Mode, message);
        }
        None => found.note(
            Subject::Mode,
            "this kernel does not report whether the driver has native XDP (before 6.3)",
            "attach in native mode to find out",
        ),
    }
}

pub(super) fn offload(facts: &InterfaceFacts, found: &mut Diagnosis) {
    let name = &facts.name;
    let mut any = false;
    if facts.lro == Some(true) {
        any = true;
        let message =
            "large receive offload (LRO) merges packets into frames too long to encapsulate";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} lro off"),
        );
    }
    // The current mode, of whatever program, or the one that attaching would use.
    let generic = match &facts.program {
        Some(program) => program.mode == XdpMode::Generic,
        None => facts.native() == Some(false),
    };
    if facts.hardware_gro == Some(true) {
        any = true;
        let message = "the device merges packets (HW-GRO) into frames too long to encapsulate";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} rx-gro-hw off"),
        );
    }
    if facts.gro == Some(true) && generic {
        any = true;
        let message =
            "in generic mode receive offload (GRO) merges packets before the program sees them";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} gro off"),
        );
    }
    if facts.rxvlan == Some(true) && !generic {
        any = true;
        let message = "the interface removes VLAN tags before the program sees them, so frames leave untagged";
        let advice = format!(
            "if packets arrive with tags: ethtool -K {name} rxvlan off rx-vlan-stag-hw-parse off"
        );
        found.note(Subject::Offload, message, advice);
    }
    if !any {
        found.ok(Subject::Offload, "nothing changes packets on arrival");
    }
}

/// The sender of a virtual link can leave checksums unfinished, for the receiver to finish. Native
/// XDP loses that information when it sends a packet on, so nothing finishes them.
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
            "the other end, {name}, leaves checksums unfinished: packets from it are forwarded with wrong \
             checksums"
            ),
            format!("ethtool -K {name} tx off"),
        ),
        Some(OtherEnd::Elsewhere) => found.note(
            Subject::Offload,
            "the other end of this virtual link is in another network namespace: if it leaves checksums \
             unfinished, packets are forwarded with wrong ones",
            "check in that namespace with ethtool -k; switch them off with ethtool -K ... tx off",
        ),
        _ => {}
    }
}
