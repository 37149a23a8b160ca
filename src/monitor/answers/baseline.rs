//! The SFT latents that a run's windows are compared with.

use std::sync::{Arc, OnceLock};

use ndarray::Array2;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::sample::Sample;
use crate::checkpoint::Baseline;
use crate::monitor::statistics::null::Null;
use crate::monitor::statistics::{CsiParameters, EpsMode, Mahalanobis, Reference};

/// Where a baseline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaselineOrigin {
    /// The checkpoint's `baseline.safetensors`.
    Checkpoint,
    /// Requests with `role = "baseline"`.
    Recorded,
    /// `PUT /runs/{run}/baseline`.
    Uploaded,
}

/// SFT answers: what a baseline is made of.
#[derive(Debug, Clone, Default)]
pub struct BaselineAnswers {
    /// Posterior means, one row an answer.
    pub latents: Vec<f64>,
    /// Dimension d of a latent; 0 while there is none.
    pub dimension: usize,
    /// Rewards of the answers; empty where they are not known.
    pub rewards: Vec<f32>,
    /// Fingerprints of the prompts, where they are known; empty where none is.
    pub prompts: Vec<Option<u64>>,
}

impl BaselineAnswers {
    /// Number of answers.
    pub fn len(&self) -> usize {
        self.latents.len().checked_div(self.dimension).unwrap_or_default()
    }

    /// Whether there is no answer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `count` answers.
    pub(in crate::monitor) fn truncate(&mut self, count: usize) {
        self.latents.truncate(count * self.dimension);
        self.rewards.truncate(count);
        self.prompts.truncate(count);
    }

    /// Adds an answer; one of another dimension is left out.
    pub fn push(&mut self, sample: &Sample) {
        if self.is_empty() {
            self.dimension = sample.latent.len();
        }
        if sample.latent.len() == self.dimension {
            self.latents.extend(sample.latent.iter().map(|&value| f64::from(value)));
            self.rewards.push(sample.reward);
            self.prompts.push(sample.prompt);
        }
    }
}

/// A baseline, and what is fitted to it once.
#[derive(Debug)]
pub struct BaselineSet {
    /// Posterior means `[M, d]`.
    pub latents: Array2<f64>,
    /// Rewards `[M]`, where they are known.
    pub rewards: Option<Vec<f32>>,
    /// Fingerprints of the prompts `[M]`, where they are known.
    pub prompts: Option<Vec<Option<u64>>>,
    /// Where it comes from.
    pub origin: BaselineOrigin,
    /// 0 for the checkpoint's, then counted in each run.
    pub version: u64,
    /// Absent where the latents have no covariance to speak of.
    pub mahalanobis: Option<Arc<Mahalanobis>>,
    reference: OnceLock<Reference>,
    /// By what windows are clustered with: runs that share a baseline may differ in it.
    nulls: Mutex<Vec<(CsiParameters, Arc<Null>)>>,
}

/// Nulls of different clusterings that a baseline keeps.
const MAX_NULLS: usize = 4;

impl BaselineSet {
    /// A checkpoint's own. `None` where it has no answer.
    pub fn of_checkpoint(baseline: &Baseline) -> Option<Self> {
        let answers = BaselineAnswers {
            latents: baseline.latents.iter().map(|&value| f64::from(value)).collect(),
            dimension: baseline.dimension,
            rewards: baseline.rewards.clone().unwrap_or_default(),
            prompts: baseline.prompts.iter().flatten().map(|&prompt| Some(prompt)).collect(),
        };
        Self::new(answers, BaselineOrigin::Checkpoint, 0)
    }

    /// Fits what windows are compared with. `None` where there is no answer.
    pub fn new(answers: BaselineAnswers, origin: BaselineOrigin, version: u64) -> Option<Self> {
        let count = answers.len();
        if count == 0 {
            return None;
        }
        let BaselineAnswers { latents, dimension, rewards, prompts } = answers;
        let latents = Array2::from_shape_vec((count, dimension), latents).ok()?;
        let mahalanobis = Mahalanobis::fit(latents.view())
            .inspect_err(|error| tracing::warn!(?origin, %error, "no Mahalanobis distances"))
            .ok()
            .map(Arc::new);
        Some(Self {
            latents,
            rewards: (rewards.len() == count).then_some(rewards),
            prompts: (prompts.len() == count).then_some(prompts),
            origin,
            version,
            mahalanobis,
            reference: OnceLock::new(),
            nulls: Mutex::default(),
        })
    }

    /// What windows are compared with. The first call computes it, which may take seconds; `csi` is
    /// what windows are clustered with.
    pub fn reference(&self, csi: &CsiParameters) -> &Reference {
        self.reference.get_or_init(|| {
            Reference::new(
                self.latents.view(),
                self.mahalanobis.clone(),
                self.rewards.as_deref(),
                self.prompts.as_deref(),
                csi.min_samples,
            )
        })
    }

    /// What fresh answers of the SFT model give. The first call computes it, which takes seconds.
    /// Where the baseline gives no radius, CSI has no null.
    pub fn null(&self, csi: &CsiParameters) -> Arc<Null> {
        let mut nulls = self.nulls.lock();
        if let Some((_, null)) = nulls.iter().find(|(known, _)| known == csi) {
            return null.clone();
        }
        let reference = self.reference(csi);
        let eps = reference.eps(csi).unwrap_or(f64::NAN);
        let fixed = CsiParameters { eps, eps_mode: EpsMode::Fixed, ..csi.clone() };
        let null = Null::fit(self.latents.view(), reference.held_out(), fixed);
        let null = Arc::new(null);
        if nulls.len() == MAX_NULLS {
            nulls.remove(0);
        }
        nulls.push((csi.clone(), null.clone()));
        null
    }

    /// What cannot be computed because the answers came without it.
    pub(in crate::monitor) fn lacks(&self) -> Option<String> {
        let has_prompts = self.prompts.iter().flatten().any(Option::is_some);
        let missing = [
            self.rewards.is_none().then_some("the baseline has no rewards: no saturation"),
            (!has_prompts).then_some("the baseline names no prompts: no paired distance"),
        ];
        let missing: Vec<&str> = missing.into_iter().flatten().collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Number of latents.
    pub fn len(&self) -> usize {
        self.latents.nrows()
    }

    /// Whether there is no latent; never so for one that was made.
    pub fn is_empty(&self) -> bool {
        self.latents.is_empty()
    }
}
