//! Reward heads, recorded for training.

use candle_core::{D, Device, Tensor};

use super::device::AutogradOps;
use super::norm::NormWeight;
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::cpu::Precision;
use crate::ops::device::{DecoderOps, HeadOps, Result};

impl HeadOps for AutogradOps {
    type HeadWeight = Tensor;

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        self.register(parts, source.stacked(parts, columns)?, &[rows, columns], true)
    }

    fn head_norm(&self, x: &Tensor, norm: &NormWeight, epsilon: f32) -> Result<Tensor> {
        self.norm(x, norm, epsilon)
    }

    fn head_linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(self.product(x, weight, None, Precision::F32)?)
    }

    fn head_swiglu(&self, gate_up: Tensor) -> Result<Tensor> {
        self.gated(&gate_up, None)
    }

    fn columns(&self, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
        Ok(x.narrow(D::Minus1, start, count)?)
    }

    fn reparameterise(&self, posterior: &Tensor, noise: &[f32]) -> Result<Tensor> {
        let (rows, columns) = posterior.dims2()?;
        let dimension = columns / 2;
        let mu = posterior.narrow(1, 0, dimension)?;
        let sigma = (posterior.narrow(1, dimension, dimension)? * 0.5)?.exp()?;
        let noise = Tensor::from_slice(noise, (rows, dimension), &Device::Cpu)?;
        Ok((mu + (sigma * noise)?)?)
    }
}
