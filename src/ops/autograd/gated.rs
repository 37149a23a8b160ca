//! SwiGLU and GeGLU with their gradients.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::host::{host, values};
use crate::layer::Gelu;
use crate::ops::cpu::{CpuOps, geglu, geglu_gradient, swiglu, swiglu_gradient};

/// `y = activation(gate) * up` of rows `[gate | up]`.
pub(super) struct Gated {
    pub(super) cpu: Arc<CpuOps>,
    /// The activation; SiLU where it is `None`.
    pub(super) gelu: Option<Gelu>,
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let columns = columns / 2;
        let isa = self.cpu.isa();
        let mut out = vec![0f32; rows * columns];
        self.cpu.map_rows(values(storage, layout)?, 2 * columns, &mut out, columns, |x, out| {
            match self.gelu {
                None => swiglu(isa, x, columns, out),
                Some(kind) => geglu(isa, x, columns, kind, out),
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, columns))))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = gradient.dims2()?;
        let (x_values, gradients) = (host(x)?, host(gradient)?);
        let isa = self.cpu.isa();
        let blocks = self.cpu.of_row_blocks(rows, |rows| {
            let x = &x_values[rows.start * 2 * columns..rows.end * 2 * columns];
            let mut out = vec![0f32; x.len()];
            let gradient = &gradients[rows.start * columns..rows.end * columns];
            match self.gelu {
                None => swiglu_gradient(isa, x, gradient, columns, &mut out),
                Some(kind) => geglu_gradient(isa, x, gradient, columns, kind, &mut out),
            }
            out
        });
        Ok(Some(Tensor::from_vec(blocks.concat(), x.shape(), &Device::Cpu)?))
    }
}
