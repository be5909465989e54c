//! `run --listen`: `/metrics` over HTTP for Prometheus, beside the page. Each request takes one
//! snapshot of all counters, or gets the previous one while the balancer is busy with a change. The
//! flow tables' entries are counted separately. `docs/metrics.md` lists the metrics, and
//! `examples/grafana` has a dashboard.

mod collector;
mod connections;
mod exposition;
mod recount;

use std::net::TcpListener;
use std::time::Duration;

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
use collector::Scrape;
use exposition::Format;
pub(crate) use recount::Recount;
use tokio::runtime::Runtime;

use crate::common::with_causes;
use crate::page;
use crate::run::Handle;

/// How long to wait for requests in progress at the end.
pub(crate) const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// One thread accepts requests, and up to four others handle them; a command occupies at most one
/// of these, however long it takes.
///
/// With a token, clients that send it may give commands too.
pub(crate) fn serve(
    listener: TcpListener,
    handle: Handle,
    token: Option<page::Token>,
) -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .enable_all()
        .build()?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .merge(page::routes(token))
        .with_state(handle);
    runtime.spawn(connections::serve(listener, pages));
    Ok(runtime)
}

async fn metrics(State(handle): State<Handle>, headers: HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accepted.unwrap_or_default());
    match page::beside(move || Scrape(handle.diagnosed()?).text(format)).await {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => {
            let text = format!("{}\n", with_causes(&error));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}
