//! SGLang's `/classify` for reward models and its `/v1/score`. Its `/v1/embeddings`, which answers
//! reward models too, is in `openai.rs`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::conversion::{OneOrMany, TextOrTokens, Usage, errors, has, ignored, score_all};
use crate::checkpoint::Input;
use crate::http::scoring::{Caller, MaybeInput, Outcome, Truncation, typed};
use crate::http::state::{ApiError, AppState};
use crate::input::{ItemError, token_ids};
use crate::json::integer;

/// The body of a request to `/classify`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum SglangClassifyRequest {
    Text(SglangText),
    Tokens(SglangTokens),
}

/// Texts.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct SglangText {
    /// Chat template applied; BOS is added where it is missing, never twice
    text: OneOrMany,
}

/// Token ids.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct SglangTokens {
    /// One list or several
    input_ids: TokenIds,
}

/// Reads one of the two forms.
pub(super) fn read_form(body: &Value) -> Result<SglangClassifyRequest, ApiError> {
    match (has(body, &["text"]), has(body, &["input_ids"])) {
        (true, false) => Ok(SglangClassifyRequest::Text(typed(body)?)),
        (false, true) => Ok(SglangClassifyRequest::Tokens(typed(body)?)),
        _ => Err(ApiError::invalid("", "give one of `text` and `input_ids`")),
    }
}

/// Token ids of one input or of several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of token ids or a list of such lists")]
pub(in crate::http) enum TokenIds {
    #[serde(deserialize_with = "integer::ids")]
    One(Vec<u32>),
    #[serde(deserialize_with = "integer::id_lists")]
    Many(Vec<Vec<u32>>),
}

impl PartialSchema for TokenIds {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new().item(token_ids()).item(ArrayBuilder::new().items(token_ids())).into()
    }
}

impl ToSchema for TokenIds {}

impl From<SglangClassifyRequest> for TextOrTokens {
    fn from(request: SglangClassifyRequest) -> Self {
        match request {
            SglangClassifyRequest::Text(SglangText { text }) => match text {
                OneOrMany::One(text) => Self::Text(text),
                OneOrMany::Many(texts) => Self::Texts(texts),
            },
            SglangClassifyRequest::Tokens(SglangTokens { input_ids }) => match input_ids {
                TokenIds::One(ids) => Self::Tokens(ids),
                TokenIds::Many(lists) => Self::TokenLists(lists),
            },
        }
    }
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
    let inputs = TextOrTokens::from(request);
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
    #[schema(schema_with = ignored)]
    _label_token_ids: Option<Value>,
    /// Not used: over one label it is always 1
    #[serde(rename = "apply_softmax", default)]
    #[schema(schema_with = ignored)]
    _apply_softmax: Option<Value>,
    /// Not used
    #[serde(rename = "model", default)]
    #[schema(schema_with = ignored)]
    _model: Option<Value>,
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
            let message = "`items` must be texts where `query` is text, and lists of token ids where it is one";
            return Err(ApiError::unprocessable(message));
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
