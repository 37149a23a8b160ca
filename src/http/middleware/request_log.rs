//! What is counted and logged of every request.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::rejection_log::RejectionLog;
use crate::http::scoring::Timing;
use crate::http::state::{ApiError, AppState, request_id};

/// Counts and times requests, and logs each with its route, never its text.
pub(in crate::http) async fn observe(
    State((state, rejections)): State<(AppState, Arc<RejectionLog>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let request_id = request_id(request.headers());
    let span = tracing::info_span!("request", method = %request.method(), route, request_id);
    let timing = Timing::asked(request.headers());
    if let Some(timing) = &timing {
        request.extensions_mut().insert(timing.clone());
    }
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(timing) = timing {
        timing.write(response.headers_mut());
    }
    let _entered = span.enter();
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status();
    let error = response.extensions().get::<ApiError>().cloned();
    let code = match &error {
        Some(error) => error.code().to_owned(),
        None => status.as_u16().to_string(),
    };
    state.metrics.requests.with_label_values(&[&route, &code]).inc();
    state.metrics.request_seconds.with_label_values(&[&route]).observe(seconds);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        tracing::debug!(code, seconds, "request refused");
        if let Some(count) = rejections.count() {
            tracing::warn!(code, count, "requests were refused");
        }
    } else if status.is_server_error() {
        tracing::warn!(code, seconds, "request failed");
    } else {
        tracing::debug!(code, seconds, "request");
    }
    error.map_or(response, |error| error.answer(&request_id))
}
