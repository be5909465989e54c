//! A load balancer whose counters Prometheus collects: what `balancer` does, and `/metrics` by HTTP
//! in place of a line every second.
//!
//! ```text
//! exporter --config lb.toml --interface eth0 [--listen 127.0.0.1:9957] [--watch-misses VIP] [--recount 60]
//! ```
//! Every request takes one snapshot of all counters; the flow tables' entries are counted once a minute beside. `docs/metrics.md` lists the metrics, and
//! `examples/grafana` has a dashboard for them. Signals and configuration file are those of
//! `balancer`: SIGHUP applies the file again, SIGUSR1 prints a diagnosis, SIGINT and SIGTERM end it.

#[path = "exporter/collector.rs"]
mod collector;
mod common;
#[path = "exporter/page.rs"]
mod page;
#[path = "exporter/recount.rs"]
mod recount;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::ACCEPT;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use clap::Parser;
use collector::Scrape;
use common::Keeper;
use common::Options;
use common::ROUND;
use common::say;
use katran::Katran;
use katran::Vip;
use page::Format;
use recount::Recount;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGUSR1;
use tokio::runtime::Runtime;

/// For requests under way when it ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Until a former exporter has ended that has let go.
const FORMER: Duration = Duration::from_secs(10);

/// Balances the VIPs of a configuration file, and serves its counters to Prometheus.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Where /metrics is served; anybody who reaches it can read it
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9957")]
    listen: SocketAddr,
    /// Counts the new flows of this VIP for each real, such as 203.0.113.1:443/tcp
    #[arg(long, value_name = "VIP")]
    watch_misses: Option<Vip>,
    /// Seconds from one count of the flow tables' entries to the next: 1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    recount: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("a number of seconds from 1 to 86400".to_owned()),
    }
}

/// The balancer, as the requests and the main thread share it.
type Shared = Arc<Mutex<Balancer>>;

struct Balancer {
    katran: Katran,
    recount: Recount,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Some(done) = arguments.options.without_balancing() {
        return common::exit("exporter", done);
    }
    common::exit("exporter", export(&arguments))
}

fn export(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    // First, so that no signal from now on ends the process halfway.
    let signals = common::signals()?;
    // Before any packet is touched: an address in use is no reason to interrupt traffic. Only, the exporter that is to
    // let go has it until it ends.
    let at_once = match options.takes_over() {
        false => Some(listen(arguments.listen, Duration::ZERO)?),
        true => None,
    };
    let mut katran = options.load(&options.state()?)?;
    watch(&mut katran, arguments.watch_misses)?;
    options.attach(&mut katran)?;
    let listener = match at_once {
        Some(listener) => listener,
        None => listen(arguments.listen, FORMER)?,
    };
    let recount = Recount::begin(&katran, arguments.recount)?;
    let balancer = Shared::new(Mutex::new(Balancer { katran, recount }));
    say(format!(
        "metrics on http://{}/metrics",
        listener.local_addr()?
    ));
    let server = serve(listener, Arc::clone(&balancer))?;
    let mut keeper = Keeper::new();
    loop {
        let pause = lock(&balancer).recount.pause(ROUND);
        let signal = signals.recv_timeout(pause);
        // A large file takes its time, for which no request waits.
        let read = matches!(signal, Ok(SIGHUP)).then(|| options.state());
        let Balancer { katran, recount } = &mut *lock(&balancer);
        match signal {
            Ok(SIGUSR1) => options.report_diagnosis(katran),
            Ok(SIGHUP) => {
                if let Some(read) = read {
                    options.take_in(katran, read);
                }
                if let Err(error) = watch(katran, arguments.watch_misses) {
                    eprintln!("{}", common::with_causes(&error));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                keeper.keep(katran)?;
                if let Err(error) = recount.go_on(katran) {
                    eprintln!("{}", common::with_causes(&error.into()));
                }
            }
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    server.shutdown_timeout(LAST_ANSWERS);
    options.stop(&mut lock(&balancer).katran);
    Ok(())
}

/// An address that is in use is tried again for some time.
fn listen(address: SocketAddr, patience: Duration) -> Result<TcpListener> {
    let end = Instant::now() + patience;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            bound => return bound.with_context(|| format!("cannot listen on {address}")),
        }
    }
}

/// Removing the VIP ends the watch, and counting begins anew with each; so only where it has ended.
fn watch(katran: &mut Katran, vip: Option<Vip>) -> Result<()> {
    match vip {
        Some(vip) if katran.stats().watched_vip() != Some(vip) => katran
            .stats_mut()
            .watch_misses(vip)
            .context("cannot count the misses of --watch-misses"),
        _ => Ok(()),
    }
}

/// Requests are answered on threads of their own, and wait for each other: a snapshot takes
/// microseconds, however many flows there are.
fn serve(listener: TcpListener, balancer: Shared) -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/", get("katran: see /metrics\n"))
        .with_state(balancer);
    runtime.spawn(async {
        if let Err(error) = axum::serve(listener, pages).await {
            eprintln!("exporter: no metrics any more: {error}");
        }
    });
    Ok(runtime)
}

async fn metrics(State(balancer): State<Shared>, headers: HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accepted.unwrap_or_default());
    let answer = tokio::task::spawn_blocking(move || {
        let scrape = {
            let Balancer { katran, recount } = &*lock(&balancer);
            Scrape::take(katran, recount.count())?
        };
        scrape.text(format)
    });
    match answer.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => {
            let text = format!("{}\n", common::with_causes(&error));
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// A request that panicked has changed nothing.
fn lock(balancer: &Mutex<Balancer>) -> MutexGuard<'_, Balancer> {
    balancer.lock().unwrap_or_else(PoisonError::into_inner)
}
