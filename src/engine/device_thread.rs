//! The thread that owns the model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::queue::{Pending, Queue};
use super::{JobError, Scored};
use crate::metrics::Metrics;
use crate::model::{Score, ScoreError, Scorer};
use crate::ops::Packing;

/// Scores batches until the queue is closed and empty.
pub(super) fn run(scorer: &dyn Scorer, queue: &Queue, budget: usize, metrics: &Metrics) {
    // However this thread ends, nobody may wait for it.
    let _closing = CloseOnDrop(queue);
    while let Some(batch) = queue.next_batch(budget) {
        let tokens: usize = batch.iter().map(|pending| pending.job.ids.len()).sum();
        for pending in &batch {
            metrics.queue_seconds.observe(pending.queued.elapsed().as_secs_f64());
        }
        metrics.batch_tokens.observe(tokens as f64);
        metrics.batch_sequences.observe(batch.len() as f64);
        let started = Instant::now();
        score(scorer, batch, metrics);
        metrics.forward_seconds.observe(started.elapsed().as_secs_f64());
    }
}

struct CloseOnDrop<'a>(&'a Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Scores a batch and answers each job. A batch that fails or panics is halved until the job at
/// fault is alone.
fn score(scorer: &dyn Scorer, mut batch: Vec<Pending>, metrics: &Metrics) {
    let result = catch_unwind(AssertUnwindSafe(|| attempt(scorer, &batch, metrics)));
    let message = match result {
        Ok(Ok(scored)) => {
            for (pending, scored) in batch.into_iter().zip(scored) {
                let answer = checked(scored);
                if let Ok(scored) = &answer {
                    metrics.reward.observe(f64::from(scored.score.reward));
                }
                // A client that left in the meantime does not want its answer.
                let _ = pending.answer.send(answer);
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic")
            .to_owned(),
    };
    tracing::error!(sequences = batch.len(), error = message, "a batch failed");
    if batch.len() > 1 {
        let second = batch.split_off(batch.len() / 2);
        score(scorer, batch, metrics);
        score(scorer, second, metrics);
    } else if let Some(pending) = batch.pop() {
        let _ = pending.answer.send(Err(JobError::Device(message)));
    }
}

fn attempt(
    scorer: &dyn Scorer,
    batch: &[Pending],
    metrics: &Metrics,
) -> Result<Vec<Scored>, ScoreError> {
    let sequences: Vec<&[u32]> = batch.iter().map(|pending| pending.job.ids.as_slice()).collect();
    let packing = Packing::shared(&sequences).ok_or(ScoreError::Empty)?;
    let scores = scorer.score_packed(&packing)?;
    let tokens: usize = sequences.iter().map(|ids| ids.len()).sum();
    let count = |kind, tokens: usize| {
        metrics.tokens.with_label_values(&[kind]).inc_by(tokens as u64);
    };
    count("computed", packing.rows());
    count("shared", tokens - packing.rows());
    scores.into_iter().zip(batch).map(|(score, pending)| spread(scorer, score, pending)).collect()
}

fn spread(scorer: &dyn Scorer, score: Score, pending: &Pending) -> Result<Scored, ScoreError> {
    let reward_std = match &score.latent {
        Some(latent) if pending.job.draws > 0 => {
            Some(scorer.reward_spread(latent, pending.job.draws)?)
        }
        _ => None,
    };
    Ok(Scored { score, reward_std })
}

/// Numbers that are not finite never leave.
fn checked(scored: Scored) -> Result<Scored, JobError> {
    let latent = scored.score.latent.iter().flat_map(|l| l.mean.iter().chain(&l.sigma));
    let finite = scored.score.reward.is_finite()
        && latent.chain(&scored.reward_std).all(|value| value.is_finite());
    if finite { Ok(scored) } else { Err(JobError::NonFinite) }
}
