//! Text Embeddings Inference's `/predict` and `/rerank`: scores are sigmoids unless `raw_scores`.

use std::borrow::Cow;

use axum::Json;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::conversion::{LABEL, activated, pair, score_all};
use crate::checkpoint::Input;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, MaybeInput, Outcome, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, AppState, TeiErrors};
use crate::input::ItemError;

/// The body of a request to `/predict`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `inputs`")]
pub(in crate::http) struct PredictRequest {
    inputs: PredictInputs,
    /// The reward itself instead of its sigmoid; default false
    raw_scores: Option<bool>,
    /// Keep the end of an over-long input instead of an error; default false
    truncate: Option<bool>,
}

/// One text with its chat template applied, a prompt with its response, or a batch of such.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a pair [prompt, response], or a list of [text] and [prompt, response]"
)]
enum PredictInputs {
    Text(String),
    One(Sequence),
    Batch(SequenceBatch),
}

/// Several of them.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<Sequence>")]
struct SequenceBatch(Vec<Sequence>);

impl TryFrom<Vec<Sequence>> for SequenceBatch {
    type Error = &'static str;

    fn try_from(sequences: Vec<Sequence>) -> Result<Self, Self::Error> {
        if sequences.is_empty() { Err("expected at least one input") } else { Ok(Self(sequences)) }
    }
}

impl PartialSchema for SequenceBatch {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(Sequence::schema()).min_items(Some(1)).into()
    }
}

impl ToSchema for SequenceBatch {
    fn name() -> Cow<'static, str> {
        "Batch".into()
    }
}

/// A text, or a prompt with its response.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Sequence(Vec<String>);

impl PartialSchema for Sequence {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(String::schema()).min_items(Some(1)).max_items(Some(2)).into()
    }
}

impl ToSchema for Sequence {}

impl TryFrom<Vec<String>> for Sequence {
    type Error = &'static str;

    fn try_from(texts: Vec<String>) -> Result<Self, Self::Error> {
        if (1..=2).contains(&texts.len()) {
            Ok(Self(texts))
        } else {
            Err("expected one or two strings")
        }
    }
}

impl From<Sequence> for MaybeInput {
    fn from(Sequence(mut texts): Sequence) -> Self {
        match (texts.pop(), texts.pop()) {
            (Some(response), Some(prompt)) => pair(&prompt, response),
            (text, _) => Ok(Input::Text(text.unwrap_or_default())),
        }
    }
}

/// A label with its score.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Prediction {
    label: &'static str,
    /// Null where that input failed
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

impl Prediction {
    pub(super) fn of(outcome: &Outcome, sigmoid: bool) -> Self {
        let error = outcome.error().cloned();
        Self { label: LABEL, score: activated(outcome, sigmoid), error }
    }
}

/// The labels of one input, or those of each.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum PredictResponse {
    One(Vec<Prediction>),
    Batch(Vec<Vec<Prediction>>),
}

/// TEI: score texts or pairs
#[utoipa::path(
    post,
    path = "/predict",
    tag = "TEI",
    params(RunHeaders, RunQuery),
    request_body(content = PredictRequest, example = json!({
        "inputs": ["Is it late?", "Yes."], "raw_scores": true
    })),
    responses((status = 200, body = PredictResponse), TeiErrors)
)]
pub(in crate::http) async fn predict(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<PredictRequest>,
) -> Result<Json<PredictResponse>, ApiError> {
    let batch = matches!(request.inputs, PredictInputs::Batch(_));
    let inputs = match request.inputs {
        PredictInputs::Text(text) => vec![Ok(Input::Text(text))],
        PredictInputs::One(sequence) => vec![sequence.into()],
        PredictInputs::Batch(SequenceBatch(sequences)) => {
            sequences.into_iter().map(MaybeInput::from).collect()
        }
    };
    let truncation = Truncation::to_context(request.truncate.unwrap_or_default());
    let outcomes = score_all(&state, &caller, inputs, truncation).await?;
    let sigmoid = !request.raw_scores.unwrap_or_default();
    let mut predictions = outcomes.iter().map(|outcome| vec![Prediction::of(outcome, sigmoid)]);
    Ok(Json(if batch {
        PredictResponse::Batch(predictions.collect())
    } else {
        PredictResponse::One(predictions.next().unwrap_or_default())
    }))
}

/// The body of a request to `/rerank`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `query` and `texts`")]
pub(in crate::http) struct TeiRerankRequest {
    /// The prompt
    query: String,
    /// The responses
    texts: Vec<String>,
    /// The reward itself instead of its sigmoid; default false
    raw_scores: Option<bool>,
    /// Default false
    return_text: Option<bool>,
    /// Keep the end of an over-long input instead of an error; default false
    truncate: Option<bool>,
}

/// A response and its score.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Rank {
    index: usize,
    /// Null where that input failed
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// The best first, those that failed last.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TeiRanks(Vec<Rank>);

/// Scores responses to one prompt, the best first, those that failed last.
pub(super) async fn rerank(
    state: &AppState,
    caller: &Caller,
    request: TeiRerankRequest,
) -> Result<TeiRanks, ApiError> {
    let inputs = request.texts.iter().map(|text| pair(&request.query, text.clone())).collect();
    let truncation = Truncation::to_context(request.truncate.unwrap_or_default());
    let outcomes = score_all(state, caller, inputs, truncation).await?;
    let sigmoid = !request.raw_scores.unwrap_or_default();
    let texts = request.texts.into_iter().map(|text| request.return_text?.then_some(text));
    let ranks = outcomes.iter().zip(texts).enumerate().map(|(index, (outcome, text))| Rank {
        index,
        score: activated(outcome, sigmoid),
        text,
        error: outcome.error().cloned(),
    });
    let mut ranks: Vec<Rank> = ranks.collect();
    // By the reward, which tells apart what a sigmoid makes equal.
    ranks.sort_by(|a, b| by_reward(&outcomes[a.index], &outcomes[b.index]));
    Ok(TeiRanks(ranks))
}

/// The higher reward first, failures last.
pub(super) fn by_reward(a: &Outcome, b: &Outcome) -> std::cmp::Ordering {
    let reward = |outcome: &Outcome| outcome.reward().unwrap_or(f32::NEG_INFINITY);
    reward(b).total_cmp(&reward(a))
}
