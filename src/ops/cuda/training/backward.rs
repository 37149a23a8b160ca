//! What the GPU does on the way back: gradients of products, norms and rows by index.

use half::bf16;

use super::gpu::Gpu;
use super::kernels::NORM_ROWS;
use super::parameters::{AdapterInputs, DeviceTensor, DeviceWeight};
use super::tape::{Gradient, TapeGradients, Value};
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::matrices::CudaMatrix;
use crate::ops::cuda::memory::DeviceBuffer;
use crate::ops::cuda::products::{Block, Destination};
use crate::ops::device::Result;

/// Columns that a block of `rows_backward.cu` takes at a time.
const ADDED_COLUMNS: usize = 512;

impl Gpu {
    /// As products read it.
    pub(super) fn rounded(&self, gradient: Gradient) -> Result<CudaMatrix<bf16>> {
        match gradient {
            Gradient::Bf16(gradient) => Ok(gradient),
            Gradient::F32(gradient) => self.round(&gradient, 1.0),
        }
    }

    /// `into[targets[i]] += x[j]` for every `j` with `rows[j] = targets[i]`, in ascending order of `j`.
    pub(super) fn add_rows(&self, into: u64, x: &CudaMatrix<f32>, rows: &[u32]) -> Result<()> {
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
            (count, x.columns.div_ceil(ADDED_COLUMNS)),
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
    pub(super) fn linear_backward(
        &self,
        gradients: &mut TapeGradients,
        d_y: &CudaMatrix<bf16>,
        x: &Value<bf16>,
        weight: &DeviceWeight,
        between: &AdapterInputs,
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
            let rounded = self.round(&d_between, adapter.scale)?;
            let d_between = rounded.block();
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
    pub(super) fn norm_backward(
        &self,
        gradients: &mut TapeGradients,
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
                parts.as_ref().map_or(0, DeviceBuffer::address),
                d_y.values.address(),
                x.matrix.values.address(),
                scale.values.as_ref().map_or(0, DeviceBuffer::address),
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
