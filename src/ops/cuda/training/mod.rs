//! The decoder's operations on a GPU, recorded for training.
//!
//! The forward pass is the one that scores. Each operation leaves a step for the way back, whose kernels and products
//! add in an order that the batch alone decides: the same step gives the same bits. Products read bf16 and sum in f32; what is
//! trained, its gradients and its moments are f32. Heads are trained on the CPU, from the pooled rows on.

mod attention;
mod kernels;
mod optimiser;
mod parameters;
mod tape;

use std::cell::RefCell;
use std::sync::Arc;

use half::bf16;

use super::launch::launch;
use super::layout::Tables;
use super::matrices::Rotation;
use super::products::{Block, Destination};
use super::{Buffer, CudaError, CudaLayout, CudaMatrix, CudaOps, CudaProjection};
use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};
use crate::ops::autograd::Trains;
use crate::ops::{AttentionShape, Ops, OpsError, Packing, Result, TrainingOps};
use attention::Attended;
use kernels::{NORM_ROWS, TrainingKernels, element_blocks};
use parameters::Role;
use tape::{Gradient, Gradients, Tape};

pub use attention::TrainingLayout;
pub use parameters::{DeviceParameter, DeviceTensor, DeviceWeight};
pub use tape::{Shared, Value};

/// A GPU, and what it runs.
#[derive(Debug)]
pub(super) struct Gpu {
    ops: CudaOps,
    kernels: TrainingKernels,
}

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

impl<T> CudaMatrix<T> {
    fn block(&self) -> Block {
        let Self { rows, columns, .. } = *self;
        Block { address: self.values.address(), rows, columns, stride: columns }
    }
}

