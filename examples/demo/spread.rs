//! Part 1: many requests on separate connections, and how they spread over the backends.

use katran::Vip;

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::site::address_of;
use crate::site::family;
use crate::table::Table;
use crate::web::Answer;
use crate::web::Connection;

/// Requests to each VIP.
const REQUESTS: u32 = 600;
/// The least number of packets of one request: SYN, ACK, the request, and the ACK of the answer or
/// a FIN.
const PACKETS: u64 = 4;
/// How far a backend's share may be off, in standard deviations of a fair draw. With the weights of
/// `lb.toml`, chance alone fails one run in about 18,000.
const DEVIATIONS: f64 = 4.5;
/// Failed requests after which to stop: each may take seconds.
const ENOUGH: usize = 3;

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "Requests spread by weight",
        &format!(
            "The client sends {REQUESTS} HTTP requests to each of two VIPs, one IPv4 and one IPv6, \
             each on a new TCP connection. A backend's share follows its weight. The balancer \
             reaches two backends over IPv4 and two over IPv6, whichever the client uses."
        ),
    );
    let before = forwarded(site)?;
    let services = site.web();
    let mut seen = Vec::new();
    for service in &services {
        seen.push(ask(site, service.vip, REQUESTS, report));
    }

    let mut table = Table::new(&[
        "VIP", "backend", "address", "weight", "expected", "seen", "allowed",
    ])
    .text(1)
    .text(2);
    for (service, seen) in services.iter().zip(&seen) {
        let reals = site.reals(service);
        let total: u32 = service.reals.iter().map(katran::Real::get_weight).sum();
        for ((name, real), &seen) in site.names().zip(reals).zip(seen) {
            let Some(real) = real else { continue };
            let share = f64::from(real.get_weight()) / f64::from(total);
            let expected = share * f64::from(REQUESTS);
            let allowed = DEVIATIONS * (expected * (1.0 - share)).sqrt();
            let family = family(service.vip.address());
            table.row([
                family.to_owned(),
                name.to_owned(),
                real.address().to_string(),
                real.get_weight().to_string(),
                format!("{expected:.0}"),
                seen.to_string(),
                format!("+-{allowed:.0}"),
            ]);
            report.check(
                (f64::from(seen) - expected).abs() <= allowed,
                format_args!("{name} got {seen} of the {expected:.0} {family} requests expected"),
            );
        }
    }
    report.print(table);
    let requests = u64::from(REQUESTS) * services.len() as u64;
    let packets = forwarded(site)? - before;
    report.check(
        packets >= PACKETS * requests,
        format_args!("the balancer forwarded only {packets} packets of {requests} connections"),
    );
    Ok(())
}

/// Packets to VIPs so far, by the flow table or without it.
fn forwarded(site: &Site) -> Result<u64> {
    let flows = site.katran.stats().flow_table()?;
    Ok(flows.packets + flows.settled)
}

/// Sends a VIP so many requests on new connections; returns how often each backend answered.
/// Reports failures.
pub(crate) fn ask(site: &Site, vip: Vip, requests: u32, report: &mut Report) -> Vec<u32> {
    let mut seen = vec![0; site.lab.backends.len()];
    let mut failed = Vec::new();
    for _ in 0..requests {
        match ask_once(site, vip) {
            Ok(backend) => seen[backend] += 1,
            Err(error) => failed.push(error),
        }
        if failed.len() == ENOUGH {
            break;
        }
    }
    if let Some(error) = failed.first() {
        report.failed(format_args!("requests to {vip} fail: {error}"));
    } else {
        report.check(true, "");
    }
    seen
}

/// The number of the backend that answers on a new connection.
fn ask_once(site: &Site, vip: Vip) -> Result<usize> {
    let connection = Connection::new(&site.lab.client, address_of(vip))?;
    let own = connection.local_addr()?.ip();
    let answer = connection.ask_and_close()?;
    if answer.client != own {
        // The tunnel must not hide the client.
        let Answer { backend, client } = answer;
        return Err(format!("{backend} took {own} for {client}").into());
    }
    site.backend_named(&answer.backend)
}
