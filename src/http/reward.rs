//! `POST /reward`: the native scoring call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::JsonBody;
use super::error::ApiError;
use super::inputs::{InputItem, ItemError, check_count, encode};
use crate::engine::{Job, JobError, Scored};
use crate::metrics::Metrics;
use crate::monitor::mahalanobis::Mahalanobis;
use crate::monitor::{Origin, Role};

/// Name of the run that unnamed traffic belongs to.
const DEFAULT_RUN: &str = "default";
/// Longest name of a run, in bytes: it becomes a metric's label.
const MAX_RUN_NAME: usize = 128;

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "expected a JSON object with `inputs`")]
pub(super) struct RewardRequest {
    inputs: Vec<InputItem>,
    run: Option<String>,
    step: Option<u64>,
    // Many clients send null for what they do not set.
    role: Option<Role>,
    return_latents: Option<bool>,
    latents_format: Option<LatentsFormat>,
    return_sigma: Option<bool>,
    samples: Option<usize>,
    truncate: Option<bool>,
    deadline_ms: Option<u64>,
    cache: Option<bool>,
    timing: Option<bool>,
}

/// How latents are written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
enum LatentsFormat {
    /// Lists of numbers.
    #[default]
    #[serde(rename = "json")]
    Json,
    /// Little-endian 32-bit floats in base64.
    #[serde(rename = "base64-f32")]
    Base64F32,
    /// Little-endian 16-bit floats in base64.
    #[serde(rename = "base64-f16")]
    Base64F16,
}

/// The body of an answer.
#[derive(Debug, Serialize)]
pub(super) struct RewardResponse {
    rewards: Vec<Option<f32>>,
    latents: Option<Vec<Option<Floats>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma: Option<Vec<Option<Floats>>>,
    items: Vec<Item>,
    model: String,
    weights: String,
    run: Option<RunStatus>,
}

/// A vector in the format that was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Floats {
    Numbers(Vec<f32>),
    Text(String),
}

/// What is known of one input besides its reward.
#[derive(Debug, Serialize)]
struct Item {
    tokens: Option<usize>,
    truncated: bool,
    cached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timing: Option<Timing>,
    reward_std: Option<f32>,
    mahalanobis: Option<f64>,
    error: Option<ItemError>,
}

/// Where an input's time went, in milliseconds.
#[derive(Debug, Serialize)]
struct Timing {
    queue_ms: f64,
    device_ms: f64,
}

impl Timing {
    fn of(scored: &Scored) -> Self {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Self { queue_ms: milliseconds(scored.queue), device_ms: milliseconds(scored.device) }
    }
}

/// The last finished evaluation of the request's run.
#[derive(Debug, Serialize)]
struct RunStatus {
    id: String,
    step: Option<u64>,
    csi: Option<f64>,
    csi_ratio: Option<f64>,
    early_stop: bool,
    reason: Option<String>,
}

/// Scores the inputs of a request.
pub(super) async fn reward(
    State(state): State<AppState>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<RewardRequest>,
) -> Result<Json<RewardResponse>, ApiError> {
    let received = Instant::now();
    let origin = request.origin(&headers)?;
    let deadline = received + request.check(&state)?;
    state.engine.check_room(request.inputs.len(), deadline, &origin)?;
    let encodings =
        encode(&state.encoder, request.inputs, request.truncate.unwrap_or_default()).await?;
    if encodings.iter().all(Result::is_err) {
        for error in encodings.iter().filter_map(|encoding| encoding.as_ref().err()) {
            state.metrics.item_errors.with_label_values(&[error.code]).inc();
        }
        return Err(nothing_to_score(&encodings));
    }
    let draws = request.samples.unwrap_or_default();
    let cache = request.cache.unwrap_or(true);
    let jobs = encodings
        .iter()
        .flatten()
        .map(|encoding| Job { ids: encoding.ids.clone(), draws, cache })
        .collect();
    let mut answers = state.engine.score(jobs, deadline, &origin).await?.into_iter();

    let latents = state.latent_dim.is_some();
    let mut response = RewardResponse {
        rewards: Vec::with_capacity(encodings.len()),
        latents: (latents && request.return_latents.unwrap_or(true)).then(Vec::new),
        sigma: (latents && request.return_sigma.unwrap_or_default()).then(Vec::new),
        items: Vec::with_capacity(encodings.len()),
        model: state.model.clone(),
        weights: state.weights.clone(),
        run: run_status(&state, &origin),
    };
    let context = AnswerContext {
        format: request.latents_format.unwrap_or_default(),
        mahalanobis: state.monitor.as_ref().and_then(|monitor| monitor.mahalanobis(&origin.run)),
        timing: request.timing.unwrap_or_default(),
        metrics: &state.metrics,
    };
    for encoding in encodings {
        let (tokens, truncated, scored) = match encoding {
            Err(error) => (None, false, Err(error)),
            Ok(encoding) => {
                let answer = answers.next().ok_or_else(|| {
                    ApiError::internal("the engine answered fewer inputs than it was given")
                })?;
                (Some(encoding.ids.len()), encoding.truncated, answer.map_err(item_error))
            }
        };
        response.push(tokens, truncated, scored, &context);
    }
    Ok(Json(response))
}

