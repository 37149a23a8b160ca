//! Health, readiness, metrics, what is served, and tokenising.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::JsonBody;
use super::error::ApiError;
use super::inputs::{InputItem, ItemError, check_count, encode};
use crate::checkpoint::HeadConfig;

/// `GET /health`: the process answers.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// `GET /ready`: new requests are accepted.
pub(super) async fn ready(State(state): State<AppState>) -> Result<&'static str, ApiError> {
    if state.draining.load(Ordering::Relaxed) || !state.engine.is_accepting() {
        return Err(crate::engine::EngineError::Draining.into());
    }
    Ok("ready\n")
}

/// `GET /metrics`: Prometheus text format.
pub(super) async fn metrics(State(state): State<AppState>) -> Result<impl IntoResponse, ApiError> {
    let text = state.metrics.render().map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}

/// What is served.
#[derive(Debug, Serialize)]
pub(super) struct Info {
    name: &'static str,
    version: &'static str,
    model: String,
    weights: String,
    head: HeadConfig,
    latent_dim: Option<usize>,
    max_tokens: usize,
    baseline_samples: usize,
    device: String,
    dtype: &'static str,
    limits: crate::config::Limits,
    engine: crate::engine::EngineConfig,
}

/// `GET /info`.
pub(super) async fn info(State(state): State<AppState>) -> Json<Info> {
    Json(Info {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        model: state.model.clone(),
        weights: state.weights.clone(),
        head: state.head.clone(),
        latent_dim: state.latent_dim,
        max_tokens: state.encoder.limit(),
        baseline_samples: state.baseline_samples,
        device: state.device.clone(),
        dtype: state.config.dtype.name(),
        limits: state.config.limits.clone(),
        engine: state.config.engine.clone(),
    })
}

/// The body of a request to tokenise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest {
    inputs: Vec<InputItem>,
    truncate: Option<bool>,
}

/// Token ids of each input, or why it has none.
#[derive(Debug, Serialize)]
pub(super) struct TokenizeResponse {
    input_ids: Vec<Option<Vec<u32>>>,
    errors: Vec<Option<ItemError>>,
}

/// `POST /tokenize`: the ids as scoring would see them.
pub(super) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    check_count(&request.inputs, &state)?;
    let encodings =
        encode(&state.encoder, request.inputs, request.truncate.unwrap_or_default()).await?;
    let (input_ids, errors) = encodings
        .into_iter()
        .map(|encoding| match encoding {
            Ok(encoding) => (Some(encoding.ids), None),
            Err(error) => (None, Some(error)),
        })
        .unzip();
    Ok(Json(TokenizeResponse { input_ids, errors }))
}
