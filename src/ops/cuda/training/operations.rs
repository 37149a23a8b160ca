//! The decoder's operations: each as it scores, with its step back.

use std::sync::Arc;

use half::bf16;

use super::attention::{Attended, TrainingLayout};
use super::parameters::{DeviceTensor, DeviceWeight, Role};
use super::tape::{Gradient, Shared};
use super::{Between, CudaTraining, TrainingProjection};
use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};
use crate::layer::AttentionShape;
use crate::ops::cuda::CudaMatrix;
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::products::{Block, Destination};
use crate::ops::{Ops, OpsError, Packing, Result, TrainingOps};

/// What [`OpsError::Missing`] says: heads are trained on the CPU.
const HEADS: &str = "heads while training";

impl CudaTraining {
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
        let matrix = self.gpu.ops.embed_rows(table.block().address, table.columns, ids)?;
        let out = self.value(matrix, table.state.is_some());
        if let Some(place) = out.place {
            let (table, ids) = (table.clone(), ids.to_vec());
            self.record_step(move |gpu, gradients| {
                let (Some(d_out), Some(sum)) = (gradients.take_f32(place)?, table.gradient())
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
        let values = scale.values.as_ref().ok_or(OpsError::Missing("a norm without a scale"))?;
        let matrix = self.gpu.ops.norm(&x.matrix, values, epsilon)?;
        let out = self.value(matrix, x.place.is_some() || scale.state.is_some());
        if let Some(place) = out.place {
            let (x, scale) = (x.clone(), scale.clone());
            self.record_step(move |gpu, gradients| {
                let Some(d_y) = gradients.take_f32(place)? else { return Ok(()) };
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
        let matrix = ops.swiglu(&gate_up)?;
        let out = self.value(matrix, x.place.is_some() || weight.is_trained());
        if let Some(place) = out.place {
            let (x, weight) = (x.clone(), weight.clone());
            self.record_step(move |gpu, gradients| {
                let Some(d_out) = gradients.take_f32(place)? else { return Ok(()) };
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
                let Some(d_out) = gradients.take_f32(place)? else { return Ok(()) };
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
