//! The one scoring call. Every protocol is an adapter over it.

use std::sync::Arc;
use std::time::Instant;

use super::caller::Caller;
use super::inputs::{Encodings, MaybeInput, Truncation, check_not_too_many, encode};
use super::outcome::Outcome;
use crate::engine::{Job, JobError, JobScore};
use crate::http::state::{ApiError, AppState};
use crate::input::ItemError;
use crate::monitor::shaping::{ShapingError, ShapingParameters, ShapingTerms};
use crate::monitor::statistics::mahalanobis::Mahalanobis;
use crate::monitor::{Role, SampleOrigin, Subject};

/// What a request asks.
#[derive(Debug)]
pub(in crate::http) struct ScoringWork {
    pub(in crate::http) inputs: Vec<MaybeInput>,
    pub(in crate::http) truncation: Truncation,
    /// Draws of the latent for the reward's standard deviation; 0 for none.
    pub(in crate::http) draws: usize,
    /// Whether a known score will do, and is kept.
    pub(in crate::http) cache: bool,
    pub(in crate::http) origin: SampleOrigin,
    pub(in crate::http) deadline: Instant,
    /// `log p - log p_ref` of each input's response, where the caller sends it; may be shorter than the
    /// inputs.
    pub(in crate::http) log_ratios: Vec<Option<f64>>,
}

/// Scores inputs, in their order. One that cannot be scored fails alone.
///
/// # Errors
/// Too many inputs, a full queue, a used-up quota, a deadline that has passed, or inputs of which none
/// can be encoded.
pub(in crate::http) async fn score(
    state: &AppState,
    caller: &Caller,
    mut work: ScoringWork,
) -> Result<Vec<Outcome>, ApiError> {
    check_not_too_many(work.inputs.len(), state)?;
    if work.inputs.is_empty() {
        return Ok(Vec::new());
    }
    state.engine.check_room(Some(&work.origin.run), work.inputs.len(), work.deadline)?;
    let shaping = Shaping::of(state, &work.origin);
    if let Some(shaping) = &shaping {
        shaping.refuse_what_lacks_a_term(&mut work);
    }
    // Nobody is told of a text where no run is monitored.
    let subjects: Vec<Subject> = match &state.monitor {
        Some(_) => work
            .inputs
            .iter()
            .map(|input| input.as_ref().map(Subject::of))
            .map(Result::unwrap_or_default)
            .collect(),
        None => vec![Subject::default(); work.inputs.len()],
    };
    let encodings = encode(&state.encoder, work.inputs, work.truncation).await?;
    for error in encodings.iter().filter_map(|encoding| encoding.as_ref().err()) {
        state.metrics.item_errors.with_label_values(&[error.code]).inc();
    }
    if encodings.iter().all(Result::is_err) {
        return Err(nothing_to_score(encodings.iter().filter_map(|e| e.as_ref().err())));
    }
    if let Some(key) = &caller.key {
        key.charge(encodings.iter().flatten().map(|encoding| encoding.ids.len()).sum())?;
    }
    let jobs =
        encodings.iter().zip(subjects).enumerate().filter_map(|(index, (encoding, subject))| {
            let ids = encoding.as_ref().ok()?.ids.clone();
            Some(Job { ids, draws: work.draws, cache: work.cache, index, subject })
        });
    let jobs = jobs.collect();
    let answers = state.engine.score(jobs, work.deadline, &work.origin).await?;
    let mut outcomes = outcomes(state, encodings, answers)?;
    if let Some(shaping) = &shaping {
        let ratios = work.log_ratios.into_iter().chain(std::iter::repeat(None));
        for (outcome, log_ratio) in outcomes.iter_mut().zip(ratios) {
            shaping.apply(outcome, log_ratio);
            if let (true, Some(error)) = (outcome.raw_reward.is_some(), outcome.error()) {
                state.metrics.item_errors.with_label_values(&[error.code]).inc();
            }
        }
    }
    if let Some(timing) = &caller.timing {
        timing.note(&outcomes);
    }
    Ok(outcomes)
}

