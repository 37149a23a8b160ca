//! Jobs, and what becomes of them.

use std::time::Duration;

use thiserror::Error;

use crate::model::Score;
use crate::monitor::Subject;

/// One sequence to score.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids, not empty, each below the vocabulary size.
    pub ids: Vec<u32>,
    /// Draws of the latent for the reward's standard deviation; 0 for none.
    pub draws: usize,
    /// Whether a known score will do, and the same work of others; and whether the score is kept.
    pub cache: bool,
    /// Which input of its request it is, from 0.
    pub index: usize,
    /// What the monitor is told of it.
    pub subject: Subject,
}

/// What the device gives for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobScore {
    /// Reward and latent, all finite.
    pub score: Score,
    /// Standard deviation of the reward over the draws, where they were asked for.
    pub reward_std: Option<f32>,
    /// Whether the score was known before.
    pub cached: bool,
    /// How long the job waited for its batch to begin.
    pub queue: Duration,
    /// How long it was with the device.
    pub device: Duration,
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

/// Results in the order of the jobs.
pub(super) type JobAnswers = Vec<Result<JobScore, JobError>>;
