//! The device of a training run on the CPU.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::attention::{AutogradLayout, PackedAttention};
use super::gated::Gated;
use super::norm::{NormWeight, RmsNorm};
use super::parameters::{Parameter, Trains};
use super::product::Product;
use super::seed::Seed;
use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::layer::{AttentionShape, Gelu};
use crate::ops::cpu::{CpuError, CpuOps, Precision};
use crate::ops::device::{DeviceOps, Result};

/// Device of a training run; keeps every parameter it has loaded.
#[derive(Debug)]
pub struct AutogradOps {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) precision: Precision,
    pub(super) trains: Trains,
    pub(super) parameters: RefCell<Vec<Parameter>>,
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
        Ok(x.apply_op1(Seed { gradient })?)
    }

    /// A tensor as operations are to see it now.
    pub(super) fn seen(&self, tensor: &Tensor) -> Tensor {
        if self.is_recording.get() { tensor.clone() } else { tensor.detach() }
    }

    pub(super) fn product(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        precision: Precision,
    ) -> candle_core::Result<Tensor> {
        let (cpu, transposed) = (self.cpu.clone(), false);
        let product =
            Product { cpu, precision, a_transposed: transposed, b_transposed: transposed };
        let (x, weight) = (x.contiguous()?, self.seen(weight));
        match bias {
            None => x.apply_op2(&weight, product),
            Some(bias) => x.apply_op3(&weight, &self.seen(bias), product),
        }
    }

    pub(super) fn packed_attention(
        &self,
        layout: &Arc<AutogradLayout>,
        shape: &AttentionShape,
    ) -> PackedAttention {
        PackedAttention {
            cpu: self.cpu.clone(),
            rotary: self.cpu.rotary(&layout.attention, shape),
            layout: layout.clone(),
            shape: *shape,
        }
    }

    /// The scale that a norm multiplies by.
    pub(super) fn norm_scale(&self, norm: &NormWeight) -> Result<Tensor> {
        let scale = self.seen(&norm.scale);
        Ok(match norm.offset {
            0.0 => scale,
            offset => (scale + f64::from(offset))?,
        })
    }

    /// Root-mean-square norm of each stretch as wide as the scale in these columns.
    pub(super) fn rms_norm(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        norm: &NormWeight,
        epsilon: f32,
    ) -> Result<Tensor> {
        let cpu = self.cpu.clone();
        Ok(x.apply_op2(&self.norm_scale(norm)?, RmsNorm { cpu, columns, epsilon })?)
    }

    pub(super) fn gated(&self, gate_up: &Tensor, gelu: Option<Gelu>) -> Result<Tensor> {
        Ok(gate_up.apply_op1(Gated { cpu: self.cpu.clone(), gelu })?)
    }
}

impl DeviceOps for AutogradOps {
    type Matrix = Tensor;
    type Operand = Tensor;
    type Scale = NormWeight;

    /// Every part has a gradient.
    fn supports(&self, _: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        Ok(())
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, ((), columns), &candle_core::Device::Cpu)?)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.flatten_all()?.to_vec1()?)
    }
}
