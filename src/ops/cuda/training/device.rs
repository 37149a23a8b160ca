//! A GPU of a training run, and what it records.

use std::cell::RefCell;
use std::sync::Arc;

use half::bf16;

use super::gpu::Gpu;
use super::kernels::TrainingKernels;
use super::parameters::{DeviceParameter, DeviceTensor};
use super::tape::{SharedValue, Tape, TapeGradients, Value};
use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::ops::autograd::Trains;
use crate::ops::cuda::device::CudaOps;
use crate::ops::cuda::error::CudaError;
use crate::ops::cuda::matrices::{CudaMatrix, Rotation};
use crate::ops::cuda::memory::DeviceBuffer;
use crate::ops::device::{DeviceOps, Result};

/// A GPU of a training run; keeps every parameter it has loaded.
#[derive(Debug)]
pub struct CudaTraining {
    pub(super) gpu: Gpu,
    pub(super) trains: Trains,
    pub(super) parameters: RefCell<Vec<DeviceParameter>>,
    /// What is recorded; `None` where nothing is.
    tape: RefCell<Option<Tape>>,
    /// The last batch's rotary tables, and the negative of their sine.
    pub(super) turned_back: RefCell<Option<TurnedBack>>,
}

/// Rotary tables, and the negative of their sine.
pub(super) type TurnedBack = (Arc<Rotation>, Arc<DeviceBuffer<f32>>);

impl CudaTraining {
    /// Training on a device, of what `trains` says. Matrices have room for a multiple of `rows` rows, of at least one:
    /// with that of the greatest batch, every batch finds the memory of the one before.
    ///
    /// # Errors
    /// As [`CudaOps::new`].
    pub fn new(
        ordinal: usize,
        trains: Trains,
        rows: usize,
    ) -> std::result::Result<Self, CudaError> {
        let ops = CudaOps::new(ordinal, &[rows.max(1)])?;
        let kernels = TrainingKernels::load(&ops)?;
        Ok(Self {
            gpu: Gpu { ops, kernels },
            trains,
            parameters: RefCell::default(),
            tape: RefCell::default(),
            turned_back: RefCell::default(),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.gpu.ops.name()
    }

    /// Leaves a norm out of what is trained here: something else trains it.
    pub fn leave_out(&self, scale: &Arc<DeviceTensor>) {
        self.parameters.borrow_mut().retain(|parameter| !Arc::ptr_eq(&parameter.tensor, scale));
    }

    /// Begins to record, and drops what was recorded.
    pub fn record(&self) {
        *self.tape.borrow_mut() = Some(Tape::default());
    }

    /// The same values, as something whose gradient [`CudaTraining::backward`] returns.
    pub fn leaf(&self, x: &SharedValue<f32>) -> SharedValue<f32> {
        let place = self.tape.borrow_mut().as_mut().map(Tape::place);
        Arc::new(Value { matrix: x.matrix.clone(), place })
    }

    /// Adds the gradients of everything that was recorded, from that of `y`; ends the recording. Returns the gradient
    /// of `leaf`.
    ///
    /// # Errors
    /// A failing device.
    pub fn backward(
        &self,
        y: &SharedValue<f32>,
        gradient: &SharedValue<f32>,
        leaf: Option<&SharedValue<f32>>,
    ) -> Result<Option<SharedValue<f32>>> {
        let tape = self.tape.borrow_mut().take();
        let (Some(tape), Some(from)) = (tape, y.place) else { return Ok(None) };
        let CudaMatrix { rows, columns, .. } = *gradient.matrix;
        let copy = self.gpu.ops.matrix(rows, columns)?;
        self.gpu.ops.memory.copy(&copy.values, &gradient.matrix.values, rows * columns)?;
        let to = leaf.and_then(|leaf| leaf.place);
        let found = tape.backward(&self.gpu, from, copy, to)?;
        Ok(found.map(|matrix| self.value(matrix, false)))
    }

    pub(super) fn value<T>(&self, matrix: CudaMatrix<T>, is_tracked: bool) -> SharedValue<T> {
        let mut tape = self.tape.borrow_mut();
        let place = tape.as_mut().filter(|_| is_tracked).map(Tape::place);
        Arc::new(Value { matrix: Arc::new(matrix), place })
    }

    /// Keeps a step back, of a value that has a place.
    pub(super) fn record_step(
        &self,
        step: impl FnOnce(&Gpu, &mut TapeGradients) -> Result<()> + 'static,
    ) {
        if let Some(tape) = &mut *self.tape.borrow_mut() {
            tape.push(step);
        }
    }
}

impl DeviceOps for CudaTraining {
    type Matrix = SharedValue<f32>;
    type Operand = SharedValue<bf16>;
    type Scale = Arc<DeviceTensor>;

    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        self.gpu.ops.supports(decoder)
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<SharedValue<f32>> {
        Ok(self.value(self.gpu.ops.upload(values, columns)?, false))
    }

    fn read(&self, x: &SharedValue<f32>) -> Result<Vec<f32>> {
        self.gpu.ops.read(&x.matrix)
    }
}
