//! Biases with their gradients.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::{host, values};
use crate::ops::cpu::{CpuOps, add};

/// `y = x + bias`, row by row.
pub(super) struct AddBias {
    pub(super) cpu: Arc<CpuOps>,
}

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (values(x, x_layout)?, values(bias, bias_layout)?);
        let columns = bias.len();
        let mut out = vec![0f32; x.len()];
        self.cpu.map_rows(x, columns, &mut out, columns, |x, out| {
            out.copy_from_slice(x);
            out.chunks_exact_mut(columns).for_each(|row| add(self.cpu.isa(), row, bias));
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !bias.track_op() {
            return Ok((Some(gradient.clone()), None));
        }
        let columns = bias.elem_count();
        let gradients = host(gradient)?;
        let sum = |rows: &[f32]| {
            let mut sum = vec![0f32; columns];
            rows.chunks_exact(columns).for_each(|row| add(self.cpu.isa(), &mut sum, row));
            sum
        };
        let blocks = self.cpu.of_row_blocks(gradients.len() / columns, |rows| {
            sum(&gradients[rows.start * columns..rows.end * columns])
        });
        let sum = Tensor::from_vec(sum(&blocks.concat()), bias.shape(), &Device::Cpu)?;
        Ok((Some(gradient.clone()), Some(sum)))
    }
}
