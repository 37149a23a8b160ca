//! Reward heads on the pooled hidden state.

use parking_lot::Mutex;

use super::score::Latent;
use crate::checkpoint::{CheckpointError, DecodeKind, HeadConfig, StandardHead, TensorSource};
use crate::ops::{
    DeviceOps, HeadOps, InformHead, LatentDecoder, OpsError, decode_latents, standard_normal,
};

/// Seed of the draws that estimate a reward's spread.
const SPREAD_SEED: u64 = 0;

/// What a head gives for `n` sequences.
#[derive(Debug)]
pub struct HeadOutput<O: DeviceOps> {
    /// Rewards `[n, 1]`; of a standard head its outputs `[n, labels]`, without their biases.
    pub reward: O::Matrix,
    /// `[mu | logvar]`, `[n, 2 d]`; `None` for a standard head.
    pub posterior: Option<O::Matrix>,
}

/// A reward head.
#[derive(Debug)]
pub enum Head<O: HeadOps> {
    /// `[mu | logvar] = W_enc h`, `s = mu + exp(logvar / 2) * eps`, `r = g(s)` (InfoRM, section 4).
    Inform {
        /// `W_enc` and `g`.
        weights: InformHead<O::HeadWeight>,
        /// The noise of [`Head::draw`], as much of it as was needed so far.
        noise: Mutex<Vec<f32>>,
        /// The generator's stream that it is from.
        stream: u64,
    },
    /// `r = w h + b`; with several labels `r = objectives . (W h + b)`.
    Standard {
        /// `[labels, hidden]`.
        weight: O::HeadWeight,
        /// `[labels]`; zeros where the head has none.
        bias: Vec<f32>,
        /// Weight of each label in the reward; may be empty where there is one label.
        objectives: Vec<f32>,
    },
}

impl<O: HeadOps> Head<O> {
    /// Loads the head's tensors.
    ///
    /// # Errors
    /// A missing tensor, a wrong shape or type, several labels without a weight for each.
    pub fn load(
        ops: &O,
        config: &HeadConfig,
        hidden: usize,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        let (latent_dim, decode, encode_head_prefix, decode_head_prefix) = match config {
            HeadConfig::Inform { latent_dim, decode, encode_head_prefix, decode_head_prefix } => {
                (latent_dim, decode, encode_head_prefix, decode_head_prefix)
            }
            HeadConfig::Standard(standard) => {
                let found = StandardHead::find(standard, hidden, source)?;
                found.check_objectives(&standard.objectives)?;
                let labels = found.labels.len();
                let bias = match &found.bias {
                    Some(bias) => source.f32(bias, &[labels])?,
                    None => vec![0.0; labels],
                };
                let weight = ops.head_weight(source, &[(&found.weight, labels)], hidden)?;
                return Ok(Self::Standard {
                    weight,
                    bias,
                    objectives: standard.objectives.clone(),
                });
            }
        };
        let d = *latent_dim;
        let part = |name: &str| format!("{decode_head_prefix}.{name}weight");
        let decode = match decode {
            DecodeKind::Linear => {
                LatentDecoder::Linear(ops.head_weight(source, &[(&part(""), 1)], d)?)
            }
            DecodeKind::Gated => LatentDecoder::Gated {
                gate_up: ops.head_weight(
                    source,
                    &[(&part("gate_proj."), 4 * d), (&part("up_proj."), 4 * d)],
                    d,
                )?,
                down: ops.head_weight(source, &[(&part("down_proj."), 1)], 4 * d)?,
            },
        };
        let encode = format!("{encode_head_prefix}.weight");
        let encode = ops.head_weight(source, &[(&encode, 2 * d)], hidden)?;
        let weights = InformHead { encode, decode, latent_dim: d };
        Ok(Self::Inform { weights, noise: Mutex::default(), stream: 0 })
    }

    /// Rewards of pooled hidden states `[n, hidden]` before the final norm, whose scale and epsilon are
    /// given. `noise` `[n * d]` draws the latents; `None` takes their means. A standard head has no noise
    /// to draw.
    ///
    /// # Errors
    /// A failing device.
    pub fn forward(
        &self,
        ops: &O,
        x: &O::Matrix,
        norm: (&O::Scale, f32),
        noise: Option<&[f32]>,
    ) -> Result<HeadOutput<O>, OpsError> {
        match self {
            Self::Standard { weight, .. } => {
                let hidden = ops.head_norm(x, norm.0, norm.1)?;
                Ok(HeadOutput { reward: ops.head_linear(&hidden, weight)?, posterior: None })
            }
            Self::Inform { weights, .. } => {
                let (reward, posterior) = ops.inform_head(x, norm, weights, noise)?;
                Ok(HeadOutput { reward, posterior: Some(posterior) })
            }
        }
    }

    /// The same head with noise of its own for [`Head::draw`].
    pub(super) fn with_noise(mut self, number: u64) -> Self {
        if let Self::Inform { stream, .. } = &mut self {
            *stream = number;
        }
        self
    }

    /// Rewards of `draws` latents drawn from a posterior. The noise is a fixed Philox stream, so the
    /// result depends on the posterior alone. Empty for a standard head.
    ///
    /// # Errors
    /// A failing device.
    pub fn draw(&self, ops: &O, latent: &Latent, draws: usize) -> Result<Vec<f32>, OpsError> {
        let Self::Inform { weights, noise, stream } = self else {
            return Ok(Vec::new());
        };
        let InformHead { decode: weights, latent_dim, .. } = weights;
        let mut values = {
            let mut noise = noise.lock();
            if noise.len() < draws * latent_dim {
                *noise = standard_normal(SPREAD_SEED, *stream, draws * latent_dim);
            }
            noise[..draws * latent_dim].to_vec()
        };
        for draw in values.chunks_exact_mut(*latent_dim) {
            for ((value, mean), sigma) in draw.iter_mut().zip(&latent.mean).zip(&latent.sigma) {
                *value = mean + sigma * *value;
            }
        }
        ops.read(&decode_latents(ops, weights, &ops.upload(values, *latent_dim)?)?)
    }
}
