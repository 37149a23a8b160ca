//! An InfoRM head's weights, and its steps one by one.

use super::{Ops, Result};

/// Weights of an InfoRM head (InfoRM, section 4).
#[derive(Debug)]
pub struct InformHead<W> {
    /// `W_enc`, `[2 d, hidden]`: to `[mu | logvar]`.
    pub encode: W,
    /// `g`.
    pub decode: Decode<W>,
    /// d.
    pub latent_dim: usize,
}

/// From latent to reward.
#[derive(Debug)]
pub enum Decode<W> {
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

/// Rewards of latents `[rows, d]`: `[rows, 1]`.
///
/// # Errors
/// A failing device.
pub fn decode<O: Ops>(
    ops: &O,
    weights: &Decode<O::HeadWeight>,
    latent: &O::Matrix,
) -> Result<O::Matrix> {
    match weights {
        Decode::Linear(weight) => ops.head_linear(latent, weight),
        Decode::Gated { gate_up, down } => {
            ops.head_linear(&ops.head_swiglu(ops.head_linear(latent, gate_up)?)?, down)
        }
    }
}

/// [`Ops::inform_head`] out of a device's other operations.
///
/// # Errors
/// A failing device.
pub fn step_by_step<O: Ops>(
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
    Ok((decode(ops, &head.decode, &latent)?, posterior))
}
