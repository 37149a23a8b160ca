//! Linear layers over weights that are packed once at load.

use rayon::prelude::*;

use super::CpuOps;
use super::tile::{self, PANEL, Strided};

/// Rows that one task multiplies while its panels stay in the second-level cache.
const ROW_BLOCK: usize = 48;
/// Panels of one task: enough tasks for all threads when there are few rows.
const PANEL_BLOCK: usize = 4;

/// A weight `[out, in]` as panels of [`PANEL`] output channels: `[out / PANEL][in][PANEL]`, the
/// last panel filled up with zeros.
#[derive(Debug)]
pub struct PackedWeight {
    rows: usize,
    columns: usize,
    panels: Vec<f32>,
}

impl PackedWeight {
    /// Packs a row-major `[rows, columns]` weight.
    pub(super) fn new(values: &[f32], rows: usize, columns: usize) -> Self {
        debug_assert_eq!(values.len(), rows * columns);
        let mut panels = vec![0f32; rows.div_ceil(PANEL) * columns * PANEL];
        for (panel, chunk) in
            panels.chunks_exact_mut(columns * PANEL).zip(values.chunks(PANEL * columns))
        {
            for (lane, row) in chunk.chunks_exact(columns).enumerate() {
                for (k, &value) in row.iter().enumerate() {
                    panel[k * PANEL + lane] = value;
                }
            }
        }
        Self { rows, columns, panels }
    }

    /// Output channels.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

/// A pointer that tasks share because each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);
// SAFETY: the users of `Shared` write disjoint elements.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer, moved `offset` elements.
    ///
    /// # Safety
    /// As `pointer::add`.
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

/// `out = x W^T`, or `out += x W^T` where `accumulate` is set; `x` is `[rows, in]`, `out` is
/// `[rows, out]`. Each output is one sum over `in` in ascending order.
pub(super) fn multiply(
    ops: &CpuOps,
    x: &[f32],
    weight: &PackedWeight,
    out: &mut [f32],
    accumulate: bool,
) {
    let depth = weight.columns;
    let rows = x.len() / depth;
    assert_eq!(x.len(), rows * depth);
    assert_eq!(out.len(), rows * weight.rows);
    let panels = weight.rows.div_ceil(PANEL);
    let row_blocks = rows.div_ceil(ROW_BLOCK);
    let panel_blocks = panels.div_ceil(PANEL_BLOCK);
    let target = Shared(out.as_mut_ptr());
    ops.parallel(row_blocks * panel_blocks, |task| {
        let first_row = task / panel_blocks * ROW_BLOCK;
        let count = ROW_BLOCK.min(rows - first_row);
        let first_panel = task % panel_blocks * PANEL_BLOCK;
        for panel in first_panel..(first_panel + PANEL_BLOCK).min(panels) {
            let columns = PANEL.min(weight.rows - panel * PANEL);
            let x = Strided { start: x[first_row * depth..].as_ptr(), stride: depth };
            let packed = weight.panels[panel * depth * PANEL..].as_ptr();
            // SAFETY: the slices' lengths were asserted above, tasks write disjoint parts of `out`,
            // and a panel that reaches beyond the last column goes through `edge`.
            unsafe {
                let start = target.at(first_row * weight.rows + panel * PANEL);
                if columns == PANEL {
                    let out = Strided { start, stride: weight.rows };
                    tile::multiply(ops.isa, count, depth, x, packed, out, accumulate);
                } else {
                    let mut edge = [0f32; ROW_BLOCK * PANEL];
                    let out = Strided { start: edge.as_mut_ptr(), stride: PANEL };
                    tile::multiply(ops.isa, count, depth, x, packed, out, false);
                    for (r, row) in edge.chunks_exact(PANEL).take(count).enumerate() {
                        for (c, &value) in row[..columns].iter().enumerate() {
                            let cell = start.add(r * weight.rows + c);
                            *cell = if accumulate { *cell + value } else { value };
                        }
                    }
                }
            }
        }
    });
}

impl CpuOps {
    /// Runs `task(0 .. count)` on the pool; inline where there is one.
    pub(super) fn parallel(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        if count <= 1 || self.pool.current_num_threads() == 1 {
            (0..count).for_each(task);
        } else {
            self.pool.install(|| (0..count).into_par_iter().for_each(task));
        }
    }
}
