//! The reward head's keys of `config.json`.

use serde::{Deserialize, Serialize};

use super::standard_head::StandardConfig;
use crate::checkpoint::files::{CheckpointError, ConfigKeys};

/// How a latent becomes a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeKind {
    /// One linear layer without bias (`use_complex_decoder = false`).
    #[default]
    Linear,
    /// `down(silu(gate s) * up s)` with inner width 4 d (`use_complex_decoder = true`).
    Gated,
}

/// The reward head.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HeadConfig {
    /// Variational information bottleneck (InfoRM, NeurIPS 2024, section 4).
    Inform {
        /// Dimension d of the latent.
        latent_dim: usize,
        /// The decode head.
        decode: DecodeKind,
        /// Name of the encode head's tensors, before `.weight`.
        encode_head_prefix: String,
        /// Name of the decode head's tensors, before `.weight`.
        decode_head_prefix: String,
    },
    /// One linear layer on the pooled hidden state.
    Standard(StandardConfig),
}

impl HeadConfig {
    /// An InfoRM head with the usual tensor names.
    pub fn inform(latent_dim: usize, decode: DecodeKind) -> Self {
        Self::Inform {
            latent_dim,
            decode,
            encode_head_prefix: "encode_head".to_owned(),
            decode_head_prefix: "decode_head".to_owned(),
        }
    }

    /// A standard head with one label: `score.weight`.
    pub fn standard() -> Self {
        Self::Standard(StandardConfig::default())
    }

    pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<Self, CheckpointError> {
        if !keys.or("use_inform", false)? {
            return Ok(Self::Standard(StandardConfig::read(keys)?));
        }
        let latent_dim = keys.get("latent_dim")?.filter(|&d: &usize| d > 0).ok_or_else(|| {
            keys.wrong("latent_dim", "must be at least 1 where `use_inform` is true")
        })?;
        Ok(Self::Inform {
            latent_dim,
            decode: match keys.or("use_complex_decoder", false)? {
                true => DecodeKind::Gated,
                false => DecodeKind::Linear,
            },
            encode_head_prefix: keys.or("encode_head_prefix", "encode_head".to_owned())?,
            decode_head_prefix: keys.or("decode_head_prefix", "decode_head".to_owned())?,
        })
    }

    /// Dimension of the latent; `None` for a standard head, which has none.
    pub fn latent_dim(&self) -> Option<usize> {
        match self {
            Self::Inform { latent_dim, .. } => Some(*latent_dim),
            Self::Standard(_) => None,
        }
    }
}

/// Reward normalisation `(r - mean) / std`, applied when scoring only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RewardScale {
    /// Mean of the rewards on the evaluation set.
    pub mean: f32,
    /// Their standard deviation.
    pub std: f32,
}

impl RewardScale {
    pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<Option<Self>, CheckpointError> {
        if !keys.or("normalize_reward", false)? {
            return Ok(None);
        }
        let mean = keys.get("mean")?.filter(|mean: &f32| mean.is_finite()).ok_or_else(|| {
            keys.wrong("mean", "must be a number where `normalize_reward` is true")
        })?;
        let std = keys.get("std")?.filter(|std: &f32| std.is_finite() && *std > 0.0).ok_or_else(
            || keys.wrong("std", "must be positive where `normalize_reward` is true"),
        )?;
        Ok(Some(Self { mean, std }))
    }
}
