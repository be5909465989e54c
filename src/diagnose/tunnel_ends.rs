//! Whose tunnels a balancer unwraps, and what it sends on of what was in them: an open end serves strangers.
//! Nothing keeps packets from being forwarded here, so there is no problem, but warnings.

use super::Diagnosis;
use super::Subject;

/// What is said about tunnels that end here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TunnelEnds {
    /// Tunnels are unwrapped at all.
    pub(crate) unwraps: bool,
    /// Only those to addresses of this host.
    pub(crate) is_strict: bool,
    /// There is an address whose packets go back out.
    pub(crate) egress: bool,
    /// Only some outer sources are allowed.
    pub(crate) limits_sources: bool,
    /// Only some inner sources are allowed at addresses of that kind.
    pub(crate) limits_egress: bool,
}

pub(super) fn judge(facts: &TunnelEnds, found: &mut Diagnosis) {
    if !facts.unwraps {
        return;
    }
    let about = Subject::TunnelEnds;
    let before = found.findings().len();
    if !facts.is_strict {
        found.warn(
            about,
            "tunnels to whatever address are unwrapped, and passed to this host (CVE-2020-10136)",
            "name strict-destination beside inline-decap in the features",
        );
    }
    if facts.egress && !facts.limits_egress {
        found.warn(
            about,
            "an egress address sends what anybody puts into a tunnel, from any source",
            "egress_sources with the addresses of the VIPs",
        );
    }
    if !facts.limits_sources {
        found.warn(
            about,
            "tunnels may come from anywhere",
            "allow_sources with the outer sources of the other balancers and backends",
        );
    }
    if found.findings().len() == before {
        found.ok(
            about,
            "end at addresses of this host, and come from listed sources",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::Severity;

    const CLOSED: TunnelEnds = TunnelEnds {
        unwraps: true,
        is_strict: true,
        egress: true,
        limits_sources: true,
        limits_egress: true,
    };

    fn findings(facts: TunnelEnds) -> Vec<(Severity, String)> {
        let mut found = Diagnosis::default();
        judge(&facts, &mut found);
        let of = found.about(Subject::TunnelEnds);
        of.map(|finding| (finding.severity, finding.advice.clone()))
            .collect()
    }

    #[test]
    fn each_open_end_is_one_warning() {
        let cases = [
            (
                TunnelEnds {
                    is_strict: false,
                    ..CLOSED
                },
                "strict-destination",
            ),
            (
                TunnelEnds {
                    limits_egress: false,
                    ..CLOSED
                },
                "egress_sources",
            ),
            (
                TunnelEnds {
                    limits_sources: false,
                    ..CLOSED
                },
                "allow_sources",
            ),
        ];
        for (facts, advice) in cases {
            let [(Severity::Warning, given)] = &findings(facts)[..] else {
                panic!("{:?}", findings(facts));
            };
            assert!(given.contains(advice), "{given}");
        }
    }

    #[test]
    fn what_is_closed_or_off_is_fine() {
        assert_eq!(findings(CLOSED), [(Severity::Ok, String::new())]);
        let inline = TunnelEnds {
            egress: false,
            limits_egress: false,
            ..CLOSED
        };
        assert_eq!(findings(inline), [(Severity::Ok, String::new())]);
        assert_eq!(findings(TunnelEnds::default()), []);
    }
}
