//! The decoder's operations on a GPU, recorded for training.
//!
//! The forward pass is the one that scores. Each operation leaves a step for the way back, whose kernels and products
//! add in an order that the batch alone decides: the same step gives the same bits. Products read bf16 and sum in f32; what is
//! trained, its gradients and its moments are f32. Heads are trained on the CPU, from the pooled rows on.

mod attention;
mod gpu;
mod kernels;
mod operations;
mod optimiser;
mod parameters;
mod tape;

use std::cell::RefCell;
use std::sync::Arc;

use half::bf16;

use super::layout::Tables;
use super::matrices::Rotation;
use super::{Buffer, CudaError, CudaLayout, CudaMatrix, CudaOps, CudaProjection};
use crate::layer::AttentionShape;
use crate::ops::autograd::Trains;
use crate::ops::{Packing, Result};
use attention::Attended;
use gpu::Gpu;
use kernels::TrainingKernels;
use tape::{Gradients, Tape};

pub use attention::TrainingLayout;
pub use parameters::{DeviceParameter, DeviceTensor, DeviceWeight};
pub use tape::{Shared, Value};

/// A GPU of a training run; keeps every parameter it has loaded.
#[derive(Debug)]
pub struct CudaTraining {
    gpu: Gpu,
    trains: Trains,
    parameters: RefCell<Vec<DeviceParameter>>,
    /// What is recorded; `None` where nothing is.
    tape: RefCell<Option<Tape>>,
    /// The last batch's rotary tables, and the negative of their sine.
    turned_back: RefCell<Option<TurnedBack>>,
}

/// Queries, keys and values of a layer after their rotary embedding.
#[derive(Debug)]
pub struct TrainingProjection {
    rotated: Arc<CudaProjection>,
    place: Option<usize>,
}

type TurnedBack = (Arc<Rotation>, Arc<Buffer<f32>>);

/// What the adapters of a product kept: of each, its input of `B`, `[rows, rank]`.
type Between = Vec<Option<CudaMatrix<bf16>>>;

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
    pub fn leaf(&self, x: &Shared<f32>) -> Shared<f32> {
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
        y: &Shared<f32>,
        gradient: &Shared<f32>,
        leaf: Option<&Shared<f32>>,
    ) -> Result<Option<Shared<f32>>> {
        let tape = self.tape.borrow_mut().take();
        let (Some(tape), Some(from)) = (tape, y.place) else { return Ok(None) };
        let CudaMatrix { rows, columns, .. } = *gradient.matrix;
        let copy = self.gpu.ops.matrix(rows, columns)?;
        self.gpu.ops.memory.copy(&copy.values, &gradient.matrix.values, rows * columns)?;
        let to = leaf.and_then(|leaf| leaf.place);
        let found = tape.backward(&self.gpu, from, copy, to)?;
        Ok(found.map(|matrix| self.value(matrix, false)))
    }

    fn value<T>(&self, matrix: CudaMatrix<T>, is_tracked: bool) -> Shared<T> {
        let mut tape = self.tape.borrow_mut();
        let place = tape.as_mut().filter(|_| is_tracked).map(Tape::place);
        Arc::new(Value { matrix: Arc::new(matrix), place })
    }

    /// Keeps a step back, of a value that has a place.
    fn record_step(&self, step: impl FnOnce(&Gpu, &mut Gradients) -> Result<()> + 'static) {
        if let Some(tape) = &mut *self.tape.borrow_mut() {
            tape.push(step);
        }
    }

    fn attend(&self, attended: Attended) -> Result<Shared<bf16>> {
        let out = attended.attend(&self.gpu)?;
        let query_place = attended.last_queries.as_ref().and_then(|(_, place)| *place);
        let out = self.value(out, attended.key_place.is_some() || query_place.is_some());
        if let Some(place) = out.place {
            let matrix = out.matrix.clone();
            self.record_step(move |gpu, gradients| {
                let Some(d_out) = gradients.take(Some(place)) else { return Ok(()) };
                attended.backward(gpu, gradients, &matrix, &gpu.rounded(d_out)?)
            });
        }
        Ok(out)
    }

    /// Attention of every row.
    fn attended(
        &self,
        projection: &TrainingProjection,
        layout: &Arc<TrainingLayout>,
    ) -> Result<Shared<bf16>> {
        self.attend(Attended {
            last_queries: None,
            keys: projection.rotated.clone(),
            key_place: projection.place,
            layout: layout.clone(),
        })
    }

    fn projection(
        &self,
        projected: &Shared<f32>,
        layout: &TrainingLayout,
        asks: bool,
    ) -> Result<TrainingProjection> {
        let forward = &layout.forward;
        let shape = &forward.shape;
        let query_heads = if asks { shape.heads } else { 0 };
        let rotated = query_heads + shape.key_value_heads;
        let sine = &forward.rotation.sine;
        let ops = &self.gpu.ops;
        let values = ops.rotate(&projected.matrix, forward, sine, forward.positions, rotated)?;
        let query_columns = query_heads * shape.head_dim;
        let rotated = Arc::new(CudaProjection { values, query_columns });
        Ok(TrainingProjection { rotated, place: projected.place })
    }

    fn layout_of(&self, packing: &Packing, shape: &AttentionShape) -> Result<TrainingLayout> {
        let ops = &self.gpu.ops;
        let rotation = ops.rotation(packing, shape)?;
        let mut known = self.turned_back.borrow_mut();
        let turned_back = match known.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &rotation)) {
            Some((_, turned_back)) => turned_back.clone(),
            None => {
                let (_, sine) = rotation.host.tables();
                let negative: Vec<f32> = sine.iter().map(|sine| -sine).collect();
                let negative = Arc::new(ops.memory.upload(&negative)?);
                *known = Some((rotation.clone(), negative.clone()));
                negative
            }
        };
        let tables = Tables::new(packing, shape);
        let forward = CudaLayout::new(&ops.memory, &tables, shape, rotation)?;
        Ok(TrainingLayout::new(&ops.memory, &tables, packing, forward, turned_back)?)
    }
}
