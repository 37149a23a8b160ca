//! A decoder's layers on the CPU.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use super::attention;
use super::buffers::Buffer;
use super::device::CpuOps;
use super::kernels::{elementwise, tile};
use super::layout::AttentionLayout;
use super::linear::{self, PackedGate, PackedWeight};
use super::matrix::Matrix;
use super::norm::Norm;
use super::operand::{Operand, Values};
use super::projection::AttentionProjection;
use super::shared_pointer::SharedPointer;
use super::weights::Table;
use crate::checkpoint::TensorValues;
use crate::layer::{AttentionShape, Gelu};
use crate::ops::batch::Packing;
use crate::ops::device::{DecoderOps, QueryRows, Result};

/// Rows of a batch for each thread from which on tasks are blocks of rows. With fewer, every product's
/// panels are spread over the threads.
const MIN_BLOCK: usize = 24;

impl CpuOps {
    /// Rows of the tasks that [`DecoderOps::next_projection`] cuts a batch into: all of them where there are too few to
    /// keep every thread busy, else as equal as whole tiles allow.
    fn block_rows(&self, rows: usize) -> usize {
        let threads = self.threads();
        if rows < threads * MIN_BLOCK && threads > 1 {
            return rows;
        }
        let blocks = rows.div_ceil(linear::ROW_BLOCK * threads) * threads;
        rows.div_ceil(blocks).next_multiple_of(tile::ROWS)
    }
}

impl DecoderOps for CpuOps {
    type Layout = AttentionLayout;
    type Projection = AttentionProjection;

    fn layout(&self, packing: &Packing, _shape: &AttentionShape) -> Result<AttentionLayout> {
        Ok(AttentionLayout::new(packing))
    }

    fn embed(&self, table: &Table, ids: &[u32]) -> Result<Matrix> {
        fn row<T>(values: &[T], id: u32, columns: usize) -> &[T] {
            &values[id as usize * columns..][..columns]
        }
        let columns = table.columns;
        let mut out = Matrix::stale(ids.len(), columns);
        for (&id, out) in ids.iter().zip(out.values.chunks_exact_mut(columns)) {
            match &table.values {
                TensorValues::F32(values) => out.copy_from_slice(row(values, id, columns)),
                TensorValues::F16(values) => row(values, id, columns).convert_to_f32_slice(out),
                TensorValues::Bf16(values) => row(values, id, columns).convert_to_f32_slice(out),
            }
        }
        Ok(out)
    }

    fn norm(&self, x: &Matrix, norm: &Norm, epsilon: f32) -> Result<Operand> {
        let mut out = Operand::stale(self.precision, x.rows, x.columns);
        match &mut out.values {
            Values::F32(values) => {
                self.map_rows(&x.values, x.columns, values, x.columns, |x, out| {
                    norm.apply(self.isa, x, epsilon, out);
                });
            }
            Values::Bf16(_) => {
                let target = out.target();
                let mut normed = Buffer::stale(x.columns);
                for row in 0..x.rows {
                    norm.apply(self.isa, x.row(row), epsilon, &mut normed);
                    // SAFETY: rows are within the result, which nobody else has yet.
                    unsafe { target.write(row * x.columns, &normed) };
                }
            }
        }
        Ok(out)
    }

    fn norm_add(
        &self,
        x: &Matrix,
        norm: &Norm,
        epsilon: f32,
        mut residual: Matrix,
    ) -> Result<Matrix> {
        let columns = x.columns;
        self.map_rows(&x.values, columns, &mut residual.values, columns, |x, residual| {
            let mut normed = Buffer::stale(columns);
            for (x, residual) in x.chunks_exact(columns).zip(residual.chunks_exact_mut(columns)) {
                norm.apply(self.isa, x, epsilon, &mut normed);
                elementwise::add(self.isa, residual, &normed);
            }
        });
        Ok(residual)
    }

    fn head_norms(
        &self,
        mut x: Matrix,
        columns: Range<usize>,
        norm: &Norm,
        epsilon: f32,
    ) -> Result<Matrix> {
        let (rows, width, head_dim) = (x.rows, x.columns, norm.columns());
        assert!(columns.end <= width && columns.len().is_multiple_of(head_dim));
        let target = SharedPointer::new(&mut x.values);
        self.parallel_rows(rows, |range| {
            let mut normed = Buffer::stale(columns.len());
            for row in range {
                // SAFETY: rows are disjoint and within `x`, and the columns within a row.
                let heads = unsafe {
                    let start = target.at(row * width + columns.start);
                    std::slice::from_raw_parts_mut(start, columns.len())
                };
                norm.apply(self.isa, heads, epsilon, &mut normed);
                heads.copy_from_slice(&normed);
            }
        });
        Ok(x)
    }

