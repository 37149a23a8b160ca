//! OpenAI's `/v1/embeddings` and `/v1/models`. The embedding is the reward, alone in a list, as SGLang
//! answers it for reward models and verl reads it; with the model `NAME-latents` it is the latent.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::conversion::{TextOrTokens, Usage, score_all};
use crate::config::LATENTS;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, Outcome, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, AppState, ScoringErrors};
use crate::input::ItemError;

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `input`")]
pub(in crate::http) struct EmbeddingsRequest {
    /// The served name with `-latents` for the posterior mean; any other name, or none, for the reward
    model: Option<String>,
    /// Texts, chat template applied, or token ids; BOS is added to a text where it is missing, never
    /// twice
    input: TextOrTokens,
    /// Default `float`
    encoding_format: Option<EncodingFormat>,
    /// Not used
    #[serde(rename = "user", default)]
    _user: Option<String>,
}

/// How embeddings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum EncodingFormat {
    /// Lists of numbers
    Float,
    /// Little-endian 32-bit floats in base64
    Base64,
}

/// The body of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EmbeddingsResponse {
    object: &'static str,
    data: Vec<EmbeddingData>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingData {
    object: &'static str,
    index: usize,
    /// Null where that input failed
    embedding: Option<Vector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// Numbers, or base64 of them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

impl Vector {
    pub(super) fn new(values: Vec<f32>, base64: bool) -> Self {
        if !base64 {
            return Self::Numbers(values);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Base64(STANDARD.encode(bytes))
    }
}

/// OpenAI and SGLang: rewards, or latents, as embeddings
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "OpenAI",
    params(RunHeaders, RunQuery),
    request_body(content = EmbeddingsRequest, example = json!({
        "model": "demo", "input": "<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>"
    })),
    responses((status = 200, body = EmbeddingsResponse), ScoringErrors)
)]
pub(in crate::http) async fn embeddings(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<EmbeddingsRequest>,
) -> Result<Json<EmbeddingsResponse>, ApiError> {
    let latents_name = format!("{}{LATENTS}", state.model);
    let latents = request.model.as_deref() == Some(latents_name.as_str());
    if latents && state.latent_dim.is_none() {
        let message = "this checkpoint has a standard reward head: it has no latents";
        return Err(ApiError::invalid("/model", message));
    }
    let base64 = request.encoding_format == Some(EncodingFormat::Base64);
    let inputs = request.input.into_inputs(false);
    let outcomes = score_all(&state, &caller, inputs, Truncation::Refuse).await?;
    let usage = Usage::of(&outcomes);
    let vector = |outcome: &Outcome| {
        let score = &outcome.scored.as_ref().ok()?.score;
        Some(if latents { score.latent.as_ref()?.mean.clone() } else { vec![score.reward] })
    };
    let data = outcomes.iter().enumerate().map(|(index, outcome)| EmbeddingData {
        object: "embedding",
        index,
        embedding: vector(outcome).map(|values| Vector::new(values, base64)),
        error: outcome.error().cloned(),
    });
    Ok(Json(EmbeddingsResponse {
        object: "list",
        data: data.collect(),
        model: if latents { latents_name } else { state.model.clone() },
        usage,
    }))
}

/// What is served.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// The names that `/v1/embeddings` knows
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    responses((status = 200, body = ModelList)),
    security(())
)]
pub(in crate::http) async fn models(State(state): State<AppState>) -> Json<ModelList> {
    let model = |id| Model { id, object: "model", created: 0, owned_by: "inform" };
    let names = state.each().flat_map(|state| {
        let latents = state.latent_dim.map(|_| format!("{}{LATENTS}", state.model));
        std::iter::once(state.model.clone()).chain(latents)
    });
    Json(ModelList { object: "list", data: names.map(model).collect() })
}
