//! OpenRLHF's remote reward model: `--remote_rm_url http://host/get_reward`.
//!
//! Before 0.9.1 it sends whole batches, since then one sample a request. Texts are the policy's own,
//! special tokens kept. With several URLs it sends empty shards, which are answered with empty lists.

use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::conversion::{errors, score_all};
use crate::checkpoint::Input;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, Outcome, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, ScoringErrors};
use crate::input::ItemError;

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `query`")]
pub(in crate::http) struct GetRewardRequest {
    /// Prompts with responses, chat template applied; BOS is added where it is missing, never twice
    query: Vec<String>,
    /// Not used: each query begins with its prompt
    #[serde(rename = "prompts", default)]
    _prompts: Option<Vec<Value>>,
    /// Not used
    #[serde(rename = "labels", default)]
    _labels: Option<Vec<Value>>,
}

/// The body of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct GetRewardResponse {
    /// Null where that input failed
    rewards: Vec<Option<f32>>,
    /// The same
    scores: Vec<Option<f32>>,
    /// Empty: OpenRLHF 0.8 cannot read lists here, and every answer must have the same keys
    extra_logs: ExtraLogs,
    /// Only where an input failed
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<Vec<Option<ItemError>>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ExtraLogs {}

/// OpenRLHF: score queries
#[utoipa::path(
    post,
    path = "/get_reward",
    tag = "OpenRLHF",
    params(RunHeaders, RunQuery),
    request_body(content = GetRewardRequest, example = json!({
        "query": ["<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>"],
        "prompts": ["<|user|>\nIs it late?<|end|>\n<|assistant|>\n"],
        "labels": [null]
    })),
    responses((status = 200, body = GetRewardResponse), ScoringErrors)
)]
pub(in crate::http) async fn get_reward(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<GetRewardRequest>,
) -> Result<Json<GetRewardResponse>, ApiError> {
    let inputs = request.query.into_iter().map(|text| Ok(Input::Text(text))).collect();
    let outcomes = score_all(&state, &caller, inputs, Truncation::Refuse).await?;
    let rewards: Vec<_> = outcomes.iter().map(Outcome::reward).collect();
    Ok(Json(GetRewardResponse {
        scores: rewards.clone(),
        rewards,
        extra_logs: ExtraLogs {},
        errors: errors(&outcomes),
    }))
}
