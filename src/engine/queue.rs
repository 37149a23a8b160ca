//! The queue between connections and the device thread, bounded in tokens.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use tokio::sync::oneshot;

use super::{EngineError, Job, JobError, Scored};

/// A job that waits for the device.
pub(super) struct Pending {
    pub(super) job: Job,
    pub(super) deadline: Instant,
    pub(super) queued: Instant,
    pub(super) answer: oneshot::Sender<Result<Scored, JobError>>,
}

impl Pending {
    /// Whether somebody still waits for the answer, and it can still be in time.
    fn is_wanted(&self, now: Instant) -> bool {
        !self.answer.is_closed() && now < self.deadline
    }
}

/// First in, first out.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
    gauge: IntGauge,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Pending>,
    tokens: usize,
    closed: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Queue")
            .field("waiting", &state.waiting.len())
            .field("tokens", &state.tokens)
            .field("closed", &state.closed)
            .finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(limit: usize, gauge: IntGauge) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit, gauge }
    }

    /// Admits all jobs of a request, or none.
    pub(super) fn push(&self, jobs: Vec<Pending>) -> Result<(), EngineError> {
        let asked = jobs.iter().map(|pending| pending.job.ids.len()).sum();
        let mut state = self.state.lock();
        if state.closed {
            return Err(EngineError::Draining);
        }
        // An empty queue takes any one request, so that none is refused for ever.
        if state.tokens > 0 && state.tokens + asked > self.limit {
            return Err(EngineError::QueueFull { waiting: state.tokens, asked, limit: self.limit });
        }
        state.tokens += asked;
        state.waiting.extend(jobs);
        self.gauge.set(state.tokens as i64);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next batch: as many jobs as the budget holds and at least one. Waits for one, and answers
    /// `None` when the queue is closed and empty. Jobs that nobody waits for are left out.
    pub(super) fn next_batch(&self, budget: usize) -> Option<Vec<Pending>> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let mut batch = Vec::new();
            let mut tokens = 0;
            while let Some(next) = state.waiting.front() {
                let length = next.job.ids.len();
                if next.is_wanted(now) {
                    if !batch.is_empty() && tokens + length > budget {
                        break;
                    }
                    tokens += length;
                    batch.extend(state.waiting.pop_front());
                } else {
                    state.waiting.pop_front();
                }
                state.tokens -= length;
            }
            self.gauge.set(state.tokens as i64);
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Closes, and drops whatever still waits.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        state.tokens = 0;
        self.gauge.set(0);
        drop(state);
        drop(waiting);
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}
