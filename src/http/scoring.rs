//! The one scoring call. Every protocol is an adapter over it.

use std::time::Instant;

use super::AppState;
use super::caller::Caller;
use super::error::ApiError;
use super::inputs::{Encodings, ItemError, MaybeInput, Truncation, check_not_too_many, encode};
use crate::engine::{Job, JobError, Scored};
use crate::monitor::{Origin, Subject};

/// What a request asks.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) inputs: Vec<MaybeInput>,
    pub(super) truncation: Truncation,
    /// Draws of the latent for the reward's standard deviation; 0 for none.
    pub(super) draws: usize,
    /// Whether a known score will do, and is kept.
    pub(super) cache: bool,
    pub(super) origin: Origin,
    pub(super) deadline: Instant,
}

/// What became of one input.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Length of the scored sequence; `None` where the input has no tokens.
    pub(super) tokens: Option<usize>,
    pub(super) truncated: bool,
    pub(super) scored: Result<Scored, ItemError>,
}

impl Outcome {
    /// The reward; always finite.
    pub(super) fn reward(&self) -> Option<f32> {
        self.scored.as_ref().ok().map(|scored| scored.score.reward)
    }

    pub(super) fn error(&self) -> Option<&ItemError> {
        self.scored.as_ref().err()
    }
}

/// Scores inputs, in their order. One that cannot be scored fails alone.
///
/// # Errors
/// Too many inputs, a full queue, a used-up quota, a deadline that has passed, or inputs of which none
/// can be encoded.
pub(super) async fn score(
    state: &AppState,
    caller: &Caller,
    work: Work,
) -> Result<Vec<Outcome>, ApiError> {
    check_not_too_many(work.inputs.len(), state)?;
    if work.inputs.is_empty() {
        return Ok(Vec::new());
    }
    state.engine.check_room(work.inputs.len(), work.deadline, &work.origin)?;
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
    outcomes(state, encodings, answers)
}

fn outcomes(
    state: &AppState,
    encodings: Encodings,
    answers: Vec<Result<Scored, JobError>>,
) -> Result<Vec<Outcome>, ApiError> {
    let mut answers = answers.into_iter();
    let mut outcomes = Vec::with_capacity(encodings.len());
    for encoding in encodings {
        outcomes.push(match encoding {
            Err(error) => Outcome { tokens: None, truncated: false, scored: Err(error) },
            Ok(encoding) => {
                let answer = answers.next().ok_or_else(|| {
                    ApiError::internal("the engine answered fewer inputs than it was given")
                })?;
                let scored = answer.map_err(|error| {
                    let error = item_error(&error);
                    state.metrics.item_errors.with_label_values(&[error.code]).inc();
                    error
                });
                let tokens = Some(encoding.ids.len());
                Outcome { tokens, truncated: encoding.truncated, scored }
            }
        });
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
pub(super) fn nothing_to_score<'a>(errors: impl Iterator<Item = &'a ItemError>) -> ApiError {
    let errors: Vec<&ItemError> = errors.collect();
    let reason = errors.first().map(|error| format!(": {}: {}", error.code, error.message));
    ApiError::unprocessable(format!(
        "none of the {} inputs can be scored; the first{}",
        errors.len(),
        reason.unwrap_or_default()
    ))
}
