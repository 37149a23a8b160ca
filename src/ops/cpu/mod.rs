//! The CPU device.
//!
//! Every output row is computed by a chain of operations that its own sequence fixes: no sum's
//! order depends on the number of rows, threads or neighbours, so rewards are bitwise the same in
//! any batch.

mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(not(target_arch = "x86_64"))]
#[path = "bf16_missing.rs"]
mod bf16;
mod buffers;
mod elementwise;
mod gradients;
pub(crate) mod isa;
mod layout;
mod linear;
mod operand;
mod product;
mod projection;
mod shared;
mod threads;
mod tile;

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::rotary::{Rotary, RotaryTables};
use super::{Ops, Packing, Result};
use crate::checkpoint::{CheckpointError, TensorSource, TensorValues};
use crate::layer::{AttentionShape, Gelu};

use buffers::Buffer;
pub use isa::Isa;
pub use layout::AttentionLayout;
pub use linear::{PackedGate, PackedWeight};
pub use operand::{Operand, Precision};
pub use projection::Projection;

pub(super) use elementwise::{add, geglu, gelu, layer_norm, rms_norm, rotate, soft_cap, swiglu};
pub(super) use gradients::{
    geglu_gradient, gelu_gradient, layer_norm_gradient, rms_norm_gradient, soft_cap_gradient,
    softmax_gradient, swiglu_gradient,
};
use operand::Values;
pub(super) use product::{Factor, product};
use shared::Shared;
use threads::Threads;

/// A row-major f32 matrix in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Buffer<f32>,
}

