//! The HTTP API: routes, limits, and what every request passes through.

mod body;
mod error;
mod inputs;
mod operations;
mod reward;
mod runs;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use crate::checkpoint::HeadConfig;
use crate::config::ServerConfig;
use crate::engine::{Engine, Tokeniser};
use crate::metrics::Metrics;
use crate::monitor::Monitor;
use error::ApiError;

/// What every handler sees.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct AppState {
    pub engine: Arc<Engine>,
    /// `None` for a checkpoint whose head has no latents.
    pub monitor: Option<Monitor>,
    /// Set when the server begins to shut down.
    pub draining: Arc<AtomicBool>,
    pub encoder: Arc<Tokeniser>,
    pub metrics: Metrics,
    pub config: Arc<ServerConfig>,
    /// Name of the checkpoint's folder.
    pub model: String,
    pub weights: String,
    pub head: HeadConfig,
    pub latent_dim: Option<usize>,
    pub baseline_samples: usize,
    /// The device, in words.
    pub device: String,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes.
pub fn router(state: AppState) -> Router {
    let stack = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(from_fn_with_state(state.clone(), observe))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("the server failed on this request; its log says why")
                .into_response()
        }))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/reward", post(reward::reward))
        .route("/tokenize", post(operations::tokenize))
        .route("/runs", get(runs::list))
        .route("/runs/{run}", get(runs::show).delete(runs::remove))
        .route("/runs/{run}/evaluations", get(runs::evaluations))
        .route("/runs/{run}/evaluate", post(runs::evaluate))
        .route("/health", get(operations::health))
        .route("/ready", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .route("/info", get(operations::info))
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route takes another method",
            )
        })
        .layer(stack)
        .with_state(state)
}

/// Counts and times requests, and logs each with its route, never its text.
async fn observe(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let request_id = request_id(request.headers());
    let response = next.run(request).await;
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status();
    let error = response.extensions().get::<ApiError>().cloned();
    let code = match &error {
        Some(error) => error.code().to_owned(),
        None => status.as_u16().to_string(),
    };
    state.metrics.requests.with_label_values(&[&route, &code]).inc();
    state.metrics.request_seconds.with_label_values(&[&route]).observe(seconds);
    if status.is_server_error() {
        tracing::warn!(route, code, request_id, seconds, "request failed");
    } else {
        tracing::debug!(route, code, request_id, seconds, "request");
    }
    error.map_or(response, |error| error.answer(&request_id))
}

fn request_id(headers: &axum::http::HeaderMap) -> String {
    let value = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}
