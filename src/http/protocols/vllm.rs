//! vLLM's `/classify`, `/pooling`, `/score` and `/rerank`, the first of which verl calls too.
//!
//! Scores are the rewards themselves unless `use_activation` asks for their sigmoid.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};

use super::super::AppState;
use super::super::body::JsonBody;
use super::super::caller::{Caller, RunHeaders, RunQuery};
use super::super::error::{ApiError, ScoringErrors};
use super::super::inputs::{ItemError, MaybeInput, Truncation};
use super::openai::{EncodingFormat, Vector};
use super::tei::by_reward;
use super::{
    ChatMessage, LABEL, OneOrMany, TextOrTokens, Usage, activated, conversation, pair, score_all,
    unix_seconds,
};

/// What all of vLLM's pooling requests may hold.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct VllmPoolingOptions {
    /// Not used
    #[serde(rename = "model", default)]
    _model: Option<String>,
    /// Name of the answer; the request's id where there is none
    request_id: Option<String>,
    /// The sigmoid of the reward instead of the reward; default false
    use_activation: Option<bool>,
    /// The older name of `use_activation`
    activation: Option<bool>,
    /// Keep so many tokens at the end of each input; -1 for as many as the context holds. Default: an
    /// over-long input is an error
    #[serde(default, deserialize_with = "truncation")]
    #[schema(schema_with = truncation_schema)]
    truncate_prompt_tokens: Option<i64>,
}

/// From 1, or -1.
fn truncation<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let tokens = Option::<i64>::deserialize(deserializer)?;
    match tokens {
        Some(tokens) if tokens != -1 && tokens < 1 => {
            Err(serde::de::Error::custom("truncate_prompt_tokens: expected -1 or a number from 1"))
        }
        tokens => Ok(tokens),
    }
}

fn truncation_schema() -> Schema {
    let number =
        |minimum: i64| ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(minimum));
    OneOfBuilder::new()
        .item(number(1).maximum(Some(i64::MAX)))
        .item(number(-1).maximum(Some(-1)))
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .into()
}

impl VllmPoolingOptions {
    fn sigmoid(&self) -> bool {
        self.use_activation.or(self.activation).unwrap_or_default()
    }

    fn truncation(&self) -> Truncation {
        match self.truncate_prompt_tokens {
            None => Truncation::Refuse,
            Some(tokens) => Truncation::KeepEnd(usize::try_from(tokens).unwrap_or(usize::MAX)),
        }
    }

    /// The answer's id.
    fn id(&self, kind: &str, caller: &Caller) -> String {
        let id = self.request_id.as_deref().unwrap_or_else(|| caller.request_id());
        format!("{kind}-{id}")
    }
}

/// The body of a request to `/classify` or `/pooling`: `input` or `messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `input` or `messages`")]
pub(in crate::http) struct VllmPoolingRequest {
    /// Texts, chat template applied, or token ids; BOS is added to a text where it is missing, never
    /// twice
    input: Option<TextOrTokens>,
    /// A conversation that ends with the assistant's answer
    messages: Option<Vec<ChatMessage>>,
    /// Whether BOS may be added to `input`; default true
    add_special_tokens: Option<bool>,
    /// Only for `/pooling`; default `float`
    encoding_format: Option<EncodingFormat>,
    #[serde(flatten)]
    options: VllmPoolingOptions,
}

impl VllmPoolingRequest {
    fn inputs(&mut self) -> Result<Vec<MaybeInput>, ApiError> {
        match (self.input.take(), self.messages.take()) {
            (Some(input), None) => Ok(input.into_inputs(self.add_special_tokens == Some(false))),
            (None, Some(messages)) => Ok(vec![conversation(messages, "/messages")?]),
            _ => Err(ApiError::invalid("", "give one of `input` and `messages`")),
        }
    }
}

