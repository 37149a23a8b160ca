//! The same operations recorded for training, over candle's tensors.
//!
//! Gathers, sums and the loss go through candle's own autograd; products, norms, activations and packed
//! attention are custom operations of the CPU device's kernels, whose backward is here.

mod attention;
mod gated;
mod gelu;
mod norm;
mod parameters;
mod product;
mod seed;
mod weight;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::cpu::{AttentionLayout, CpuError, CpuOps, Precision};
use super::{Ops, OpsError, Packing, Result, TrainingOps};
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::layer::{AttentionShape, Gelu};
pub use norm::NormWeight;
pub use parameters::{Parameter, Trains};
pub use weight::{LinearWeight, LoraConfig, adapter_name};

/// A batch as attention sees it.
#[derive(Debug)]
pub struct TrainingLayout {
    attention: AttentionLayout,
    /// Each segment's rows, with all keys that they read.
    segments: Vec<attention::Queries>,
    /// Each sequence's last row; rows count sequences.
    lasts: Vec<attention::Queries>,
}

/// Queries, keys and values of a layer before their rotary embedding, and the layer's attention.
#[derive(Debug)]
pub struct TrainingProjection {
    values: Tensor,
    shape: AttentionShape,
}

/// Device of a training run; keeps every parameter it has loaded.
#[derive(Debug)]
pub struct AutogradOps {
    cpu: Arc<CpuOps>,
    precision: Precision,
    trains: Trains,
    parameters: RefCell<Vec<Parameter>>,
    is_recording: Cell<bool>,
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
        Ok(Self {
            cpu: Arc::new(CpuOps::new(threads, Precision::F32)?),
            precision,
            trains: Trains::All,
            parameters: RefCell::default(),
            is_recording: Cell::new(true),
        })
    }

    /// The same, of which only `trains` is trained. To be called before anything is loaded.
    pub fn training(self, trains: Trains) -> Self {
        Self { trains, ..self }
    }

    /// Runs `work` without keeping anything for a backward pass.
    pub fn without_recording<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.is_recording.replace(false);
        let result = work();
        self.is_recording.set(before);
        result
    }

    /// A scalar from which `backward` goes on with the gradient of `x` that is known.
    ///
    /// # Errors
    /// A failing operation.
    pub fn seed(&self, x: &Tensor, gradient: Tensor) -> Result<Tensor> {
        Ok(x.apply_op1(seed::Seed { gradient })?)
    }

    /// A tensor as operations are to see it now.
    fn seen(&self, tensor: &Tensor) -> Tensor {
        if self.is_recording.get() { tensor.clone() } else { tensor.detach() }
    }

    fn product(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        precision: Precision,
    ) -> candle_core::Result<Tensor> {
        let (cpu, transposed) = (self.cpu.clone(), false);
        let product =
            product::Product { cpu, precision, a_transposed: transposed, b_transposed: transposed };
        let (x, weight) = (x.contiguous()?, self.seen(weight));
        match bias {
            None => x.apply_op2(&weight, product),
            Some(bias) => x.apply_op3(&weight, &self.seen(bias), product),
        }
    }

    fn packed_attention(
        &self,
        layout: &Arc<TrainingLayout>,
        shape: &AttentionShape,
    ) -> attention::PackedAttention {
        attention::PackedAttention {
            cpu: self.cpu.clone(),
            rotary: self.cpu.rotary(&layout.attention, shape),
            layout: layout.clone(),
            shape: *shape,
        }
    }

    /// The scale that a norm multiplies by.
    fn norm_scale(&self, norm: &NormWeight) -> Result<Tensor> {
        let scale = self.seen(&norm.scale);
        Ok(match norm.offset {
            0.0 => scale,
            offset => (scale + f64::from(offset))?,
        })
    }

    /// Root-mean-square norm of each stretch as wide as the scale in these columns.
    fn rms_norm(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        norm: &NormWeight,
        epsilon: f32,
    ) -> Result<Tensor> {
        let cpu = self.cpu.clone();
        Ok(x.apply_op2(&self.norm_scale(norm)?, norm::RmsNorm { cpu, columns, epsilon })?)
    }

    fn gated(&self, gate_up: &Tensor, gelu: Option<Gelu>) -> Result<Tensor> {
        Ok(gate_up.apply_op1(gated::Gated { cpu: self.cpu.clone(), gelu })?)
    }
}

impl TrainingOps for AutogradOps {
    fn attention(
        &self,
        projected: &Tensor,
        layout: &Arc<TrainingLayout>,
        shape: &AttentionShape,
    ) -> Result<Tensor> {
        Ok(projected.apply_op1(self.packed_attention(layout, shape))?)
    }
}

