//! Health, readiness, metrics, what is served, and tokenising.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checkpoint::{HeadConfig, TextPolicy};
use crate::encoder::EncoderInfo;
use crate::http::middleware::ModelQuery;
use crate::http::scoring::{JsonBody, Truncation, check_count, encode, inputs};
use crate::http::state::{ApiError, AppState, ErrorAnswer, ScoringErrors};
use crate::input::{InputItem, ItemError};
use crate::json::object;
use crate::metrics::Metrics;
use crate::model_loader::{EnsembleInfo, Objective};

/// The process answers
#[utoipa::path(
    get, path = "/health", tag = "operations", security(()),
    responses((status = 200, body = String, content_type = "text/plain", description = "`ok`"))
)]
pub(in crate::http) async fn health() -> &'static str {
    "ok\n"
}

/// New requests are accepted
#[utoipa::path(
    get, path = "/ready", tag = "operations", security(()),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "`ready`"),
        (status = 503, body = ErrorAnswer, description = "`draining`: the server is shutting down")
    )
)]
pub(in crate::http) async fn ready(
    State(state): State<AppState>,
) -> Result<&'static str, ApiError> {
    let accepting = state.each().all(|state| state.engine.is_accepting());
    if state.draining.load(Ordering::Relaxed) || !accepting {
        return Err(crate::engine::EngineError::Draining.into());
    }
    Ok("ready\n")
}

/// Prometheus text format
#[utoipa::path(
    get, path = "/metrics", tag = "operations", security(()),
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4"))
)]
pub(in crate::http) async fn metrics(
    State(state): State<AppState>,
) -> Result<impl IntoResponse, ApiError> {
    let text = Metrics::render_all(state.each().map(|state| state.metrics.clone()));
    let text = text.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}

/// What is served.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Info {
    name: &'static str,
    version: &'static str,
    model: String,
    weights: String,
    #[schema(value_type = Object)]
    head: HeadConfig,
    latent_dim: Option<usize>,
    /// Only of a head with several labels
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objectives: Vec<Objective>,
    /// Only of an ensemble
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ensemble: Option<EnsembleInfo>,
    text: TextPolicy,
    max_tokens: usize,
    baseline_samples: usize,
    device: String,
    dtype: &'static str,
    /// Only where this program does not compute hidden states itself
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    encoder: Option<EncoderInfo>,
    /// Only where there are several models: all of them, the first one first
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<ModelInfo>,
    limits: crate::config::Limits,
    #[schema(value_type = Object)]
    engine: crate::engine::EngineConfig,
}

/// One of several models.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelInfo {
    model: String,
    weights: String,
    latent_dim: Option<usize>,
}

/// What is served
#[utoipa::path(
    get, path = "/info", tag = "operations", security(()), params(ModelQuery),
    responses(
        (status = 200, body = Info),
        (status = 400, body = ErrorAnswer, description = "`invalid_request`"),
        (status = 404, body = ErrorAnswer, description = "`unknown_model`")
    )
)]
pub(in crate::http) async fn info(State(state): State<AppState>) -> Json<Info> {
    let models = state.each().filter(|_| state.has_several()).map(|state| ModelInfo {
        model: state.model.clone(),
        weights: state.weights.clone(),
        latent_dim: state.latent_dim,
    });
    Json(Info {
        models: models.collect(),
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        model: state.model.clone(),
        weights: state.weights.clone(),
        head: state.head.clone(),
        latent_dim: state.latent_dim,
        objectives: state.objectives.clone(),
        ensemble: state.ensemble.clone(),
        text: state.encoder.policy().clone(),
        max_tokens: state.encoder.limit(),
        baseline_samples: state.baseline_samples,
        device: state.device.clone(),
        dtype: state.dtype,
        encoder: state.foreign_encoder.clone(),
        limits: state.config.limits.clone(),
        engine: state.config.engine.clone(),
    })
}

/// The body of a request to tokenise.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TokenizeRequest {
    #[serde(deserialize_with = "object::list")]
    #[schema(min_items = 1, max_items = 1024)]
    inputs: Vec<InputItem>,
    /// Keep the end of an over-long input instead of an error; default false
    truncate: Option<bool>,
}

/// Token ids of each input, or why it has none.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TokenizeResponse {
    input_ids: Vec<Option<Vec<u32>>>,
    errors: Vec<Option<ItemError>>,
}

/// Token ids as scoring would see them
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "native",
    params(ModelQuery),
    request_body(content = TokenizeRequest, example = json!({
        "inputs": [{"prompt": "Is it late?", "response": "Yes."}]
    })),
    responses((status = 200, body = TokenizeResponse), ScoringErrors)
)]
pub(in crate::http) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    check_count(request.inputs.len(), &state)?;
    let truncation = Truncation::to_context(request.truncate.unwrap_or_default());
    let encodings = encode(&state.encoder, inputs(request.inputs)?, truncation).await?;
    let (input_ids, errors) = encodings
        .into_iter()
        .map(|encoding| match encoding {
            Ok(encoding) => (Some(encoding.ids), None),
            Err(error) => (None, Some(error)),
        })
        .unzip();
    Ok(Json(TokenizeResponse { input_ids, errors }))
}
