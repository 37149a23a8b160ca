//! The CPU device: its threads, and how work is cut up for them.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::kernels::elementwise::rotate;
use super::layout::AttentionLayout;
use super::matrix::Matrix;
use super::norm::Norm;
use super::operand::{Operand, Precision};
use super::shared_pointer::SharedPointer;
use super::threads::Threads;
use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::isa::{self, Isa};
use crate::layer::AttentionShape;
use crate::ops::batch::{Rotary, RotaryTables};
use crate::ops::device::{DeviceOps, Result};

/// The CPU device: an instruction set, a precision and threads.
#[derive(Debug)]
pub struct CpuOps {
    pub(super) isa: Isa,
    pub(super) precision: Precision,
    pub(super) threads: Threads,
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
    pub(super) fn inline(&self) -> Self {
        Self {
            isa: self.isa,
            precision: self.precision,
            threads: Threads::Current,
            rotary: self.rotary.clone(),
        }
    }

    /// Runs `task(0 .. count)` on the threads.
    pub(super) fn parallel(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        self.threads.run(count, task);
    }

    /// Runs `work` where rayon's parallel iterators use this device's threads.
    pub(in crate::ops) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

    /// Runs `task` on ranges that cover `0 .. rows`.
    pub(super) fn parallel_rows(&self, rows: usize, task: impl Fn(Range<usize>) + Sync + Send) {
        let step = if self.threads() == 1 { rows.max(1) } else { ROWS_PER_TASK };
        self.parallel(rows.div_ceil(step), |i| task(i * step..((i + 1) * step).min(rows)));
    }

    /// Runs `task(input rows, output rows)` on row ranges of an operation that maps rows
    /// `[rows, from]` to rows `[rows, to]`.
    pub(in crate::ops) fn map_rows(
        &self,
        x: &[f32],
        from: usize,
        out: &mut [f32],
        to: usize,
        task: impl Fn(&[f32], &mut [f32]) + Sync + Send,
    ) {
        let rows = x.len() / from;
        assert_eq!((x.len(), out.len()), (rows * from, rows * to));
        let target = SharedPointer::new(out);
        self.parallel_rows(rows, |range| {
            // SAFETY: ranges are disjoint and within `out`, whose length was asserted.
            let out = unsafe {
                std::slice::from_raw_parts_mut(target.at(range.start * to), range.len() * to)
            };
            task(&x[range.start * from..range.end * from], out);
        });
    }

    /// Runs `task(rows)` on ranges of at most `ROWS_PER_TASK` rows that cover `0 .. rows`, whatever the threads are, and
    /// gives their results in order.
    pub(in crate::ops) fn of_row_blocks<T: Send>(
        &self,
        rows: usize,
        task: impl Fn(Range<usize>) -> T + Sync + Send,
    ) -> Vec<T> {
        let blocks = rows.div_ceil(ROWS_PER_TASK);
        let range = |i: usize| i * ROWS_PER_TASK..((i + 1) * ROWS_PER_TASK).min(rows);
        self.install(|| (0..blocks).into_par_iter().map(|i| task(range(i))).collect())
    }

    /// Cosines and sines of a layer's shape, for the positions of a batch.
    pub(in crate::ops) fn rotary(
        &self,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Arc<Rotary> {
        self.rotary.get(layout.length(), shape)
    }

    /// Rotates the first `heads` heads of rows `[heads.. | rest]` in place; `positions` is one a row.
    pub(in crate::ops) fn rotate_rows(
        &self,
        values: &mut [f32],
        heads: usize,
        head_dim: usize,
        rotary: &Rotary,
        positions: &[usize],
    ) {
        let columns = values.len() / positions.len().max(1);
        let target = SharedPointer::new(values);
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

impl DeviceOps for CpuOps {
    type Matrix = Matrix;
    type Operand = Operand;
    type Scale = Norm;

    /// The CPU computes every part.
    fn supports(&self, _: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        Ok(())
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Matrix> {
        Ok(Matrix { rows: values.len() / columns, columns, values: values.into() })
    }

    fn read(&self, x: &Matrix) -> Result<Vec<f32>> {
        Ok(x.values.to_vec())
    }
}