impl Ops for AutogradOps {
    type Matrix = Tensor;
    type Operand = Tensor;
    type Weight = LinearWeight;
    type GatedWeight = LinearWeight;
    type HeadWeight = Tensor;
    type Scale = NormWeight;
    type Table = Tensor;
    type Layout = Arc<TrainingLayout>;
    type Projection = TrainingProjection;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let values = source.stacked(parts, columns)?;
        let values = self.decoder_tensor(parts, values, &[rows, columns], true)?;
        Ok(LinearWeight { values, bias: None, adapters: self.adapters(parts, columns)? })
    }

    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        let weight = self.weight(source, parts, columns)?;
        let parts: Vec<(&str, usize)> =
            biases.iter().zip(parts).map(|(&name, &(_, rows))| (name, rows)).collect();
        let mut values = Vec::new();
        for &(name, rows) in &parts {
            values.extend(source.f32(name, &[rows])?);
        }
        let rows = values.len();
        let bias = self.decoder_tensor(&parts, values, &[rows], false)?;
        Ok(LinearWeight { bias: Some(bias), ..weight })
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        self.weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        self.register(parts, source.stacked(parts, columns)?, &[rows, columns], true)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<NormWeight, CheckpointError> {
        self.stored_scale(source, name, columns)
    }

    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<NormWeight, CheckpointError> {
        let norm = self.stored_scale(source, scale, columns)?;
        let values = source.f32(bias, &[columns])?;
        let bias = self.decoder_tensor(&[(bias, columns)], values, &[columns], false)?;
        Ok(NormWeight { bias: Some(bias), ..norm })
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let values = source.f32(name, &[rows, columns])?;
        self.decoder_tensor(&[(name, rows)], values, &[rows, columns], true)
    }

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<TrainingLayout>> {
        let segments = packing.segments().iter().enumerate().map(|(index, segment)| {
            let (rows, keys) = (segment.rows.clone(), packing.rows_through(index));
            attention::Queries { rows, keys }
        });
        let lasts = (0..packing.sequences()).map(|sequence| {
            let (rows, keys) = (sequence..sequence + 1, packing.rows_of(sequence));
            attention::Queries { rows, keys }
        });
        Ok(Arc::new(TrainingLayout {
            attention: self.cpu.layout(packing, shape)?,
            segments: segments.collect(),
            lasts: lasts.collect(),
        }))
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        Ok(self.seen(table).index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?)
    }

    fn norm(&self, x: &Tensor, norm: &NormWeight, epsilon: f32) -> Result<Tensor> {
        let Some(bias) = &norm.bias else {
            return self.rms_norm(x, 0..x.dim(D::Minus1)?, norm, epsilon);
        };
        let operation = norm::LayerNorm { cpu: self.cpu.clone(), epsilon };
        Ok(x.apply_op3(&self.norm_scale(norm)?, &self.seen(bias), operation)?)
    }

    fn norm_add(
        &self,
        x: &Tensor,
        norm: &NormWeight,
        epsilon: f32,
        residual: Tensor,
    ) -> Result<Tensor> {
        Ok((residual + self.norm(x, norm, epsilon)?)?)
    }

    fn head_norms(
        &self,
        x: Tensor,
        columns: Range<usize>,
        norm: &NormWeight,
        epsilon: f32,
    ) -> Result<Tensor> {
        match norm.bias {
            None => self.rms_norm(&x, columns, norm, epsilon),
            Some(_) => Err(OpsError::Missing("layer norms of heads")),
        }
    }

    fn scaled(&self, x: Tensor, factor: f32) -> Result<Tensor> {
        Ok((x * f64::from(factor))?)
    }

    fn linear(&self, x: &Tensor, weight: &LinearWeight) -> Result<Tensor> {
        let product = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
            self.product(x, weight, bias, self.precision)
        };
        Ok(weight.apply(x, product)?)
    }

    fn linear_add(&self, x: &Tensor, weight: &LinearWeight, residual: Tensor) -> Result<Tensor> {
        Ok((residual + self.linear(x, weight)?)?)
    }

    fn gated_linear(&self, x: &Tensor, weight: &LinearWeight) -> Result<Tensor> {
        self.gated(&self.linear(x, weight)?, None)
    }

    fn gelu_gated_linear(&self, x: &Tensor, weight: &LinearWeight, gelu: Gelu) -> Result<Tensor> {
        self.gated(&self.linear(x, weight)?, Some(gelu))
    }

    fn gelu_linear(&self, x: &Tensor, weight: &LinearWeight, gelu: Gelu) -> Result<Tensor> {
        let operation = gelu::Activation { cpu: self.cpu.clone(), kind: gelu };
        Ok(self.linear(x, weight)?.apply_op1(operation)?)
    }

    fn advance(
        &self,
        x: Tensor,
        previous: Option<&TrainingProjection>,
        layout: &Arc<TrainingLayout>,
        shape: &AttentionShape,
        _asks: bool,
        work: impl Fn(&Self, Option<Tensor>, Tensor) -> Result<(Tensor, Tensor)> + Sync,
    ) -> Result<(Tensor, TrainingProjection)> {
        let attended =
            previous.map(|previous| self.attention(&previous.values, layout, &previous.shape));
        let (x, values) = work(self, attended.transpose()?, x)?;
        Ok((x, TrainingProjection { values, shape: *shape }))
    }

    fn last_attention(
        &self,
        queries: Tensor,
        projection: &TrainingProjection,
        layout: &Arc<TrainingLayout>,
    ) -> Result<Tensor> {
        let operation = self.packed_attention(layout, &projection.shape);
        Ok(queries.apply_op2(&projection.values, operation)?)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(x.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }

    fn head_norm(&self, x: &Tensor, norm: &NormWeight, epsilon: f32) -> Result<Tensor> {
        self.norm(x, norm, epsilon)
    }

    fn head_linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(self.product(x, weight, None, Precision::F32)?)
    }

    fn head_swiglu(&self, gate_up: Tensor) -> Result<Tensor> {
        self.gated(&gate_up, None)
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
