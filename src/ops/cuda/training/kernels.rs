//! The kernels that only training launches.

use cudarc::driver::CudaFunction;

use crate::ops::cuda::device::CudaOps;
use crate::ops::cuda::error::CudaError;
use crate::ops::cuda::kernels::{
    HEAD_DIMS, allow_shared_bytes, attention_shared_bytes, function, module, of_head_dim,
};

/// Elements that a block of `adamw.cu` takes at a time, and the most blocks that it is launched with.
const ELEMENTS: usize = 1024;
const MOST_BLOCKS: usize = 4096;
/// Rows of a block of `norm_backward.cu`.
pub(super) const NORM_ROWS: usize = 16;

/// Kernels of the way back, and of the optimiser.
#[derive(Debug)]
pub(super) struct TrainingKernels {
    pub(super) add_rows: CudaFunction,
    pub(super) rms_norm_backward: CudaFunction,
    pub(super) add_row_sums: CudaFunction,
    pub(super) swiglu_backward: CudaFunction,
    pub(super) round_values: CudaFunction,
    pub(super) sum_of_squares: CudaFunction,
    pub(super) adamw: CudaFunction,
    attention: Vec<AttentionKernels>,
}

/// Both halves of attention's way back, for one head size.
#[derive(Debug)]
pub(super) struct AttentionKernels {
    pub(super) queries: CudaFunction,
    pub(super) keys: CudaFunction,
}

impl TrainingKernels {
    pub(super) fn load(ops: &CudaOps) -> Result<Self, CudaError> {
        let context = ops.stream.context();
        let (major, minor) =
            context.compute_capability().map_err(CudaError::driver("opening the GPU"))?;
        let module = |file: &str| module(context, (10 * major + minor) as u32, file);
        let (norm, adamw) = (module("norm_backward")?, module("adamw")?);
        let attention = module("packed_attention_backward")?;
        let attention = HEAD_DIMS.map(|head_dim| {
            let name = |half: &str| format!("packed_attention_backward_{half}_{head_dim}");
            let queries = function(&attention, &name("queries"))?;
            let keys = function(&attention, &name("keys"))?;
            allow_shared_bytes(&queries, attention_shared_bytes(head_dim))?;
            allow_shared_bytes(&keys, attention_shared_bytes(head_dim))?;
            Ok(AttentionKernels { queries, keys })
        });
        Ok(Self {
            add_rows: function(&module("rows_backward")?, "add_rows")?,
            rms_norm_backward: function(&norm, "rms_norm_backward")?,
            add_row_sums: function(&norm, "add_row_sums")?,
            swiglu_backward: function(&module("gated_mlp_backward")?, "swiglu_backward")?,
            round_values: function(&adamw, "round_values")?,
            sum_of_squares: function(&adamw, "sum_of_squares")?,
            adamw: function(&adamw, "adamw")?,
            attention: attention.into_iter().collect::<Result<_, CudaError>>()?,
        })
    }

    pub(super) fn attention(&self, head_dim: usize) -> Result<&AttentionKernels, CudaError> {
        of_head_dim(&self.attention, head_dim)
    }
}

/// Blocks for so many elements, of the kernels of `adamw.cu`.
pub(super) fn element_blocks(count: usize) -> usize {
    count.div_ceil(ELEMENTS).min(MOST_BLOCKS)
}
