//! Hugging Face's `InferenceClient(base_url).text_classification(text)`, which posts to `/`.

use axum::Json;
use serde::Deserialize;
use utoipa::ToSchema;

use super::conversion::{OneOrMany, score_all};
use super::tei::Prediction;
use crate::checkpoint::Input;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{Caller, RunHeaders, RunQuery, Truncation};
use crate::http::state::{ApiError, TeiErrors};
use crate::json::object;

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "expected a JSON object with `inputs`")]
pub(in crate::http) struct TextClassificationRequest {
    /// Texts, chat template applied; BOS is added where it is missing, never twice
    inputs: OneOrMany,
    #[serde(default, deserialize_with = "object::option")]
    parameters: Option<TextClassificationParameters>,
}

/// How scores are written.
#[derive(Debug, Default, Deserialize, ToSchema)]
struct TextClassificationParameters {
    /// Default `none`. There is no `softmax`: over one label it is always 1
    function_to_apply: Option<OutputTransform>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OutputTransform {
    None,
    Sigmoid,
}

/// Hugging Face: classify texts
#[utoipa::path(
    post,
    path = "/",
    tag = "Hugging Face",
    params(RunHeaders, RunQuery),
    request_body(content = TextClassificationRequest, example = json!({
        "inputs": "<|user|>\nIs it late?<|end|>\n<|assistant|>\nYes.<|end|>", "parameters": {}
    })),
    responses(
        (status = 200, body = Vec<Vec<Prediction>>, description = "A list of one label for each text"),
        TeiErrors
    )
)]
pub(in crate::http) async fn text_classification(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<TextClassificationRequest>,
) -> Result<Json<Vec<Vec<Prediction>>>, ApiError> {
    let parameters = request.parameters.unwrap_or_default();
    let sigmoid = parameters.function_to_apply == Some(OutputTransform::Sigmoid);
    let inputs = request.inputs.into_vec().into_iter().map(|text| Ok(Input::Text(text))).collect();
    let outcomes = score_all(&state, &caller, inputs, Truncation::Refuse).await?;
    Ok(Json(outcomes.iter().map(|outcome| vec![Prediction::of(outcome, sigmoid)]).collect()))
}