impl RewardRequest {
    /// The run and step, from the body or else from the headers.
    fn origin(&self, headers: &HeaderMap) -> Result<Origin, ApiError> {
        // What cannot be read must not be ignored: the answers would be another run's.
        let header = |name: &str, field: &str| {
            headers.get(name).map(|value| value.to_str()).transpose().map_err(|_| {
                let message = format!("the header {name} is not ASCII; use the body's field");
                ApiError::invalid(field, message)
            })
        };
        let run = match &self.run {
            Some(run) => run,
            None => header("X-Run-Id", "/run")?.unwrap_or(DEFAULT_RUN),
        };
        if run.is_empty() || run.len() > MAX_RUN_NAME || run.chars().any(char::is_control) {
            let message = format!("1 to {MAX_RUN_NAME} bytes without control characters");
            return Err(ApiError::invalid("/run", message));
        }
        let step = match self.step {
            Some(step) => Some(step),
            None => {
                let number = |text: &str| text.parse().ok();
                let text = header("X-Step", "/step")?;
                text.map(|text| {
                    number(text).ok_or_else(|| {
                        let message = "the header X-Step must be a whole number from 0";
                        ApiError::invalid("/step", message)
                    })
                })
                .transpose()?
            }
        };
        Ok(Origin { run: run.to_owned(), step, role: self.role.unwrap_or_default() })
    }

    /// Checks the numbers of the request; answers the time it has.
    fn check(&self, state: &AppState) -> Result<Duration, ApiError> {
        let limits = &state.config.limits;
        check_count(&self.inputs, state)?;
        let samples = self.samples.unwrap_or_default();
        if samples > limits.max_samples {
            let message = format!("{samples}, the limit is {}", limits.max_samples);
            return Err(ApiError::invalid("/samples", message));
        }
        let deadline = self.deadline_ms.unwrap_or(limits.default_deadline_ms);
        if deadline == 0 || deadline > limits.max_deadline_ms {
            let message = format!("must be from 1 to {}", limits.max_deadline_ms);
            return Err(ApiError::invalid("/deadline_ms", message));
        }
        Ok(Duration::from_millis(deadline))
    }
}

/// What all inputs of a request are answered with.
struct AnswerContext<'a> {
    format: LatentsFormat,
    mahalanobis: Option<Arc<Mahalanobis>>,
    timing: bool,
    metrics: &'a Metrics,
}

impl AnswerContext<'_> {
    fn distance(&self, latent: &[f32]) -> Option<f64> {
        let distance = self.mahalanobis.as_ref()?.distance(latent);
        distance.is_finite().then_some(distance)
    }
}

impl RewardResponse {
    fn push(
        &mut self,
        tokens: Option<usize>,
        truncated: bool,
        scored: Result<Scored, ItemError>,
        context: &AnswerContext<'_>,
    ) {
        let (scored, error) = match scored {
            Ok(scored) => (Some(scored), None),
            Err(error) => {
                context.metrics.item_errors.with_label_values(&[error.code]).inc();
                (None, Some(error))
            }
        };
        self.rewards.push(scored.as_ref().map(|scored| scored.score.reward));
        let reward_std = scored.as_ref().and_then(|scored| scored.reward_std);
        let cached = scored.as_ref().is_some_and(|scored| scored.cached);
        let timing = scored.as_ref().filter(|_| context.timing).map(Timing::of);
        let latent = scored.and_then(|scored| scored.score.latent);
        self.items.push(Item {
            tokens,
            truncated,
            cached,
            timing,
            reward_std,
            mahalanobis: latent.as_ref().and_then(|latent| context.distance(&latent.mean)),
            error,
        });
        let (mean, sigma) = latent.map(|latent| (latent.mean, latent.sigma)).unzip();
        if let Some(latents) = &mut self.latents {
            latents.push(mean.map(|mean| context.format.write(mean)));
        }
        if let Some(sigmas) = &mut self.sigma {
            sigmas.push(sigma.map(|sigma| context.format.write(sigma)));
        }
    }
}

impl LatentsFormat {
    fn write(self, values: Vec<f32>) -> Floats {
        let bytes: Vec<u8> = match self {
            Self::Json => return Floats::Numbers(values),
            Self::Base64F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Base64F16 => values.iter().flat_map(|v| saturated(*v).to_le_bytes()).collect(),
        };
        Floats::Text(STANDARD.encode(bytes))
    }
}

/// The nearest finite 16-bit float.
fn saturated(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

fn item_error(error: JobError) -> ItemError {
    let code = match error {
        JobError::NonFinite => "non_finite_reward",
        JobError::Device(_) => "internal",
    };
    ItemError::new(code, error.to_string())
}

fn nothing_to_score(encodings: &[Result<crate::checkpoint::Encoding, ItemError>]) -> ApiError {
    let first = encodings.iter().find_map(|encoding| encoding.as_ref().err());
    let reason = first.map(|error| format!(": {}: {}", error.code, error.message));
    let message = format!(
        "none of the {} inputs can be scored; the first{}",
        encodings.len(),
        reason.unwrap_or_default()
    );
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", message)
}

fn run_status(state: &AppState, origin: &Origin) -> Option<RunStatus> {
    let evaluation = state.monitor.as_ref()?.last_evaluation(&origin.run)?;
    Some(RunStatus {
        id: origin.run.clone(),
        step: evaluation.last_step,
        csi: evaluation.csi,
        csi_ratio: evaluation.csi_ratio,
        early_stop: evaluation.early_stop,
        reason: evaluation.reason,
    })
}
