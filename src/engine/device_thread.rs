//! The thread that owns a device's model.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::cache::{KnownScore, ScoreCache};
use super::job::JobError;
use super::queue::{Batch, Queue, sequences};
use super::work::Work;
use crate::metrics::Metrics;
use crate::model::{ScoreError, Scorer};
use crate::ops::Packing;

/// What the thread works with.
pub(super) struct DeviceThread {
    pub(super) scorer: Box<dyn Scorer>,
    pub(super) queue: Arc<Queue>,
    pub(super) cache: ScoreCache,
    pub(super) metrics: Metrics,
}

/// Drops what waits however the thread ends: nobody may wait for it.
struct CloseOnDrop<'a>(&'a Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl DeviceThread {
    /// Scores batches until the queue is closed and empty.
    pub(super) fn run(self) {
        let _closing = CloseOnDrop(&self.queue);
        while let Some(batch) = self.queue.next_batch() {
            let tokens = batch.tokens();
            let works = batch.works.clone();
            let started = Instant::now();
            let work = AssertUnwindSafe(|| self.score_batch(batch, started));
            if let Err(panic) = catch_unwind(work) {
                // What was answered before is not answered again.
                tracing::error!(error = panic_message(&*panic), "the engine failed on a batch");
                self.answer(&works, &Err(JobError::Device(panic_message(&*panic))), started);
            }
            self.queue.finished(tokens, started.elapsed());
        }
    }

    fn score_batch(&self, Batch { works, packing }: Batch, started: Instant) {
        for wait in works.iter().flat_map(|work| work.waited(started)) {
            self.metrics.queue_seconds.observe(wait.as_secs_f64());
        }
        let tokens: usize = works.iter().map(|work| work.cost()).sum();
        self.metrics.batch_tokens.observe(tokens as f64);
        self.metrics.batch_sequences.observe(works.len() as f64);
        self.score(works, packing, started);
        self.metrics.forward_seconds.observe(started.elapsed().as_secs_f64());
        self.cache.tidy();
    }

    /// Scores works and answers each. A batch that fails or panics is halved until the work at fault is
    /// alone.
    fn score(&self, mut works: Vec<Arc<Work>>, packing: Option<Packing>, started: Instant) {
        let result = catch_unwind(AssertUnwindSafe(|| self.attempt(&works, packing)));
        let message = match result {
            Ok(Ok(results)) => return self.deliver(&works, &results, started),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(sequences = works.len(), error = message, "a batch failed");
        if works.len() > 1 {
            let second = works.split_off(works.len() / 2);
            self.score(works, None, started);
            self.score(second, None, started);
        } else {
            self.answer(&works, &Err(JobError::Device(message)), started);
        }
    }

    fn attempt(
        &self,
        works: &[Arc<Work>],
        packing: Option<Packing>,
    ) -> Result<Vec<Result<KnownScore, JobError>>, ScoreError> {
        let sequences = sequences(works);
        let scores = if sequences.is_empty() {
            Vec::new()
        } else {
            let packing = match packing {
                Some(packing) => packing,
                None => Packing::shared(&sequences).ok_or(ScoreError::Empty)?,
            };
            let tokens: usize = sequences.iter().map(|ids| ids.len()).sum();
            let scores = self.scorer.score_packed(&packing)?;
            self.metrics.count_tokens("computed", packing.rows());
            self.metrics.count_tokens("shared", tokens - packing.rows());
            scores
        };
        let mut scores = scores.into_iter();
        let mut result = |work: &Arc<Work>| {
            let score = match &work.known {
                Some(score) => score.clone(),
                None => Arc::new(scores.next().ok_or(ScoreError::Empty)?),
            };
            let reward_std = match work.draws {
                0 => None,
                draws => self.scorer.reward_spread(&score, draws)?,
            };
            Ok(checked(KnownScore { score, reward_std }))
        };
        works.iter().map(&mut result).collect()
    }

    fn deliver(
        &self,
        works: &[Arc<Work>],
        results: &[Result<KnownScore, JobError>],
        started: Instant,
    ) {
        for (work, result) in works.iter().zip(results) {
            if let (Some(key), Ok(known)) = (work.key, result) {
                if work.draws > 0 {
                    let score = KnownScore { reward_std: None, ..known.clone() };
                    self.cache.insert(key.without_draws(), score);
                }
                self.cache.insert(key, known.clone());
            }
        }
        self.queue.settle(works);
        for (work, result) in works.iter().zip(results) {
            work.answer(result, started);
        }
    }

    /// Gives the same answer to all that have none yet.
    fn answer(&self, works: &[Arc<Work>], result: &Result<KnownScore, JobError>, started: Instant) {
        self.queue.settle(works);
        works.iter().for_each(|work| work.answer(result, started));
    }
}

/// Numbers that are not finite never leave.
fn checked(known: KnownScore) -> Result<KnownScore, JobError> {
    let finite = known.score.values().chain(known.reward_std).all(f32::is_finite);
    if finite { Ok(known) } else { Err(JobError::NonFinite) }
}

/// The message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic").to_owned()
}
