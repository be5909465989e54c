//! Judges which tunnels a balancer unwraps and what it sends on from them: an open end serves
//! strangers. None of this stops forwarding, so all findings are warnings.

use super::Diagnosis;
use super::Subject;

/// The rules for tunnels that end here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TunnelEnds {
    /// Tunnels are unwrapped at all.
    pub(crate) unwraps: bool,
    /// Only tunnels to this host's addresses are.
    pub(crate) is_strict: bool,
    /// There is an `egress` address, whose packets are sent out.
    pub(crate) egress: bool,
    /// Only listed outer sources are accepted.
    pub(crate) limits_sources: bool,
    /// Only listed inner sources are accepted at `egress` addresses.
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
            "tunnels to any address are unwrapped and passed to this host (CVE-2020-10136)",
            "add strict-destination to the features, beside inline-decap",
        );
    }
    if facts.egress && !facts.limits_egress {
        found.warn(
            about,
            "anyone can send packets out through an egress address, from any source",
            "set egress_sources to the addresses of the VIPs",
        );
    }
    if !facts.limits_sources {
        found.warn(
            about,
            "tunnels are accepted from any source",
            "set allow_sources to the outer sources of the other balancers and backends",
        );
    }
    if found.findings().len() == before {
        found.ok(
            about,
            "tunnels end at this host's addresses and come from listed sources",
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
