//! Commands over HTTP: who may give them, how long they may be, and how long they may take to
//! arrive.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::HttpBody;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Token;
use super::beside;
use crate::common::with_causes;
use crate::run::Handle;
use crate::socket;
use crate::socket::By;
use crate::socket::LONGEST;
use crate::socket::done;

/// How long a request may take to arrive, as on the socket.
const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts commands from clients with the token.
#[derive(Clone)]
pub(super) struct Commands {
    token: Option<Token>,
    /// One at a time: others wait before anything of theirs is read.
    turn: Arc<Semaphore>,
}

impl Commands {
    pub(super) fn new(token: Option<Token>) -> Self {
        Self {
            token,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Handles a request, whose body is as on the socket. From clients without the token, nothing
    /// is read.
    pub(super) async fn answer(self, handle: Handle, request: Request) -> Response {
        let Some(token) = self.token else {
            return refuse(
                StatusCode::FORBIDDEN,
                "commands over HTTP are off: run with --token-file",
            );
        };
        if !token.is_in(request.headers()) {
            return refuse(
                StatusCode::UNAUTHORIZED,
                "send the token: Authorization: Bearer TOKEN",
            );
        }
        let most = format!("a request may have at most {LONGEST} bytes");
        if request.body().size_hint().lower() > LONGEST as u64 {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &most);
        }
        let Ok(turn) = self.turn.acquire_owned().await else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "the balancer is ending");
        };
        let body = timeout(PATIENCE, to_bytes(request.into_body(), LONGEST));
        let body = match body.await {
            Ok(Ok(body)) => body,
            // Or the client has gone.
            Ok(Err(_)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, &most),
            Err(_) => {
                let why = format!("the request did not arrive within {} s", PATIENCE.as_secs());
                return refuse(StatusCode::REQUEST_TIMEOUT, &why);
            }
        };
        let request: socket::Request = match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => {
                return refuse(StatusCode::BAD_REQUEST, &format!("not a request: {error}"));
            }
        };
        drop(body);
        // It continues if the client hangs up, and so does its turn.
        let done = beside(move || {
            let _turn = turn;
            done(request, &handle, By::Http)
        });
        match done.await {
            Ok(answer) => Json(json!({ "ok": answer })).into_response(),
            Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &with_causes(&error)),
        }
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}
