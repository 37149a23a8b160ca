//! A checkpoint's baseline, and what the monitor derives of it.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Baseline;
use crate::model::Score;
use crate::monitor::{Calibration, MonitorConfig};
use crate::ops::cpu::Precision;
use crate::train::data::DataFile;

/// Name of the file in a checkpoint that says what its baseline is and gives.
pub const CALIBRATION_FILE: &str = "calibration.json";

/// A baseline: where it comes from, and what the monitor derives of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineReport {
    /// Names and SHA-256 of the files with its answers; none where they are held-out pairs of the training.
    pub data: Vec<DataFile>,
    /// Precision of products that scored them.
    pub dtype: Precision,
    /// What follows for windows.
    #[serde(flatten)]
    pub calibration: Calibration,
}

impl BaselineReport {
    /// Of a baseline that was scored in `dtype`; `None` for one without latents. Takes seconds.
    pub(in crate::train) fn of(
        baseline: &Baseline,
        data: Vec<DataFile>,
        dtype: Precision,
    ) -> Option<Self> {
        let calibration = Calibration::of(baseline, &MonitorConfig::default())?;
        Some(Self { data, dtype, calibration })
    }

    /// Its name and its bytes as a file of the checkpoint.
    pub(in crate::train) fn file(&self) -> serde_json::Result<(String, Vec<u8>)> {
        Ok((CALIBRATION_FILE.to_owned(), serde_json::to_vec_pretty(self)?))
    }
}

/// The baseline of scored answers; `prompts` are kept where all are known.
pub(in crate::train) fn baseline_of<'a>(
    scores: impl IntoIterator<Item = &'a Score>,
    dimension: usize,
    prompts: Vec<Option<u64>>,
    weights: &str,
    source: String,
) -> Baseline {
    let (mut latents, mut rewards) = (Vec::new(), Vec::new());
    for score in scores {
        rewards.push(score.reward);
        latents.extend(score.latent.iter().flat_map(|latent| &latent.mean));
    }
    Baseline {
        latents,
        dimension,
        rewards: Some(rewards),
        prompts: prompts.into_iter().collect(),
        weights: weights.to_owned(),
        source,
    }
}
