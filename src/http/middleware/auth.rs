//! API keys: who may ask, and how many tokens a second each may have scored.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::state::{ApiError, AppState};

/// Routes that answer without a key: what probes, scrapers and curious clients need.
const OPEN: [&str; 6] = ["/health", "/ready", "/metrics", "/info", "/v1/models", "/openapi.json"];

/// Whether a person with a browser asks: it shows a form where it is asked for a password.
fn accepts_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accepted.is_some_and(|accept| accept.contains("text/html"))
}

/// Whether a page of another site makes a browser send this, with the key that the browser keeps for this
/// server. To look at something is all that such a request may do.
fn is_forged(request: &Request) -> bool {
    let site = request.headers().get("sec-fetch-site").and_then(|site| site.to_str().ok());
    !request.method().is_safe() && matches!(site, Some("cross-site" | "same-site"))
}

/// Lets through requests to open routes, and those with a key where keys are set.
pub(in crate::http) async fn check(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if is_forged(&request) {
        let message = "a page of another site sent this request; browsers may only look";
        return ApiError::new(StatusCode::FORBIDDEN, "cross_site", message).into_response();
    }
    if !state.keys.are_set() || OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match state.keys.find(request.headers()) {
        Some(key) => {
            request.extensions_mut().insert(key);
            next.run(request).await
        }
        None => {
            let browser = accepts_html(request.headers());
            let message = "send one of the server's keys as `Authorization: Bearer KEY`";
            ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
                .asking_for_password(browser)
                .into_response()
        }
    }
}
