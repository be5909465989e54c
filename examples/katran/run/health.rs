//! Findings of health checks: which reals fail, and where to look for the reason.

use std::collections::BTreeMap;
use std::net::IpAddr;

use katran::diagnosis::Severity;
use katran::diagnosis::Subject;

use crate::report::Check;
use crate::report::Health;
use crate::report::Problem;
use crate::report::Vip;
use crate::report::counted;

const HERE: &str = "on this host, check that the check's program exists, that a route leads to the reals, and that \
                    the limit of descriptors is high enough (`ulimit -n`); until then a real that dies stays in use";

/// One finding.
struct Found<'a> {
    severity: Severity,
    message: String,
    /// A VIP that it is about.
    vip: &'a Vip,
    place: Place,
}

/// Where to look.
#[derive(Clone, Copy)]
enum Place {
    Backend,
    Here,
}

/// The findings of health checks.
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

/// Their number by severity, 0 included.
pub(super) fn counts(vips: &[Vip]) -> BTreeMap<(Subject, Severity), u64> {
    let found = found(vips);
    let counts = [Severity::Warning, Severity::Problem].map(|severity| {
        let count = found.iter().filter(|found| found.severity == severity);
        ((Subject::Health, severity), count.count() as u64)
    });
    counts.into()
}

/// One finding for all VIPs without a working real, one for all reals whose probes are not sent,
/// and one for each other failing real with all its VIPs.
fn found<'a>(vips: &'a [Vip]) -> Vec<Found<'a>> {
    let is_down = |of: &&crate::report::OfVip| of.health == Health::Down;
    let is_dead = |vip: &&Vip| !vip.reals.is_empty() && vip.reals.iter().all(|of| is_down(&of));
    let (dead, others): (Vec<_>, Vec<_>) = vips.iter().partition(is_dead);
    let mut found = Vec::new();
    if let Some(vip) = dead.first() {
        let check = vip.reals.iter().find_map(|of| of.check.as_ref());
        let message = format!(
            "no real of {} answers probes{}: reals in use stay in use, because the probes may be \
             at fault",
            and_more(&vip.vip, dead.len() - 1, "VIP"),
            why(check)
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
            more => format!(" and {more} more"),
        };
        let message = format!(
            "the health of real {real} of {}{more} is unknown: probes cannot be sent ({})",
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
        let message = format!(
            "real {real} does not answer probes of {}{}, so it gets no new flows while other reals answer",
            and_more(&vip.vip, of.len() - 1, "VIP"),
            why(check)
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

/// Why the last probe failed.
fn why(check: Option<&Check>) -> String {
    check.map_or(String::new(), |check| format!(" ({})", check.result))
}

fn and_more(first: &str, more: usize, what: &str) -> String {
    match more {
        0 => first.to_owned(),
        more => format!("{first} and {}", counted(more, &format!("more {what}"))),
    }
}

/// The backend can tell more.
fn advice(vip: &Vip) -> String {
    let address = vip.vip.parse::<katran::Vip>().map(|vip| vip.address());
    let address = address.map_or(String::new(), |address| format!(" --vip {address}"));
    format!(
        "run `katran decap --interface eth0 --check{address}` on the backend, which checks VIP, rp_filter, MTU and way \
         back; check that its server runs"
    )
}
