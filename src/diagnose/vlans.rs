//! Judges whether frames arrive with the VLAN tags that the next hops expect: they leave with the
//! tags that they came with.

use super::Diagnosis;
use super::Subject;
use crate::next_hop::NextHop;
use crate::types::MacAddr;

/// The known tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// The VLANs of the last frames that left with tags, at most one for each CPU; empty if none
    /// did.
    pub(crate) seen: Vec<u16>,
    /// VLAN interfaces that lead to next hops.
    pub(crate) of_hops: Vec<String>,
}

/// The surroundings on this interface.
pub(super) struct Around<'a> {
    pub(super) interface: &'a str,
    /// The number of forwarded packets.
    pub(super) packets: u64,
    pub(super) next_hops: &'a [NextHop],
    /// Configured gateways that are neighbours on the interface.
    pub(super) neighbours: Vec<MacAddr>,
}

pub(super) fn judge(vlans: &Vlans, around: &Around<'_>, found: &mut Diagnosis) {
    let about = Subject::Vlan;
    let Vlans { seen, of_hops } = vlans;
    let name = around.interface;
    let advice = format!(
        "make packets for VIPs arrive in the VLAN of the reals or their router: check the router's interface and the \
         switch's port; tcpdump -eni {name} shows tags, `ip neighbour` shows where the next hop is"
    );
    match (&seen[..], &of_hops[..]) {
        ([], []) => found.ok(about, "no frames have left with tags"),
        ([], [of_hop, ..]) => match around.packets {
            0 => found.ok(about, "no frames yet"),
            _ => found.warn(
                about,
                format!(
                    "frames arrive and leave without VLAN tags, but a next hop is behind {of_hop}, \
                 where frames need one"
                ),
                advice,
            ),
        },
        (seen, _) => {
            let tags: Vec<_> = seen.iter().map(u16::to_string).collect();
            let tags = tags.join(", ");
            match untagged_hop(around) {
                Some(hop) => found.warn(
                    about,
                    format!(
                "frames have come in with tags of VLAN {tags} and leave with the same, but {hop} \
                 is a neighbour without one, so it may not receive them"
                    ),
                    advice,
                ),
                None => found.note(
                    about,
                    format!("frames have come in with tags of VLAN {tags}, and leave with the same"),
                    "the reals or their router must be in that VLAN",
                ),
            }
        }
    }
}

/// A next hop on the interface itself, not behind one of its VLAN interfaces.
fn untagged_hop(around: &Around<'_>) -> Option<String> {
    let mut hops = around.next_hops.iter();
    let found =
        hops.find(|hop| hop.interface.as_deref() == Some(around.interface) && hop.mac.is_some());
    let found = found.and_then(|hop| hop.address.map(|address| address.to_string()));
    found.or_else(|| around.neighbours.first().map(MacAddr::to_string))
}