/// The answer of `/classify`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VllmClassifyResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Class>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
struct Class {
    index: usize,
    label: &'static str,
    /// The reward, alone in a list; null where that input failed
    probs: Option<Vec<f32>>,
    num_classes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// Answers `/classify`.
pub(super) async fn classify(
    state: &AppState,
    caller: &Caller,
    mut request: VllmPoolingRequest,
) -> Result<VllmClassifyResponse, ApiError> {
    let inputs = request.inputs()?;
    let options = &request.options;
    let outcomes = score_all(state, caller, inputs, options.truncation()).await?;
    let data = outcomes.iter().enumerate().map(|(index, outcome)| Class {
        index,
        label: LABEL,
        probs: activated(outcome, options.sigmoid()).map(|score| vec![score]),
        num_classes: 1,
        error: outcome.error().cloned(),
    });
    Ok(VllmClassifyResponse {
        id: options.id("classify", caller),
        object: "list",
        created: unix_seconds(),
        model: state.model.clone(),
        data: data.collect(),
        usage: Usage::of(&outcomes),
    })
}

/// The answer of `/pooling`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VllmPoolingResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Pooled>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
struct Pooled {
    index: usize,
    object: &'static str,
    /// The reward, alone in a list; null where that input failed
    data: Option<Vector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// vLLM: rewards as pooled outputs
#[utoipa::path(
    post,
    path = "/pooling",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = VllmPoolingRequest, example = json!({
        "messages": [
            {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Yes."}
        ]
    })),
    responses((status = 200, body = VllmPoolingResponse), ScoringErrors)
)]
pub(in crate::http) async fn pooling(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(mut request): JsonBody<VllmPoolingRequest>,
) -> Result<Json<VllmPoolingResponse>, ApiError> {
    let inputs = request.inputs()?;
    let options = &request.options;
    let outcomes = score_all(&state, &caller, inputs, options.truncation()).await?;
    let base64 = request.encoding_format == Some(EncodingFormat::Base64);
    let data = outcomes.iter().enumerate().map(|(index, outcome)| Pooled {
        index,
        object: "pooling",
        data: activated(outcome, options.sigmoid()).map(|score| Vector::new(vec![score], base64)),
        error: outcome.error().cloned(),
    });
    Ok(Json(VllmPoolingResponse {
        id: options.id("pool", &caller),
        object: "list",
        created: unix_seconds(),
        model: state.model.clone(),
        data: data.collect(),
        usage: Usage::of(&outcomes),
    }))
}

/// The body of a request to `/score`: prompts and responses. One prompt goes with all responses, else
/// there are as many of each.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `text_1` and `text_2`")]
pub(in crate::http) struct VllmScoreRequest {
    /// Prompts
    #[serde(alias = "queries", alias = "data_1")]
    text_1: OneOrMany,
    /// Responses
    #[serde(alias = "documents", alias = "items", alias = "data_2")]
    text_2: OneOrMany,
    #[serde(flatten)]
    options: VllmPoolingOptions,
}

/// The answer of `/score`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VllmScoreResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<PairScore>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
struct PairScore {
    index: usize,
    object: &'static str,
    /// Null where that input failed
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

/// vLLM: score responses to prompts
#[utoipa::path(
    post,
    path = "/score",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = VllmScoreRequest, example = json!({
        "text_1": "Is it late?", "text_2": ["Yes.", "No."]
    })),
    responses((status = 200, body = VllmScoreResponse), ScoringErrors)
)]
pub(in crate::http) async fn score(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<VllmScoreRequest>,
) -> Result<Json<VllmScoreResponse>, ApiError> {
    score_pairs(&state, &caller, request).await.map(Json)
}

