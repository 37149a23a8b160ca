//! Causal grouped-query attention over packed sequences.
//!
//! One task is one (sequence, key-value head, block of queries). It walks the keys in blocks of
//! [`KEY_BLOCK`] that start at absolute positions 0, 64, 128, ..., and keeps an online softmax per
//! query row. Each row's arithmetic is fixed by its own position, not by the batch around it.

use std::ops::Range;

use super::CpuOps;
use super::elementwise;
use super::linear::Shared;
use super::tile::{self, PANEL, Strided};
use crate::ops::{AttentionShape, Packing};

/// Keys of a block; a multiple of the panel width.
const KEY_BLOCK: usize = 64;
/// Queries of a task.
const QUERY_BLOCK: usize = 48;

/// Rotary tables and the tasks of a batch.
#[derive(Debug)]
pub struct AttentionLayout {
    positions: Vec<usize>,
    cosine: Vec<f32>,
    sine: Vec<f32>,
    half: usize,
    blocks: Vec<QueryBlock>,
    offsets: Vec<usize>,
}

/// Queries `first .. end` of the sequence that starts at row `start`, as positions in it.
#[derive(Debug, Clone, Copy)]
struct QueryBlock {
    start: usize,
    first: usize,
    end: usize,
}

impl AttentionLayout {
    pub(in crate::ops) fn new(packing: &Packing, shape: &AttentionShape) -> Self {
        let half = shape.head_dim / 2;
        let inverse_frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / shape.head_dim as f32;
                // The power is rounded before it is inverted, as PyTorch does.
                1.0 / shape.rope_theta.powf(f64::from(exponent)) as f32
            })
            .collect();
        // The angle is rounded to f32 before its sine is taken, as PyTorch does: at position 2,000
        // that rounding is larger than everything else here.
        let (sine, cosine) = (0..packing.longest())
            .flat_map(|position| {
                inverse_frequencies.iter().map(move |f| {
                    let (sine, cosine) = f64::from(position as f32 * f).sin_cos();
                    (sine as f32, cosine as f32)
                })
            })
            .unzip();
        let mut positions = Vec::with_capacity(packing.rows());
        let mut blocks = Vec::new();
        for bounds in packing.offsets().windows(2) {
            let length = bounds[1] - bounds[0];
            positions.extend(0..length);
            blocks.extend((0..length).step_by(QUERY_BLOCK).map(|first| QueryBlock {
                start: bounds[0],
                first,
                end: (first + QUERY_BLOCK).min(length),
            }));
        }
        Self { positions, cosine, sine, half, blocks, offsets: packing.offsets().to_vec() }
    }

    /// The rows of each sequence.
    pub(in crate::ops) fn sequences(&self) -> impl Iterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|bounds| bounds[0]..bounds[1])
    }

    /// Cosines and sines of a packed row's position, `[head_dim / 2]` each.
    pub(in crate::ops) fn rotation(&self, row: usize) -> (&[f32], &[f32]) {
        let start = self.positions[row] * self.half;
        (&self.cosine[start..start + self.half], &self.sine[start..start + self.half])
    }
}

/// Applies the rotary embedding to the q and k columns of `[q | k | v]` rows, in place.
pub(in crate::ops) fn rotate(
    ops: &CpuOps,
    qkv: &mut [f32],
    layout: &AttentionLayout,
    shape: &AttentionShape,
) {
    let columns = shape.qkv_columns();
    let rows = qkv.len() / columns;
    let target = Shared(qkv.as_mut_ptr());
    ops.parallel_rows(rows, |range| {
        for row in range {
            let (cosine, sine) = layout.rotation(row);
            // SAFETY: rows are disjoint and within `qkv`.
            let values =
                unsafe { std::slice::from_raw_parts_mut(target.at(row * columns), columns) };
            let heads = shape.heads + shape.key_value_heads;
            elementwise::rotate(ops.isa, values, heads, cosine, sine);
        }
    });
}

/// Scratch of one task, kept between its key blocks.
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    maximum: Vec<f32>,
    weight: Vec<f32>,
}

/// Attention over rotated `[q | k | v]` rows: `out` is `[rows, heads * head_dim]`.
pub(in crate::ops) fn forward(
    ops: &CpuOps,
    qkv: &[f32],
    layout: &AttentionLayout,
    shape: &AttentionShape,
    out: &mut [f32],
) {
    assert_eq!(qkv.len(), layout.positions.len() * shape.qkv_columns());
    assert_eq!(out.len(), layout.positions.len() * shape.output_columns());
    let target = Shared(out.as_mut_ptr());
    ops.parallel(layout.blocks.len() * shape.key_value_heads, |task| {
        let block = layout.blocks[task / shape.key_value_heads];
        query_block(ops, qkv, block, task % shape.key_value_heads, shape, target);
    });
}

