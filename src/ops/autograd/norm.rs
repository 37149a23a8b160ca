//! Root-mean-square norm with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::{host, values};
use crate::ops::cpu::{CpuOps, rms_norm};

/// `y = x * n * scale` with `n = 1 / sqrt(mean(x^2) + epsilon)`.
pub(super) struct RmsNorm {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (values(x, x_layout)?, values(scale, scale_layout)?);
        let mut out = vec![0f32; x.len()];
        self.cpu.map_rows(x, scale.len(), &mut out, scale.len(), |x, out| {
            rms_norm(self.cpu.isa(), x, scale, self.epsilon, out);
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    /// `dx = n * (g - x * n^2 * mean(g * x))` with `g = dy * scale`, and `dscale = sum(dy * x * n)`.
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let columns = scale.elem_count();
        let (x_values, scales, gradients) = (host(x)?, host(scale)?, host(gradient)?);
        let mut x_gradient = vec![0f32; x_values.len()];
        let mut scale_gradient = vec![0f32; columns];
        for ((x, dy), dx) in x_values
            .chunks_exact(columns)
            .zip(gradients.chunks_exact(columns))
            .zip(x_gradient.chunks_exact_mut(columns))
        {
            let mean_square = x.iter().map(|v| v * v).sum::<f32>() / columns as f32;
            let n = 1.0 / (mean_square + self.epsilon).sqrt();
            let mean =
                dy.iter().zip(x).zip(&scales).map(|((dy, x), scale)| dy * scale * x).sum::<f32>()
                    / columns as f32;
            for (i, dx) in dx.iter_mut().enumerate() {
                *dx = n * (dy[i] * scales[i] - x[i] * n * n * mean);
                scale_gradient[i] += dy[i] * x[i] * n;
            }
        }
        Ok((
            Some(Tensor::from_vec(x_gradient, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(scale_gradient, scale.shape(), &Device::Cpu)?),
        ))
    }
}
