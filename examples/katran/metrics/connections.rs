//! Connections to the page and to the metrics. They are limited in number and in time, so that a
//! client which only connects cannot take the descriptors that probes and commands need.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::common::complain;

/// Connections at a time. One more closes the oldest: clients that only connect keep nobody out.
const CONNECTIONS: usize = 64;

/// How long a client may take to send a request, and how long its connection may be idle.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a connection is kept for further requests, and how long the last answer may take then.
/// A client that does not read its answer loses its place after both.
const LIFE: Duration = Duration::from_secs(300);
const LAST_ANSWER: Duration = Duration::from_secs(60);

/// How long to wait after a failed accept: descriptors come back as connections end.
const RETRY: Duration = Duration::from_millis(200);

/// Answers requests for as long as the runtime lives.
pub(super) async fn serve(listener: TcpListener, pages: Router) {
    let mut held = VecDeque::<AbortHandle>::new();
    let mut failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failed = false;
                held.retain(|connection| !connection.is_finished());
                if held.len() == CONNECTIONS
                    && let Some(oldest) = held.pop_front()
                {
                    oldest.abort();
                }
                let connection = tokio::spawn(answer(stream, pages.clone()));
                held.push_back(connection.abort_handle());
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    complain(format!("metrics: cannot accept a connection: {error}"));
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// A broken connection concerns only its client.
async fn answer(stream: TcpStream, pages: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(SILENCE);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    let mut connection = pin!(connection);
    if timeout(LIFE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, connection).await;
    }
}
