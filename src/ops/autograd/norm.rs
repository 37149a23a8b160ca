//! Root-mean-square norm with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::{host, values};
use crate::ops::cpu::{CpuOps, rms_norm, rms_norm_gradient};

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

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let columns = scale.elem_count();
        let (x_values, scales, gradients) = (host(x)?, host(scale)?, host(gradient)?);
        let blocks = self.cpu.of_row_blocks(x_values.len() / columns, |rows| {
            let range = rows.start * columns..rows.end * columns;
            let mut x_gradient = vec![0f32; range.len()];
            let mut scale_gradient = vec![0f32; columns];
            rms_norm_gradient(
                self.cpu.isa(),
                &x_values[range.clone()],
                &gradients[range],
                &scales,
                self.epsilon,
                &mut x_gradient,
                &mut scale_gradient,
            );
            (x_gradient, scale_gradient)
        });
        let mut x_gradient = Vec::with_capacity(x_values.len());
        let mut scale_gradient = vec![0f32; columns];
        for (block, partial) in blocks {
            x_gradient.extend(block);
            for (sum, partial) in scale_gradient.iter_mut().zip(partial) {
                *sum += partial;
            }
        }
        Ok((
            Some(Tensor::from_vec(x_gradient, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(scale_gradient, scale.shape(), &Device::Cpu)?),
        ))
    }
}
