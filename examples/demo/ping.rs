//! Part 4: the balancer answers pings to the VIPs itself.

use std::process::Command;

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::site::family;
use crate::table::Table;

/// Echo requests to each VIP.
const ECHOES: u64 = 20;
/// Seconds between them.
const INTERVAL: &str = "0.05";

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "The VIPs answer pings",
        "The balancer's program in the kernel answers echo requests itself: no backend sees them.",
    );
    let before = site.katran.stats().icmp()?;
    let mut table = Table::new(&[
        "VIP", "address", "sent", "received", "loss", "min ms", "avg ms", "max ms",
    ])
    .text(1);
    for service in site.web() {
        let address = service.vip.address();
        let family = family(address);
        let mut command = Command::new("ping");
        command.env("LC_ALL", "C").args(["-n", "-q", "-W", "2"]);
        command.args(["-i", INTERVAL, "-c", &ECHOES.to_string()]);
        command.arg(address.to_string());
        let output = site.lab.client.output(command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let summary = Summary::parse(&text)
            .ok_or_else(|| format!("ping {address}: {} {text}", output.status))?;
        table.row([
            family.to_owned(),
            address.to_string(),
            summary.sent.to_string(),
            summary.received.to_string(),
            format!(
                "{} %",
                100 * (summary.sent - summary.received.min(summary.sent)) / summary.sent.max(1)
            ),
            summary.times[0].clone(),
            summary.times[1].clone(),
            summary.times[2].clone(),
        ]);
        report.check(
            (summary.sent, summary.received) == (ECHOES, ECHOES),
            format_args!(
                "{} of {ECHOES} pings to {address} were answered",
                summary.received
            ),
        );
    }
    report.print(table);
    let after = site.katran.stats().icmp()?;
    let answered = (
        after.echo_v4 - before.echo_v4,
        after.echo_v6 - before.echo_v6,
    );
    report.check(
        answered == (ECHOES, ECHOES),
        format_args!(
            "the balancer answered {} and {} pings",
            answered.0, answered.1
        ),
    );
    Ok(())
}

/// What ping says at the end.
struct Summary {
    sent: u64,
    received: u64,
    /// Least, average and greatest round trip in milliseconds; `-` if nothing came back.
    times: [String; 3],
}

impl Summary {
    fn parse(text: &str) -> Option<Self> {
        let counts = text
            .lines()
            .find(|line| line.contains("packets transmitted"))?;
        let mut numbers = counts
            .split(", ")
            .map(|part| part.split(' ').next()?.parse().ok());
        let (sent, received) = (numbers.next()??, numbers.next()??);
        let mut times = ["-", "-", "-"].map(str::to_owned);
        if let Some((_, values)) = text.split_once("min/avg/max/mdev = ") {
            for (time, value) in times.iter_mut().zip(values.split('/')) {
                *time = value.to_owned();
            }
        }
        Some(Self {
            sent,
            received,
            times,
        })
    }
}
