//! What a device does: the operations that every model family is written in.
//!
//! [`Ops`] is the only thing that `model/` knows of a device. [`cpu`] scores on the CPU, `cuda` (with the
//! feature of that name) on a GPU; [`autograd`] records the same operations for training.

use std::fmt::Debug;
use std::ops::Range;

use thiserror::Error;

use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};
use crate::layer::{AttentionShape, Gelu};

mod adamw;
pub mod autograd;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod head;
mod noise;
mod packing;
mod rotary;

pub use adamw::{AdamWStep, StateTensor};
use head::InformHead;
pub use noise::standard_normal;
pub use packing::{Packing, Segment};

/// A device operation that could not be carried out.
#[derive(Debug, Error)]
pub enum OpsError {
    /// The tensor library refused the operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The GPU or its libraries refused the operation.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// The device has not got the operation: [`Ops::supports`] should have refused the model.
    #[error("this device does not compute {0}")]
    Missing(&'static str),
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, OpsError>;

/// The operations of a device. Activations are row-major matrices `[rows, columns]`, one row a packed
/// token, or one row a sequence once they are pooled.
///
/// A [`Ops::Matrix`] is f32. A [`Ops::Operand`] is what products read, in the precision that the device
/// multiplies; it is made only to be multiplied. Heads are computed in f32 throughout.
///
/// Contract: a row of a result depends on no other sequence's rows, and its bits do not depend on how
/// many rows there are, or on whether a prefix was packed once or several times. (A GPU that trains keeps that but for the last
/// digits of products.)
pub trait Ops: Debug {
    /// f32 activations `[rows, columns]`.
    type Matrix: Debug;
    /// Activations `[rows, columns]` as products read them.
    type Operand: Debug;
    /// A linear layer's weight `[out, in]` in the device's own layout.
    type Weight: Debug + Send + Sync;
    /// The gate and up projections of a gated MLP, `[inner, in]` each.
    type GatedWeight: Debug + Send + Sync;
    /// A head's weight `[out, in]`, f32.
    type HeadWeight: Debug + Send + Sync;
    /// A norm: its kind, its scale `[columns]` and, of a layer norm, its bias.
    type Scale: Debug + Send + Sync;
    /// An embedding table `[vocabulary, columns]`.
    type Table: Debug + Send + Sync;
    /// What attention needs to know of a batch, prepared once for all layers.
    type Layout: Debug + Send + Sync;
    /// Queries, keys and values of a batch in one layer, as attention reads them.
    type Projection: Debug;

    /// Whether the device has every operation of a decoder.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`], which names what it lacks.
    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        let _ = decoder;
        Ok(())
    }

    /// Loads the named tensors, each `[rows, columns]`, stacked by rows into one weight, so that
    /// projections with the same input are one product.
    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Self::Weight, CheckpointError>;

    /// As [`Ops::weight`], with a bias `[rows]` for each part, which products with the weight add.
    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<Self::Weight, CheckpointError> {
        let _ = (source, parts, biases, columns);
        Err(CheckpointError::Unsupported("this device adds no biases".to_owned()))
    }

    /// Loads the gate and up projections, each `[rows, columns]`.
    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Self::GatedWeight, CheckpointError>;

    /// Loads a head's tensors as [`Ops::weight`] does.
    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Self::HeadWeight, CheckpointError>;

    /// Loads the scale `[columns]` of a root-mean-square norm.
    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Self::Scale, CheckpointError>;

    /// Loads scale and bias of a layer norm, `[columns]` each.
    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<Self::Scale, CheckpointError> {
        let _ = (source, scale, bias, columns);
        Err(CheckpointError::Unsupported("this device computes no layer norm".to_owned()))
    }

    /// Loads an embedding table `[rows, columns]`.
    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Self::Table, CheckpointError>;

    /// Runs `work`, which calls other operations, where they begin at once: on a thread of the device's
    /// own, if it has some.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }

    /// Prepares a batch for attention.
    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Self::Layout>;

    /// Rows of the table: `[ids, columns]`. Every id must be below the table's rows.
    fn embed(&self, table: &Self::Table, ids: &[u32]) -> Result<Self::Matrix>;

    /// The norm that `scale` was loaded for. Root mean square (Zhang and Sennrich 2019):
    /// `x / sqrt(mean(x^2) + epsilon) * scale`; layer norm (Ba et al. 2016):
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`.
    fn norm(&self, x: &Self::Matrix, scale: &Self::Scale, epsilon: f32) -> Result<Self::Operand>;

    /// `residual +` [`Ops::norm`] of `x`.
    fn norm_add(
        &self,
        x: &Self::Matrix,
        scale: &Self::Scale,
        epsilon: f32,
        residual: Self::Matrix,
    ) -> Result<Self::Matrix> {
        let _ = (x, scale, epsilon, residual);
        Err(OpsError::Missing("a norm before the residual"))
    }

    /// [`Ops::norm`] of each head by itself in the given columns, which are whole heads as wide as the scale.
    fn head_norms(
        &self,
        x: Self::Matrix,
        columns: Range<usize>,
        scale: &Self::Scale,
        epsilon: f32,
    ) -> Result<Self::Matrix> {
        let _ = (x, columns, scale, epsilon);
        Err(OpsError::Missing("norms of heads"))
    }

    /// `factor * x`.
    fn scaled(&self, x: Self::Matrix, factor: f32) -> Result<Self::Matrix> {
        let _ = (x, factor);
        Err(OpsError::Missing("scaled embeddings"))
    }

    /// `x W^T`.
    fn linear(&self, x: &Self::Operand, weight: &Self::Weight) -> Result<Self::Matrix>;

    /// `residual + x W^T`.
    fn linear_add(
        &self,
        x: &Self::Operand,
        weight: &Self::Weight,
        residual: Self::Matrix,
    ) -> Result<Self::Matrix>;

    /// `silu(x W_gate^T) * x W_up^T` (SwiGLU, Shazeer 2020).
    fn gated_linear(&self, x: &Self::Operand, weight: &Self::GatedWeight) -> Result<Self::Operand>;

    /// `gelu(x W_gate^T) * x W_up^T` (GeGLU, Shazeer 2020).
    fn gelu_gated_linear(
        &self,
        x: &Self::Operand,
        weight: &Self::GatedWeight,
        gelu: Gelu,
    ) -> Result<Self::Operand> {
        let _ = (x, weight, gelu);
        Err(OpsError::Missing("GeGLU"))
    }

    /// `gelu(x W^T)`.
    fn gelu_linear(
        &self,
        x: &Self::Operand,
        weight: &Self::Weight,
        gelu: Gelu,
    ) -> Result<Self::Operand> {
        let _ = (x, weight, gelu);
        Err(OpsError::Missing("GELU"))
    }

    /// Takes every row from one attention to the next: `work` gets causal grouped-query attention of
    /// `previous` (`None` before the first layer), `[rows, output_columns]`, and the residual stream, and
    /// gives the new residual stream and what the next attention reads: `[q | k | v]`
    /// `[rows, qkv_columns]` where every row `asks`, else `[k | v]` `[rows, key_value_columns]`, both before
    /// their rotary embedding. `shape` is that of the next attention; those of one layout may differ in all but their
    /// heads.
    ///
    /// `work` may be called once for all rows, or for blocks of them at the same time, with a device of its
    /// own: it must use that one, and treat every row alike.
    fn advance(
        &self,
        x: Self::Matrix,
        previous: Option<&Self::Projection>,
        layout: &Self::Layout,
        shape: &AttentionShape,
        asks: bool,
        work: impl Fn(
            &Self,
            Option<Self::Operand>,
            Self::Matrix,
        ) -> Result<(Self::Matrix, Self::Matrix)>
        + Sync,
    ) -> Result<(Self::Matrix, Self::Projection)>;

    /// Attention of each sequence's last row only, over keys and values that [`Ops::advance`] gave:
    /// queries `[sequences, output_columns]` before their rotary embedding, to the same shape.
    fn last_attention(
        &self,
        queries: Self::Matrix,
        projection: &Self::Projection,
        layout: &Self::Layout,
    ) -> Result<Self::Operand>;

    /// The given rows, in the given order.
    fn gather(&self, x: &Self::Matrix, rows: &[usize]) -> Result<Self::Matrix>;

    /// [`Ops::norm`] in f32, for a head.
    fn head_norm(
        &self,
        x: &Self::Matrix,
        scale: &Self::Scale,
        epsilon: f32,
    ) -> Result<Self::Matrix>;

    /// `x W^T` in f32, for a head.
    fn head_linear(&self, x: &Self::Matrix, weight: &Self::HeadWeight) -> Result<Self::Matrix>;

    /// `silu(gate) * up` of `[gate | up]`: `[rows, 2 n]` to `[rows, n]`, for a head.
    fn head_swiglu(&self, gate_up: Self::Matrix) -> Result<Self::Matrix>;

    /// Columns `start .. start + count`.
    fn columns(&self, x: &Self::Matrix, start: usize, count: usize) -> Result<Self::Matrix>;

    /// `mu + exp(logvar / 2) * noise` of `[mu | logvar]` (Kingma and Welling 2014):
    /// `[rows, 2 d]` and `[rows * d]` to `[rows, d]`.
    fn reparameterise(&self, posterior: &Self::Matrix, noise: &[f32]) -> Result<Self::Matrix>;

    /// Reward `[rows, 1]` and `[mu | logvar]` `[rows, 2 d]` of hidden states `[rows, hidden]` before the final
    /// norm, whose scale and epsilon are given. `noise` `[rows * d]` draws the latents; `None` takes
    /// their means.
    fn inform_head(
        &self,
        x: &Self::Matrix,
        norm: (&Self::Scale, f32),
        head: &InformHead<Self::HeadWeight>,
        noise: Option<&[f32]>,
    ) -> Result<(Self::Matrix, Self::Matrix)>
    where
        Self: Sized,
    {
        head::step_by_step(self, x, norm, head, noise)
    }

    /// Copies a row-major matrix `[values / columns, columns]` to the device.
    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Self::Matrix>;

    /// Copies to host memory, row-major.
    fn read(&self, x: &Self::Matrix) -> Result<Vec<f32>>;
}

/// What training needs of a device beside [`Ops`]: a layer by itself, so that it can be computed again.
pub trait TrainingOps: Ops {
    /// Attention of every row, of `[q | k | v]` before their rotary embedding: `[rows, qkv_columns]` to
    /// `[rows, output_columns]`.
    ///
    /// # Errors
    /// A failing device.
    fn attention(
        &self,
        projected: &Self::Matrix,
        layout: &Self::Layout,
        shape: &AttentionShape,
    ) -> Result<Self::Operand>;
}
