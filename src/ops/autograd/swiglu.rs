//! SwiGLU with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::{host, values};
use crate::ops::cpu::{CpuOps, swiglu, swiglu_gradient};

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

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = gradient.dims2()?;
        let (x_values, gradients) = (host(x)?, host(gradient)?);
        let blocks = self.cpu.of_row_blocks(rows, |rows| {
            let x = &x_values[rows.start * 2 * columns..rows.end * 2 * columns];
            let mut out = vec![0f32; x.len()];
            let gradient = &gradients[rows.start * columns..rows.end * columns];
            swiglu_gradient(self.cpu.isa(), x, gradient, columns, &mut out);
            out
        });
        Ok(Some(Tensor::from_vec(blocks.concat(), x.shape(), &Device::Cpu)?))
    }
}
