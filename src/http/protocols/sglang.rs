//! SGLang's `/classify` for reward models and its `/v1/score`. Its `/v1/embeddings`, which answers
//! reward models too, is in `openai.rs`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::AppState;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::inputs::{ItemError, MaybeInput, Truncation};
use super::super::scoring::Outcome;
use super::{OneOrMany, TextOrTokens, Usage, errors, score_all};
use crate::checkpoint::Input;

/// The body of a request to `/classify`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `text` or `input_ids`")]
pub(in crate::http) struct SglangClassifyRequest {
    /// Texts, chat template applied; BOS is added where it is missing, never twice
    text: Option<OneOrMany>,
    /// Token ids, one list or several
    input_ids: Option<TextOrTokens>,
}

/// The answer to one input.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Embedding {
    /// The reward, alone in a list; null where that input failed
    embedding: Option<Vec<f32>>,
    meta_info: MetaInfo,
}

#[derive(Debug, Serialize, ToSchema)]
struct MetaInfo {
    prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// One answer, or a list of them where the request held a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum SglangClassifyResponse {
    One(Embedding),
    Batch(Vec<Embedding>),
}

/// Scores texts or token ids.
pub(super) async fn classify(
    state: &AppState,
    caller: &Caller,
    request: SglangClassifyRequest,
) -> Result<SglangClassifyResponse, ApiError> {
    let inputs = match (request.text, request.input_ids) {
        (Some(OneOrMany::One(text)), None) => TextOrTokens::Text(text),
        (Some(OneOrMany::Many(texts)), None) => TextOrTokens::Texts(texts),
        (None, Some(ids @ (TextOrTokens::Tokens(_) | TextOrTokens::TokenLists(_)))) => ids,
        (None, Some(_)) => {
            return Err(ApiError::invalid(
                "/input_ids",
                "expected one list of token ids or several",
            ));
        }
        _ => return Err(ApiError::invalid("", "give one of `text` and `input_ids`")),
    };
    let batch = inputs.is_batch();
    let outcomes = score_all(state, caller, inputs.into_inputs(false), Truncation::Refuse).await?;
    let mut embeddings = outcomes.iter().map(|outcome| Embedding {
        embedding: outcome.reward().map(|reward| vec![reward]),
        meta_info: MetaInfo { prompt_tokens: outcome.tokens, error: outcome.error().cloned() },
    });
    let one = if batch { None } else { embeddings.next() };
    Ok(match one {
        Some(one) => SglangClassifyResponse::One(one),
        None => SglangClassifyResponse::Batch(embeddings.collect()),
    })
}

/// The body of a request to `/v1/score`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `query` and `items`")]
pub(in crate::http) struct SglangScoreRequest {
    /// What every text has in common: a prompt, chat template applied, as text or token ids
    query: TextOrTokens,
    /// What follows it: texts where the query is text, else token ids
    items: TextOrTokens,
    /// Whether the items come before the query; default false
    item_first: Option<bool>,
    /// Not used: a reward model has one label
    #[serde(rename = "label_token_ids", default)]
    _label_token_ids: Option<Vec<u32>>,
    /// Not used: over one label it is always 1
    #[serde(rename = "apply_softmax", default)]
    _apply_softmax: Option<bool>,
    /// Not used
    #[serde(rename = "model", default)]
    _model: Option<String>,
}

/// The rewards, each alone in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SglangScoreResponse {
    /// Null where that item failed
    scores: Vec<Option<Vec<f32>>>,
    model: String,
    usage: Usage,
    object: &'static str,
    /// Only where an item failed
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<Vec<Option<ItemError>>>,
}

/// Scores each item joined to the query.
pub(super) async fn score(
    state: &AppState,
    caller: &Caller,
    request: SglangScoreRequest,
) -> Result<SglangScoreResponse, ApiError> {
    let item_first = request.item_first.unwrap_or_default();
    let inputs: Vec<MaybeInput> = match (request.query, request.items) {
        (TextOrTokens::Text(query), TextOrTokens::Text(item)) => {
            vec![joined_text(&query, &item, item_first)]
        }
        (TextOrTokens::Text(query), TextOrTokens::Texts(items)) => {
            items.iter().map(|item| joined_text(&query, item, item_first)).collect()
        }
        (TextOrTokens::Tokens(query), TextOrTokens::TokenLists(items)) => items
            .iter()
            .map(|item| {
                let parts: [&[u32]; 2] = if item_first { [item, &query] } else { [&query, item] };
                Ok(Input::Tokens(parts.concat()))
            })
            .collect(),
        // An empty list is one of anything.
        (_, TextOrTokens::Tokens(items)) if items.is_empty() => Vec::new(),
        _ => {
            let message =
                "expected texts with a query of text, lists of token ids with one of token ids";
            return Err(ApiError::invalid("/items", message));
        }
    };
    let outcomes = score_all(state, caller, inputs, Truncation::Refuse).await?;
    Ok(SglangScoreResponse {
        scores: outcomes.iter().map(|o| Some(vec![Outcome::reward(o)?])).collect(),
        model: state.model.clone(),
        usage: Usage::of(&outcomes),
        object: "scoring",
        errors: errors(&outcomes),
    })
}

fn joined_text(query: &str, item: &str, item_first: bool) -> MaybeInput {
    Ok(Input::Text(if item_first { [item, query] } else { [query, item] }.concat()))
}
