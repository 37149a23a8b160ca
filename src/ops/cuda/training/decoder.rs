//! The decoder's operations: each as it scores, with its step back.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::attention::{Attended, TrainingLayout};
use super::device::CudaTraining;
use super::parameters::{AdapterInputs, DeviceTensor, DeviceWeight};
use super::tape::{Gradient, SharedValue};
use crate::layer::{AttentionShape, Gelu};
use crate::ops::batch::Packing;
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::layout::{AttentionTables, CudaLayout};
use crate::ops::cuda::matrices::{CudaMatrix, CudaProjection};
use crate::ops::cuda::products::{Block, Destination};
use crate::ops::device::{DecoderOps, OpsError, QueryRows, Result, TrainingOps};

/// Queries, keys and values of a layer after their rotary embedding.
#[derive(Debug)]
pub struct TrainingProjection {
    pub(super) rotated: Arc<CudaProjection>,
    pub(super) place: Option<usize>,
}

impl CudaTraining {
    fn attend(&self, attended: Attended) -> Result<SharedValue<bf16>> {
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
    ) -> Result<SharedValue<bf16>> {
        self.attend(Attended {
            last_queries: None,
            keys: projection.rotated.clone(),
            key_place: projection.place,
            layout: layout.clone(),
        })
    }

    fn projection(
        &self,
        projected: &SharedValue<f32>,
        layout: &TrainingLayout,
        queries: QueryRows,
    ) -> Result<TrainingProjection> {
        let forward = &layout.forward;
        let shape = &forward.shape;
        let query_heads = match queries {
            QueryRows::All => shape.heads,
            QueryRows::LastOfSequence => 0,
        };
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
                let negative: Vec<f32> = rotation.host.sine.iter().map(|sine| -sine).collect();
                let negative = Arc::new(ops.memory.upload(&negative)?);
                *known = Some((rotation.clone(), negative.clone()));
                negative
            }
        };
        let tables = AttentionTables::new(packing, shape);
        let forward = CudaLayout::new(&ops.memory, &tables, shape, rotation)?;
        Ok(TrainingLayout::new(&ops.memory, &tables, packing, forward, turned_back)?)
    }

    /// `x W^T` into `out`, `[rows, outputs]` f32, or added to it; with adapters.
    fn multiply(
        &self,
        x: &CudaMatrix<bf16>,
        weight: &DeviceWeight,
        out: &CudaMatrix<f32>,
        into: Destination,
    ) -> Result<AdapterInputs> {
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
        x: &SharedValue<bf16>,
        weight: &Arc<DeviceWeight>,
        residual: Option<SharedValue<f32>>,
    ) -> Result<SharedValue<f32>> {
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
        projected: &SharedValue<f32>,
        layout: &Arc<TrainingLayout>,
        _shape: &AttentionShape,
    ) -> Result<SharedValue<bf16>> {
        self.attended(&self.projection(projected, layout, QueryRows::All)?, layout)
    }
}

impl DecoderOps for CudaTraining {
    type Layout = Arc<TrainingLayout>;
    type Projection = TrainingProjection;

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<TrainingLayout>> {
        Ok(Arc::new(self.layout_of(packing, shape)?))
    }

    fn embed(&self, table: &Arc<DeviceTensor>, ids: &[u32]) -> Result<SharedValue<f32>> {
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
        x: &SharedValue<f32>,
        scale: &Arc<DeviceTensor>,
        epsilon: f32,
    ) -> Result<SharedValue<bf16>> {
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

    /// Refused by `supports`.
    fn norm_add(
        &self,
        _: &SharedValue<f32>,
        _: &Arc<DeviceTensor>,
        _: f32,
        _: SharedValue<f32>,
    ) -> Result<SharedValue<f32>> {
        Err(OpsError::Missing("a norm before the residual"))
    }

    /// Refused by `supports`.
    fn head_norms(
        &self,
        _: SharedValue<f32>,
        _: Range<usize>,
        _: &Arc<DeviceTensor>,
        _: f32,
    ) -> Result<SharedValue<f32>> {
        Err(OpsError::Missing("norms of heads"))
    }

    /// Refused by `supports`.
    fn scaled(&self, _: SharedValue<f32>, _: f32) -> Result<SharedValue<f32>> {
        Err(OpsError::Missing("scaled embeddings"))
    }

    fn linear(
        &self,
        x: &SharedValue<bf16>,
        weight: &Arc<DeviceWeight>,
    ) -> Result<SharedValue<f32>> {
        self.recorded_product(x, weight, None)
    }

    fn linear_add(
        &self,
        x: &SharedValue<bf16>,
        weight: &Arc<DeviceWeight>,
        residual: SharedValue<f32>,
    ) -> Result<SharedValue<f32>> {
        self.recorded_product(x, weight, Some(residual))
    }

    fn gated_linear(
        &self,
        x: &SharedValue<bf16>,
        weight: &Arc<DeviceWeight>,
    ) -> Result<SharedValue<bf16>> {
        let ops = &self.gpu.ops;
        let (rows, columns) = (x.matrix.rows, weight.tensor.rows);
        let inner = columns / 2;
        let (gate_up, between) = if weight.adapters.is_empty() {
            let gate_up = ops.matrix::<bf16>(rows, columns)?;
            let (x, weight) = (x.matrix.block().plain(), weight.tensor.block().transposed());
            ops.products.product(x, weight, gate_up.block(), Destination::Bf16)?;
            (gate_up, AdapterInputs::new())
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

    /// Refused by `supports`.
    fn gelu_gated_linear(
        &self,
        _: &SharedValue<bf16>,
        _: &Arc<DeviceWeight>,
        _: Gelu,
    ) -> Result<SharedValue<bf16>> {
        Err(OpsError::Missing("GeGLU"))
    }

    /// Refused by `supports`.
    fn gelu_linear(
        &self,
        _: &SharedValue<bf16>,
        _: &Arc<DeviceWeight>,
        _: Gelu,
    ) -> Result<SharedValue<bf16>> {
        Err(OpsError::Missing("GELU"))
    }

    fn next_projection(
        &self,
        x: SharedValue<f32>,
        previous: Option<&TrainingProjection>,
        layout: &Arc<TrainingLayout>,
        _shape: &AttentionShape,
        queries: QueryRows,
        work: impl Fn(
            &Self,
            Option<SharedValue<bf16>>,
            SharedValue<f32>,
        ) -> Result<(SharedValue<f32>, SharedValue<f32>)>
        + Sync,
    ) -> Result<(SharedValue<f32>, TrainingProjection)> {
        let attended = previous.map(|previous| self.attended(previous, layout)).transpose()?;
        let (x, projected) = work(self, attended, x)?;
        Ok((x, self.projection(&projected, layout, queries)?))
    }

    fn last_attention(
        &self,
        queries: SharedValue<f32>,
        projection: &TrainingProjection,
        layout: &Arc<TrainingLayout>,
    ) -> Result<SharedValue<bf16>> {
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

    fn gather(&self, x: &SharedValue<f32>, rows: &[usize]) -> Result<SharedValue<f32>> {
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
}
