//! What the journal keeps of samples, runs and baselines, apart from the monitor's own types: those may
//! change, and a journal must stay readable. `store::FORMAT` counts changes here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::monitor::answers::{BaselineOrigin, BaselineSet, Sample};

/// The samples of one request, in the postcard format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::monitor) struct ObservationRecord {
    /// When they were scored, in seconds since the Unix epoch.
    pub(in crate::monitor) at: f64,
    pub(in crate::monitor) step: Option<u64>,
    request: String,
    samples: Vec<ObservedSample>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ObservedSample {
    latent: Vec<f32>,
    sigma: f32,
    divergence: f32,
    reward: f32,
    tokens: u32,
    response_characters: Option<u32>,
    prompt: Option<u64>,
    sequence: u64,
    index: u32,
}

impl ObservationRecord {
    /// Of samples of one request.
    pub(in crate::monitor) fn new(at: f64, step: Option<u64>, samples: &[Sample]) -> Self {
        let request = samples.first().map_or_else(String::new, |s| s.request.to_string());
        let samples = samples.iter().map(|sample| ObservedSample {
            latent: sample.latent.clone(),
            sigma: sample.sigma,
            divergence: sample.divergence,
            reward: sample.reward,
            tokens: sample.tokens,
            response_characters: sample.response_characters,
            prompt: sample.prompt,
            sequence: sample.sequence,
            index: sample.index,
        });
        Self { at, step, request, samples: samples.collect() }
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Leaves out the first `count` samples.
    pub(super) fn skip(&mut self, count: usize) {
        self.samples.drain(..count.min(self.samples.len()));
    }

    pub(in crate::monitor) fn into_samples(self) -> Vec<Sample> {
        let request: Arc<str> = self.request.into();
        let samples = self.samples.into_iter().map(|sample| Sample {
            latent: sample.latent,
            sigma: sample.sigma,
            divergence: sample.divergence,
            reward: sample.reward,
            tokens: sample.tokens,
            response_characters: sample.response_characters,
            prompt: sample.prompt,
            sequence: sample.sequence,
            request: request.clone(),
            index: sample.index,
        });
        samples.collect()
    }
}

/// A run, in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::monitor) struct RunRecord {
    /// Hash of the weights that its latents are of.
    pub(in crate::monitor) weights: String,
    pub(in crate::monitor) name: String,
    /// Its own settings, over the server's.
    pub(in crate::monitor) config: Map<String, Value>,
}

/// What evaluations go on from, in JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::monitor) struct StateRecord {
    /// First sample of the last window that was evaluated.
    pub(in crate::monitor) window: u64,
    /// Samples that were evaluated: the open window begins with this one, counted from 0.
    pub(in crate::monitor) consumed: u64,
    /// Early stop, alerts, counts: the run's own form.
    pub(in crate::monitor) state: Value,
}

/// A baseline in use, in the postcard format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::monitor) struct BaselineRecord {
    pub(in crate::monitor) version: u64,
    pub(in crate::monitor) origin: BaselineOrigin,
    pub(in crate::monitor) rows: usize,
    pub(in crate::monitor) dimension: usize,
    /// `[rows, d]`; empty for a recorded baseline, which is the first `rows` recorded answers.
    pub(in crate::monitor) latents: Vec<f32>,
    pub(in crate::monitor) rewards: Option<Vec<f32>>,
    pub(in crate::monitor) prompts: Option<Vec<Option<u64>>>,
}

impl BaselineRecord {
    /// Of a baseline. The journal has recorded answers already.
    pub(in crate::monitor) fn of(baseline: &BaselineSet) -> Self {
        let recorded = baseline.origin == BaselineOrigin::Recorded;
        Self {
            version: baseline.version,
            origin: baseline.origin,
            rows: baseline.len(),
            dimension: baseline.latents.ncols(),
            latents: if recorded {
                Vec::new()
            } else {
                // They were f32 when they came.
                baseline.latents.iter().map(|&value| value as f32).collect()
            },
            rewards: baseline.rewards.clone().filter(|_| !recorded),
            prompts: baseline.prompts.clone().filter(|_| !recorded),
        }
    }
}
