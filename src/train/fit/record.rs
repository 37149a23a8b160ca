//! What is kept of a training.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::FitConfig;
use crate::checkpoint::{Baseline, CheckpointError, read_json};
use crate::train::accuracy::{BaselineReport, LatentDiagnostics, PairAccuracy, PairEvaluation};
use crate::train::data::{DataFile, Dropped, Pair, Split, data_files, read_pairs};

/// Name of the file in a checkpoint that records how it was trained.
pub const TRAINING_FILE: &str = "training.json";
/// Name of the model card.
pub(in crate::train) const CARD_FILE: &str = "README.md";

/// How a checkpoint was trained: kept in it, so that its evaluation can be repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// The settings.
    pub config: FitConfig,
    /// Names and SHA-256 of the data files.
    pub data: Vec<DataFile>,
    /// How the pairs were divided.
    pub split: Split,
    /// What the run gave.
    pub report: FitReport,
}

impl TrainingRecord {
    /// The record of a checkpoint folder; `None` where it has none.
    ///
    /// # Errors
    /// A file that cannot be read, or that is no such record.
    pub fn read(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let file = folder.join(TRAINING_FILE);
        file.exists().then(|| read_json(&file)).transpose()
    }

    /// The pairs of `files` that the training held out.
    ///
    /// # Errors
    /// Files that cannot be read, or other ones than the training's: the split of those would mix
    /// in pairs that were trained on.
    pub fn held_out(&self, files: &[PathBuf]) -> anyhow::Result<Vec<Pair>> {
        let found = data_files(files)?;
        let same = found.iter().map(|file| &file.sha256).eq(self.data.iter().map(|f| &f.sha256));
        anyhow::ensure!(
            same,
            "the checkpoint was trained on other data files; what it held out is known for, in \
             this order: {:?}",
            self.data
        );
        let (pairs, _) = read_pairs(files, self.config.data.bad_lines)?;
        Ok(self.split.apply(pairs).1)
    }
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Pairs trained on, and those of them that were left out.
    pub train_pairs: usize,
    /// See `train_pairs`.
    pub train_dropped: Dropped,
    /// Training pairs whose answers were exchanged.
    #[serde(default)]
    pub label_noise_pairs: usize,
    /// Lines of the data files that were no pairs, and were left out.
    #[serde(default)]
    pub bad_lines: usize,
    /// Held-out pairs evaluated, and those that were left out.
    pub held_out_pairs: usize,
    /// See `held_out_pairs`.
    pub held_out_dropped: Dropped,
    /// Parameters trained.
    pub parameters: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Loss, accuracy and KL divergence over each epoch, while training.
    pub epochs: Vec<EpochMeans>,
    /// Steps after which the weights were those that are stored, where the best evaluation decides.
    #[serde(default)]
    pub best_step: Option<usize>,
    /// The stored checkpoint on the held-out pairs; absent without any.
    pub held_out: Option<PairAccuracy>,
    /// Mean distance of its confidence from its accuracy on them.
    #[serde(default)]
    pub calibration_error: Option<f64>,
    /// What its latents carry on them; absent for a standard head.
    #[serde(default)]
    pub latents: Option<LatentDiagnostics>,
    /// Seconds of the whole run.
    pub seconds: f64,
}

/// Means over the steps of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochMeans {
    /// Total loss.
    pub loss: f64,
    /// Share of training pairs ranked right.
    pub accuracy: f64,
    /// Reduced KL divergence, nats.
    pub kl: f64,
}

/// What only the stored weights can tell.
pub(in crate::train) struct Finished {
    pub(in crate::train) evaluation: Option<PairEvaluation>,
    pub(in crate::train) baseline: Option<Baseline>,
    pub(in crate::train) report: Option<BaselineReport>,
    pub(in crate::train) weights: String,
}
