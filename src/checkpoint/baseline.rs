//! `baseline.safetensors`: the SFT latents that a run's latents are compared with.
//!
//! A tensor `latents` `[n, d]` of type F32, and metadata `weights` (the hash of the weights that made
//! them) and `source` (what was scored). Two further tensors may be missing: `rewards` `[n]` of type F32,
//! and `prompts` `[n]` of type U64, [`prompt_fingerprint`](crate::monitor::prompt_fingerprint)s.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::files::{BASELINE_FILE, CheckpointError};

/// Latents of SFT answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Posterior means `[n, d]`, row-major.
    pub latents: Vec<f32>,
    /// Dimension d.
    pub dimension: usize,
    /// Rewards `[n]`, where they are known.
    pub rewards: Option<Vec<f32>>,
    /// Fingerprints of the prompts `[n]`, where they are known.
    pub prompts: Option<Vec<u64>>,
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
    /// A damaged file, a shape that is not `[n, latent_dim]`, a latent or reward that is not finite, or
    /// other weights than `weights`.
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
        let rows = shape[0];
        let numbers = |name: &str, tensor: &TensorView<'_>| {
            if tensor.dtype() != Dtype::F32 {
                return Err(wrong_type(&file, name, tensor, Dtype::F32));
            }
            Ok(elements(tensor, f32::from_le_bytes))
        };
        let latents = numbers("latents", &tensor)?;
        if let Some(at) = latents.iter().position(|value| !value.is_finite()) {
            let message = format!("row {} holds a number that is not finite", at / dimension);
            return Err(CheckpointError::Config { file, key: "latents".to_owned(), message });
        }
        // Each where there is one.
        let column = |name: &str| {
            let Ok(tensor) = tensors.tensor(name) else { return Ok(None) };
            if tensor.shape() != [rows] {
                return Err(CheckpointError::WrongShape {
                    file: file.clone(),
                    tensor: name.to_owned(),
                    found: tensor.shape().to_vec(),
                    expected: vec![rows],
                });
            }
            Ok(Some(tensor))
        };
        let rewards = column("rewards")?.map(|tensor| numbers("rewards", &tensor)).transpose()?;
        let not_finite = |rewards: &Vec<f32>| rewards.iter().position(|reward| !reward.is_finite());
        if let Some(at) = rewards.as_ref().and_then(not_finite) {
            let message = format!("row {at} is not finite");
            return Err(CheckpointError::Config { file, key: "rewards".to_owned(), message });
        }
        let prompts = match column("prompts")? {
            Some(tensor) if tensor.dtype() != Dtype::U64 => {
                return Err(wrong_type(&file, "prompts", &tensor, Dtype::U64));
            }
            tensor => tensor.map(|tensor| elements(&tensor, u64::from_le_bytes)),
        };
        let source = entry("source");
        Ok(Some(Self { latents, dimension, rewards, prompts, weights: made_with, source }))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Where `latents` is not a whole number of rows, or `rewards` or `prompts` has another number of them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let rows = self.len();
        let latents: Vec<u8> = self.latents.iter().flat_map(|v| v.to_le_bytes()).collect();
        let rewards: Option<Vec<u8>> =
            self.rewards.as_ref().map(|all| all.iter().flat_map(|v| v.to_le_bytes()).collect());
        let prompts: Option<Vec<u8>> =
            self.prompts.as_ref().map(|all| all.iter().flat_map(|v| v.to_le_bytes()).collect());
        let mut tensors =
            vec![("latents", TensorView::new(Dtype::F32, vec![rows, self.dimension], &latents)?)];
        if let Some(rewards) = &rewards {
            tensors.push(("rewards", TensorView::new(Dtype::F32, vec![rows], rewards)?));
        }
        if let Some(prompts) = &prompts {
            tensors.push(("prompts", TensorView::new(Dtype::U64, vec![rows], prompts)?));
        }
        let metadata = HashMap::from([
            ("weights".to_owned(), self.weights.clone()),
            ("source".to_owned(), self.source.clone()),
        ]);
        safetensors::serialize(tensors, Some(metadata))
    }
}

fn wrong_type(
    file: &Path,
    tensor: &str,
    found: &TensorView<'_>,
    expected: Dtype,
) -> CheckpointError {
    CheckpointError::WrongType {
        file: file.to_owned(),
        tensor: tensor.to_owned(),
        found: format!("{:?}", found.dtype()),
        expected: format!("{expected:?}"),
    }
}

/// Little-endian elements of `N` bytes.
fn elements<T, const N: usize>(tensor: &TensorView<'_>, read: fn([u8; N]) -> T) -> Vec<T> {
    let chunks = tensor.data().chunks_exact(N);
    chunks.filter_map(|bytes| Some(read(*bytes.first_chunk()?))).collect()
}