    fn scaled(&self, mut x: Matrix, factor: f32) -> Result<Matrix> {
        elementwise::scale(self.isa, &mut x.values, factor);
        Ok(x)
    }

    fn linear(&self, x: &Operand, weight: &PackedWeight) -> Result<Matrix> {
        let mut out = Matrix::stale(x.rows, weight.rows());
        linear::multiply(self, x, weight, &mut out.values, false);
        Ok(out)
    }

    fn linear_add(
        &self,
        x: &Operand,
        weight: &PackedWeight,
        mut residual: Matrix,
    ) -> Result<Matrix> {
        linear::multiply(self, x, weight, &mut residual.values, true);
        Ok(residual)
    }

    fn gated_linear(&self, x: &Operand, weight: &PackedGate) -> Result<Operand> {
        let mut out = Operand::stale(self.precision, x.rows, weight.rows());
        linear::multiply_gated(self, x, weight, None, &mut out);
        Ok(out)
    }

    fn gelu_gated_linear(&self, x: &Operand, weight: &PackedGate, gelu: Gelu) -> Result<Operand> {
        let mut out = Operand::stale(self.precision, x.rows, weight.rows());
        linear::multiply_gated(self, x, weight, Some(gelu), &mut out);
        Ok(out)
    }

    fn gelu_linear(&self, x: &Operand, weight: &PackedWeight, gelu: Gelu) -> Result<Operand> {
        let mut out = Operand::stale(self.precision, x.rows, weight.rows());
        linear::multiply_gelu(self, x, weight, gelu, &mut out);
        Ok(out)
    }

    /// Threads take blocks of rows from one attention to the next, so that what a block's operations
    /// hand on stays in the second-level cache, and threads wait for each other once a layer.
    fn next_projection(
        &self,
        mut x: Matrix,
        previous: Option<&AttentionProjection>,
        layout: &AttentionLayout,
        shape: &AttentionShape,
        queries: QueryRows,
        work: impl Fn(&Self, Option<Operand>, Matrix) -> Result<(Matrix, Matrix)> + Sync,
    ) -> Result<(Matrix, AttentionProjection)> {
        let (rows, columns) = (x.rows, x.columns);
        let mut projection = AttentionProjection::new(self, layout, shape, queries);
        let attended = |ops: &Self, rows: Range<usize>| {
            previous.map(|previous| attention::of_rows(ops, previous, layout, rows))
        };
        let block = self.block_rows(rows);
        if block >= rows {
            let (x, projected) = work(self, attended(self, 0..rows), x)?;
            projection.store(self, layout, projected);
            return Ok((x, projection));
        }
        let target = projection.target();
        let stream = SharedPointer::new(&mut x.values);
        let blocks = rows.div_ceil(block);
        let task = |index: usize| -> Result<()> {
            // Later rows see more keys: those first, so that the last tasks to end are short.
            let start = (blocks - 1 - index) * block;
            let own = start..(start + block).min(rows);
            let ops = self.inline();
            // SAFETY: blocks of rows are disjoint, and within `x`.
            let x = unsafe {
                std::slice::from_raw_parts_mut(stream.at(start * columns), own.len() * columns)
            };
            let attended = attended(&ops, own.clone());
            let (result, mut projected) = work(&ops, attended, Matrix::from_slice(x, columns))?;
            x.copy_from_slice(&result.values);
            // SAFETY: as above.
            unsafe { target.store(&ops, layout, own, &mut projected.values) };
            Ok(())
        };
        self.threads.try_run(blocks, task)?;
        Ok((x, projection))
    }

    fn last_attention(
        &self,
        queries: Matrix,
        projection: &AttentionProjection,
        layout: &AttentionLayout,
    ) -> Result<Operand> {
        let queries = attention::last_queries(self, projection, layout, queries);
        Ok(attention::of_last(self, projection, layout, &queries))
    }

    fn gather(&self, x: &Matrix, rows: &[usize]) -> Result<Matrix> {
        let mut out = Matrix::stale(rows.len(), x.columns);
        for (&row, out) in rows.iter().zip(out.values.chunks_exact_mut(x.columns)) {
            out.copy_from_slice(x.row(row));
        }
        Ok(out)
    }
}