/// Answers `/score`.
pub(super) async fn score_pairs(
    state: &AppState,
    caller: &Caller,
    request: VllmScoreRequest,
) -> Result<VllmScoreResponse, ApiError> {
    let (prompts, responses) = (request.text_1.into_vec(), request.text_2.into_vec());
    let inputs: Vec<MaybeInput> = match prompts.as_slice() {
        [prompt] => responses.into_iter().map(|response| pair(prompt, response)).collect(),
        prompts if prompts.len() == responses.len() => {
            prompts.iter().zip(responses).map(|(prompt, response)| pair(prompt, response)).collect()
        }
        prompts => {
            let (prompts, responses) = (prompts.len(), responses.len());
            let message =
                format!("{prompts} prompts and {responses} responses; expected one or as many");
            return Err(ApiError::unprocessable(message));
        }
    };
    let options = &request.options;
    let outcomes = score_all(state, caller, inputs, options.truncation()).await?;
    let data = outcomes.iter().enumerate().map(|(index, outcome)| PairScore {
        index,
        object: "score",
        score: activated(outcome, options.sigmoid()),
        error: outcome.error().cloned(),
    });
    Ok(VllmScoreResponse {
        id: options.id("score", caller),
        object: "list",
        created: unix_seconds(),
        model: state.model.clone(),
        data: data.collect(),
        usage: Usage::of(&outcomes),
    })
}

/// The body of a request to `/rerank`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `query` and `documents`")]
pub(in crate::http) struct VllmRerankRequest {
    /// The prompt
    query: String,
    /// The responses
    documents: Vec<String>,
    /// Answer the best so many; 0, the default, for all
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    top_n: Option<u32>,
    #[serde(flatten)]
    options: VllmPoolingOptions,
}

/// The answer of `/rerank`: the best first, those that failed last.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VllmRerankResponse {
    id: String,
    model: String,
    usage: Usage,
    results: Vec<Ranked>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Ranked {
    index: usize,
    document: Document,
    /// Null where that input failed
    relevance_score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ItemError>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Document {
    text: String,
}

/// vLLM: rank responses to one prompt
#[utoipa::path(
    post,
    path = "/v1/rerank",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = VllmRerankRequest, example = json!({
        "query": "Is it late?", "documents": ["Yes.", "No."], "top_n": 1
    })),
    responses((status = 200, body = VllmRerankResponse), ScoringErrors)
)]
pub(in crate::http) async fn rerank_v1(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<VllmRerankRequest>,
) -> Result<Json<VllmRerankResponse>, ApiError> {
    rerank(&state, &caller, request).await.map(Json)
}

/// vLLM: rank responses to one prompt
#[utoipa::path(
    post,
    path = "/v2/rerank",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = VllmRerankRequest, example = json!({
        "query": "Is it late?", "documents": ["Yes.", "No."]
    })),
    responses((status = 200, body = VllmRerankResponse), ScoringErrors)
)]
pub(in crate::http) async fn rerank_v2(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<VllmRerankRequest>,
) -> Result<Json<VllmRerankResponse>, ApiError> {
    rerank(&state, &caller, request).await.map(Json)
}

/// Answers `/rerank`.
pub(super) async fn rerank(
    state: &AppState,
    caller: &Caller,
    request: VllmRerankRequest,
) -> Result<VllmRerankResponse, ApiError> {
    let inputs = request.documents.iter().map(|text| pair(&request.query, text.clone())).collect();
    let options = &request.options;
    let outcomes = score_all(state, caller, inputs, options.truncation()).await?;
    let ranked = outcomes.iter().zip(request.documents).enumerate();
    let mut results: Vec<Ranked> = ranked
        .map(|(index, (outcome, text))| Ranked {
            index,
            document: Document { text },
            relevance_score: activated(outcome, options.sigmoid()),
            error: outcome.error().cloned(),
        })
        .collect();
    results.sort_by(|a, b| by_reward(&outcomes[a.index], &outcomes[b.index]));
    match request.top_n {
        None | Some(0) => {}
        Some(best) => results.truncate(best as usize),
    }
    Ok(VllmRerankResponse {
        id: options.id("rerank", caller),
        model: state.model.clone(),
        usage: Usage::of(&outcomes),
        results,
    })
}
