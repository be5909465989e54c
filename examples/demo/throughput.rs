//! Part 5: the throughput of the tunnel, measured by iperf3.

use std::process::Command;
use std::process::Stdio;

use serde_json::Value;

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::site::family;
use crate::site::wait_until_listening;
use crate::table::Table;
use crate::table::grouped;

/// The port of these VIPs: iperf3's own.
const PORT: u16 = 5201;
/// The length of each measurement.
const SECONDS: u32 = 3;
/// The largest number of packets that are not iperf3's; its own are hundreds of thousands.
const FEW: u64 = 100;

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "Throughput through the tunnel",
        &format!(
            "iperf3 sends to each VIP for {SECONDS} seconds. Its two connections need the same \
             backend, so these VIPs ignore the client's port (flag no-src-port). The balancer \
             encapsulates every packet and the backend decapsulates it, on virtual interfaces \
             without hardware offload."
        ),
    );
    let mut servers = Vec::new();
    for backend in &site.lab.backends {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-p", &PORT.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = backend.host.spawn_command(command)?;
        wait_until_listening(&backend.host, PORT, &mut server)?;
        servers.push(server);
    }
    let mut table = Table::new(&[
        "VIP",
        "backend",
        "Mbit/s",
        "MB received",
        "packets balanced",
        "resent",
    ])
    .text(1);
    for service in site.services(PORT) {
        let vip = service.vip;
        let family = family(vip.address());
        let before = (site.katran.stats().vip(vip)?.forwarded, unwrapped(site)?);
        let result = measure(site, &vip.address().to_string())?;
        let after = (site.katran.stats().vip(vip)?.forwarded, unwrapped(site)?);
        let (packets, bytes) = (
            after.0.packets - before.0.packets,
            after.0.bytes - before.0.bytes,
        );
        let gains: Vec<u64> = after.1.iter().zip(&before.1).map(|(a, b)| a - b).collect();
        let (backend, &gain) = gains
            .iter()
            .enumerate()
            .max_by_key(|(_, gain)| **gain)
            .unwrap_or((0, &0));
        table.row([
            family.to_owned(),
            site.lab.backends[backend].host.name().to_owned(),
            grouped((result.bits_per_second / 1e6) as u64),
            grouped(result.received / 1_000_000),
            grouped(packets),
            grouped(result.retransmits),
        ]);
        report.check(
            result.received > 0,
            format_args!("nothing was received over {family}"),
        );
        report.check(
            bytes >= result.received,
            format_args!(
                "{} bytes were received over {family}, but the balancer saw only {bytes}",
                result.received
            ),
        );
        // Connections of other parts may still be closing.
        let others = gains.iter().sum::<u64>() - gain;
        report.check(
            others <= FEW,
            format_args!("several backends got packets of one {family} client: {gains:?}"),
        );
    }
    report.print(table);
    Ok(())
}

/// Packets that each backend has unwrapped so far.
fn unwrapped(site: &Site) -> Result<Vec<u64>> {
    let mut packets = Vec::new();
    for decap in &site.decaps {
        let counters = decap.counters()?;
        packets.push(counters.ipip_v4 + counters.ipip_v6);
    }
    Ok(packets)
}

struct Measurement {
    received: u64,
    bits_per_second: f64,
    retransmits: u64,
}

fn measure(site: &Site, server: &str) -> Result<Measurement> {
    let mut command = Command::new("iperf3");
    command.args(["--json", "--connect-timeout", "3000"]);
    command.args([
        "-c",
        server,
        "-p",
        &PORT.to_string(),
        "-t",
        &SECONDS.to_string(),
    ]);
    let output = site.lab.client.output(command)?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("iperf3 to {server}: {}: {error}", output.status))?;
    if let Some(error) = report["error"].as_str() {
        return Err(format!("iperf3 to {server}: {error}").into());
    }
    let (sent, received) = (&report["end"]["sum_sent"], &report["end"]["sum_received"]);
    let missing = || format!("iperf3 to {server}: a result is missing");
    Ok(Measurement {
        received: received["bytes"].as_u64().ok_or_else(missing)?,
        bits_per_second: received["bits_per_second"].as_f64().ok_or_else(missing)?,
        retransmits: sent["retransmits"].as_u64().ok_or_else(missing)?,
    })
}
