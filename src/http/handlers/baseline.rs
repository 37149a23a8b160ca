//! `PUT /runs/{run}/baseline`: the SFT answers that a run is compared with.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::runs::{RunName, monitor};
use crate::http::middleware::ModelQuery;
use crate::http::scoring::{
    Caller, JsonBody, ScoringWork, Truncation, check_not_too_many, check_run, inputs,
    nothing_to_score, score,
};
use crate::http::state::off_the_event_loop;
use crate::http::state::{ApiError, AppState, ErrorAnswer, ScoringErrors};
use crate::input::{InputItem, Prompt};
use crate::json::{integer, object};
use crate::monitor::{
    BaselineAnswers, BaselineOrigin, Monitor, Role, SampleOrigin, Subject, prompt_fingerprint,
};

/// The body of a request: `inputs`, or `latents` with what is known of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "expected a JSON object")]
pub(in crate::http) struct BaselineRequest {
    /// SFT answers to score, in the forms of `/reward`; at most `limits.max_inputs`
    #[serde(default, deserialize_with = "object::list_option")]
    inputs: Option<Vec<InputItem>>,
    /// Keep the end of an over-long input instead of an error; default false
    truncate: Option<bool>,
    /// Posterior means of SFT answers, as `/reward` answers them; at most `monitor.max_window`
    latents: Option<Latents>,
    /// Length of a latent, for latents in base64
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "integer::option")]
    dimension: Option<usize>,
    /// Hash of the weights that the latents are of; others than the server's are refused
    weights: Option<String>,
    /// Rewards of those answers
    rewards: Option<Vec<f64>>,
    /// Prompts of those answers, null where one is not known
    prompts: Option<Vec<Option<Prompt>>>,
}

/// Latents one by one, or all in one text: little-endian 32-bit floats in base64.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a list of lists of numbers, or base64 text")]
enum Latents {
    Numbers(Vec<Vec<f32>>),
    Text(String),
}

/// The baseline that the run has now.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BaselineResponse {
    run: String,
    baseline: BaselineOrigin,
    baseline_version: u64,
    baseline_samples: usize,
    /// Whether the latents have a covariance: without one there are no Mahalanobis distances.
    mahalanobis: bool,
    /// Inputs that could not be scored, and are not part of it.
    errors: Vec<InputError>,
}

/// An input that could not be scored.
#[derive(Debug, Serialize, ToSchema)]
struct InputError {
    index: usize,
    code: &'static str,
    message: String,
}

/// Give a run a baseline
///
/// In place of the one that it has. A run that is not known yet is made.
#[utoipa::path(
    put,
    path = "/runs/{run}/baseline",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"), ModelQuery),
    request_body(content = BaselineRequest, examples(
        ("texts" = (value = json!({"inputs": [
            {"prompt": "How do I boil an egg?", "response": "Eight minutes in boiling water."},
            {"prompt": "Is it late?", "response": "That depends on where you are."}
        ]})))
    )),
    responses(
        (status = 200, body = BaselineResponse),
        (status = 409, body = ErrorAnswer, description = "`other_weights`: the latents are not of the server's weights"),
        ScoringErrors
    )
)]
pub(in crate::http) async fn put(
    State(state): State<AppState>,
    RunName(run): RunName,
    caller: Caller,
    JsonBody(request): JsonBody<BaselineRequest>,
) -> Result<Json<BaselineResponse>, ApiError> {
    check_run(&run)?;
    let monitor = monitor(&state)?.clone();
    let (answers, errors) = match (request.inputs.is_some(), request.latents.is_some()) {
        (true, false) => scored(&state, &caller, &run, request).await?,
        (false, true) => (uploaded(&state, &monitor, request)?, Vec::new()),
        _ => {
            let message = "give one of: `inputs`, `latents`";
            return Err(ApiError::invalid("", message).out_of_place());
        }
    };
    let name = run.clone();
    let set = off_the_event_loop(move || monitor.set_baseline(&name, answers)).await??;
    Ok(Json(BaselineResponse {
        run,
        baseline: set.origin,
        baseline_version: set.version,
        baseline_samples: set.len(),
        mahalanobis: set.mahalanobis.is_some(),
        errors,
    }))
}

