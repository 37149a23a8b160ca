//! slime's and miles's remote reward model: `--rm-type remote_rm --rm-url http://host/slime`.
//!
//! The whole body of the answer is the reward: a bare number, or, with `?reward_key=NAME` and slime's
//! `--reward-key NAME`, an object.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Query;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::conversion::{ChatMessage, score_all};
use crate::checkpoint::{Input, Message};
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, Outcome, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, ScoringErrors};
use crate::json::object;

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `prompt` and `response`")]
pub(in crate::http) struct SlimeRequest {
    prompt: SlimePrompt,
    response: String,
    /// Not used
    #[serde(rename = "label", default)]
    _label: Option<Value>,
}

/// Text as the policy was given it, chat template applied, or messages, to which the checkpoint's
/// template is applied.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of {role, content} messages")]
enum SlimePrompt {
    Text(String),
    #[serde(deserialize_with = "object::list")]
    Messages(Vec<ChatMessage>),
}

/// How the answer is written.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct SlimeQuery {
    /// Answer an object with the reward under this key instead of the bare reward
    #[param(nullable = false)]
    reward_key: Option<String>,
}

/// The reward alone, or an object with it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum SlimeResponse {
    Reward(f32),
    Object(BTreeMap<String, f32>),
}

/// slime and miles: score one response
#[utoipa::path(
    post,
    path = "/slime",
    tag = "slime",
    params(RunHeaders, RunQuery, SlimeQuery),
    request_body(content = SlimeRequest, example = json!({
        "prompt": [{"role": "user", "content": "Is it late?"}], "response": "Yes.", "label": null
    })),
    responses((status = 200, body = SlimeResponse), ScoringErrors)
)]
pub(in crate::http) async fn slime(
    caller: Caller,
    Query(query): Query<SlimeQuery>,
    AdmittedBody(state, request): AdmittedBody<SlimeRequest>,
) -> Result<Json<SlimeResponse>, ApiError> {
    let input = match request.prompt {
        SlimePrompt::Text(prompt) => Input::Text(prompt + &request.response),
        SlimePrompt::Messages(messages) => {
            let mut messages: Vec<Message> = messages.into_iter().map(Message::from).collect();
            messages.push(Message::new("assistant", request.response));
            Input::Messages(messages)
        }
    };
    let outcomes = score_all(&state, &caller, vec![Ok(input)], Truncation::Refuse).await?;
    let reward = outcomes.first().and_then(Outcome::reward);
    let reward = reward.ok_or_else(|| ApiError::internal("an input without outcome"))?;
    Ok(Json(match query.reward_key {
        None => SlimeResponse::Reward(reward),
        Some(key) => SlimeResponse::Object(BTreeMap::from([(key, reward)])),
    }))
}
