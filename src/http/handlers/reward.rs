//! `POST /reward`: the native scoring call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::engine::JobScore;
use crate::http::middleware::AdmittedBody;
use crate::http::scoring::{
    Caller, Outcome, RunHeaders, RunQuery, ScoringWork, Truncation, check_count, inputs, score,
};
use crate::http::state::{ApiError, AppState, ScoringErrors};
use crate::input::{InputItem, ItemError};
use crate::json::{integer, object};
use crate::model::{Parts, Score, variance};
use crate::model_loader::Objective;
use crate::monitor::alerts::AlertKind;
use crate::monitor::statistics::mahalanobis::Mahalanobis;
use crate::monitor::{Role, SampleOrigin};

/// The body of a request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "expected a JSON object with `inputs`")]
pub(in crate::http) struct RewardRequest {
    /// At most `limits.max_inputs`
    #[serde(deserialize_with = "object::list")]
    #[schema(min_items = 1, max_items = 1024)]
    inputs: Vec<InputItem>,
    /// Which of several models; else `?model=`, else the first
    model: Option<String>,
    /// Training run; else the header X-Run-Id, else `default`
    #[schema(min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    run: Option<String>,
    /// Training step; else the header X-Step
    #[schema(minimum = 0, maximum = 9007199254740991_u64)]
    #[serde(default, deserialize_with = "integer::option")]
    step: Option<u64>,
    // Many clients send null for what they do not set.
    role: Option<Role>,
    /// Default true
    return_latents: Option<bool>,
    latents_format: Option<LatentsFormat>,
    /// Default false
    return_sigma: Option<bool>,
    /// Draws of the latent for `reward_std`; at most `limits.max_samples`
    #[schema(minimum = 0, maximum = 1024)]
    #[serde(default, deserialize_with = "integer::option")]
    samples: Option<usize>,
    /// Keep the end of an over-long input instead of an item error; default false
    truncate: Option<bool>,
    /// At most `limits.max_deadline_ms`; default `limits.default_deadline_ms`
    #[schema(minimum = 1, maximum = 600000)]
    #[serde(default, deserialize_with = "integer::option")]
    deadline_ms: Option<u64>,
    /// Whether a known score will do, and is kept; default true
    cache: Option<bool>,
    /// Whether each item says where its time went; default false
    timing: Option<bool>,
}

/// How latents are written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
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
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RewardResponse {
    rewards: Vec<Option<f32>>,
    /// Only where the run's rewards are shaped: the model's own
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_rewards: Option<Vec<Option<f32>>>,
    latents: Option<Vec<Option<Floats>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma: Option<Vec<Option<Floats>>>,
    items: Vec<Item>,
    model: String,
    weights: String,
    run: Option<RunStatus>,
}

/// A vector in the format that was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Floats {
    Numbers(Vec<f32>),
    Text(String),
}

/// What is known of one input besides its reward.
#[derive(Debug, Serialize, ToSchema)]
struct Item {
    tokens: Option<usize>,
    truncated: bool,
    cached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timing: Option<InputTiming>,
    reward_std: Option<f32>,
    mahalanobis: Option<f64>,
    /// Only of a head with several labels: what it gives for each, by the label's name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = HashMap<String, f32>)]
    objectives: Option<NamedValues>,
    /// Only of an ensemble: each member's reward
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    members: Option<Vec<f32>>,
    /// Only of an ensemble: the variance of its members' rewards, over their number
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    variance: Option<f64>,
    error: Option<ItemError>,
}

/// Numbers by their names, in their own order.
#[derive(Debug)]
struct NamedValues(Vec<(String, f32)>);

impl Serialize for NamedValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Where an input's time went, in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Timing)]
struct InputTiming {
    queue_ms: f64,
    device_ms: f64,
}

impl InputTiming {
    fn of(scored: &JobScore) -> Self {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Self { queue_ms: milliseconds(scored.queue), device_ms: milliseconds(scored.device) }
    }
}

/// The last finished evaluation of the request's run.
#[derive(Debug, Serialize, ToSchema)]
struct RunStatus {
    id: String,
    step: Option<u64>,
    csi: Option<f64>,
    csi_ratio: Option<f64>,
    early_stop: bool,
    reason: Option<String>,
    /// Kinds of the alerts that last
    alerts: Vec<AlertKind>,
}

