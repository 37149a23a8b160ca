//! One training run: its baseline, its open window, its evaluations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::Array2;
use serde::Serialize;

use super::csi::{Csi, CsiError, CsiParameters, csi};
use super::early_stop::EarlyStop;
use super::mahalanobis::Mahalanobis;
use super::window::{Window, Windows};
use super::{MonitorConfig, Sample, unix_seconds};

/// Where a baseline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaselineOrigin {
    /// The checkpoint's `baseline.safetensors`.
    Checkpoint,
    /// Requests with `role = "baseline"`.
    Recorded,
}

/// SFT latents, and what is fitted to them once.
#[derive(Debug)]
pub(super) struct BaselineSet {
    /// `[n, d]`.
    pub(super) latents: Array2<f64>,
    pub(super) origin: BaselineOrigin,
    /// Absent where the latents have no covariance to speak of.
    pub(super) mahalanobis: Option<Arc<Mahalanobis>>,
}

impl BaselineSet {
    pub(super) fn new(latents: Array2<f64>, origin: BaselineOrigin) -> Self {
        let mahalanobis = Mahalanobis::fit(latents.view())
            .inspect_err(|error| tracing::warn!(?origin, %error, "no Mahalanobis distances"))
            .ok()
            .map(Arc::new);
        Self { latents, origin, mahalanobis }
    }
}

/// The evaluation of one window.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Evaluation {
    /// Number of the evaluation in its run, from 0.
    pub number: u64,
    /// First and last step of the window, where the caller names steps.
    pub first_step: Option<u64>,
    /// See `first_step`.
    pub last_step: Option<u64>,
    /// Samples in the window.
    pub samples: usize,
    /// Cluster Separation Index (equation 8), or null where it could not be computed.
    pub csi: Option<f64>,
    /// CSI divided by the samples.
    pub csi_per_sample: Option<f64>,
    /// DBSCAN clusters, noise not counted.
    pub clusters: Option<usize>,
    /// Share of samples in no cluster.
    pub noise_fraction: Option<f64>,
    /// Change of CSI per sample since the evaluation before.
    pub csi_change: Option<f64>,
    /// That change over the mean of the changes before it (appendix G).
    pub csi_ratio: Option<f64>,
    /// Whether this or an earlier evaluation said that training should stop.
    pub early_stop: bool,
    /// Why training should stop, or why a value is missing.
    pub reason: Option<String>,
    /// Latents that the window was compared with, and where they come from.
    pub baseline_samples: usize,
    /// See `baseline_samples`.
    pub baseline: Option<BaselineOrigin>,
    /// Mean reward of the window.
    pub reward_mean: f64,
    /// Standard deviation of the reward.
    pub reward_std: f64,
    /// Mean length of the scored sequences, in tokens.
    pub tokens_mean: f64,
    /// When the evaluation ended, in seconds since the Unix epoch.
    pub finished_at: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// A run as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunView {
    /// The run's name.
    pub id: String,
    /// Answers of the policy seen so far.
    pub samples: u64,
    /// Answers in the open window.
    pub open_window: usize,
    /// Latents in the baseline in use.
    pub baseline_samples: usize,
    /// Where the baseline in use comes from; null where there is none.
    pub baseline: Option<BaselineOrigin>,
    /// Evaluations so far.
    pub evaluations: u64,
    /// Whether an evaluation said that training should stop.
    pub early_stop: bool,
    /// The evaluation that first said so.
    pub stopped_at: Option<Evaluation>,
    /// The last evaluation.
    pub last_evaluation: Option<Evaluation>,
    /// The settings that the run is monitored with.
    #[schema(value_type = Object)]
    pub config: MonitorConfig,
}

/// The state of one run.
#[derive(Debug)]
pub(super) struct Run {
    name: String,
    config: Arc<MonitorConfig>,
    /// The checkpoint's, until one was recorded.
    baseline: Option<Arc<BaselineSet>>,
    recorded: Vec<f64>,
    dimension: usize,
    windows: Windows,
    samples: u64,
    evaluations: VecDeque<Evaluation>,
    count: u64,
    early_stop: Option<EarlyStop>,
    /// What the last window was compared with.
    compared_with: Option<Arc<BaselineSet>>,
    stopped: Option<Evaluation>,
    last_seen: Instant,
}

