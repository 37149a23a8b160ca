//! SwiGLU with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::{host, values};
use crate::ops::cpu::{CpuOps, swiglu};

/// `y = silu(gate) * up` of rows `[gate | up]`.
pub(super) struct SwiGlu {
    pub(super) cpu: Arc<CpuOps>,
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let columns = columns / 2;
        let mut out = vec![0f32; rows * columns];
        self.cpu.map_rows(values(storage, layout)?, 2 * columns, &mut out, columns, |x, out| {
            swiglu(self.cpu.isa(), x, columns, out);
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, columns))))
    }

    /// With `s = sigmoid(gate)`: `dgate = dy * up * s * (1 + gate * (1 - s))`, `dup = dy * gate * s`.
    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let columns = gradient.dim(1)?;
        let (x_values, gradients) = (host(x)?, host(gradient)?);
        let mut out = vec![0f32; x_values.len()];
        for ((x, dy), out) in x_values
            .chunks_exact(2 * columns)
            .zip(gradients.chunks_exact(columns))
            .zip(out.chunks_exact_mut(2 * columns))
        {
            let (gate, up) = x.split_at(columns);
            let (gate_gradient, up_gradient) = out.split_at_mut(columns);
            for i in 0..columns {
                let sigmoid = 1.0 / (1.0 + (-gate[i]).exp());
                gate_gradient[i] = dy[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
                up_gradient[i] = dy[i] * gate[i] * sigmoid;
            }
        }
        Ok(Some(Tensor::from_vec(out, x.shape(), &Device::Cpu)?))
    }
}
