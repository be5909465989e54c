//! Part 3: a backend is removed; where its clients go, and that those of the others stay.

use std::net::SocketAddr;

use katran::Flow;

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::site::address_of;
use crate::table::Table;
use crate::web::Connection;

/// Clients of each VIP: so many source ports from this one on, below those that the kernel gives
/// out itself.
const CLIENTS: u16 = 200;
const FIRST_PORT: u16 = 20_000;
/// How many of a hundred clients of other backends must stay when they connect again: Maglev
/// hashing moves few of them, but some.
const MOST: usize = 90;

/// A client: a source port that keeps a connection to a VIP.
struct Client {
    own: SocketAddr,
    server: SocketAddr,
    connection: Connection,
    before: usize,
}

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "Removing a backend moves only its clients",
        &format!(
            "{CLIENTS} clients of each VIP, one for each source port, hold a connection. The \
             backend with most of them is removed. Every client then asks again on its open \
             connection, and after that on a new one from the same port (columns b0 to b3: who \
             answers)."
        ),
    );
    let clients = connect(site)?;
    let backends = site.lab.backends.len();
    let of = |backend| {
        clients
            .iter()
            .filter(|client| client.before == backend)
            .count()
    };
    let removed = (0..backends)
        .max_by_key(|backend| of(*backend))
        .unwrap_or(0);
    let changes = site.katran.apply(&site.with_weights(&[(removed, None)]))?;
    report.check(
        changes.reals_removed.len() == site.configured.vips.len(),
        "not every VIP lost the real",
    );

    let mut kept = vec![0; backends];
    let mut moves = vec![vec![0; backends]; backends];
    let mut as_foretold = 0;
    let total = clients.len();
    for client in clients {
        let Client {
            own,
            server,
            before,
            ..
        } = client;
        let answer = client.connection.ask_and_close();
        if answer.is_ok_and(|answer| {
            site.backend_named(&answer.backend)
                .is_ok_and(|b| b == before)
        }) {
            kept[before] += 1;
        }
        let connection = Connection::from(&site.lab.client, own, server)
            .map_err(|error| format!("{own} cannot connect again: {error}"))?;
        let answer = connection
            .ask_and_close()
            .map_err(|error| format!("{own} gets no answer: {error}"))?;
        let after = site.backend_named(&answer.backend)?;
        moves[before][after] += 1;
        let foretold = site.katran.real_for_flow(&Flow::tcp(own, server))?;
        if foretold
            .is_some_and(|answer| answer.real.and_then(|real| site.backend_of(real)) == Some(after))
        {
            as_foretold += 1;
        }
    }

    let columns: Vec<String> = (0..backends).map(|b| format!("b{b}")).collect();
    let mut header = vec!["was on", "", "clients", "connections kept"];
    header.extend(columns.iter().map(String::as_str));
    let mut table = Table::new(&header).text(1);
    let (mut stayed, mut others) = (0, 0);
    for (before, now) in moves.iter().enumerate() {
        let name = site.lab.backends[before].host.name();
        let clients: usize = now.iter().sum();
        let gone = before == removed;
        if gone {
            report.check(kept[before] == 0, format_args!("{name} still answers"));
        } else {
            report.check(
                kept[before] == clients,
                format_args!("{} connections to {name} broke", clients - kept[before]),
            );
            stayed += now[before];
            others += clients;
        }
        report.check(
            now[removed] == 0,
            format_args!(
                "{} new connections reached the removed backend",
                now[removed]
            ),
        );
        let mut row = vec![
            name.to_owned(),
            if gone { "removed" } else { "" }.to_owned(),
            clients.to_string(),
            kept[before].to_string(),
        ];
        row.extend(now.iter().map(usize::to_string));
        table.row(row);
    }
    report.print(format_args!(
        "{table}\n  \
         {stayed} of {others} clients of other backends reach the same one on a new connection.\n  \
         The library predicted the backend of {as_foretold} of {total} connections."
    ));
    report.check(
        100 * stayed >= MOST * others,
        format_args!("only {stayed} of {others} clients of other backends stayed"),
    );
    report.check(
        as_foretold == total,
        format_args!("real_for_flow is wrong for {} flows", total - as_foretold),
    );
    site.restore()
}

fn connect(site: &Site) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for service in site.web() {
        let server = address_of(service.vip);
        // The address that the client has on the way to this VIP.
        let address = Connection::new(&site.lab.client, server)?
            .local_addr()?
            .ip();
        for port in FIRST_PORT..FIRST_PORT + CLIENTS {
            let own = SocketAddr::new(address, port);
            let mut connection = Connection::from(&site.lab.client, own, server)?;
            let before = site.backend_named(&connection.ask()?.backend)?;
            clients.push(Client {
                own,
                server,
                connection,
                before,
            });
        }
    }
    Ok(clients)
}