fn query_block(
    ops: &CpuOps,
    qkv: &[f32],
    block: QueryBlock,
    key_value_head: usize,
    shape: &AttentionShape,
    out: Shared,
) {
    let AttentionShape { heads, key_value_heads, head_dim, .. } = *shape;
    let columns = shape.qkv_columns();
    let group = heads / key_value_heads;
    let queries = block.end - block.first;
    let depth_panels = head_dim.div_ceil(PANEL);
    let padded = depth_panels * PANEL;
    let rows = group * queries;
    let mut scratch = Scratch {
        keys: vec![0.0; head_dim * KEY_BLOCK],
        values: vec![0.0; padded * KEY_BLOCK],
        scores: vec![0.0; queries * KEY_BLOCK],
        sums: vec![0.0; rows * padded],
        maximum: vec![f32::NEG_INFINITY; rows],
        weight: vec![0.0; rows],
    };
    let key_column = (heads + key_value_head) * head_dim;
    let value_column = key_column + key_value_heads * head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();

    for first_key in (0..block.end).step_by(KEY_BLOCK) {
        let count = KEY_BLOCK.min(block.end - first_key);
        let row = |key: usize| &qkv[(block.start + first_key + key) * columns..][..columns];
        for key in 0..KEY_BLOCK {
            let (panel, lane) = (key / PANEL * head_dim * PANEL, key % PANEL);
            for channel in 0..head_dim {
                scratch.keys[panel + channel * PANEL + lane] =
                    if key < count { row(key)[key_column + channel] } else { 0.0 };
            }
            for (channel, values) in (0..head_dim).step_by(PANEL).enumerate() {
                let width = PANEL.min(head_dim - values);
                let target = &mut scratch.values[(channel * KEY_BLOCK + key) * PANEL..][..width];
                if key < count {
                    target.copy_from_slice(&row(key)[value_column + values..][..width]);
                } else {
                    target.fill(0.0);
                }
            }
        }
        // Queries before this block's first key see none of it.
        let skipped = first_key.saturating_sub(block.first);
        let seeing = queries - skipped;
        for member in 0..group {
            let head = key_value_head * group + member;
            let query = &qkv[(block.start + block.first + skipped) * columns + head * head_dim..];
            for panel in 0..KEY_BLOCK / PANEL {
                // SAFETY: `query` holds `seeing` rows `columns` apart, `keys` whole panels, and
                // `scores` `queries >= seeing` rows of `KEY_BLOCK`.
                unsafe {
                    tile::multiply(
                        ops.isa,
                        seeing,
                        head_dim,
                        Strided { start: query.as_ptr(), stride: columns },
                        scratch.keys[panel * head_dim * PANEL..].as_ptr(),
                        Strided {
                            start: scratch.scores[panel * PANEL..].as_mut_ptr(),
                            stride: KEY_BLOCK,
                        },
                        false,
                    );
                }
            }
            let first_sum = member * queries + skipped;
            for (r, scores) in scratch.scores.chunks_exact_mut(KEY_BLOCK).take(seeing).enumerate() {
                let position = block.first + skipped + r;
                let visible = (position + 1 - first_key).min(KEY_BLOCK);
                let state = first_sum + r;
                let shrink = elementwise::softmax_block(
                    ops.isa,
                    scores,
                    visible,
                    scale,
                    &mut scratch.maximum[state],
                    &mut scratch.weight[state],
                );
                let sums = &mut scratch.sums[state * padded..][..padded];
                elementwise::scale(ops.isa, sums, shrink);
            }
            for panel in 0..depth_panels {
                // SAFETY: `scores` holds `seeing` rows, `values` whole panels, and `sums` `rows`
                // rows of `padded`, of which those of this head from `first_sum` on are written.
                unsafe {
                    tile::multiply(
                        ops.isa,
                        seeing,
                        KEY_BLOCK,
                        Strided { start: scratch.scores.as_ptr(), stride: KEY_BLOCK },
                        scratch.values[panel * KEY_BLOCK * PANEL..].as_ptr(),
                        Strided {
                            start: scratch.sums[first_sum * padded + panel * PANEL..].as_mut_ptr(),
                            stride: padded,
                        },
                        true,
                    );
                }
            }
        }
    }

    for member in 0..group {
        let head = key_value_head * group + member;
        for query in 0..queries {
            let state = member * queries + query;
            let row = block.start + block.first + query;
            let offset = row * shape.output_columns() + head * head_dim;
            // SAFETY: this task alone writes these rows of this head, and they are within `out`.
            let target = unsafe { std::slice::from_raw_parts_mut(out.at(offset), head_dim) };
            target.copy_from_slice(&scratch.sums[state * padded..][..head_dim]);
            elementwise::scale(ops.isa, target, 1.0 / scratch.weight[state]);
        }
    }
}
