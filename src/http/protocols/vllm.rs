//! vLLM's `/classify`, `/pooling`, `/score` and `/rerank`, the first of which verl calls too.
//!
//! Scores are the rewards themselves unless `use_activation` asks for their sigmoid.

use std::borrow::Cow;

use axum::Json;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::conversion::{
    ChatMessage, LABEL, OneOrMany, TextOrTokens, Usage, activated, conversation, has, pair,
    score_all, unix_seconds,
};
use super::openai::{EncodingFormat, Vector};
use super::tei::by_reward;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, MaybeInput, RunHeaders, RunQuery, Truncation, typed};
use crate::http::state::{ApiError, AppState, ScoringErrors};
use crate::input::ItemError;
use crate::json::{integer, object};

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
    #[serde(default, deserialize_with = "integer::option")]
    #[schema(schema_with = truncation_schema)]
    truncate_prompt_tokens: Option<i64>,
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

    fn truncation(&self) -> Result<Truncation, ApiError> {
        match self.truncate_prompt_tokens {
            None => Ok(Truncation::Refuse),
            Some(-1) => Ok(Truncation::KeepEnd(usize::MAX)),
            Some(tokens @ 1..) => Ok(Truncation::KeepEnd(tokens as usize)),
            Some(_) => {
                Err(ApiError::invalid("/truncate_prompt_tokens", "expected -1 or a number from 1"))
            }
        }
    }

    /// The answer's id.
    fn id(&self, kind: &str, caller: &Caller) -> String {
        let id = self.request_id.as_deref().unwrap_or_else(|| caller.request_id());
        format!("{kind}-{id}")
    }
}

/// The body of one of vLLM's requests: its own fields, and those that all have.
#[derive(Debug)]
pub(in crate::http) struct Vllm<T> {
    own: T,
    options: VllmPoolingOptions,
}

pub(super) type PoolingBody = Vllm<VllmPoolingRequest>;
pub(super) type ScoreBody = Vllm<VllmScoreRequest>;
pub(super) type RerankBody = Vllm<VllmRerankRequest>;

impl<T: DeserializeOwned> Vllm<T> {
    /// Reads both from the same object, so that an error names its field.
    pub(super) fn read(body: &Value) -> Result<Self, ApiError> {
        Ok(Self { own: typed(body)?, options: typed(body)? })
    }
}

impl<T: PartialSchema> PartialSchema for Vllm<T> {
    fn schema() -> RefOr<Schema> {
        AllOfBuilder::new().item(T::schema()).item(VllmPoolingOptions::schema()).into()
    }
}

impl<T: ToSchema> ToSchema for Vllm<T> {
    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        VllmPoolingOptions::schemas(schemas);
    }
}

/// The body of a request to `/classify` or `/pooling`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum VllmPoolingRequest {
    Input(VllmInput),
    Messages(VllmMessages),
}

/// Texts or token ids.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct VllmInput {
    /// Texts, chat template applied, or token ids; BOS is added to a text where it is missing, never
    /// twice
    input: TextOrTokens,
    /// Whether BOS may be added; default true
    add_special_tokens: Option<bool>,
    /// Only for `/pooling`; default `float`
    encoding_format: Option<EncodingFormat>,
}

/// A conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct VllmMessages {
    /// Its last message is the assistant's
    #[serde(deserialize_with = "object::list")]
    messages: Vec<ChatMessage>,
    /// Only for `/pooling`; default `float`
    encoding_format: Option<EncodingFormat>,
}

impl Vllm<VllmPoolingRequest> {
    /// Reads one of the two forms.
    pub(super) fn read_form(body: &Value) -> Result<Self, ApiError> {
        let own = match (has(body, &["input"]), has(body, &["messages"])) {
            (true, false) => VllmPoolingRequest::Input(typed(body)?),
            (false, true) => VllmPoolingRequest::Messages(typed(body)?),
            _ => return Err(ApiError::invalid("", "give one of `input` and `messages`")),
        };
        Ok(Self { own, options: typed(body)? })
    }
}

impl VllmPoolingRequest {
    fn into_inputs(self) -> Result<Vec<MaybeInput>, ApiError> {
        match self {
            Self::Input(VllmInput { input, add_special_tokens, .. }) => {
                Ok(input.into_inputs(add_special_tokens == Some(false)))
            }
            Self::Messages(VllmMessages { messages, .. }) => Ok(vec![conversation(messages)?]),
        }
    }

    fn base64(&self) -> bool {
        let (Self::Input(VllmInput { encoding_format, .. })
        | Self::Messages(VllmMessages { encoding_format, .. })) = self;
        *encoding_format == Some(EncodingFormat::Base64)
    }
}