impl Gpu {
    fn round(&self, x: &CudaMatrix<f32>, factor: f32) -> Result<CudaMatrix<bf16>> {
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

    /// As products read it.
    fn rounded(&self, gradient: Gradient) -> Result<CudaMatrix<bf16>> {
        match gradient {
            Gradient::Bf16(gradient) => Ok(gradient),
            Gradient::F32(gradient) => self.round(&gradient, 1.0),
        }
    }

    /// `into[targets[i]] += x[j]` for every `j` with `rows[j] = targets[i]`, in ascending order of `j`.
    fn add_rows(&self, into: u64, x: &CudaMatrix<f32>, rows: &[u32]) -> Result<()> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&source| rows[source]);
        let (mut targets, mut starts) = (Vec::new(), Vec::new());
        for (index, &source) in order.iter().enumerate() {
            if targets.last() != Some(&(rows[source] as i32)) {
                targets.push(rows[source] as i32);
                starts.push(index as i32);
            }
        }
        starts.push(order.len() as i32);
        let sources = order.into_iter().map(|source| source as i32);
        let (count, starts_at) = (targets.len(), targets.len() as u64);
        let sources_at = starts_at + starts.len() as u64;
        let lists: Vec<i32> = targets.into_iter().chain(starts).chain(sources).collect();
        let lists = self.ops.memory.upload(&lists)?;
        launch!(
            self.ops,
            &self.kernels.add_rows,
            (count, 1),
            0,
            [
                into,
                x.values.address(),
                lists.address(),
                lists.address() + 4 * starts_at,
                lists.address() + 4 * sources_at,
                x.columns as i32,
            ]
        )?;
        Ok(())
    }

    /// The gradients of a product whose result has the gradient `d_y`.
    fn linear_backward(
        &self,
        gradients: &mut Gradients,
        d_y: &CudaMatrix<bf16>,
        x: &Value<bf16>,
        weight: &DeviceWeight,
        between: &Between,
    ) -> Result<()> {
        let products = &self.ops.products;
        let (d_y, read) = (d_y.block(), x.matrix.block());
        let mut sum = match x.place {
            None => None,
            Some(place) => {
                let (d_x, adds) = gradients.sum(self, place, (read.rows, read.columns))?;
                let into = if adds { Destination::Added } else { Destination::F32 };
                products.product(d_y.plain(), weight.tensor.block().plain(), d_x.block(), into)?;
                Some((place, d_x))
            }
        };
        if let Some(d_weight) = weight.tensor.gradient() {
            products.product(d_y.transposed(), read.plain(), d_weight, Destination::Added)?;
        }
        let mut first = 0;
        for (part, between) in weight.adapters.iter().zip(between) {
            let d_part = Block {
                address: d_y.address + (first * size_of::<bf16>()) as u64,
                columns: part.rows,
                ..d_y
            };
            first += part.rows;
            let (Some(adapter), Some(between)) = (&part.adapter, between) else { continue };
            let (a, b) = (&adapter.a, &adapter.b);
            if let Some(d_b) = b.gradient() {
                let read = between.block().plain();
                products.product(d_part.transposed(), read, d_b, Destination::Added)?;
            }
            let d_between = self.ops.matrix::<f32>(between.rows, between.columns)?;
            let into = Destination::F32;
            products.product(d_part.plain(), b.block().plain(), d_between.block(), into)?;
            let d_between = self.round(&d_between, adapter.scale)?.block();
            if let Some(d_a) = a.gradient() {
                products.product(d_between.transposed(), read.plain(), d_a, Destination::Added)?;
            }
            if let Some((_, d_x)) = &sum {
                let into = Destination::Added;
                products.product(d_between.plain(), a.block().plain(), d_x.block(), into)?;
            }
        }
        if let Some((place, d_x)) = sum.take() {
            gradients.put(place, Gradient::F32(d_x));
        }
        Ok(())
    }

    /// The gradients of a root-mean-square norm.
    fn norm_backward(
        &self,
        gradients: &mut Gradients,
        d_y: &CudaMatrix<f32>,
        x: &Value<f32>,
        scale: &DeviceTensor,
        epsilon: f32,
    ) -> Result<()> {
        let (rows, columns) = (x.matrix.rows, x.matrix.columns);
        let (d_x, adds) = match x.place {
            Some(place) => gradients.sum(self, place, (rows, columns))?,
            None => (self.ops.matrix(rows, columns)?, false),
        };
        let blocks = rows.div_ceil(NORM_ROWS);
        let parts = match &scale.state {
            Some(_) => Some(self.ops.memory.take::<f32>(blocks * columns)?),
            None => None,
        };
        launch!(
            self.ops,
            &self.kernels.rms_norm_backward,
            (blocks, 1),
            0,
            [
                d_x.values.address(),
                parts.as_ref().map_or(0, Buffer::address),
                d_y.values.address(),
                x.matrix.values.address(),
                scale.values.as_ref().map_or(0, Buffer::address),
                rows as i32,
                columns as i32,
                epsilon,
                i32::from(adds),
            ]
        )?;
        if let (Some(parts), Some(state)) = (&parts, &scale.state) {
            launch!(
                self.ops,
                &self.kernels.add_row_sums,
                (columns.div_ceil(128), 1),
                0,
                [state.gradient.address(), parts.address(), blocks as i32, columns as i32]
            )?;
        }
        if let Some(place) = x.place {
            gradients.put(place, Gradient::F32(d_x));
        }
        Ok(())
    }
}

impl DeviceWeight {
    fn is_trained(&self) -> bool {
        self.tensor.state.is_some() || !self.adapters.is_empty()
    }
}