/// Score prompts with responses
#[utoipa::path(
    post,
    path = "/reward",
    tag = "native",
    params(RunHeaders, RunQuery),
    request_body(content = RewardRequest, example = json!({
        "inputs": [{"prompt": "How do I boil an egg?", "response": "Eight minutes in boiling water."}],
        "run": "ppo-7", "step": 120, "return_latents": false
    })),
    responses(
        (status = 200, body = RewardResponse, description = "A reward, or an error, for each input"),
        ScoringErrors
    )
)]
pub(in crate::http) async fn reward(
    caller: Caller,
    AdmittedBody(state, request): AdmittedBody<RewardRequest>,
) -> Result<Json<RewardResponse>, ApiError> {
    let received = Instant::now();
    state.check_is(request.model.as_deref())?;
    let role = request.role.unwrap_or_default();
    let origin = caller.origin(request.run.as_deref(), request.step, role)?;
    let deadline = received + request.check(&state)?;
    let work = ScoringWork {
        log_ratios: request.inputs.iter().map(InputItem::log_ratio).collect(),
        inputs: inputs(request.inputs)?,
        truncation: Truncation::to_context(request.truncate.unwrap_or_default()),
        draws: request.samples.unwrap_or_default(),
        cache: request.cache.unwrap_or(true),
        origin: origin.clone(),
        deadline,
    };
    let outcomes = score(&state, &caller, work).await?;

    let latents = state.latent_dim.is_some();
    let mut response = RewardResponse {
        rewards: Vec::with_capacity(outcomes.len()),
        raw_rewards: outcomes.iter().any(|outcome| outcome.is_shaped).then(Vec::new),
        latents: (latents && request.return_latents.unwrap_or(true)).then(Vec::new),
        sigma: (latents && request.return_sigma.unwrap_or_default()).then(Vec::new),
        items: Vec::with_capacity(outcomes.len()),
        model: state.model.clone(),
        weights: state.weights.clone(),
        run: run_status(&state, &origin),
    };
    let context = AnswerContext {
        format: request.latents_format.unwrap_or_default(),
        mahalanobis: state.monitor.as_ref().and_then(|monitor| monitor.mahalanobis(&origin.run)),
        timing: request.timing.unwrap_or_default(),
    };
    for outcome in outcomes {
        response.push(outcome, &context, &state.objectives);
    }
    Ok(Json(response))
}

impl RewardRequest {
    /// Checks the numbers of the request; answers the time it has.
    fn check(&self, state: &AppState) -> Result<Duration, ApiError> {
        let limits = &state.config.limits;
        check_count(self.inputs.len(), state)?;
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
struct AnswerContext {
    format: LatentsFormat,
    mahalanobis: Option<Arc<Mahalanobis>>,
    timing: bool,
}

impl AnswerContext {
    fn distance(&self, latent: &[f32]) -> Option<f64> {
        let distance = self.mahalanobis.as_ref()?.distance(latent);
        distance.is_finite().then_some(distance)
    }
}

impl RewardResponse {
    fn push(&mut self, outcome: Outcome, context: &AnswerContext, labels: &[Objective]) {
        let Outcome { tokens, truncated, scored, raw_reward, .. } = outcome;
        let (scored, error) = match scored {
            Ok(scored) => (Some(scored), None),
            Err(error) => (None, Some(error)),
        };
        self.rewards.push(scored.as_ref().map(|scored| scored.score.reward));
        if let Some(raw_rewards) = &mut self.raw_rewards {
            raw_rewards.push(raw_reward);
        }
        let reward_std = scored.as_ref().and_then(|scored| scored.reward_std);
        let cached = scored.as_ref().is_some_and(|scored| scored.cached);
        let timing = scored.as_ref().filter(|_| context.timing).map(InputTiming::of);
        let Score { latent, parts, .. } = scored.map(|scored| scored.score).unwrap_or_default();
        let objectives = match &parts {
            Parts::Objectives(values) => {
                let named =
                    labels.iter().map(|label| label.name.clone()).zip(values.iter().copied());
                Some(NamedValues(named.collect()))
            }
            _ => None,
        };
        let members: Option<Vec<f32>> = match &parts {
            Parts::Members(members) => Some(members.iter().map(|member| member.reward).collect()),
            _ => None,
        };
        let of_members = |rewards: &Vec<f32>| {
            variance(&rewards.iter().copied().map(f64::from).collect::<Vec<_>>())
        };
        self.items.push(Item {
            tokens,
            truncated,
            cached,
            timing,
            reward_std,
            mahalanobis: latent.as_ref().and_then(|latent| context.distance(&latent.mean)),
            objectives,
            variance: members.as_ref().map(of_members),
            members,
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

fn run_status(state: &AppState, origin: &SampleOrigin) -> Option<RunStatus> {
    let evaluation = state.monitor.as_ref()?.last_evaluation(&origin.run)?;
    Some(RunStatus {
        id: origin.run.clone(),
        step: evaluation.last_step,
        csi: evaluation.statistics.csi,
        csi_ratio: evaluation.csi_ratio,
        early_stop: evaluation.early_stop,
        reason: evaluation.reason,
        alerts: evaluation.alerts,
    })
}
