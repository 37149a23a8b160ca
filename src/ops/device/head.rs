//! Reward heads: the operations that they are written in, an InfoRM head's weights, and its steps one by one.

use std::fmt::Debug;

use super::error::Result;
use super::transfer::DeviceOps;
use crate::checkpoint::{CheckpointError, TensorSource};

/// Weights of an InfoRM head (InfoRM, section 4).
#[derive(Debug)]
pub struct InformHead<W> {
    /// `W_enc`, `[2 d, hidden]`: to `[mu | logvar]`.
    pub encode: W,
    /// `g`.
    pub decode: LatentDecoder<W>,
    /// d.
    pub latent_dim: usize,
}

/// From latent to reward.
#[derive(Debug)]
pub enum LatentDecoder<W> {
    /// `[1, d]`.
    Linear(W),
    /// `down(silu(gate s) * up s)`.
    Gated {
        /// Gate and up, stacked: `[8 d, d]`.
        gate_up: W,
        /// `[1, 4 d]`.
        down: W,
    },
}

/// Computes reward heads, in f32.
pub trait HeadOps: DeviceOps {
    /// A head's weight `[out, in]`, f32.
    type HeadWeight: Debug + Send + Sync;

    /// Loads a head's tensors as [`WeightOps::weight`](super::weights::WeightOps::weight) does.
    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Self::HeadWeight, CheckpointError>;

    /// [`DecoderOps::norm`](super::decoder::DecoderOps::norm) in f32, for a head.
    fn head_norm(
        &self,
        x: &Self::Matrix,
        scale: &Self::Scale,
        epsilon: f32,
    ) -> Result<Self::Matrix>;

    /// `x W^T` in f32, for a head.
    fn head_linear(&self, x: &Self::Matrix, weight: &Self::HeadWeight) -> Result<Self::Matrix>;

    /// `silu(gate) * up` of `[gate | up]`: `[rows, 2 n]` to `[rows, n]`, for a head.
    fn head_swiglu(&self, gate_up: Self::Matrix) -> Result<Self::Matrix>;

    /// Columns `start .. start + count`.
    fn columns(&self, x: &Self::Matrix, start: usize, count: usize) -> Result<Self::Matrix>;

    /// `mu + exp(logvar / 2) * noise` of `[mu | logvar]` (Kingma and Welling 2014):
    /// `[rows, 2 d]` and `[rows * d]` to `[rows, d]`.
    fn reparameterise(&self, posterior: &Self::Matrix, noise: &[f32]) -> Result<Self::Matrix>;

    /// Reward `[rows, 1]` and `[mu | logvar]` `[rows, 2 d]` of hidden states `[rows, hidden]` before the final
    /// norm, whose scale and epsilon are given. `noise` `[rows * d]` draws the latents; `None` takes
    /// their means.
    fn inform_head(
        &self,
        x: &Self::Matrix,
        norm: (&Self::Scale, f32),
        head: &InformHead<Self::HeadWeight>,
        noise: Option<&[f32]>,
    ) -> Result<(Self::Matrix, Self::Matrix)>
    where
        Self: Sized,
    {
        inform_head_in_steps(self, x, norm, head, noise)
    }
}

/// Rewards of latents `[rows, d]`: `[rows, 1]`.
///
/// # Errors
/// A failing device.
pub fn decode_latents<O: HeadOps>(
    ops: &O,
    weights: &LatentDecoder<O::HeadWeight>,
    latent: &O::Matrix,
) -> Result<O::Matrix> {
    match weights {
        LatentDecoder::Linear(weight) => ops.head_linear(latent, weight),
        LatentDecoder::Gated { gate_up, down } => {
            ops.head_linear(&ops.head_swiglu(ops.head_linear(latent, gate_up)?)?, down)
        }
    }
}

/// [`HeadOps::inform_head`] out of a device's other operations.
///
/// # Errors
/// A failing device.
pub fn inform_head_in_steps<O: HeadOps>(
    ops: &O,
    x: &O::Matrix,
    (scale, epsilon): (&O::Scale, f32),
    head: &InformHead<O::HeadWeight>,
    noise: Option<&[f32]>,
) -> Result<(O::Matrix, O::Matrix)> {
    let posterior = ops.head_linear(&ops.head_norm(x, scale, epsilon)?, &head.encode)?;
    let latent = match noise {
        None => ops.columns(&posterior, 0, head.latent_dim)?,
        Some(noise) => ops.reparameterise(&posterior, noise)?,
    };
    Ok((decode_latents(ops, &head.decode, &latent)?, posterior))
}
