//! `baseline.safetensors`: the SFT latents that a run's latents are compared with.
//!
//! One tensor `latents` `[n, d]` of type F32, and metadata `weights` (the hash of the weights that
//! made them) and `source` (what was scored).

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;

/// Name of the baseline file in a checkpoint folder.
pub const BASELINE_FILE: &str = "baseline.safetensors";

/// Latents of SFT answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Posterior means `[n, d]`, row-major.
    pub latents: Vec<f32>,
    /// Dimension d.
    pub dimension: usize,
    /// Hash of the weights that made them.
    pub weights: String,
    /// What was scored, in words.
    pub source: String,
}

impl Baseline {
    /// Number of latents.
    pub fn len(&self) -> usize {
        self.latents.len() / self.dimension
    }

    /// Whether there is no latent.
    pub fn is_empty(&self) -> bool {
        self.latents.is_empty()
    }

    /// Reads a folder's baseline, if it has one.
    ///
    /// # Errors
    /// A damaged file, a shape that is not `[n, latent_dim]`, a latent that is not finite, or other
    /// weights than `weights`.
    pub(super) fn read(
        folder: &Path,
        weights: &str,
        latent_dim: Option<usize>,
    ) -> Result<Option<Self>, CheckpointError> {
        let file = folder.join(BASELINE_FILE);
        if !file.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&file).map_err(CheckpointError::io(&file))?;
        let damaged = |message: String| CheckpointError::Damaged { file: file.clone(), message };
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let entry = |key: &str| {
            let entries = metadata.metadata().as_ref();
            entries.and_then(|m| m.get(key)).cloned().unwrap_or_default()
        };
        let made_with = entry("weights");
        if made_with != weights {
            return Err(CheckpointError::ForeignBaseline {
                file,
                found: made_with,
                expected: weights.to_owned(),
            });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let dimension = latent_dim.ok_or_else(|| CheckpointError::Config {
            file: file.clone(),
            key: "latents".to_owned(),
            message: "a standard reward head has no latents to compare with".to_owned(),
        })?;
        let tensor = tensors.tensor("latents").map_err(|_| CheckpointError::MissingTensor {
            file: file.clone(),
            tensor: "latents".to_owned(),
            expected: vec![1, dimension],
        })?;
        let shape = tensor.shape();
        if shape.len() != 2 || shape[0] == 0 || shape[1] != dimension {
            return Err(CheckpointError::WrongShape {
                file,
                tensor: "latents".to_owned(),
                found: shape.to_vec(),
                expected: vec![shape.first().copied().unwrap_or(1).max(1), dimension],
            });
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(CheckpointError::WrongType {
                file,
                tensor: "latents".to_owned(),
                found: format!("{:?}", tensor.dtype()),
            });
        }
        let latents: Vec<f32> = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        if let Some(at) = latents.iter().position(|value| !value.is_finite()) {
            let message = format!("row {} holds a number that is not finite", at / dimension);
            return Err(CheckpointError::Config { file, key: "latents".to_owned(), message });
        }
        Ok(Some(Self { latents, dimension, weights: made_with, source: entry("source") }))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Where `latents` is not a whole number of rows.
    pub fn to_bytes(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let data: Vec<u8> = self.latents.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![self.len(), self.dimension], &data)?;
        let metadata = HashMap::from([
            ("weights".to_owned(), self.weights.clone()),
            ("source".to_owned(), self.source.clone()),
        ]);
        safetensors::serialize([("latents", view)], Some(metadata))
    }
}
