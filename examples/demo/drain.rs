//! Part 2: downloads that survive while their backend is drained and others come and go.

use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::site::address_of;
use crate::site::family;
use crate::spread::ask;
use crate::table::Table;
use crate::table::grouped;
use crate::web;
use crate::web::Connection;

/// New requests to each VIP after every change.
const REQUESTS: u32 = 50;
/// The time between the starts of two changes.
const PAUSE: Duration = Duration::from_secs(1);
/// The part of a download that is left for after the last change.
const LAST: usize = web::DOWNLOAD / 16;
const POLL: Duration = Duration::from_millis(5);
/// Connections to make until one reaches a certain backend. With the smallest weight of `lb.toml`,
/// a tenth of all, this fails once in 10^9 times.
const ATTEMPTS: usize = 200;

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "Draining a backend breaks no connection",
        &format!(
            "The client downloads {} MiB from each VIP at 4 MiB/s; one backend serves both \
             downloads. That backend is drained (weight 0: it gets no new connections), then \
             others are removed and added again. After each change the client makes {} new \
             requests: columns b0 to b3 count who answers. The downloads continue undisturbed.",
            web::DOWNLOAD >> 20,
            REQUESTS * 2
        ),
    );
    let mut downloads = start(site)?;
    let drained = downloads[0].backend;
    let others: Vec<usize> = (0..site.lab.backends.len())
        .filter(|b| *b != drained)
        .collect();
    let (first, second) = (others[0], others[1]);
    let name = |backend: usize| site.lab.backends[backend].host.name().to_owned();
    let steps = [
        (format!("{} is drained", name(drained)), vec![]),
        (format!("{} is removed", name(first)), vec![first]),
        (
            format!("{} is back, {} removed", name(first), name(second)),
            vec![second],
        ),
        (format!("{} is back", name(second)), vec![]),
    ];

    let started = Instant::now();
    let columns: Vec<String> = (0..site.lab.backends.len())
        .map(|b| format!("b{b}"))
        .collect();
    let mut header = vec!["time", "what happens"];
    header.extend(columns.iter().map(String::as_str));
    header.push("downloaded");
    let mut table = Table::new(&header).text(1);
    table.row([
        "0.0 s".into(),
        format!("two downloads run from {}", name(drained)),
    ]);
    for (i, (what, removed)) in (1..).zip(&steps) {
        thread::sleep((PAUSE * i).saturating_sub(started.elapsed()));
        let mut weights = vec![(drained, Some(0))];
        weights.extend(removed.iter().map(|backend| (*backend, None)));
        let wanted = site.with_weights(&weights);
        site.katran.apply(&wanted)?;
        let at = started.elapsed();
        let mut seen = vec![0; columns.len()];
        for service in site.web() {
            for (sum, n) in seen
                .iter_mut()
                .zip(ask(site, service.vip, REQUESTS, report))
            {
                *sum += n;
            }
        }
        for ((backend, name), &seen) in site.names().enumerate().zip(&seen) {
            let serves = weights.iter().all(|(number, _)| *number != backend);
            report.check(
                (seen > 0) == serves,
                format_args!("after \"{what}\" {name} got {seen} new requests"),
            );
        }
        let had: usize = downloads.iter().map(Download::progress).sum();
        let mut row = vec![format!("{:.1} s", at.as_secs_f32()), what.clone()];
        row.extend(seen.iter().map(u32::to_string));
        row.push(format!(
            "{} %",
            100 * had / (web::DOWNLOAD * downloads.len())
        ));
        table.row(row);
    }
    for download in &downloads {
        download.changed.store(true, Ordering::Relaxed);
    }
    let ends: Vec<_> = downloads.iter_mut().map(Download::finish).collect();
    let took = started.elapsed().as_secs_f32();
    table.row([
        format!("{took:.1} s"),
        "the downloads are complete".to_owned(),
    ]);
    report.print(format_args!("{table}\n"));

    let mut table = Table::new(&["VIP", "client's port", "backend", "bytes", "content"])
        .text(2)
        .text(4);
    for (download, end) in downloads.iter().zip(ends) {
        let family = family(download.client.ip());
        let content = match &end {
            Ok(()) => "every byte correct".to_owned(),
            Err(error) => error.to_string(),
        };
        table.row([
            family.to_owned(),
            download.client.port().to_string(),
            name(download.backend),
            grouped(download.progress() as u64),
            content.clone(),
        ]);
        report.check(
            end.is_ok(),
            format_args!("the {family} download broke: {content}"),
        );
    }
    report.print(table);
    site.restore()
}

/// Starts a download from each VIP of the web site, all from the backend that answers the first.
fn start(site: &Site) -> Result<Vec<Download>> {
    let content = Arc::new(web::download());
    let mut downloads: Vec<Download> = Vec::new();
    for service in site.web() {
        let server = address_of(service.vip);
        let wanted = downloads.first().map(|download| download.backend);
        let mut attempts = 0;
        let download = loop {
            let connection = Connection::new(&site.lab.client, server)?;
            let client = connection.local_addr()?;
            let (name, stream) = connection.download()?;
            let backend = site.backend_named(&name)?;
            if wanted.is_none_or(|wanted| wanted == backend) {
                break Download::new(client, backend, stream, Arc::clone(&content));
            }
            attempts += 1;
            if attempts == ATTEMPTS {
                return Err(format!("no connection to {server} reaches the same backend").into());
            }
        };
        downloads.push(download);
    }
    Ok(downloads)
}

/// A download that continues in the background.
struct Download {
    client: SocketAddr,
    backend: usize,
    received: Arc<AtomicUsize>,
    /// All changes have been made.
    changed: Arc<AtomicBool>,
    reader: Option<JoinHandle<io::Result<()>>>,
}

impl Download {
    fn new(
        client: SocketAddr,
        backend: usize,
        mut stream: io::BufReader<TcpStream>,
        content: Arc<Vec<u8>>,
    ) -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        let changed = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (received, changed) = (Arc::clone(&received), Arc::clone(&changed));
            move || read(&mut stream, &content, &received, &changed)
        });
        Self {
            client,
            backend,
            received,
            changed,
            reader: Some(reader),
        }
    }

    fn progress(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits for the end; an error if it was not the right one.
    fn finish(&mut self) -> io::Result<()> {
        let reader = self.reader.take().map(JoinHandle::join);
        reader
            .and_then(std::result::Result::ok)
            .unwrap_or_else(|| Err(io::Error::other("its thread died")))
    }
}

/// Reads to the end, the last bytes after all changes, and compares each byte.
fn read(
    stream: &mut impl Read,
    content: &[u8],
    received: &AtomicUsize,
    changed: &AtomicBool,
) -> io::Result<()> {
    let mut rest = content;
    let mut buffer = vec![0; 1 << 16];
    loop {
        while rest.len() <= LAST && !changed.load(Ordering::Relaxed) {
            thread::sleep(POLL);
        }
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        rest = rest
            .strip_prefix(&buffer[..n])
            .ok_or_else(|| io::Error::other("a byte is wrong"))?;
        received.fetch_add(n, Ordering::Relaxed);
    }
    match rest.len() {
        0 => Ok(()),
        missing => Err(io::Error::other(format!(
            "{} bytes are missing",
            grouped(missing as u64)
        ))),
    }
}
