//! What an interface did with the frames that it should send: its own counters, compared with those
//! when the program was attached. A driver can fail after the program has returned and counted the
//! frame as sent.

use std::io;

use super::place::Target;
use super::place::here;
use crate::rtnetlink::Requests;
use crate::sys::ethtool::Ethtool;

/// The last words of drivers' names for frames that they could not send.
const FAILURES: [&str; 9] = [
    "err", "errs", "error", "errors", "full", "drop", "drops", "fail", "failed",
];

/// Who sends the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// The driver, for the program.
    Driver,
    /// The network stack, for the program as for the host.
    Stack,
}

/// An interface's counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    sent: u64,
    failed: u64,
    /// Frames of XDP programs in native mode.
    failed_by_xdp: Option<u64>,
}

impl Reading {
    /// The counters of an interface in the calling thread's network namespace; `None` if it is
    /// gone.
    pub(super) fn take(index: u32, by: Sender) -> io::Result<Option<(String, Self)>> {
        let Some(told) = Requests::new()?.sending(None, index)? else {
            return Ok(None);
        };
        let failed_by_xdp = match by {
            // The driver's XDP counters do not include it.
            Sender::Stack => None,
            Sender::Driver => failed_in(&Ethtool::new()?.counters(&told.name)?),
        };
        let reading = Self {
            sent: told.sent,
            failed: told.failed,
            failed_by_xdp,
        };
        Ok(Some((told.name, reading)))
    }
}

/// The counters when the program was attached; `None` if unknown.
#[derive(Debug)]
pub(super) struct Before(Option<Reading>);

impl Before {
    /// The counters of an interface in the calling thread's network namespace, before its mode is
    /// known.
    pub(super) fn now(target: &Target) -> Self {
        let is_here = here() == Some(target.place.namespace);
        let reading = match is_here {
            true => Reading::take(target.place.index, Sender::Driver),
            false => Ok(None),
        };
        Self(
            reading
                .unwrap_or_else(|error| {
                    let name = &target.name;
                    log::warn!("{name}: cannot read what it sends: {error}");
                    None
                })
                .map(|(_, reading)| reading),
        )
    }

    /// Frames sent and not sent since then. Counters that were reset count from 0.
    pub(super) fn until(&self, now: &Reading) -> Option<(u64, u64)> {
        let before = self.0.as_ref()?;
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let unsent = match now.failed_by_xdp {
            // Some drivers have XDP counters only while a program is attached.
            Some(failed) => since(failed, before.failed_by_xdp.unwrap_or(0)),
            None => since(now.failed, before.failed),
        };
        Some((since(now.sent, before.sent), unsent))
    }
}

/// The frames of XDP programs that a driver could not send; `None` if it does not count them. Most
/// drivers count by queue, and some also have a sum.
fn failed_in(counters: &[(String, u64)]) -> Option<u64> {
    let failures = counters.iter().filter(|(name, _)| is_failure(name));
    let failures: Vec<_> = failures.collect();
    let is_sum = |name: &str| !name.contains(|of: char| of.is_ascii_digit());
    let has_sums = failures.iter().any(|(name, _)| is_sum(name));
    let counted = failures
        .iter()
        .filter(|(name, _)| !has_sums || is_sum(name))
        .map(|(_, count)| *count);
    (!failures.is_empty()).then(|| counted.fold(0, u64::saturating_add))
}

/// Whether a name counts frames of XDP programs that could not be sent: `xdp`, `tx` or `xmit`, and
/// a failure. What a program drops or redirects does not count.
fn is_failure(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = name.split(|of: char| !of.is_ascii_alphabetic());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.contains(&"xdp")
        && words.iter().any(|word| ["tx", "xmit"].contains(word))
        && words.last().is_some_and(|word| FAILURES.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in the kernel's documentation and sources.
    #[test]
    fn failures_are_known_by_what_drivers_call_them() {
        for (name, is) in [
            ("rx_queue_0_xdp_tx_errors", true),   // veth
            ("tx_queue_1_xdp_xmit_errors", true), // veth
            ("tx_xdp_tx_drops", true),            // virtio_net
            ("tx_queue_3_xdp_tx_drops", true),    // virtio_net before 6.11
            ("rx_xdp_tx_full", true),             // mlx5, mlx4
            ("rx_xdp_tx_err", true),              // mlx5
            ("tx3_xdp_full", true),               // mlx5
            ("rx_xdp_tx_errors", true),           // mvneta, fec
            ("tx_xdp_xmit_errors", true),         // mvneta, fec
            ("rx_xdp_tx_errors[0]", true),        // gve
            // What programs report, and successes.
            ("rx_queue_0_xdp_tx", false),
            ("rx_queue_0_xdp_drops", false),
            ("rx_queue_0_drops", false),
            ("rx_xdp_drop", false),
            ("rx_xdp_redirect_fail", false),
            ("rx_xdp_redirect_errors[0]", false),
            ("tx_xdp_xmit", false),
            ("queue_0_rx_xdp_tx", false),
            ("tx_tx_timeouts", false),
            ("tx_errors", false),
        ] {
            assert_eq!(is_failure(name), is, "{name}");
        }
    }

    #[test]
    fn sums_are_not_counted_twice() {
        let counters = |of: &[(&str, u64)]| {
            let named = of.iter().map(|(name, count)| ((*name).to_owned(), *count));
            named.collect::<Vec<_>>()
        };
        let of_queues = [
            ("rx0_xdp_tx_full", 2),
            ("rx1_xdp_tx_full", 3),
            ("rx1_xdp_tx_err", 4),
            ("rx1_xdp_drop", 100),
        ];
        assert_eq!(failed_in(&counters(&of_queues)), Some(9));
        let mut all = of_queues.to_vec();
        all.extend([("rx_xdp_tx_full", 5), ("rx_xdp_tx_err", 4)]);
        assert_eq!(failed_in(&counters(&all)), Some(9));
        assert_eq!(
            failed_in(&counters(&[("rx_queue_0_xdp_tx_errors", 0)])),
            Some(0)
        );
        assert_eq!(failed_in(&counters(&[("rx_packets", 7)])), None);
    }

    #[test]
    fn counts_are_those_since_then() {
        let reading = |sent, failed, failed_by_xdp| Reading {
            sent,
            failed,
            failed_by_xdp,
        };
        let until = |before, now| Before(Some(before)).until(&now).unwrap();
        assert_eq!(until(reading(10, 5, None), reading(17, 6, None)), (7, 1));
        assert_eq!(
            until(reading(10, 5, Some(3)), reading(17, 6, Some(3))),
            (7, 0)
        );
        // A driver that has XDP counters only later.
        assert_eq!(until(reading(0, 5, None), reading(0, 9, Some(2))), (0, 2));
        // Counters that were reset.
        assert_eq!(until(reading(10, 5, None), reading(4, 1, None)), (4, 1));
        assert_eq!(Before(None).until(&reading(1, 1, None)), None);
    }
}