impl CudaTraining {
    /// Training on a device, of what `trains` says.
    ///
    /// # Errors
    /// As [`CudaOps::new`].
    pub fn new(ordinal: usize, trains: Trains) -> std::result::Result<Self, CudaError> {
        // Rows are not cut into pieces while training, so matrices need no room for them.
        let ops = CudaOps::new(ordinal, &[1])?;
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

    /// `x W^T` into `out`, `[rows, outputs]` f32, or added to it; with adapters.
    fn multiply(
        &self,
        x: &CudaMatrix<bf16>,
        weight: &DeviceWeight,
        out: &CudaMatrix<f32>,
        into: Destination,
    ) -> Result<Between> {
        let products = &self.gpu.ops.products;
        let (read, out) = (x.block(), out.block());
        products.product(read.plain(), weight.tensor.block().transposed(), out, into)?;
        let mut first = 0;
        let mut between = Vec::with_capacity(weight.adapters.len());
        for part in &weight.adapters {
            let block = Block {
                address: out.address + (first * size_of::<f32>()) as u64,
                columns: part.rows,
                ..out
            };
            first += part.rows;
            between.push(match &part.adapter {
                None => None,
                Some(adapter) => {
                    let low = self.gpu.ops.matrix::<f32>(x.rows, adapter.a.rows)?;
                    let (a, b) = (adapter.a.block().transposed(), adapter.b.block().transposed());
                    products.product(read.plain(), a, low.block(), Destination::F32)?;
                    let low = self.gpu.round(&low, adapter.scale)?;
                    products.product(low.block().plain(), b, block, Destination::Added)?;
                    Some(low)
                }
            });
        }
        Ok(between)
    }

    /// A product whose result is f32; `residual` is added where there is one.
    fn recorded_product(
        &self,
        x: &Shared<bf16>,
        weight: &Arc<DeviceWeight>,
        residual: Option<Shared<f32>>,
    ) -> Result<Shared<f32>> {
        let out = self.gpu.ops.matrix(x.matrix.rows, weight.tensor.rows)?;
        let into = match &residual {
            None => Destination::F32,
            Some(residual) => {
                let count = out.rows * out.columns;
                self.gpu.ops.memory.copy(&out.values, &residual.matrix.values, count)?;
                Destination::Added
            }
        };
        let between = self.multiply(&x.matrix, weight, &out, into)?;
        let residual_place = residual.as_ref().and_then(|residual| residual.place);
        let is_tracked = x.place.is_some() || weight.is_trained() || residual_place.is_some();
        let out = self.value(out, is_tracked);
        if let Some(place) = out.place {
            let (x, weight) = (x.clone(), weight.clone());
            self.record_step(move |gpu, gradients| {
                let Some(d_y) = gradients.take(Some(place)) else { return Ok(()) };
                let rounded = match (d_y, residual_place) {
                    (Gradient::F32(d_y), Some(residual)) => {
                        let rounded = gpu.round(&d_y, 1.0)?;
                        gradients.put(residual, Gradient::F32(d_y));
                        rounded
                    }
                    (d_y, _) => gpu.rounded(d_y)?,
                };
                gpu.linear_backward(gradients, &rounded, &x, &weight, &between)
            });
        }
        Ok(out)
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

impl TrainingOps for CudaTraining {
    fn attention(
        &self,
        projected: &Shared<f32>,
        layout: &Arc<TrainingLayout>,
        _shape: &AttentionShape,
    ) -> Result<Shared<bf16>> {
        self.attended(&self.projection(projected, layout, true)?, layout)
    }
}

impl Ops for CudaTraining {
    type Matrix = Shared<f32>;
    type Operand = Shared<bf16>;
    type Weight = Arc<DeviceWeight>;
    type GatedWeight = Arc<DeviceWeight>;
    /// Heads are trained on the CPU.
    type HeadWeight = ();
    type Scale = Arc<DeviceTensor>;
    type Table = Arc<DeviceTensor>;
    type Layout = Arc<TrainingLayout>;
    type Projection = TrainingProjection;

    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        self.gpu.ops.supports(decoder)
    }

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Arc<DeviceWeight>, CheckpointError> {
        Ok(Arc::new(self.weight_of(source, parts, columns)?))
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceWeight>, CheckpointError> {
        self.weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn head_weight(
        &self,
        _: &dyn TensorSource,
        _: &[(&str, usize)],
        _: usize,
    ) -> std::result::Result<(), CheckpointError> {
        Err(CheckpointError::Unsupported("heads are trained on the CPU".to_owned()))
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceTensor>, CheckpointError> {
        let values = source.f32(name, &[columns])?;
        self.decoder_tensor(&[(name, columns)], &values, columns, Role::Scale)
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceTensor>, CheckpointError> {
        let values = source.f32(name, &[rows, columns])?;
        self.decoder_tensor(&[(name, rows)], &values, columns, Role::Factor)
    }

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<TrainingLayout>> {
        Ok(Arc::new(self.layout_of(packing, shape)?))
    }

    fn embed(&self, table: &Arc<DeviceTensor>, ids: &[u32]) -> Result<Shared<f32>> {
        let ops = &self.gpu.ops;
        let matrix = ops.matrix(ids.len(), table.columns)?;
        let uploaded = ops.memory.upload(ids)?;
        let out = matrix.values.address();
        launch!(
            ops,
            &ops.kernels.embed_rows,
            (ids.len(), 1),
            0,
            [out, table.block().address, uploaded.address(), table.columns as i32]
        )?;
        let out = self.value(matrix, table.state.is_some());
        if let Some(place) = out.place {
            let (table, ids) = (table.clone(), ids.to_vec());
            self.record_step(move |gpu, gradients| {
                let (Some(Gradient::F32(d_out)), Some(sum)) =
                    (gradients.take(Some(place)), table.gradient())
                else {
                    return Ok(());
                };
                gpu.add_rows(sum.address, &d_out, &ids)
            });
        }
        Ok(out)
    }

    fn norm(
        &self,
        x: &Shared<f32>,
        scale: &Arc<DeviceTensor>,
        epsilon: f32,
    ) -> Result<Shared<bf16>> {
        let ops = &self.gpu.ops;
        let (rows, columns) = (x.matrix.rows, x.matrix.columns);
        let matrix = ops.matrix(rows, columns)?;
        launch!(
            ops,
            &ops.kernels.rms_norm,
            (rows.div_ceil(4), 1),
            0,
            [
                matrix.values.address(),
                x.matrix.values.address(),
                0u64,
                scale.values.as_ref().map_or(0, Buffer::address),
                rows as i32,
                columns as i32,
                epsilon,
            ]
        )?;
        let out = self.value(matrix, x.place.is_some() || scale.state.is_some());
        if let Some(place) = out.place {
            let (x, scale) = (x.clone(), scale.clone());
            self.record_step(move |gpu, gradients| {
                let Some(Gradient::F32(d_y)) = gradients.take(Some(place)) else { return Ok(()) };
                gpu.norm_backward(gradients, &d_y, &x, &scale, epsilon)
            });
        }
        Ok(out)
    }

    fn linear(&self, x: &Shared<bf16>, weight: &Arc<DeviceWeight>) -> Result<Shared<f32>> {
        self.recorded_product(x, weight, None)
    }

    fn linear_add(
        &self,
        x: &Shared<bf16>,
        weight: &Arc<DeviceWeight>,
        residual: Shared<f32>,
    ) -> Result<Shared<f32>> {
        self.recorded_product(x, weight, Some(residual))
    }

    fn gated_linear(&self, x: &Shared<bf16>, weight: &Arc<DeviceWeight>) -> Result<Shared<bf16>> {
        let ops = &self.gpu.ops;
        let (rows, columns) = (x.matrix.rows, weight.tensor.rows);
        let inner = columns / 2;
        let (gate_up, between) = if weight.adapters.is_empty() {
            let gate_up = ops.matrix::<bf16>(rows, columns)?;
            let (x, weight) = (x.matrix.block().plain(), weight.tensor.block().transposed());
            ops.products.product(x, weight, gate_up.block(), Destination::Bf16)?;
            (gate_up, Between::new())
        } else {
            let sums = ops.matrix::<f32>(rows, columns)?;
            let between = self.multiply(&x.matrix, weight, &sums, Destination::F32)?;
            (self.gpu.round(&sums, 1.0)?, between)
        };
        let matrix = ops.matrix(rows, inner)?;
        launch!(
            ops,
            &ops.kernels.swiglu,
            (rows, 1),
            0,
            [matrix.values.address(), gate_up.values.address(), inner as i32]
        )?;
        let out = self.value(matrix, x.place.is_some() || weight.is_trained());
        if let Some(place) = out.place {
            let (x, weight) = (x.clone(), weight.clone());
            self.record_step(move |gpu, gradients| {
                let Some(Gradient::F32(d_out)) = gradients.take(Some(place)) else { return Ok(()) };
                let d_gate_up = gpu.ops.matrix::<bf16>(rows, columns)?;
                let (to, of) = (d_gate_up.values.address(), d_out.values.address());
                launch!(
                    gpu.ops,
                    &gpu.kernels.swiglu_backward,
                    (rows, 1),
                    0,
                    [to, of, gate_up.values.address(), inner as i32]
                )?;
                gpu.linear_backward(gradients, &d_gate_up, &x, &weight, &between)
            });
        }
        Ok(out)
    }

    fn advance(
        &self,
        x: Shared<f32>,
        previous: Option<&TrainingProjection>,
        layout: &Arc<TrainingLayout>,
        _shape: &AttentionShape,
        asks: bool,
        work: impl Fn(&Self, Option<Shared<bf16>>, Shared<f32>) -> Result<(Shared<f32>, Shared<f32>)>
        + Sync,
    ) -> Result<(Shared<f32>, TrainingProjection)> {
        let attended = previous.map(|previous| self.attended(previous, layout)).transpose()?;
        let (x, projected) = work(self, attended, x)?;
        Ok((x, self.projection(&projected, layout, asks)?))
    }

    fn last_attention(
        &self,
        queries: Shared<f32>,
        projection: &TrainingProjection,
        layout: &Arc<TrainingLayout>,
    ) -> Result<Shared<bf16>> {
        let forward = &layout.forward;
        let (sine, heads) = (&forward.rotation.sine, forward.shape.heads);
        let positions = forward.last_positions;
        let rotated = self.gpu.ops.rotate(&queries.matrix, forward, sine, positions, heads)?;
        self.attend(Attended {
            last_queries: Some((rotated, queries.place)),
            keys: projection.rotated.clone(),
            key_place: projection.place,
            layout: layout.clone(),
        })
    }

    fn gather(&self, x: &Shared<f32>, rows: &[usize]) -> Result<Shared<f32>> {
        let out = self.value(self.gpu.ops.gather(&x.matrix, rows)?, x.place.is_some());
        if let (Some(place), Some(from)) = (out.place, x.place) {
            let shape = (x.matrix.rows, x.matrix.columns);
            let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
            self.record_step(move |gpu, gradients| {
                let Some(Gradient::F32(d_out)) = gradients.take(Some(place)) else { return Ok(()) };
                let (sum, adds) = gradients.sum(gpu, from, shape)?;
                if !adds {
                    gpu.ops.memory.clear(&sum.values, shape.0 * shape.1)?;
                }
                gpu.add_rows(sum.values.address(), &d_out, &rows)?;
                gradients.put(from, Gradient::F32(sum));
                Ok(())
            });
        }
        Ok(out)
    }

    fn head_norm(&self, _: &Shared<f32>, _: &Arc<DeviceTensor>, _: f32) -> Result<Shared<f32>> {
        Err(OpsError::Missing(HEADS))
    }

    fn head_linear(&self, _: &Shared<f32>, (): &()) -> Result<Shared<f32>> {
        Err(OpsError::Missing(HEADS))
    }

    fn head_swiglu(&self, _: Shared<f32>) -> Result<Shared<f32>> {
        Err(OpsError::Missing(HEADS))
    }

    fn columns(&self, _: &Shared<f32>, _: usize, _: usize) -> Result<Shared<f32>> {
        Err(OpsError::Missing(HEADS))
    }

    fn reparameterise(&self, _: &Shared<f32>, _: &[f32]) -> Result<Shared<f32>> {
        Err(OpsError::Missing(HEADS))
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Shared<f32>> {
        Ok(self.value(self.gpu.ops.upload(values, columns)?, false))
    }

    fn read(&self, x: &Shared<f32>) -> Result<Vec<f32>> {
        self.gpu.ops.read(&x.matrix)
    }
}

/// What [`OpsError::Missing`] says: heads are trained on the CPU.
const HEADS: &str = "heads while training";
