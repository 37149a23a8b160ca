//! The same operations recorded for training, over candle's tensors.
//!
//! Gathers, sums and the loss go through candle's own autograd; products, norm, SwiGLU and packed
//! attention are custom operations of the CPU device's kernels, whose backward is here.

mod attention;
mod norm;
mod product;
mod swiglu;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::cpu::{AttentionLayout, CpuError, CpuOps, Precision};
use super::{AttentionShape, Ops, Packing, Result};
use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};

/// A trained tensor, and the checkpoint tensors that its rows belong to.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Checkpoint tensor names with their number of rows; one for a tensor that is not stacked.
    pub parts: Vec<(String, usize)>,
    /// The values.
    pub var: Var,
    /// Whether weight decay applies: to matrices, not to the scales of norms.
    pub decays: bool,
}

/// A batch of whole sequences.
#[derive(Debug)]
pub struct TrainingLayout {
    attention: AttentionLayout,
    shape: AttentionShape,
    /// Rows of each sequence.
    sequences: Vec<Range<usize>>,
}

/// Device of a training run; keeps every parameter it has loaded.
#[derive(Debug)]
pub struct AutogradOps {
    cpu: Arc<CpuOps>,
    precision: Precision,
    parameters: RefCell<Vec<Parameter>>,
}

impl AutogradOps {
    /// Training on `threads` threads, one a processor where that is 0, with the decoder's products in `precision`:
    /// factors are rounded for the product, while weights, activations, sums and the head are f32.
    ///
    /// # Errors
    /// As [`CpuOps::new`].
    pub fn new(threads: usize, precision: Precision) -> std::result::Result<Self, CpuError> {
        // Refuses a precision that the processor has not.
        CpuOps::new(1, precision)?;
        let cpu = Arc::new(CpuOps::new(threads, Precision::F32)?);
        Ok(Self { cpu, precision, parameters: RefCell::default() })
    }

    fn product(&self, x: &Tensor, weight: &Tensor, precision: Precision) -> Result<Tensor> {
        let (cpu, transposed) = (self.cpu.clone(), false);
        let product =
            product::Product { cpu, precision, a_transposed: transposed, b_transposed: transposed };
        Ok(x.contiguous()?.apply_op2(weight, product)?)
    }

    /// Every parameter loaded so far, in loading order.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.parameters.borrow().clone()
    }

    /// Attention of every row, of `[q | k | v]` before their rotary embedding: `[rows, qkv_columns]` to
    /// `[rows, output_columns]`.
    ///
    /// # Errors
    /// A failing operation.
    pub fn attention(&self, qkv: &Tensor, layout: &Arc<TrainingLayout>) -> Result<Tensor> {
        Ok(qkv.apply_op1(self.packed_attention(layout))?)
    }

    fn packed_attention(&self, layout: &Arc<TrainingLayout>) -> attention::PackedAttention {
        attention::PackedAttention {
            cpu: self.cpu.clone(),
            layout: layout.clone(),
            shape: layout.shape,
        }
    }

    fn register(
        &self,
        parts: &[(&str, usize)],
        values: Vec<f32>,
        shape: &[usize],
        decays: bool,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)
            .and_then(|tensor| Var::from_tensor(&tensor))
            .map_err(|source| CheckpointError::Tensor { source: Box::new(source) })?;
        let handle = tensor.as_tensor().clone();
        self.parameters.borrow_mut().push(Parameter {
            parts: parts.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect(),
            var: tensor,
            decays,
        });
        Ok(handle)
    }
}

impl Ops for AutogradOps {
    type Matrix = Tensor;
    type Operand = Tensor;
    type Weight = Tensor;
    type GatedWeight = Tensor;
    type HeadWeight = Tensor;
    type Scale = Tensor;
    type Table = Tensor;
    type Layout = Arc<TrainingLayout>;
    type Projection = Tensor;

    /// Of Llama's layers alone, whatever scales their rotary embedding.
    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        decoder.require(&[], "training")
    }

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        self.register(parts, source.stacked(parts, columns)?, &[rows, columns], true)
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        self.weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        self.weight(source, parts, columns)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        self.register(&[(name, columns)], source.f32(name, &[columns])?, &[columns], false)
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        self.weight(source, &[(name, rows)], columns)
    }

    /// Gradients of rows that several sequences share are not written yet: sequences must be whole.
    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<TrainingLayout>> {
        if packing.segments().iter().any(|segment| segment.parent.is_some()) {
            let message = "training packs each sequence whole".to_owned();
            return Err(candle_core::Error::Msg(message).into());
        }
        Ok(Arc::new(TrainingLayout {
            attention: self.cpu.layout(packing, shape)?,
            shape: *shape,
            sequences: packing.segments().iter().map(|segment| segment.rows.clone()).collect(),
        }))
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        Ok(table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?)
    }

    fn norm(&self, x: &Tensor, scale: &Tensor, epsilon: f32) -> Result<Tensor> {
        Ok(x.apply_op2(scale, norm::RmsNorm { cpu: self.cpu.clone(), epsilon })?)
    }

    fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.product(x, weight, self.precision)
    }

    fn linear_add(&self, x: &Tensor, weight: &Tensor, residual: Tensor) -> Result<Tensor> {
        Ok((residual + self.linear(x, weight)?)?)
    }

    fn gated_linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.head_swiglu(self.linear(x, weight)?)
    }

    fn advance(
        &self,
        x: Tensor,
        previous: Option<&Tensor>,
        layout: &Arc<TrainingLayout>,
        _shape: &AttentionShape,
        _asks: bool,
        work: impl Fn(&Self, Option<Tensor>, Tensor) -> Result<(Tensor, Tensor)> + Sync,
    ) -> Result<(Tensor, Tensor)> {
        let attended = previous.map(|qkv| self.attention(qkv, layout));
        work(self, attended.transpose()?, x)
    }

    fn last_attention(
        &self,
        queries: Tensor,
        key_value: &Tensor,
        layout: &Arc<TrainingLayout>,
    ) -> Result<Tensor> {
        Ok(queries.apply_op2(key_value, self.packed_attention(layout))?)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(x.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }

    fn head_norm(&self, x: &Tensor, scale: &Tensor, epsilon: f32) -> Result<Tensor> {
        self.norm(x, scale, epsilon)
    }

    fn head_linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.product(x, weight, Precision::F32)
    }

    fn head_swiglu(&self, gate_up: Tensor) -> Result<Tensor> {
        Ok(gate_up.apply_op1(swiglu::SwiGlu { cpu: self.cpu.clone() })?)
    }

    fn columns(&self, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
        Ok(x.narrow(D::Minus1, start, count)?)
    }

    fn reparameterise(&self, posterior: &Tensor, noise: &[f32]) -> Result<Tensor> {
        let (rows, columns) = posterior.dims2()?;
        let dimension = columns / 2;
        let mu = posterior.narrow(1, 0, dimension)?;
        let sigma = (posterior.narrow(1, dimension, dimension)? * 0.5)?.exp()?;
        let noise = Tensor::from_slice(noise, (rows, dimension), &Device::Cpu)?;
        Ok((mu + (sigma * noise)?)?)
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, ((), columns), &Device::Cpu)?)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.flatten_all()?.to_vec1()?)
    }
}

/// The values of a contiguous f32 tensor on the CPU.
fn values<'a>(
    storage: &'a candle_core::CpuStorage,
    layout: &candle_core::Layout,
) -> candle_core::Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("expected a contiguous tensor".to_owned()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A tensor's values in host memory.
fn host(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
