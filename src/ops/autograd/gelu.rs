//! GELU with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::host::{host, values};
use crate::layer::Gelu;
use crate::ops::cpu::{CpuOps, gelu, gelu_gradient};

/// `y = gelu(x)`.
pub(super) struct Activation {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) kind: Gelu,
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        let x = values(storage, layout)?;
        let mut out = vec![0f32; x.len()];
        self.cpu.map_rows(x, columns, &mut out, columns, |x, out| {
            out.copy_from_slice(x);
            gelu(self.cpu.isa(), out, self.kind);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = x.dims2()?;
        let (x_values, gradients) = (host(x)?, host(gradient)?);
        let blocks = self.cpu.of_row_blocks(rows, |rows| {
            let range = rows.start * columns..rows.end * columns;
            let mut out = vec![0f32; range.len()];
            let (x, gradient) = (&x_values[range.clone()], &gradients[range]);
            gelu_gradient(self.cpu.isa(), x, gradient, self.kind, &mut out);
            out
        });
        Ok(Some(Tensor::from_vec(blocks.concat(), x.shape(), &Device::Cpu)?))
    }
}
