//! Routes that two protocols share, told apart by the body.

use std::borrow::Cow;

use axum::Json;
use serde::Serialize;
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::conversion::has;
use super::vllm::{Vllm, VllmList};
use super::{sglang, tei, vllm};
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, RunHeaders, RunQuery, typed};
use crate::http::state::{AnyErrors, ApiError, ErrorShape, ScoringErrors};

/// A body of one of two protocols.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::http) enum Either<A, B> {
    First(A),
    Second(B),
}

impl<A: PartialSchema, B: PartialSchema> PartialSchema for Either<A, B> {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(A::schema()).item(B::schema()).into()
    }
}

impl<A: ToSchema, B: ToSchema> ToSchema for Either<A, B> {
    fn name() -> Cow<'static, str> {
        format!("{}Or{}", A::name(), B::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        A::schemas(schemas);
        B::schemas(schemas);
    }
}

/// vLLM's `input` or `messages`, or SGLang's `text` or `input_ids`.
type ClassifyRequest = Either<vllm::PoolingBody, sglang::SglangClassifyRequest>;
type ClassifyResponse = Either<VllmList<vllm::Class>, sglang::SglangClassifyResponse>;

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
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<ClassifyResponse>, ApiError> {
    let sglang = has(&body, &["text", "input_ids"]);
    if sglang && has(&body, &["input", "messages"]) {
        let message = "give `input` or `messages` (vLLM), or `text` or `input_ids` (SGLang)";
        return Err(ApiError::invalid("", message));
    }
    Ok(Json(if sglang {
        Either::Second(sglang::classify(&state, &caller, sglang::read_form(&body)?).await?)
    } else {
        Either::First(vllm::classify(&state, &caller, Vllm::read_form(&body)?).await?)
    }))
}

/// vLLM's `text_1` and `text_2`, or SGLang's `query` and `items`.
type ScoreRequest = Either<vllm::ScoreBody, sglang::SglangScoreRequest>;
type ScoreResponse = Either<VllmList<vllm::PairScore>, sglang::SglangScoreResponse>;

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
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<ScoreResponse>, ApiError> {
    Ok(Json(if has(&body, &["query"]) {
        Either::Second(sglang::score(&state, &caller, typed(&body)?).await?)
    } else {
        Either::First(vllm::score_pairs(&state, &caller, Vllm::read(&body)?).await?)
    }))
}

/// `query` with vLLM's `documents`, or with TEI's `texts`.
type RerankRequest = Either<vllm::RerankBody, tei::TeiRerankRequest>;
type RerankResponse = Either<vllm::VllmRerankResponse, tei::TeiRanks>;

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
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<RerankResponse>, ApiError> {
    let tei = has(&body, &["texts"]);
    if tei && has(&body, &["documents"]) {
        return Err(ApiError::invalid("", "give `documents` (vLLM) or `texts` (TEI)"));
    }
    if !tei {
        let ranked = vllm::rerank(&state, &caller, Vllm::read(&body)?).await?;
        return Ok(Json(Either::First(ranked)));
    }
    let ranks = async { tei::rerank(&state, &caller, typed(&body)?).await };
    let ranks = ranks.await.map_err(|error: ApiError| error.foreign(ErrorShape::Tei))?;
    Ok(Json(Either::Second(ranks)))
}
