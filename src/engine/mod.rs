//! Dynamic batching: requests from any number of connections become full batches on one device
//! thread.

mod device_thread;
mod queue;

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::metrics::Metrics;
use crate::model::{Score, Scorer};
use crate::monitor::{Monitor, Observation, Origin, Sample};
use queue::{Pending, Queue};

/// Settings of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Tokens of a batch. A longer single input is a batch of its own.
    pub token_budget: usize,
    /// Tokens that may wait. A request that would exceed it is refused, unless nothing waits.
    pub queue_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { token_budget: 8192, queue_tokens: 1 << 20 }
    }
}

/// One sequence to score.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids, not empty, each below the vocabulary size.
    pub ids: Vec<u32>,
    /// Draws of the latent for the reward's standard deviation; 0 for none.
    pub draws: usize,
}

/// What the device gives for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Reward and latent, all finite.
    pub score: Score,
    /// Standard deviation of the reward over the draws, where they were asked for.
    pub reward_std: Option<f32>,
}

/// A job that got no score; its neighbours did.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JobError {
    /// The weights gave a number that is not finite.
    #[error("the model's output for this input is not finite")]
    NonFinite,
    /// The device failed on this input.
    #[error("scoring this input failed: {0}")]
    Device(String),
}

/// A request that the engine did not score at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineError {
    /// Too many tokens wait already; try again.
    #[error("{waiting} tokens wait and {asked} more exceed the limit of {limit}; try again")]
    QueueFull {
        /// Tokens in the queue.
        waiting: usize,
        /// Tokens of this request.
        asked: usize,
        /// The queue's limit.
        limit: usize,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The deadline passed.
    #[error("not scored within the deadline")]
    DeadlineExceeded,
}

/// Results in the order of the jobs.
type Answers = Vec<Result<Scored, JobError>>;

/// Handle to the device thread. Cheap to share.
pub struct Engine {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
    monitor: Option<Monitor>,
    metrics: Metrics,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the device thread, which owns the model from now on. Scored answers are shown to
    /// `monitor`.
    ///
    /// # Errors
    /// Where the operating system refuses the thread.
    pub fn start(
        scorer: Box<dyn Scorer>,
        config: &EngineConfig,
        monitor: Option<Monitor>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(config.queue_tokens, metrics.queue_tokens.clone()));
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn({
            let (queue, metrics, budget) = (queue.clone(), metrics.clone(), config.token_budget);
            move || device_thread::run(&*scorer, &queue, budget, &metrics)
        })?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)), monitor, metrics })
    }

    /// Scores a request's jobs, batched with whatever else is in flight, and shows the monitor what
    /// came out. Where the returned future is dropped, jobs that the device has not begun are
    /// dropped with it.
    ///
    /// # Errors
    /// Where the request is not admitted or the deadline passes; a failing job fails alone.
    pub async fn score(
        &self,
        jobs: Vec<Job>,
        deadline: Instant,
        origin: &Origin,
    ) -> Result<Answers, EngineError> {
        let lengths: Vec<usize> = jobs.iter().map(|job| job.ids.len()).collect();
        let (pending, receivers): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .map(|job| {
                let (answer, receiver) = oneshot::channel();
                (Pending { job, deadline, queued: Instant::now(), answer }, receiver)
            })
            .unzip();
        self.queue.push(pending)?;
        self.metrics
            .tokens
            .with_label_values(&["logical"])
            .inc_by(lengths.iter().sum::<usize>() as u64);
        let collect = async {
            let mut answers = Vec::with_capacity(receivers.len());
            for receiver in receivers {
                // A sender is dropped for a job whose deadline has passed, or when the engine ends.
                answers.push(receiver.await.map_err(|_| {
                    if Instant::now() < deadline {
                        EngineError::Draining
                    } else {
                        EngineError::DeadlineExceeded
                    }
                })?);
            }
            Ok(answers)
        };
        let answers: Answers = tokio::time::timeout_at(deadline.into(), collect)
            .await
            .map_err(|_| EngineError::DeadlineExceeded)??;
        if let Some(monitor) = self.monitor.as_ref() {
            let samples = answers.iter().zip(lengths).filter_map(|(answer, tokens)| {
                let score = &answer.as_ref().ok()?.score;
                let latent = score.latent.as_ref()?.mean.clone();
                Some(Sample { latent, reward: score.reward, tokens })
            });
            monitor.observe(Observation::new(origin.clone(), samples.collect()));
        }
        Ok(answers)
    }

    /// Whether new requests are admitted.
    pub fn is_accepting(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Stops admission, and drops what the device has not begun.
    pub fn abandon(&self) {
        self.queue.abandon();
    }

    /// Stops admission, and waits until everything admitted before is scored.
    pub fn join(&self) {
        self.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            // The thread catches the panics of a batch; one outside a batch was printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}
