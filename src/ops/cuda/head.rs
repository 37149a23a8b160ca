//! Reward heads on a GPU, f32 throughout.

use half::bf16;

use super::device::CudaOps;
use super::launch::launch;
use super::matrices::{CudaHeadWeight, CudaMatrix};
use super::memory::DeviceBuffer;
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::device::{HeadOps, InformHead, LatentDecoder, Result, inform_head_in_steps};

/// Dynamic shared memory that every kernel may use without asking, less what `inform_head.cu` holds anyway.
const MAX_HEAD_SHARED: usize = (48 << 10) - (12 << 10);

impl HeadOps for CudaOps {
    type HeadWeight = CudaHeadWeight;

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaHeadWeight, CheckpointError> {
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let values = source.stacked(parts, columns)?;
        let high: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        let rest: Vec<bf16> =
            values.iter().zip(&high).map(|(v, high)| bf16::from_f32(v - high.to_f32())).collect();
        let is_exact = rest.iter().all(|rest| rest.to_f32() == 0.0);
        Ok(CudaHeadWeight {
            outputs,
            columns,
            values: self.memory.upload(&values)?,
            high: self.memory.upload(&high)?,
            rest: if is_exact { None } else { Some(self.memory.upload(&rest)?) },
        })
    }

    fn head_norm(
        &self,
        x: &CudaMatrix<f32>,
        scale: &DeviceBuffer<f32>,
        epsilon: f32,
    ) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, x.columns)?;
        launch!(
            self,
            &self.kernels.rms_norm_f32,
            (x.rows.div_ceil(4), 1),
            0,
            [
                out.values.address(),
                x.values.address(),
                0u64,
                scale.address(),
                x.rows as i32,
                x.columns as i32,
                epsilon,
            ]
        )?;
        Ok(out)
    }

    fn head_linear(&self, x: &CudaMatrix<f32>, weight: &CudaHeadWeight) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, weight.outputs)?;
        launch!(
            self,
            &self.kernels.head_linear,
            (x.rows, weight.outputs.div_ceil(4)),
            0,
            [
                out.values.address(),
                x.values.address(),
                weight.values.address(),
                weight.outputs as i32,
                weight.columns as i32,
            ]
        )?;
        Ok(out)
    }

    fn head_swiglu(&self, gate_up: CudaMatrix<f32>) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(gate_up.rows, gate_up.columns / 2)?;
        launch!(
            self,
            &self.kernels.head_swiglu,
            (out.rows, 1),
            0,
            [out.values.address(), gate_up.values.address(), out.columns as i32,]
        )?;
        Ok(out)
    }

    fn columns(&self, x: &CudaMatrix<f32>, start: usize, count: usize) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, count)?;
        launch!(
            self,
            &self.kernels.head_columns,
            (x.rows, 1),
            0,
            [
                out.values.address(),
                x.values.address(),
                start as i32,
                count as i32,
                x.columns as i32,
            ]
        )?;
        Ok(out)
    }

    fn reparameterise(
        &self,
        posterior: &CudaMatrix<f32>,
        noise: &[f32],
    ) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(posterior.rows, posterior.columns / 2)?;
        let noise = self.memory.upload(noise)?;
        launch!(
            self,
            &self.kernels.head_reparameterise,
            (out.rows, 1),
            0,
            [out.values.address(), posterior.values.address(), noise.address(), out.columns as i32,]
        )?;
        Ok(out)
    }

    /// In one launch where the latents are means; a shape that the kernel does not know goes step by step.
    fn inform_head(
        &self,
        x: &CudaMatrix<f32>,
        (scale, epsilon): (&DeviceBuffer<f32>, f32),
        head: &InformHead<CudaHeadWeight>,
        noise: Option<&[f32]>,
    ) -> Result<(CudaMatrix<f32>, CudaMatrix<f32>)> {
        let InformHead { encode, decode, latent_dim } = head;
        let (decode, down, shared) = match decode {
            LatentDecoder::Linear(decode) => (decode, 0, 0),
            LatentDecoder::Gated { gate_up, down } => {
                (gate_up, down.values.address(), 64 * latent_dim)
            }
        };
        if noise.is_some() || !x.columns.is_multiple_of(8) || shared > MAX_HEAD_SHARED {
            return inform_head_in_steps(self, x, (scale, epsilon), head, noise);
        }
        let reward = self.matrix(x.rows, 1)?;
        let posterior = self.matrix(x.rows, 2 * latent_dim)?;
        let tiles = x.rows.div_ceil(16);
        let arrived = self.memory.upload(&vec![0u32; tiles])?;
        let slices = (2 * latent_dim).div_ceil(128);
        launch!(
            self,
            &self.kernels.inform_head_forward,
            (tiles, slices),
            shared,
            [
                reward.values.address(),
                posterior.values.address(),
                0u64,
                arrived.address(),
                x.values.address(),
                0u64,
                scale.address(),
                encode.high.address(),
                encode.rest.as_ref().map_or(0, DeviceBuffer::address),
                decode.values.address(),
                down,
                x.rows as i32,
                x.columns as i32,
                *latent_dim as i32,
                0i32,
                0i32,
                0u64,
                0u64,
                epsilon,
            ]
        )?;
        Ok((reward, posterior))
    }
}
