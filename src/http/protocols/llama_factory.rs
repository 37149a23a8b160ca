//! LLaMA-Factory's reward API: `reward_model_type: api`, `reward_model: http://host/v1/score/evaluation`.
//!
//! The client looks at no status: an error answer must not hold `scores`.

use axum::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::conversion::{errors, score_all};
use crate::checkpoint::Input;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, Outcome, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, ScoringErrors};
use crate::input::ItemError;

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `messages`")]
pub(in crate::http) struct ScoreEvaluationRequest {
    /// Not used
    #[serde(rename = "model", default)]
    _model: Option<String>,
    /// Whole texts, chat template applied; BOS is added where it is missing, never twice
    messages: Vec<String>,
}

/// The body of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ScoreEvaluationResponse {
    object: &'static str,
    model: String,
    /// Null where that input failed
    scores: Vec<Option<f32>>,
    /// Only where an input failed
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<Vec<Option<ItemError>>>,
}

/// LLaMA-Factory: score texts
#[utoipa::path(
    post,
    path = "/v1/score/evaluation",
    tag = "LLaMA-Factory",
    params(RunHeaders, RunQuery),
    request_body(content = ScoreEvaluationRequest, example = json!({
        "model": "model",
        "messages": ["<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>"]
    })),
    responses((status = 200, body = ScoreEvaluationResponse), ScoringErrors)
)]
pub(in crate::http) async fn score_evaluation(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<ScoreEvaluationRequest>,
) -> Result<Json<ScoreEvaluationResponse>, ApiError> {
    let inputs = request.messages.into_iter().map(|text| Ok(Input::Text(text))).collect();
    let outcomes = score_all(&state, &caller, inputs, Truncation::Refuse).await?;
    Ok(Json(ScoreEvaluationResponse {
        object: "score.evaluation",
        model: state.model.clone(),
        scores: outcomes.iter().map(Outcome::reward).collect(),
        errors: errors(&outcomes),
    }))
}
