//! Root-mean-square norm and layer norm with their gradients.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};

use super::host::{host, values};
use crate::ops::cpu::{CpuOps, layer_norm, layer_norm_gradient, rms_norm, rms_norm_gradient};

/// A norm's weights as training has them.
#[derive(Debug, Clone)]
pub struct NormWeight {
    /// As it is stored, `[columns]`.
    pub(super) scale: Tensor,
    /// What is added to the scale before it is used.
    pub(super) offset: f32,
    /// Of a layer norm, `[columns]`.
    pub(super) bias: Option<Tensor>,
}

/// `y = x * n * scale` with `n = 1 / sqrt(mean(x^2) + epsilon)`, of each stretch as wide as the scale in these columns of a
/// row; what is beside them stays.
pub(super) struct RmsNorm {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) columns: Range<usize>,
    pub(super) epsilon: f32,
}

/// `y = (x - mean(x)) * n * scale + bias` with `n = 1 / sqrt(var(x) + epsilon)`.
pub(super) struct LayerNorm {
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
        let (_, width) = x_layout.shape().dims2()?;
        let (x, scale) = (values(x, x_layout)?, values(scale, scale_layout)?);
        let Range { start, end } = self.columns;
        let mut out = vec![0f32; x.len()];
        self.cpu.map_rows(x, width, &mut out, width, |x, out| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                out[..start].copy_from_slice(&x[..start]);
                out[end..].copy_from_slice(&x[end..]);
                let out = &mut out[start..end];
                rms_norm(self.cpu.isa(), &x[start..end], scale, self.epsilon, out);
            }
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
        let (rows, width) = x.dims2()?;
        let (x_values, scales, gradients) = (host(x)?, host(scale)?, host(gradient)?);
        let Range { start, end } = self.columns;
        let blocks = self.cpu.of_row_blocks(rows, |rows| {
            let range = rows.start * width..rows.end * width;
            let gradients = &gradients[range.clone()];
            let mut x_gradient = gradients.to_vec();
            let mut scale_gradient = vec![0f32; scales.len()];
            let rows = x_values[range].chunks_exact(width).zip(gradients.chunks_exact(width));
            for ((x, gradient), out) in rows.zip(x_gradient.chunks_exact_mut(width)) {
                rms_norm_gradient(
                    self.cpu.isa(),
                    &x[start..end],
                    &gradient[start..end],
                    &scales,
                    self.epsilon,
                    &mut out[start..end],
                    &mut scale_gradient,
                );
            }
            (x_gradient, [scale_gradient])
        });
        let (x_gradient, [scale_gradient]) = joined(blocks, scales.len());
        Ok((
            Some(Tensor::from_vec(x_gradient, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(scale_gradient, scale.shape(), &Device::Cpu)?),
        ))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = values(x, x_layout)?;
        let (scale, bias) = (values(scale, scale_layout)?, values(bias, bias_layout)?);
        let columns = scale.len();
        let mut out = vec![0f32; x.len()];
        self.cpu.map_rows(x, columns, &mut out, columns, |x, out| {
            layer_norm(self.cpu.isa(), x, scale, bias, self.epsilon, out);
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let columns = scale.elem_count();
        let (x_values, scales, gradients) = (host(x)?, host(scale)?, host(gradient)?);
        let blocks = self.cpu.of_row_blocks(x_values.len() / columns, |rows| {
            let range = rows.start * columns..rows.end * columns;
            let mut x_gradient = vec![0f32; range.len()];
            let (mut scale_gradient, mut bias_gradient) =
                (vec![0f32; columns], vec![0f32; columns]);
            layer_norm_gradient(
                self.cpu.isa(),
                &x_values[range.clone()],
                &gradients[range],
                &scales,
                self.epsilon,
                &mut x_gradient,
                [&mut scale_gradient, &mut bias_gradient],
            );
            (x_gradient, [scale_gradient, bias_gradient])
        });
        let (x_gradient, [scale_gradient, bias_gradient]) = joined(blocks, columns);
        Ok((
            Some(Tensor::from_vec(x_gradient, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(scale_gradient, scale.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(bias_gradient, bias.shape(), &Device::Cpu)?),
        ))
    }
}

/// The gradients of blocks of rows one after the other, and the sums of what each block says of the weights.
fn joined<const N: usize>(
    blocks: Vec<(Vec<f32>, [Vec<f32>; N])>,
    columns: usize,
) -> (Vec<f32>, [Vec<f32>; N]) {
    let mut rows = Vec::with_capacity(blocks.iter().map(|(block, _)| block.len()).sum());
    let mut sums = [(); N].map(|()| vec![0f32; columns]);
    for (block, partial) in blocks {
        rows.extend(block);
        for (sum, partial) in sums.iter_mut().zip(partial) {
            for (sum, partial) in sum.iter_mut().zip(partial) {
                *sum += partial;
            }
        }
    }
    (rows, sums)
}
