//! The kernels of `kernels/`, compiled by the driver for the card at hand.

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::error::CudaError;

/// File, architecture and PTX, as `build.rs` made them.
static PTX: &[(&str, u32, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// Threads of a block, the same for every kernel here.
pub(super) const THREADS: u32 = 128;

/// Head sizes that attention is compiled for.
pub(super) const HEAD_DIMS: [usize; 7] = [16, 32, 48, 64, 80, 96, 128];

/// Every kernel that scoring launches.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed_rows: CudaFunction,
    pub(super) gather_rows: CudaFunction,
    pub(super) rms_norm: CudaFunction,
    pub(super) rms_norm_f32: CudaFunction,
    pub(super) rotary_embedding: CudaFunction,
    pub(super) swiglu: CudaFunction,
    pub(super) inform_head_forward: CudaFunction,
    pub(super) head_linear: CudaFunction,
    pub(super) head_swiglu: CudaFunction,
    pub(super) head_columns: CudaFunction,
    pub(super) head_reparameterise: CudaFunction,
    attention: Vec<CudaFunction>,
}

impl Kernels {
    /// `capability`: ten times the major and the minor number.
    pub(super) fn load(context: &Arc<CudaContext>, capability: u32) -> Result<Self, CudaError> {
        let module = |file: &str| module(context, capability, file);
        let (rows, norm, head) = (module("rows")?, module("norm")?, module("head")?);
        let attention = module("packed_attention")?;
        let attention = HEAD_DIMS.map(|head_dim| {
            let kernel = function(&attention, &format!("packed_attention_{head_dim}"))?;
            allow_shared_bytes(&kernel, attention_shared_bytes(head_dim))?;
            Ok(kernel)
        });
        Ok(Self {
            embed_rows: function(&rows, "embed_rows")?,
            gather_rows: function(&rows, "gather_rows")?,
            rms_norm: function(&norm, "rms_norm")?,
            rms_norm_f32: function(&norm, "rms_norm_f32")?,
            rotary_embedding: function(&module("rotary")?, "rotary_embedding")?,
            swiglu: function(&module("gated_mlp")?, "swiglu")?,
            inform_head_forward: function(&module("inform_head")?, "inform_head_forward")?,
            head_linear: function(&head, "head_linear")?,
            head_swiglu: function(&head, "head_swiglu")?,
            head_columns: function(&head, "head_columns")?,
            head_reparameterise: function(&head, "head_reparameterise")?,
            attention: attention.into_iter().collect::<Result<_, CudaError>>()?,
        })
    }

    /// Attention for heads of so many channels, where there is one.
    pub(super) fn attention(&self, head_dim: usize) -> Result<&CudaFunction, CudaError> {
        of_head_dim(&self.attention, head_dim)
    }
}

/// The kernel for heads of so many channels, of one for each of [`HEAD_DIMS`].
pub(super) fn of_head_dim<T>(kernels: &[T], head_dim: usize) -> Result<&T, CudaError> {
    let index = HEAD_DIMS.iter().position(|&known| known == head_dim);
    index.and_then(|index| kernels.get(index)).ok_or_else(|| {
        CudaError::Unsupported(format!(
            "heads have {head_dim} channels, the attention kernel knows {HEAD_DIMS:?}"
        ))
    })
}

/// A file of `kernels/`, compiled for a card; `capability` as for [`Kernels::load`].
pub(super) fn module(
    context: &Arc<CudaContext>,
    capability: u32,
    file: &str,
) -> Result<Arc<CudaModule>, CudaError> {
    let fitting =
        PTX.iter().filter(|(name, architecture, _)| *name == file && *architecture <= capability);
    let newest = fitting.max_by_key(|(_, architecture, _)| *architecture);
    let ptx = newest.map_or("", |(_, _, ptx)| *ptx);
    context.load_module(Ptx::from_src(ptx)).map_err(CudaError::driver(
        "compiling the kernels' PTX (it needs a driver as new as the toolkit of this build)",
    ))
}

pub(super) fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction, CudaError> {
    module.load_function(name).map_err(CudaError::driver("finding a kernel"))
}

/// Lets a kernel have more dynamic shared memory than every kernel may.
pub(super) fn allow_shared_bytes(kernel: &CudaFunction, bytes: usize) -> Result<(), CudaError> {
    let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel
        .set_attribute(most, bytes as i32)
        .map_err(CudaError::driver("shared memory of the attention kernel"))
}

/// `SHARED_BYTES` of `kernels/packed_attention.cu`, and of both kernels of its way back.
pub(super) fn attention_shared_bytes(head_dim: usize) -> usize {
    512 * (head_dim + 8)
}