impl Run {
    pub(super) fn new(
        name: String,
        config: Arc<MonitorConfig>,
        baseline: Option<Arc<BaselineSet>>,
    ) -> Self {
        Self {
            name,
            windows: Windows::new(config.window, config.min_window, config.max_window),
            // The configuration was checked when the monitor started.
            early_stop: EarlyStop::new(config.early_stop.clone()).ok(),
            config,
            baseline,
            recorded: Vec::new(),
            dimension: 0,
            samples: 0,
            evaluations: VecDeque::new(),
            count: 0,
            compared_with: None,
            stopped: None,
            last_seen: Instant::now(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn last_seen(&self) -> Instant {
        self.last_seen
    }

    /// Adds an answer; returns the window that is to be evaluated now, if any.
    pub(super) fn add(&mut self, step: Option<u64>, sample: Sample) -> Option<Window> {
        self.last_seen = Instant::now();
        self.samples += 1;
        self.windows.add(step, sample)
    }

    /// The open window, if it holds anything.
    pub(super) fn take_window(&mut self) -> Option<Window> {
        self.windows.take()
    }

    /// Adds SFT answers, up to `max_window`.
    pub(super) fn record_baseline(&mut self, samples: Vec<Sample>) {
        self.last_seen = Instant::now();
        let Some(dimension) = samples.first().map(|sample| sample.latent.len()) else { return };
        self.dimension = dimension;
        for sample in samples {
            if self.recorded.len() >= self.config.max_window * dimension {
                break;
            }
            self.recorded.extend(sample.latent.iter().map(|&v| f64::from(v)));
        }
    }

    /// The recorded latents `[n, d]`, where they are to become the baseline in use: when there are
    /// `min_window` of them, when they have doubled, and before the first window is compared
    /// (`evaluating`). In between the baseline stays as it is, so that windows are compared with the
    /// same thing, and single answers do not each cost a fit.
    pub(super) fn due_baseline(&self, evaluating: bool) -> Option<Array2<f64>> {
        let recorded = self.recorded.len().checked_div(self.dimension)?;
        let in_use = match &self.baseline {
            Some(set) if set.origin == BaselineOrigin::Recorded => set.latents.nrows(),
            _ => 0,
        };
        let compared = match (&self.baseline, &self.compared_with) {
            (Some(set), Some(compared)) => Arc::ptr_eq(set, compared),
            _ => false,
        };
        let due = recorded >= self.config.min_window
            && if evaluating && !compared {
                recorded > in_use
            } else {
                recorded >= 2 * in_use.max(1)
            };
        if !due {
            return None;
        }
        Array2::from_shape_vec((recorded, self.dimension), self.recorded.clone()).ok()
    }

    /// Replaces the baseline in use.
    pub(super) fn use_baseline(&mut self, baseline: BaselineSet) {
        self.baseline = Some(Arc::new(baseline));
    }

    /// The baseline in use.
    pub(super) fn baseline(&self) -> Option<Arc<BaselineSet>> {
        self.baseline.clone()
    }

    /// Turns a window's result into the run's next evaluation.
    pub(super) fn conclude(
        &mut self,
        window: Window,
        baseline: Option<&Arc<BaselineSet>>,
        result: Option<Result<Csi, CsiError>>,
        elapsed: Duration,
    ) -> Evaluation {
        let origin = baseline.map(|baseline| baseline.origin);
        if baseline.map(Arc::as_ptr) != self.compared_with.as_ref().map(Arc::as_ptr) {
            // Distances to another baseline are no continuation of those before.
            self.early_stop = EarlyStop::new(self.config.early_stop.clone()).ok();
            self.compared_with = baseline.cloned();
        }
        let (csi, mut reason) = match result {
            Some(Ok(csi)) => (Some(csi), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, Some("no baseline: CSI needs the latents of SFT answers".to_owned())),
        };
        let samples = window.samples.len();
        let enough = self.config.min_window.min(self.config.window);
        let judged = csi.as_ref().filter(|_| samples >= enough);
        if csi.is_some() && judged.is_none() {
            reason = Some(format!(
                "{samples} answers are too few to judge a change by; at least {enough} are needed"
            ));
        }
        let verdict = judged.and_then(|csi| Some(self.early_stop.as_mut()?.push(csi.per_sample)));
        if let Some(verdict) = &verdict {
            reason = reason.or_else(|| verdict.reason.clone());
        }
        let stops = verdict.as_ref().is_some_and(|verdict| verdict.stop);
        if let Some(stopped) = self.stopped.as_ref().filter(|_| !stops) {
            // A verdict stays until the run is removed: a trainer may look less often than windows end.
            reason.clone_from(&stopped.reason);
        }
        let rewards = moments(window.samples.iter().map(|sample| f64::from(sample.reward)));
        let tokens = moments(window.samples.iter().map(|sample| sample.tokens as f64));
        let evaluation = Evaluation {
            number: self.count,
            first_step: window.first_step,
            last_step: window.last_step,
            samples,
            csi: csi.as_ref().map(|csi| csi.csi),
            csi_per_sample: csi.as_ref().map(|csi| csi.per_sample),
            clusters: csi.as_ref().map(|csi| csi.clusters),
            noise_fraction: csi.as_ref().map(|csi| csi.noise_fraction),
            csi_change: verdict.as_ref().and_then(|verdict| verdict.change),
            csi_ratio: verdict.as_ref().and_then(|verdict| verdict.ratio),
            early_stop: stops || self.stopped.is_some(),
            reason,
            baseline_samples: baseline.map_or(0, |baseline| baseline.latents.nrows()),
            baseline: origin,
            reward_mean: rewards.0,
            reward_std: rewards.1,
            tokens_mean: tokens.0,
            finished_at: unix_seconds(),
            seconds: elapsed.as_secs_f64(),
        };
        if stops && self.stopped.is_none() {
            self.stopped = Some(evaluation.clone());
        }
        self.count += 1;
        self.evaluations.push_back(evaluation.clone());
        if self.evaluations.len() > self.config.history {
            self.evaluations.pop_front();
        }
        evaluation
    }

    pub(super) fn last(&self) -> Option<&Evaluation> {
        self.evaluations.back()
    }

    pub(super) fn evaluations(&self, from_step: Option<u64>) -> Vec<Evaluation> {
        let wanted = |evaluation: &&Evaluation| match from_step {
            Some(from) => evaluation.last_step.is_some_and(|step| step >= from),
            None => true,
        };
        self.evaluations.iter().filter(wanted).cloned().collect()
    }

    pub(super) fn view(&self) -> RunView {
        let baseline = self.baseline.as_ref();
        RunView {
            id: self.name.clone(),
            samples: self.samples,
            open_window: self.windows.len(),
            baseline_samples: baseline.map_or(0, |baseline| baseline.latents.nrows()),
            baseline: baseline.map(|baseline| baseline.origin),
            evaluations: self.count,
            early_stop: self.stopped.is_some(),
            stopped_at: self.stopped.clone(),
            last_evaluation: self.last().cloned(),
            config: (*self.config).clone(),
        }
    }
}

/// CSI of a window against a baseline; `None` without one.
pub(super) fn separation(
    window: &Window,
    baseline: Option<&BaselineSet>,
    parameters: &CsiParameters,
) -> Option<Result<Csi, CsiError>> {
    let baseline = baseline?;
    let dimension = window.samples.first()?.latent.len();
    let values: Vec<f64> =
        window.samples.iter().flat_map(|sample| &sample.latent).map(|&v| f64::from(v)).collect();
    let latents = Array2::from_shape_vec((window.samples.len(), dimension), values).ok()?;
    Some(csi(latents.view(), baseline.latents.view(), parameters))
}

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
