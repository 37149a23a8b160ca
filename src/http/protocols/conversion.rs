//! What protocols have in common: their inputs, and what they make of scores.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::checkpoint::{Input, Message};
use crate::http::scoring::{
    Caller, MaybeInput, Outcome, ScoringWork, Truncation, nothing_to_score, score,
};
use crate::http::state::{ApiError, AppState};
use crate::input::{ItemError, token_ids};
use crate::json::{integer, object};
use crate::monitor::Role;

/// The one label of a reward model, as Hugging Face names labels without a name.
pub(super) const LABEL: &str = "LABEL_0";

/// Scores a foreign request's inputs with the default deadline.
///
/// # Errors
/// As [`score`], and where no input got a score: a client that reads one number must not find null.
pub(super) async fn score_all(
    state: &AppState,
    caller: &Caller,
    inputs: Vec<MaybeInput>,
    truncation: Truncation,
) -> Result<Vec<Outcome>, ApiError> {
    let deadline = Duration::from_millis(state.config.limits.default_deadline_ms);
    let work = ScoringWork {
        inputs,
        truncation,
        draws: 0,
        cache: true,
        origin: caller.origin(None, None, Role::Policy)?,
        deadline: Instant::now() + deadline,
        log_ratios: Vec::new(),
    };
    let outcomes = score(state, caller, work).await?;
    if !outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.scored.is_err()) {
        return Err(nothing_to_score(outcomes.iter().filter_map(Outcome::error)));
    }
    Ok(outcomes)
}

/// The reward, or its sigmoid where that was asked for. (Softmax over the one label of a reward model
/// would always be 1.)
pub(super) fn activated(outcome: &Outcome, sigmoid: bool) -> Option<f32> {
    let reward = outcome.reward()?;
    Some(if sigmoid { (1.0 / (1.0 + (-f64::from(reward)).exp())) as f32 } else { reward })
}

/// The tokens of all inputs.
pub(super) fn total_tokens(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter_map(|outcome| outcome.tokens).sum()
}

/// The inputs' errors, where there is one.
pub(super) fn errors(outcomes: &[Outcome]) -> Option<Vec<Option<ItemError>>> {
    outcomes
        .iter()
        .any(|outcome| outcome.scored.is_err())
        .then(|| outcomes.iter().map(|outcome| outcome.error().cloned()).collect())
}

/// Whether the body has one of these fields.
pub(super) fn has(body: &Value, fields: &[&str]) -> bool {
    fields.iter().any(|field| body.get(field).is_some_and(|value| !value.is_null()))
}

/// A field that may hold anything.
pub(super) fn ignored() -> Schema {
    AnyOfBuilder::new().build().into()
}

pub(super) fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Tokens of a request, as OpenAI counts them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
}

impl Usage {
    pub(super) fn of(outcomes: &[Outcome]) -> Self {
        let tokens = total_tokens(outcomes);
        Self { prompt_tokens: tokens, total_tokens: tokens, completion_tokens: 0 }
    }
}

/// One value or a list of them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Text or token ids, one or many.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids or a list of such lists"
)]
pub(super) enum TextOrTokens {
    Text(String),
    #[serde(deserialize_with = "integer::ids")]
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    #[serde(deserialize_with = "integer::id_lists")]
    TokenLists(Vec<Vec<u32>>),
}

impl PartialSchema for TextOrTokens {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new()
            .item(String::schema())
            .item(Vec::<String>::schema())
            .item(token_ids())
            .item(ArrayBuilder::new().items(token_ids()))
            .into()
    }
}

impl ToSchema for TextOrTokens {}

impl TextOrTokens {
    /// Whether the client expects a list.
    pub(super) fn is_batch(&self) -> bool {
        matches!(self, Self::Texts(_) | Self::TokenLists(_))
    }

    /// The inputs; `exact` adds no BOS to texts.
    pub(super) fn into_inputs(self, exact: bool) -> Vec<MaybeInput> {
        let text = |text| Ok(if exact { Input::ExactText(text) } else { Input::Text(text) });
        match self {
            Self::Text(one) => vec![text(one)],
            Self::Tokens(ids) => vec![Ok(Input::Tokens(ids))],
            Self::Texts(texts) => texts.into_iter().map(text).collect(),
            Self::TokenLists(lists) => {
                lists.into_iter().map(|ids| Ok(Input::Tokens(ids))).collect()
            }
        }
    }
}

/// A message of a conversation, as OpenAI's chat API writes it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(expecting = "expected a {role, content} message")]
pub(super) struct ChatMessage {
    role: String,
    content: ChatContent,
}

/// A message's text, whole or in parts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of {type: \"text\", text} parts")]
pub(super) enum ChatContent {
    Text(String),
    #[serde(deserialize_with = "object::list")]
    Parts(Vec<ChatPart>),
}

/// A part of a message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct ChatPart {
    #[serde(rename = "type")]
    #[allow(dead_code, reason = "read to refuse images")]
    kind: ChatPartKind,
    text: String,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChatPartKind {
    Text,
}

impl From<ChatMessage> for Message {
    fn from(message: ChatMessage) -> Self {
        let content = match message.content {
            ChatContent::Text(text) => text,
            ChatContent::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        };
        Self { role: message.role, content }
    }
}

/// A conversation that ends with the answer to score.
///
/// # Errors
/// Where the last message is not the assistant's.
pub(super) fn conversation(messages: Vec<ChatMessage>) -> Result<MaybeInput, ApiError> {
    if messages.last().is_some_and(|message| message.role != "assistant") {
        let message = "the last message must be the assistant's: it is the one that is scored";
        return Err(ApiError::unprocessable(message));
    }
    Ok(Ok(Input::Messages(messages.into_iter().map(Message::from).collect())))
}

/// A prompt and its response, as the checkpoint's chat template writes them.
pub(super) fn pair(prompt: &str, response: String) -> MaybeInput {
    Ok(Input::Messages(vec![Message::new("user", prompt), Message::new("assistant", response)]))
}
