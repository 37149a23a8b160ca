//! Routes that two protocols share, told apart by the body.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::super::AppState;
use super::super::body::{JsonBody, typed};
use super::super::caller::{Caller, RunHeaders, RunQuery};
use super::super::error::{AnyErrors, ApiError, ErrorShape, ScoringErrors};
use super::{sglang, tei, vllm};

/// Whether the body has one of these fields.
fn has(body: &Value, fields: &[&str]) -> bool {
    fields.iter().any(|field| body.get(field).is_some_and(|value| !value.is_null()))
}

/// `input` or `messages` (vLLM), or `text` or `input_ids` (SGLang).
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum ClassifyRequest {
    Vllm(vllm::VllmPoolingRequest),
    Sglang(sglang::SglangClassifyRequest),
}

impl TryFrom<Value> for ClassifyRequest {
    type Error = ApiError;

    fn try_from(body: Value) -> Result<Self, ApiError> {
        let sglang = has(&body, &["text", "input_ids"]);
        if sglang && has(&body, &["input", "messages"]) {
            let message = "give `input` or `messages` (vLLM), or `text` or `input_ids` (SGLang)";
            return Err(ApiError::invalid("", message));
        }
        Ok(if sglang { Self::Sglang(typed(body)?) } else { Self::Vllm(typed(body)?) })
    }
}

/// The answer in the request's protocol.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum ClassifyResponse {
    Vllm(vllm::VllmClassifyResponse),
    Sglang(sglang::SglangClassifyResponse),
}

/// vLLM, SGLang and verl: rewards as classes
#[utoipa::path(
    post,
    path = "/classify",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = ClassifyRequest, examples(
        ("vLLM" = (value = json!({
            "model": "demo", "use_activation": false,
            "input": "<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>"
        }))),
        ("SGLang" = (value = json!({
            "text": ["<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>"]
        })))
    )),
    responses((status = 200, body = ClassifyResponse), ScoringErrors)
)]
pub(in crate::http) async fn classify(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody<Value>,
) -> Result<Json<ClassifyResponse>, ApiError> {
    Ok(Json(match body.try_into()? {
        ClassifyRequest::Vllm(request) => {
            ClassifyResponse::Vllm(vllm::classify(&state, &caller, request).await?)
        }
        ClassifyRequest::Sglang(request) => {
            ClassifyResponse::Sglang(sglang::classify(&state, &caller, request).await?)
        }
    }))
}

/// `text_1` and `text_2` (vLLM), or `query` and `items` (SGLang).
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum ScoreRequest {
    Vllm(vllm::VllmScoreRequest),
    Sglang(sglang::SglangScoreRequest),
}

impl TryFrom<Value> for ScoreRequest {
    type Error = ApiError;

    fn try_from(body: Value) -> Result<Self, ApiError> {
        Ok(if has(&body, &["query"]) {
            Self::Sglang(typed(body)?)
        } else {
            Self::Vllm(typed(body)?)
        })
    }
}

/// The answer in the request's protocol.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum ScoreResponse {
    Vllm(vllm::VllmScoreResponse),
    Sglang(sglang::SglangScoreResponse),
}

/// vLLM and SGLang: score responses to prompts, or items joined to a query
#[utoipa::path(
    post,
    path = "/v1/score",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = ScoreRequest, examples(
        ("vLLM" = (value = json!({"text_1": ["Is it late?"], "text_2": "Yes."}))),
        ("SGLang" = (value = json!({
            "query": "<|user|>\nIs it late?<|end|>\n<|assistant|>\n", "items": ["Yes.", "No."],
            "label_token_ids": [1]
        })))
    )),
    responses((status = 200, body = ScoreResponse), ScoringErrors)
)]
pub(in crate::http) async fn score_v1(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody<Value>,
) -> Result<Json<ScoreResponse>, ApiError> {
    Ok(Json(match body.try_into()? {
        ScoreRequest::Vllm(request) => {
            ScoreResponse::Vllm(vllm::score_pairs(&state, &caller, request).await?)
        }
        ScoreRequest::Sglang(request) => {
            ScoreResponse::Sglang(sglang::score(&state, &caller, request).await?)
        }
    }))
}

/// `query` with `documents` (vLLM) or with `texts` (TEI).
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum RerankRequest {
    Vllm(vllm::VllmRerankRequest),
    Tei(tei::TeiRerankRequest),
}

impl TryFrom<Value> for RerankRequest {
    type Error = ApiError;

    fn try_from(body: Value) -> Result<Self, ApiError> {
        let tei = has(&body, &["texts"]);
        if tei && has(&body, &["documents"]) {
            return Err(ApiError::invalid("", "give `documents` (vLLM) or `texts` (TEI)"));
        }
        if tei {
            let request = typed(body).map_err(|error| error.foreign(ErrorShape::Tei))?;
            return Ok(Self::Tei(request));
        }
        Ok(Self::Vllm(typed(body)?))
    }
}

/// The answer in the request's protocol.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum RerankResponse {
    Vllm(vllm::VllmRerankResponse),
    Tei(Vec<tei::Rank>),
}

/// vLLM and TEI: rank responses to one prompt
#[utoipa::path(
    post,
    path = "/rerank",
    tag = "TEI",
    params(RunHeaders, RunQuery),
    request_body(content = RerankRequest, examples(
        ("vLLM" = (value = json!({"query": "Is it late?", "documents": ["Yes.", "No."]}))),
        ("TEI" = (value = json!({"query": "Is it late?", "texts": ["Yes.", "No."]})))
    )),
    responses((status = 200, body = RerankResponse), AnyErrors)
)]
pub(in crate::http) async fn rerank(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody<Value>,
) -> Result<Json<RerankResponse>, ApiError> {
    Ok(Json(match body.try_into()? {
        RerankRequest::Vllm(request) => {
            RerankResponse::Vllm(vllm::rerank(&state, &caller, request).await?)
        }
        RerankRequest::Tei(request) => {
            let ranks = tei::rerank(&state, &caller, request).await;
            RerankResponse::Tei(ranks.map_err(|error| error.foreign(ErrorShape::Tei))?)
        }
    }))
}
