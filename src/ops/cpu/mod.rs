//! The CPU device.
//!
//! Every output row is computed by a chain of operations that its own sequence fixes: no sum's
//! order depends on the number of rows, threads or neighbours, so rewards are bitwise the same in
//! any batch.

mod attention;
mod elementwise;
mod isa;
mod linear;
mod operand;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use super::{AttentionShape, Ops, Packing, Result};
use crate::checkpoint::{CheckpointError, TensorSource};

pub use attention::AttentionLayout;
pub use isa::Isa;
pub use linear::{PackedGate, PackedWeight};
pub use operand::{Operand, Precision};

pub(super) use attention::{
    forward as attention_forward, forward_last as last_attention_forward, rotate as rotate_rows,
};
pub(super) use elementwise::{rms_norm, rotate, swiglu};
use linear::Shared;
pub(super) use operand::Target;
use operand::Values;

/// Rows of one task of a row-wise operation.
const ROWS_PER_TASK: usize = 64;

/// A row-major f32 matrix in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// The CPU device: an instruction set, a precision and a thread pool.
#[derive(Debug)]
pub struct CpuOps {
    isa: Isa,
    precision: Precision,
    pool: rayon::ThreadPool,
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-ops-{i}"))
            .build()?;
        Ok(Self { isa: Isa::detect(), precision, pool })
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
        self.pool.current_num_threads()
    }

    /// Runs `task(0 .. count)` on the pool; inline where there is one.
    fn parallel(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        if count <= 1 || self.pool.current_num_threads() == 1 {
            (0..count).for_each(task);
        } else {
            self.pool.install(|| (0..count).into_par_iter().for_each(task));
        }
    }

    /// Runs `work` where rayon's parallel iterators use this device's threads.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Runs `task` on ranges that cover `0 .. rows`.
    pub(super) fn parallel_rows(&self, rows: usize, task: impl Fn(Range<usize>) + Sync + Send) {
        self.parallel(rows.div_ceil(ROWS_PER_TASK), |i| {
            task(i * ROWS_PER_TASK..((i + 1) * ROWS_PER_TASK).min(rows));
        });
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
        let target = Shared(out.as_mut_ptr());
        self.parallel_rows(rows, |range| {
            // SAFETY: ranges are disjoint and within `out`, whose length was asserted.
            let out = unsafe {
                std::slice::from_raw_parts_mut(target.at(range.start * to), range.len() * to)
            };
            task(&x[range.start * from..range.end * from], out);
        });
    }
}

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
    type Scale = Vec<f32>;
    type Table = Matrix;
    type Layout = AttentionLayout;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        packed(self.precision, source, parts, columns)
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
    ) -> std::result::Result<Vec<f32>, CheckpointError> {
        source.f32(name, &[columns])
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Matrix, CheckpointError> {
        Ok(Matrix { rows, columns, values: source.f32(name, &[rows, columns])? })
    }

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<AttentionLayout> {
        Ok(AttentionLayout::new(packing, shape))
    }

    fn embed(&self, table: &Matrix, ids: &[u32]) -> Result<Matrix> {
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        self.gather(table, &rows)
    }

    fn rms_norm(&self, x: &Matrix, scale: &Vec<f32>, epsilon: f32) -> Result<Operand> {
        let mut out = Operand::zeros(self.precision, x.rows, x.columns);
        match &mut out.values {
            Values::F32(values) => {
                self.map_rows(&x.values, x.columns, values, x.columns, |x, out| {
                    rms_norm(self.isa, x, scale, epsilon, out);
                });
            }
            Values::Bf16(_) => {
                let target = out.target();
                self.parallel_rows(x.rows, |range| {
                    let mut normed = vec![0f32; x.columns];
                    for row in range {
                        rms_norm(self.isa, x.row(row), scale, epsilon, &mut normed);
                        // SAFETY: rows are disjoint and within the result.
                        unsafe { target.write(self.isa, row * x.columns, &normed) };
                    }
                });
            }
        }
        Ok(out)
    }

    fn linear(&self, x: &Operand, weight: &PackedWeight) -> Result<Matrix> {
        let mut out = Matrix::zeros(x.rows, weight.rows());
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
        let mut out = Operand::zeros(self.precision, x.rows, weight.rows());
        linear::multiply_gated(self, x, weight, &mut out);
        Ok(out)
    }

    fn attention(
        &self,
        mut qkv: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Result<Operand> {
        let rotated = shape.heads + shape.key_value_heads;
        rotate_rows(self, &mut qkv.values, rotated, layout, layout.positions());
        let mut out = Operand::zeros(self.precision, qkv.rows, shape.output_columns());
        attention_forward(self, &qkv.values, layout, shape, out.target());
        Ok(out)
    }

    fn last_attention(
        &self,
        mut q: Matrix,
        mut kv: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Result<Operand> {
        rotate_rows(self, &mut q.values, shape.heads, layout, layout.last_positions());
        rotate_rows(self, &mut kv.values, shape.key_value_heads, layout, layout.positions());
        let mut out = Operand::zeros(self.precision, q.rows, shape.output_columns());
        last_attention_forward(self, &q.values, &kv.values, layout, shape, out.target());
        Ok(out)
    }

    fn gather(&self, x: &Matrix, rows: &[usize]) -> Result<Matrix> {
        let mut values = Vec::with_capacity(rows.len() * x.columns);
        for &row in rows {
            values.extend_from_slice(x.row(row));
        }
        Ok(Matrix { rows: rows.len(), columns: x.columns, values })
    }

    fn gather_operand(&self, x: &Operand, rows: &[usize]) -> Result<Operand> {
        Ok(x.gather(rows))
    }

    fn head_norm(&self, x: &Matrix, scale: &Vec<f32>, epsilon: f32) -> Result<Matrix> {
        let mut out = Matrix::zeros(x.rows, x.columns);
        rms_norm(self.isa, &x.values, scale, epsilon, &mut out.values);
        Ok(out)
    }

    fn head_linear(&self, x: &Matrix, weight: &PackedWeight) -> Result<Matrix> {
        let values = Values::F32(x.values.clone());
        self.linear(&Operand { rows: x.rows, columns: x.columns, values }, weight)
    }

    fn head_swiglu(&self, gate_up: Matrix) -> Result<Matrix> {
        let columns = gate_up.columns / 2;
        let mut out = Matrix::zeros(gate_up.rows, columns);
        swiglu(self.isa, &gate_up.values, columns, &mut out.values);
        Ok(out)
    }

    fn columns(&self, x: &Matrix, start: usize, count: usize) -> Result<Matrix> {
        let mut values = Vec::with_capacity(x.rows * count);
        for row in 0..x.rows {
            values.extend_from_slice(&x.row(row)[start..start + count]);
        }
        Ok(Matrix { rows: x.rows, columns: count, values })
    }

    fn reparameterise(&self, posterior: &Matrix, noise: &[f32]) -> Result<Matrix> {
        let dimension = posterior.columns / 2;
        let mut out = Matrix::zeros(posterior.rows, dimension);
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
        Ok(Matrix { rows: values.len() / columns, columns, values })
    }

    fn read(&self, x: &Matrix) -> Result<Vec<f32>> {
        Ok(x.values.clone())
    }
}
