//! Findings of the probes: which reals do not answer, and where to look for the reason.

use std::collections::BTreeMap;
use std::net::IpAddr;

use katran::diagnosis::Severity;
use katran::diagnosis::Subject;

use crate::report::Check;
use crate::report::Health;
use crate::report::Problem;
use crate::report::Vip;

const HERE: &str = "on this host: is the check's program there, does a route lead to the reals, may the process have \
                    more descriptors (`ulimit -n`)? Until then a real that dies stays in use";

/// What is found: how bad, and of how many.
struct Found<'a> {
    severity: Severity,
    message: String,
    /// A VIP of which it is so.
    vip: &'a Vip,
    place: Place,
}

/// Where to look.
#[derive(Clone, Copy)]
enum Place {
    Backend,
    Here,
}

/// What probes have found that is not as it should be.
pub(super) fn findings(vips: &[Vip]) -> Vec<Problem> {
    let findings = found(vips).into_iter().map(|found| Problem {
        severity: found.severity.to_string(),
        subject: Subject::Health.to_string(),
        message: found.message,
        advice: match found.place {
            Place::Backend => advice(found.vip),
            Place::Here => HERE.to_owned(),
        },
        ..Problem::default()
    });
    findings.collect()
}

/// How many there are, none included.
pub(super) fn counts(vips: &[Vip]) -> BTreeMap<(Subject, Severity), u64> {
    let found = found(vips);
    let counts = [Severity::Warning, Severity::Problem].map(|severity| {
        let count = found.iter().filter(|found| found.severity == severity);
        ((Subject::Health, severity), count.count() as u64)
    });
    counts.into()
}

/// VIPs of which no real answers, as one finding, and all reals whose probes are not sent, as another; and one for each other real that does not, with all its VIPs.
fn found<'a>(vips: &'a [Vip]) -> Vec<Found<'a>> {
    let is_down = |of: &&crate::report::OfVip| of.health == Health::Down;
    let is_dead = |vip: &&Vip| !vip.reals.is_empty() && vip.reals.iter().all(|of| is_down(&of));
    let (dead, others): (Vec<_>, Vec<_>) = vips.iter().partition(is_dead);
    let mut found = Vec::new();
    if let Some(vip) = dead.first() {
        let message = format!(
            "no real of {} answers probes: those in use stay so, for it may be the probes that do not get through",
            and_more(&vip.vip, dead.len() - 1, "VIP")
        );
        found.push(Found {
            severity: Severity::Problem,
            message,
            vip,
            place: Place::Backend,
        });
    }
    let of_all = |vip: &'a Vip| vip.reals.iter().map(move |of| (vip, of));
    let mut unsent = vips.iter().flat_map(of_all).filter_map(|(vip, of)| {
        let check = of.check.as_ref().filter(|check| check.unsent);
        let is_probed = of.health != Health::NotProbed;
        Some((vip, of.real, check.filter(|_| is_probed)?))
    });
    if let Some((vip, real, check)) = unsent.next() {
        let more = match unsent.count() {
            0 => String::new(),
            more => format!(", and of {more} more"),
        };
        let message = format!(
            "nothing is known of real {real} of {}{more}, as probes cannot be sent ({})",
            vip.vip, check.result
        );
        found.push(Found {
            severity: Severity::Warning,
            message,
            vip,
            place: Place::Here,
        });
    }
    let mut silent: BTreeMap<IpAddr, Vec<(&Vip, Option<&Check>)>> = BTreeMap::new();
    for vip in others {
        for of in vip.reals.iter().filter(is_down) {
            let of_real = silent.entry(of.real).or_default();
            of_real.push((vip, of.check.as_ref()));
        }
    }
    found.extend(silent.into_iter().map(|(real, of)| {
        let (vip, check) = of[0];
        let why = check.map_or(String::new(), |check| format!(" ({})", check.result));
        let message = format!(
            "real {real} does not answer probes of {}{why}, and gets no flows of it while others answer",
            and_more(&vip.vip, of.len() - 1, "VIP")
        );
        Found {
            severity: Severity::Warning,
            message,
            vip,
            place: Place::Backend,
        }
    }));
    found
}

fn and_more(first: &str, more: usize, what: &str) -> String {
    match more {
        0 => first.to_owned(),
        1 => format!("{first} and 1 more {what}"),
        more => format!("{first} and {more} more {what}s"),
    }
}

/// The backend knows best.
fn advice(vip: &Vip) -> String {
    let address = vip.vip.parse::<katran::Vip>().map(|vip| vip.address());
    let address = address.map_or(String::new(), |address| format!(" --vip {address}"));
    format!(
        "on the backend: `katran decap --interface eth0 --check{address}` tells of its VIP, rp_filter, MTU and way back; is \
         its server running?"
    )
}