/// What is taken off the rewards of a run's policy. The monitor has seen the model's by then.
struct Shaping {
    parameters: ShapingParameters,
    mahalanobis: Option<Arc<Mahalanobis>>,
}

impl Shaping {
    fn of(state: &AppState, origin: &SampleOrigin) -> Option<Self> {
        if origin.role != Role::Policy {
            return None;
        }
        let (parameters, mahalanobis) = match &state.monitor {
            Some(monitor) => monitor.shaping(&origin.run),
            None => (state.config.monitor.shaping, None),
        };
        parameters.is_on().then_some(Self { parameters, mahalanobis })
    }

    /// Fails the inputs that could not be shaped, before they are scored.
    fn refuse_what_lacks_a_term(&self, work: &mut ScoringWork) {
        for (index, input) in work.inputs.iter_mut().enumerate() {
            // The values do not matter yet.
            let terms = ShapingTerms {
                distance: self.mahalanobis.as_ref().map(|_| 0.0),
                reward_std: (work.draws > 0).then_some(0.0),
                log_ratio: work.log_ratios.get(index).copied().flatten().map(|_| 0.0),
            };
            if let (Ok(_), Err(error)) = (&input, self.parameters.shape(0.0, &terms)) {
                *input = Err(shaping_error(error));
            }
        }
    }

    fn apply(&self, outcome: &mut Outcome, log_ratio: Option<f64>) {
        outcome.is_shaped = true;
        let Ok(scored) = &mut outcome.scored else { return };
        let latent = scored.score.latent.as_ref();
        let terms = ShapingTerms {
            distance: self.mahalanobis.as_ref().zip(latent).map(|(m, l)| m.distance(&l.mean)),
            reward_std: scored.reward_std.map(f64::from),
            log_ratio,
        };
        outcome.raw_reward = Some(scored.score.reward);
        match self.parameters.shape(scored.score.reward, &terms) {
            Ok(shaped) => scored.score.reward = shaped,
            Err(error) => outcome.scored = Err(shaping_error(error)),
        }
    }
}

fn shaping_error(error: ShapingError) -> ItemError {
    let code = match error {
        ShapingError::Missing(_) => "shaping_unavailable",
        ShapingError::NonFinite => "non_finite_reward",
    };
    ItemError::new(code, error.to_string())
}

fn outcomes(
    state: &AppState,
    encodings: Encodings,
    answers: Vec<Result<JobScore, JobError>>,
) -> Result<Vec<Outcome>, ApiError> {
    let mut answers = answers.into_iter();
    let mut outcomes = Vec::with_capacity(encodings.len());
    for encoding in encodings {
        let (tokens, truncated, scored) = match encoding {
            Err(error) => (None, false, Err(error)),
            Ok(encoding) => {
                let answer = answers.next().ok_or_else(|| {
                    ApiError::internal("the engine answered fewer inputs than it was given")
                })?;
                let scored = answer.map_err(|error| {
                    let error = item_error(&error);
                    state.metrics.item_errors.with_label_values(&[error.code]).inc();
                    error
                });
                (Some(encoding.ids.len()), encoding.truncated, scored)
            }
        };
        let (is_shaped, raw_reward) = (false, None);
        outcomes.push(Outcome { tokens, truncated, scored, is_shaped, raw_reward });
    }
    Ok(outcomes)
}

fn item_error(error: &JobError) -> ItemError {
    let code = match error {
        JobError::NonFinite => "non_finite_reward",
        JobError::Device(_) => "internal",
    };
    ItemError::new(code, error.to_string())
}

/// The answer to a request of which no input got a score.
pub(in crate::http) fn nothing_to_score<'a>(
    errors: impl Iterator<Item = &'a ItemError>,
) -> ApiError {
    let errors: Vec<&ItemError> = errors.collect();
    let reason = errors.first().map(|error| format!(": {}: {}", error.code, error.message));
    ApiError::unprocessable(format!(
        "none of the {} inputs can be scored; the first{}",
        errors.len(),
        reason.unwrap_or_default()
    ))
}
