//! Judges whether frames arrive with the VLAN tags that the next hops expect: they leave with the
//! tags that they came with.

use super::Diagnosis;
use super::Subject;
use super::recent::Tags;
use crate::next_hop::NextHop;
use crate::types::MacAddr;

const IN_VLAN: &str = "the reals or their router must be in that VLAN";

/// The known tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vlans {
    pub(crate) tags: Tags,
    /// VLAN interfaces that lead to next hops.
    pub(crate) of_hops: Vec<String>,
}

/// The surroundings on this interface.
pub(super) struct Around<'a> {
    pub(super) interface: &'a str,
    /// The number of packets forwarded lately.
    pub(super) packets: u64,
    pub(super) next_hops: &'a [NextHop],
    /// Configured gateways that are neighbours on the interface.
    pub(super) neighbours: Vec<MacAddr>,
}

pub(super) fn judge(vlans: &Vlans, around: &Around<'_>, found: &mut Diagnosis) {
    let about = Subject::Vlan;
    let Vlans { tags, of_hops } = vlans;
    let earlier = &tags.earlier;
    let name = around.interface;
    let advice = format!(
        "make packets for VIPs arrive in the VLAN of the reals or their router: check the router's interface and the \
         switch's port; tcpdump -eni {name} shows tags, `ip neighbour` shows where the next hop is"
    );
    match (&tags.recent[..], &of_hops[..]) {
        ([], [of_hop, ..]) if around.packets > 0 => found.warn(
            about,
            format!(
                "frames arrive and leave without VLAN tags, but a next hop is behind {of_hop}, \
                 where frames need one"
            ),
            advice,
        ),
        ([], _) if !earlier.is_empty() => found.note(
            about,
            format!(
                "frames came in with tags of VLAN {}, and left with the same; {}",
                listed(earlier),
                tags.silence()
            ),
            IN_VLAN,
        ),
        ([], []) => found.ok(about, "no frames have left with tags"),
        ([], _) => found.ok(about, "no frames have left lately"),
        (seen, _) => {
            let tags = listed(seen);
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
                    IN_VLAN,
                ),
            }
        }
    }
}

fn listed(vlans: &[u16]) -> String {
    let vlans: Vec<_> = vlans.iter().map(u16::to_string).collect();
    vlans.join(", ")
}

/// A next hop on the interface itself, not behind one of its VLAN interfaces.
fn untagged_hop(around: &Around<'_>) -> Option<String> {
    let mut hops = around.next_hops.iter();
    let found =
        hops.find(|hop| hop.interface.as_deref() == Some(around.interface) && hop.mac.is_some());
    let found = found.and_then(|hop| hop.address.map(|address| address.to_string()));
    found.or_else(|| around.neighbours.first().map(MacAddr::to_string))
}