/// An answer with an element for each input.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VllmList<T> {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    // A reference would name no schema where two protocols share a route.
    #[schema(inline)]
    data: Vec<T>,
    usage: Usage,
}

/// Scores inputs; `element` gets an input's number, its score where there is one, and its error else.
async fn list<T>(
    state: &AppState,
    caller: &Caller,
    inputs: Vec<MaybeInput>,
    options: &VllmPoolingOptions,
    kind: &str,
    element: impl Fn(usize, Option<f32>, Option<ItemError>) -> T,
) -> Result<VllmList<T>, ApiError> {
    let outcomes = score_all(state, caller, inputs, options.truncation()?).await?;
    let data = outcomes.iter().enumerate().map(|(index, outcome)| {
        element(index, activated(outcome, options.sigmoid()), outcome.error().cloned())
    });
    Ok(VllmList {
        id: options.id(kind, caller),
        object: "list",
        created: unix_seconds(),
        model: state.model.clone(),
        data: data.collect(),
        usage: Usage::of(&outcomes),
    })
}

/// An element of the answer of `/classify`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Class {
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
    Vllm { own, options }: Vllm<VllmPoolingRequest>,
) -> Result<VllmList<Class>, ApiError> {
    list(state, caller, own.into_inputs()?, &options, "classify", |index, score, error| Class {
        index,
        label: LABEL,
        probs: score.map(|score| vec![score]),
        num_classes: 1,
        error,
    })
    .await
}

/// An element of the answer of `/pooling`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Pooled {
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
    request_body(content = PoolingBody, example = json!({
        "messages": [
            {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Yes."}
        ]
    })),
    responses((status = 200, body = VllmList<Pooled>), ScoringErrors)
)]
pub(in crate::http) async fn pooling(
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<VllmList<Pooled>>, ApiError> {
    let Vllm { own, options } = Vllm::read_form(&body)?;
    let base64 = own.base64();
    let pooled = |index, score: Option<f32>, error| Pooled {
        index,
        object: "pooling",
        data: score.map(|score| Vector::new(vec![score], base64)),
        error,
    };
    list(&state, &caller, own.into_inputs()?, &options, "pool", pooled).await.map(Json)
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
}

/// An element of the answer of `/score`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PairScore {
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
    request_body(content = ScoreBody, example = json!({
        "text_1": "Is it late?", "text_2": ["Yes.", "No."]
    })),
    responses((status = 200, body = VllmList<PairScore>), ScoringErrors)
)]
pub(in crate::http) async fn score(
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<VllmList<PairScore>>, ApiError> {
    score_pairs(&state, &caller, Vllm::read(&body)?).await.map(Json)
}

/// Answers `/score`.
pub(super) async fn score_pairs(
    state: &AppState,
    caller: &Caller,
    Vllm { own: request, options }: Vllm<VllmScoreRequest>,
) -> Result<VllmList<PairScore>, ApiError> {
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
    let scored = |index, score, error| PairScore { index, object: "score", score, error };
    list(state, caller, inputs, &options, "score", scored).await
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
    #[serde(default, deserialize_with = "integer::option")]
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    top_n: Option<u32>,
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
    request_body(content = RerankBody, example = json!({
        "query": "Is it late?", "documents": ["Yes.", "No."], "top_n": 1
    })),
    responses((status = 200, body = VllmRerankResponse), ScoringErrors)
)]
pub(in crate::http) async fn rerank_v1(
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<VllmRerankResponse>, ApiError> {
    rerank(&state, &caller, Vllm::read(&body)?).await.map(Json)
}

/// vLLM: rank responses to one prompt
#[utoipa::path(
    post,
    path = "/v2/rerank",
    tag = "vLLM",
    params(RunHeaders, RunQuery),
    request_body(content = RerankBody, example = json!({
        "query": "Is it late?", "documents": ["Yes.", "No."]
    })),
    responses((status = 200, body = VllmRerankResponse), ScoringErrors)
)]
pub(in crate::http) async fn rerank_v2(
    caller: Caller,
    AdmittedBody(state, body): AdmittedBody<Value>,
) -> Result<Json<VllmRerankResponse>, ApiError> {
    rerank(&state, &caller, Vllm::read(&body)?).await.map(Json)
}

/// Answers `/rerank`.
pub(super) async fn rerank(
    state: &AppState,
    caller: &Caller,
    Vllm { own: request, options }: Vllm<VllmRerankRequest>,
) -> Result<VllmRerankResponse, ApiError> {
    let inputs = request.documents.iter().map(|text| pair(&request.query, text.clone())).collect();
    let outcomes = score_all(state, caller, inputs, options.truncation()?).await?;
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
