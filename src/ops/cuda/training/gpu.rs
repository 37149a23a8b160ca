//! A GPU with the kernels of training.

use half::bf16;

use super::kernels::{TrainingKernels, element_blocks};
use crate::ops::cuda::device::CudaOps;
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::matrices::CudaMatrix;
use crate::ops::cuda::products::Block;
use crate::ops::device::Result;

/// A GPU, and what it runs.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) ops: CudaOps,
    pub(super) kernels: TrainingKernels,
}

impl<T> CudaMatrix<T> {
    pub(super) fn block(&self) -> Block {
        let Self { rows, columns, .. } = *self;
        Block { address: self.values.address(), rows, columns, stride: columns }
    }
}

impl Gpu {
    pub(super) fn round(&self, x: &CudaMatrix<f32>, factor: f32) -> Result<CudaMatrix<bf16>> {
        let out = self.ops.matrix(x.rows, x.columns)?;
        let count = x.rows * x.columns;
        launch!(
            self.ops,
            &self.kernels.round_values,
            (element_blocks(count), 1),
            0,
            [out.values.address(), x.values.address(), factor, count as i64]
        )?;
        Ok(out)
    }
}
