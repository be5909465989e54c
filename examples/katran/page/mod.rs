//! The web page of the running balancer and its JSON: no build step, and nothing from other hosts.

mod commands;
mod token;
mod view;

use axum::Json;
use axum::Router;
use axum::extract::Query;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::http::header::CONTENT_TYPE;
use axum::http::header::X_CONTENT_TYPE_OPTIONS;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use commands::Commands;
use serde::Deserialize;
pub(crate) use token::Token;

use crate::common::with_causes;
use crate::report::Report;
use crate::run::Handle;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page may run, draw and request only what comes from here, and no other page may embed it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// With a token, commands too: the requests of the socket (`socket.rs`).
pub(crate) fn routes(token: Option<Token>) -> Router<Handle> {
    let commands = Commands::new(token);
    let command = move |State(handle): State<Handle>, request: Request| async move {
        commands.answer(handle, request).await
    };
    Router::new()
        .route("/api/commands", post(command))
        .route("/", get(async || file("text/html; charset=utf-8", PAGE)))
        .route(
            "/page.css",
            get(async || file("text/css; charset=utf-8", STYLE)),
        )
        .route(
            "/page.js",
            get(async || file("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route("/api/status", get(status))
        .route("/api/reals", get(reals))
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(ready))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 4] = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// Asking the owner may take a moment, so other threads than those that answer requests do it.
pub(crate) async fn beside<T: Send + 'static>(
    ask: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let answer = tokio::task::spawn_blocking(ask).await;
    answer.unwrap_or_else(|error| Err(error.into()))
}

async fn report(handle: Handle, diagnose: bool) -> Result<Report, Response> {
    beside(move || handle.report(diagnose))
        .await
        .map_err(|error| {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{}\n", with_causes(&error)),
            )
                .into_response()
        })
}

async fn status(State(handle): State<Handle>) -> Response {
    match report(handle, true).await {
        Ok(report) => Json(view::status(&report)).into_response(),
        Err(answer) => answer,
    }
}

#[derive(Deserialize)]
struct Which {
    vip: String,
}

async fn reals(State(handle): State<Handle>, Query(which): Query<Which>) -> Response {
    match report(handle, false).await {
        Ok(report) => match view::reals(&report, &which.vip) {
            Some(reals) => Json(reals).into_response(),
            None => (StatusCode::NOT_FOUND, "there is no such VIP\n").into_response(),
        },
        Err(answer) => answer,
    }
}

/// Whether traffic should come here: attached everywhere, and a real for each VIP. The body says
/// why not.
async fn ready(State(handle): State<Handle>) -> Response {
    let report = match report(handle, false).await {
        Ok(report) => report,
        Err(answer) => return answer,
    };
    let why = view::unready(&report);
    match why.is_empty() {
        true => "ready\n".into_response(),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", why.join("\n")),
        )
            .into_response(),
    }
}
