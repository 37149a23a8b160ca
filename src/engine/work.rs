//! A piece of work: what is scored once, however many wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::cache::{KnownScore, ScoreKey};
use super::job::{JobError, JobScore};
use crate::model::Score;

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<JobScore, JobError>>,
}

impl Waiter {
    fn is_there(&self, now: Instant) -> bool {
        !self.answer.is_closed() && now < self.deadline
    }
}

/// Where a piece of work waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WorkPlace {
    pub(super) lane: u64,
    pub(super) number: u64,
}

/// A sequence to score.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) ids: Arc<[u32]>,
    pub(super) draws: usize,
    /// Under which the answer is kept, and others may join; `None` for work of its own.
    pub(super) key: Option<ScoreKey>,
    /// The score, where only the spread over the draws is missing.
    pub(super) known: Option<Arc<Score>>,
    /// `None` once the device has it.
    pub(super) place: Mutex<Option<WorkPlace>>,
    waiters: Mutex<Vec<Waiter>>,
}

impl Work {
    pub(super) fn new(
        ids: Arc<[u32]>,
        draws: usize,
        key: Option<ScoreKey>,
        known: Option<Arc<Score>>,
        waiter: Waiter,
    ) -> Self {
        let waiters = Mutex::new(vec![waiter]);
        Self { ids, draws, key, known, place: Mutex::default(), waiters }
    }

    /// Tokens of the device's time.
    pub(super) fn cost(&self) -> usize {
        if self.known.is_some() { 1 } else { self.ids.len() }
    }

    /// One more waits. Only under the queue's lock, while the work can be found there.
    pub(super) fn join(&self, waiter: Waiter) {
        self.waiters.lock().push(waiter);
    }

    /// Whether somebody still waits, whom an answer can still reach in time.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        self.waiters.lock().iter().any(|waiter| waiter.is_there(now))
    }

    /// The time each has waited at `now`.
    pub(super) fn waited(&self, now: Instant) -> Vec<Duration> {
        self.waiters.lock().iter().map(|w| now.saturating_duration_since(w.since)).collect()
    }

    /// Answers all who wait. `started` is when the device began.
    pub(super) fn answer(&self, result: &Result<KnownScore, JobError>, started: Instant) {
        let now = Instant::now();
        for Waiter { since, answer, .. } in std::mem::take(&mut *self.waiters.lock()) {
            // Who joined after the start has waited for the device only.
            let begun = started.max(since);
            let result = result.clone().map(|known| JobScore {
                score: (*known.score).clone(),
                reward_std: known.reward_std,
                cached: false,
                queue: begun.duration_since(since),
                device: now.saturating_duration_since(begun),
            });
            // A client that left in the meantime does not want its answer.
            let _ = answer.send(result);
        }
    }
}