impl Matrix {
    /// A matrix with arbitrary contents, for an operation that writes every element.
    fn stale(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: Buffer::stale(rows * columns) }
    }

    pub(super) fn from_slice(values: &[f32], columns: usize) -> Self {
        let mut matrix = Self::stale(values.len() / columns, columns);
        matrix.values.copy_from_slice(values);
        matrix
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn to_vec(&self) -> Vec<f32> {
        self.values.to_vec()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// An embedding table `[rows, columns]` in the type that it is stored in: its rows are only copied.
#[derive(Debug)]
pub struct Table {
    columns: usize,
    values: TensorValues,
}

/// A norm's kind and weights `[columns]`.
#[derive(Debug)]
pub enum Norm {
    /// Root mean square.
    Rms {
        /// Factor of each column.
        scale: Vec<f32>,
    },
    /// Layer norm.
    Layer {
        /// Factor of each column.
        scale: Vec<f32>,
        /// Added to each column.
        bias: Vec<f32>,
    },
}

impl Norm {
    fn columns(&self) -> usize {
        let (Self::Rms { scale } | Self::Layer { scale, .. }) = self;
        scale.len()
    }

    /// Norms rows `[rows, columns]`.
    fn apply(&self, isa: Isa, x: &[f32], epsilon: f32, out: &mut [f32]) {
        match self {
            Self::Rms { scale } => rms_norm(isa, x, scale, epsilon, out),
            Self::Layer { scale, bias } => layer_norm(isa, x, scale, bias, epsilon, out),
        }
    }
}

/// The CPU device: an instruction set, a precision and threads.
#[derive(Debug)]
pub struct CpuOps {
    isa: Isa,
    precision: Precision,
    threads: Threads,
    rotary: Arc<RotaryTables>,
}

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The operating system refused the threads.
    #[error("the threads could not start: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The processor lacks the instructions.
    #[error("this processor has no AVX-512 BF16 instructions: use f32")]
    NoBf16,
}

impl CpuOps {
    /// A device with `threads` threads, or one for each processor where `threads` is 0.
    ///
    /// # Errors
    /// Where the operating system refuses the threads, or the processor lacks the precision.
    pub fn new(threads: usize, precision: Precision) -> std::result::Result<Self, CpuError> {
        if precision == Precision::Bf16 && !isa::has_bf16() {
            return Err(CpuError::NoBf16);
        }
        let threads = Threads::new(threads)?;
        Ok(Self { isa: Isa::detect(), precision, threads, rotary: Arc::default() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The precision of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// The same device on the current thread only, for a task.
    fn inline(&self) -> Self {
        Self {
            isa: self.isa,
            precision: self.precision,
            threads: Threads::Current,
            rotary: self.rotary.clone(),
        }
    }

    /// Runs `task(0 .. count)` on the threads.
    fn parallel(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        self.threads.run(count, task);
    }

    /// Runs `work` where rayon's parallel iterators use this device's threads.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

    /// Runs `task` on ranges that cover `0 .. rows`.
    fn parallel_rows(&self, rows: usize, task: impl Fn(Range<usize>) + Sync + Send) {
        let step = if self.threads() == 1 { rows.max(1) } else { ROWS_PER_TASK };
        self.parallel(rows.div_ceil(step), |i| task(i * step..((i + 1) * step).min(rows)));
    }

    /// Runs `task(input rows, output rows)` on row ranges of an operation that maps rows
    /// `[rows, from]` to rows `[rows, to]`.
    pub(super) fn map_rows(
        &self,
        x: &[f32],
        from: usize,
        out: &mut [f32],
        to: usize,
        task: impl Fn(&[f32], &mut [f32]) + Sync + Send,
    ) {
        let rows = x.len() / from;
        assert_eq!((x.len(), out.len()), (rows * from, rows * to));
        let target = Shared::new(out);
        self.parallel_rows(rows, |range| {
            // SAFETY: ranges are disjoint and within `out`, whose length was asserted.
            let out = unsafe {
                std::slice::from_raw_parts_mut(target.at(range.start * to), range.len() * to)
            };
            task(&x[range.start * from..range.end * from], out);
        });
    }

    /// Runs `task(rows)` on ranges of at most [`ROWS_PER_TASK`] rows that cover `0 .. rows`, whatever the threads are, and
    /// gives their results in order.
    pub(super) fn of_row_blocks<T: Send>(
        &self,
        rows: usize,
        task: impl Fn(Range<usize>) -> T + Sync + Send,
    ) -> Vec<T> {
        let blocks = rows.div_ceil(ROWS_PER_TASK);
        let range = |i: usize| i * ROWS_PER_TASK..((i + 1) * ROWS_PER_TASK).min(rows);
        self.install(|| (0..blocks).into_par_iter().map(|i| task(range(i))).collect())
    }

    /// Rows of the tasks that [`Ops::advance`] cuts a batch into: all of them where there are too few to
    /// keep every thread busy, else as equal as whole tiles allow.
    fn block_rows(&self, rows: usize) -> usize {
        let threads = self.threads();
        if rows < threads * MIN_BLOCK && threads > 1 {
            return rows;
        }
        let blocks = rows.div_ceil(linear::ROW_BLOCK * threads) * threads;
        rows.div_ceil(blocks).next_multiple_of(tile::ROWS)
    }

    /// Rotary embedding, then attention of every row: `[q | k | v]` to `[rows, output_columns]`.
    pub(super) fn attention(
        &self,
        qkv: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Matrix {
        let rows = qkv.rows;
        let mut projection = Projection::new(self, layout, shape, true);
        projection.store(self, layout, qkv);
        attention::of_rows(self, &projection, layout, 0..rows).into_matrix()
    }

    /// As [`CpuOps::attention`], of each sequence's last row: q and `[k | v]` to
    /// `[sequences, output_columns]`.
    pub(super) fn attention_of_last(
        &self,
        queries: Matrix,
        key_value: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Matrix {
        let mut projection = Projection::new(self, layout, shape, false);
        projection.store(self, layout, key_value);
        let queries = attention::last_queries(self, &projection, layout, queries);
        attention::of_last(self, &projection, layout, &queries).into_matrix()
    }

    /// Cosines and sines of a layer's shape, for the positions of a batch.
    pub(super) fn rotary(&self, layout: &AttentionLayout, shape: &AttentionShape) -> Arc<Rotary> {
        self.rotary.get(layout.length(), shape)
    }

    /// Rotates the first `heads` heads of rows `[heads.. | rest]` in place; `positions` is one a row.
    pub(super) fn rotate_rows(
        &self,
        values: &mut [f32],
        heads: usize,
        head_dim: usize,
        rotary: &Rotary,
        positions: &[usize],
    ) {
        let columns = values.len() / positions.len().max(1);
        let target = Shared::new(values);
        self.parallel_rows(positions.len(), |range| {
            for row in range {
                let (cosine, sine) = rotary.at(positions[row]);
                // SAFETY: rows are disjoint and within `values`.
                let row =
                    unsafe { std::slice::from_raw_parts_mut(target.at(row * columns), columns) };
                rotate(self.isa, row, heads, head_dim, cosine, sine);
            }
        });
    }
}

/// Rows of one task of a row-wise operation.
const ROWS_PER_TASK: usize = 64;
/// Rows of a batch for each thread from which on tasks are blocks of rows. With fewer, every product's
/// panels are spread over the threads.
const MIN_BLOCK: usize = 24;

/// Loads tensors stacked by rows, and packs them.
fn packed(
    precision: Precision,
    source: &dyn TensorSource,
    parts: &[(&str, usize)],
    columns: usize,
) -> std::result::Result<PackedWeight, CheckpointError> {
    let rows = parts.iter().map(|(_, rows)| rows).sum();
    Ok(PackedWeight::new(precision, &source.stacked(parts, columns)?, rows, columns))
}

impl Ops for CpuOps {
    type Matrix = Matrix;
    type Operand = Operand;
    type Weight = PackedWeight;
    type GatedWeight = PackedGate;
    type HeadWeight = PackedWeight;
    type Scale = Norm;
    type Table = Table;
    type Layout = AttentionLayout;
    type Projection = Projection;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        packed(self.precision, source, parts, columns)
    }

    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        let mut bias = Vec::new();
        for (&name, &(_, rows)) in biases.iter().zip(parts) {
            bias.extend(source.f32(name, &[rows])?);
        }
        Ok(packed(self.precision, source, parts, columns)?.with_bias(bias))
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<PackedGate, CheckpointError> {
        let values = source.stacked(&[(gate, rows), (up, rows)], columns)?;
        Ok(PackedGate::new(self.precision, &values, rows, columns))
    }

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        packed(Precision::F32, source, parts, columns)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Norm, CheckpointError> {
        Ok(Norm::Rms { scale: source.f32(name, &[columns])? })
    }

    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<Norm, CheckpointError> {
        let load = |name| source.f32(name, &[columns]);
        Ok(Norm::Layer { scale: load(scale)?, bias: load(bias)? })
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Table, CheckpointError> {
        Ok(Table { columns, values: source.values(name, &[rows, columns])? })
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

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
        let target = Shared::new(&mut x.values);
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
    fn advance(
        &self,
        mut x: Matrix,
        previous: Option<&Projection>,
        layout: &AttentionLayout,
        shape: &AttentionShape,
        asks: bool,
        work: impl Fn(&Self, Option<Operand>, Matrix) -> Result<(Matrix, Matrix)> + Sync,
    ) -> Result<(Matrix, Projection)> {
        let (rows, columns) = (x.rows, x.columns);
        let mut projection = Projection::new(self, layout, shape, asks);
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
        let stream = Shared::new(&mut x.values);
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
        projection: &Projection,
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

    fn head_norm(&self, x: &Matrix, norm: &Norm, epsilon: f32) -> Result<Matrix> {
        let mut out = Matrix::stale(x.rows, x.columns);
        norm.apply(self.isa, &x.values, epsilon, &mut out.values);
        Ok(out)
    }

    fn head_linear(&self, x: &Matrix, weight: &PackedWeight) -> Result<Matrix> {
        let values = Values::F32(x.values.clone());
        self.linear(&Operand { rows: x.rows, columns: x.columns, values }, weight)
    }

    fn head_swiglu(&self, gate_up: Matrix) -> Result<Matrix> {
        let columns = gate_up.columns / 2;
        let mut out = Matrix::stale(gate_up.rows, columns);
        swiglu(self.isa, &gate_up.values, columns, &mut out.values);
        Ok(out)
    }

    fn columns(&self, x: &Matrix, start: usize, count: usize) -> Result<Matrix> {
        let mut out = Matrix::stale(x.rows, count);
        for (row, out) in out.values.chunks_exact_mut(count).enumerate() {
            out.copy_from_slice(&x.row(row)[start..start + count]);
        }
        Ok(out)
    }

    fn reparameterise(&self, posterior: &Matrix, noise: &[f32]) -> Result<Matrix> {
        let dimension = posterior.columns / 2;
        let mut out = Matrix::stale(posterior.rows, dimension);
        for (row, (out, noise)) in
            out.values.chunks_exact_mut(dimension).zip(noise.chunks_exact(dimension)).enumerate()
        {
            let (mu, logvar) = posterior.row(row).split_at(dimension);
            for (((out, noise), mu), logvar) in out.iter_mut().zip(noise).zip(mu).zip(logvar) {
                *out = mu + (logvar / 2.0).exp() * noise;
            }
        }
        Ok(out)
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Matrix> {
        Ok(Matrix { rows: values.len() / columns, columns, values: values.into() })
    }

    fn read(&self, x: &Matrix) -> Result<Vec<f32>> {
        Ok(x.values.to_vec())
    }
}