/// Scores the inputs; those that cannot be scored are left out and named.
async fn scored(
    state: &AppState,
    caller: &Caller,
    run: &str,
    request: BaselineRequest,
) -> Result<(BaselineAnswers, Vec<InputError>), ApiError> {
    for (field, is_given) in [
        ("dimension", request.dimension.is_some()),
        ("rewards", request.rewards.is_some()),
        ("prompts", request.prompts.is_some()),
        ("weights", request.weights.is_some()),
    ] {
        if is_given {
            let message = "goes with `latents`; of inputs the server finds it out";
            return Err(ApiError::invalid(format!("/{field}"), message).out_of_place());
        }
    }
    let items = request.inputs.unwrap_or_default();
    if items.is_empty() {
        return Err(ApiError::invalid("/inputs", "at least one input is needed").out_of_place());
    }
    check_not_too_many(items.len(), state)?;
    let inputs = inputs(items)?;
    let subjects: Vec<Subject> =
        inputs.iter().map(|input| input.as_ref().map(Subject::of).unwrap_or_default()).collect();
    let deadline = Duration::from_millis(state.config.limits.default_deadline_ms);
    let work = ScoringWork {
        inputs,
        truncation: Truncation::to_context(request.truncate.unwrap_or_default()),
        draws: 0,
        cache: true,
        // Not the policy's: neither monitored nor shaped.
        origin: SampleOrigin {
            run: run.to_owned(),
            step: None,
            role: Role::Eval,
            request: caller.request_id().into(),
        },
        deadline: Instant::now() + deadline,
        log_ratios: Vec::new(),
    };
    let outcomes = score(state, caller, work).await?;
    let mut answers = BaselineAnswers::default();
    let mut errors = Vec::new();
    for (index, (outcome, subject)) in outcomes.iter().zip(subjects).enumerate() {
        match &outcome.scored {
            Ok(scored) => {
                let Some(latent) = &scored.score.latent else { continue };
                answers.dimension = latent.mean.len();
                answers.latents.extend(latent.mean.iter().map(|&value| f64::from(value)));
                answers.rewards.push(scored.score.reward);
                answers.prompts.push(subject.prompt);
            }
            Err(error) => {
                errors.push(InputError { index, code: error.code, message: error.message.clone() });
            }
        }
    }
    if answers.is_empty() {
        return Err(nothing_to_score(outcomes.iter().filter_map(|outcome| outcome.error())));
    }
    Ok((answers, errors))
}

/// Checks latents that were computed before.
fn uploaded(
    state: &AppState,
    monitor: &Monitor,
    request: BaselineRequest,
) -> Result<BaselineAnswers, ApiError> {
    let wrong =
        |pointer: String, message: String| Err(ApiError::invalid(pointer, message).out_of_place());
    let own = [&state.weights, &state.latent_weights];
    if let Some(weights) = request.weights.filter(|weights| !own.contains(&weights)) {
        let message = format!(
            "the latents are of weights {weights}, the server's are {}: score the answers with it",
            state.latent_weights
        );
        return Err(ApiError::new(StatusCode::CONFLICT, "other_weights", message));
    }
    let dimension = state.latent_dim.unwrap_or_default();
    if let Some(given) = request.dimension.filter(|given| *given != dimension) {
        let message = format!("{given}, the model's is {dimension}");
        return wrong("/dimension".to_owned(), message);
    }
    let rows: Vec<Vec<f32>> = match request.latents {
        Some(Latents::Numbers(rows)) => rows,
        Some(Latents::Text(text)) => {
            if request.dimension.is_none() {
                let message = "goes with latents in base64".to_owned();
                return wrong("/dimension".to_owned(), message);
            }
            let Ok(bytes) = STANDARD.decode(text.trim()) else {
                return wrong("/latents".to_owned(), "is not base64".to_owned());
            };
            if bytes.len() % (4 * dimension) != 0 {
                let message = format!(
                    "{} bytes are no whole number of latents of {dimension} 32-bit floats",
                    bytes.len()
                );
                return wrong("/latents".to_owned(), message);
            }
            let values: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            values.chunks(dimension).map(<[f32]>::to_vec).collect()
        }
        None => Vec::new(),
    };
    if rows.is_empty() {
        return wrong("/latents".to_owned(), "at least one latent is needed".to_owned());
    }
    let limit = monitor.max_baseline();
    if rows.len() > limit {
        let message = format!("{} latents, monitor.max_window is {limit}", rows.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_inputs", message));
    }
    for (index, row) in rows.iter().enumerate() {
        if row.len() != dimension {
            let message = format!("{} numbers, the model's latents have {dimension}", row.len());
            return wrong(format!("/latents/{index}"), message);
        }
        if row.iter().any(|value| !value.is_finite()) {
            let message = "a number that no finite 32-bit float holds".to_owned();
            return wrong(format!("/latents/{index}"), message);
        }
    }
    // Read as f64: what f32 cannot hold is an error of its own, and no fault of the JSON.
    let rewards: Vec<f32> =
        request.rewards.unwrap_or_default().into_iter().map(|reward| reward as f32).collect();
    if let Some(index) = rewards.iter().position(|reward| !reward.is_finite()) {
        return wrong(format!("/rewards/{index}"), "is not finite".to_owned());
    }
    let prompts: Vec<Option<u64>> = request
        .prompts
        .unwrap_or_default()
        .into_iter()
        .map(|prompt| prompt.map(|prompt| prompt_fingerprint(&prompt.into_messages())))
        .collect();
    for (field, count) in [("rewards", rewards.len()), ("prompts", prompts.len())] {
        if count > 0 && count != rows.len() {
            let message = format!("{count}, and {} latents: give one each", rows.len());
            return wrong(format!("/{field}"), message);
        }
    }
    let latents = rows.into_iter().flatten().map(f64::from).collect();
    Ok(BaselineAnswers { latents, dimension, rewards, prompts })
}
