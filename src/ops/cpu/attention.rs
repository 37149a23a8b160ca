//! Causal grouped-query attention over packed sequences with shared prefixes.
//!
//! Queries walk the blocks of their keys in ascending position, with an online softmax each (Milakov and
//! Gimelshein 2018). A query's arithmetic is fixed by its own position, not by the batch around it or by
//! where its keys lie.

use std::ops::Range;

use super::buffers::Buffer;
use super::device::CpuOps;
use super::kernels::bf16::{self, PairPanel};
use super::kernels::elementwise;
use super::kernels::tile::{self, PANEL, ROWS, Strided};
use super::layout::{AttentionLayout, KEY_BLOCK, Queries};
use super::matrix::Matrix;
use super::operand::{Operand, OperandTarget, Precision, Values};
use super::projection::{AttentionProjection, KeyBlock};
use crate::layer::AttentionShape;
use crate::ops::device::QueryRows;

/// Queries that walk the keys together, while a block of these stays in the first-level cache.
const QUERY_BLOCK: usize = 48;
/// Lanes that softmax takes at a time.
const LANES: usize = 16;

/// Attention of the given packed rows, in order: `[rows, heads * head_dim]`.
pub(super) fn of_rows(
    ops: &CpuOps,
    projection: &AttentionProjection,
    layout: &AttentionLayout,
    rows: Range<usize>,
) -> Operand {
    let columns = projection.shape.output_columns();
    let mut out = Operand::stale(ops.precision, rows.len(), columns);
    let start = rows.start;
    let queries: Vec<_> = layout.queries(rows, QUERY_BLOCK).collect();
    run(ops, projection, &projection.queries, &queries, start, out.target());
    out
}

/// Attention of each sequence's last row, whose rotated and scaled queries are given:
/// `[sequences, heads * head_dim]`.
pub(super) fn of_last(
    ops: &CpuOps,
    projection: &AttentionProjection,
    layout: &AttentionLayout,
    query_values: &Operand,
) -> Operand {
    let mut out = Operand::stale(ops.precision, query_values.rows, query_values.columns);
    let queries: Vec<_> = layout.last_queries().collect();
    run(ops, projection, query_values, &queries, 0, out.target());
    out
}

/// Rotates and scales the queries of the sequences' last rows.
pub(super) fn last_queries(
    ops: &CpuOps,
    projection: &AttentionProjection,
    layout: &AttentionLayout,
    mut queries: Matrix,
) -> Operand {
    let AttentionShape { heads, head_dim, .. } = projection.shape;
    let mut out = Operand::stale(ops.precision, queries.rows, queries.columns);
    let target = out.target();
    let columns = queries.columns;
    let scale = projection.shape.scale();
    for (row, (values, &position)) in
        queries.values.chunks_exact_mut(columns).zip(layout.last_positions()).enumerate()
    {
        let (cosine, sine) = projection.rotary.at(position);
        elementwise::rotate(ops.isa, values, heads, head_dim, cosine, sine);
        elementwise::scale(ops.isa, values, scale);
        // SAFETY: nobody else has the result yet.
        unsafe { target.write(row * columns, values) };
    }
    out
}

impl CpuOps {
    /// Rotary embedding, then attention of every row: `[q | k | v]` to `[rows, output_columns]`.
    pub(in crate::ops) fn attention(
        &self,
        qkv: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Matrix {
        let rows = qkv.rows;
        let mut projection = AttentionProjection::new(self, layout, shape, QueryRows::All);
        projection.store(self, layout, qkv);
        of_rows(self, &projection, layout, 0..rows).into_matrix()
    }

    /// As [`CpuOps::attention`], of each sequence's last row: q and `[k | v]` to
    /// `[sequences, output_columns]`.
    pub(in crate::ops) fn attention_of_last(
        &self,
        queries: Matrix,
        key_value: Matrix,
        layout: &AttentionLayout,
        shape: &AttentionShape,
    ) -> Matrix {
        let mut projection =
            AttentionProjection::new(self, layout, shape, QueryRows::LastOfSequence);
        projection.store(self, layout, key_value);
        let queries = last_queries(self, &projection, layout, queries);
        of_last(self, &projection, layout, &queries).into_matrix()
    }
}

/// `out` row `r` is that of query row `first_row + r`.
fn run(
    ops: &CpuOps,
    projection: &AttentionProjection,
    query_values: &Operand,
    queries: &[Queries<'_>],
    first_row: usize,
    out: OperandTarget<'_>,
) {
    let heads = projection.shape.key_value_heads;
    ops.parallel(queries.len() * heads, |index| {
        let queries = queries[index / heads];
        let task = HeadTask { ops, projection, query_values, queries, head: index % heads };
        task.run(out, queries.row - first_row);
    });
}

/// Queries of one segment against one key-value head.
struct HeadTask<'a> {
    ops: &'a CpuOps,
    projection: &'a AttentionProjection,
    query_values: &'a Operand,
    queries: Queries<'a>,
    head: usize,
}

/// The running softmax of a task's queries, and the scores of a tile.
struct SoftmaxState {
    /// `[ROWS, KEY_BLOCK]`.
    scores: Buffer<f32>,
    /// The weights of a tile as products read them: `scores` itself in f32.
    rounded: Buffer<u16>,
    /// `[queries, head_dim]`, filled up to whole panels.
    sums: Buffer<f32>,
    maximum: Buffer<f32>,
    weight: Buffer<f32>,
}

impl HeadTask<'_> {
    fn run(&self, out: OperandTarget<'_>, first_row: usize) {
        let shape = &self.projection.shape;
        let group = shape.heads / shape.key_value_heads;
        let padded = shape.head_dim.next_multiple_of(PANEL);
        let count = self.queries.count;
        let mut state = SoftmaxState {
            scores: Buffer::stale(ROWS * KEY_BLOCK),
            rounded: Buffer::stale(ROWS * KEY_BLOCK),
            sums: Buffer::stale(count * padded),
            maximum: Buffer::stale(count),
            weight: Buffer::stale(count),
        };
        for head in self.head * group..(self.head + 1) * group {
            state.maximum.fill(f32::NEG_INFINITY);
            state.weight.fill(0.0);
            let blocks = (self.queries.first + count).div_ceil(KEY_BLOCK);
            let first_block = shape.first_seen(self.queries.first) / KEY_BLOCK;
            for index in first_block..blocks {
                let keys = self.projection.block(self.queries.blocks[index], self.head);
                let first_key = index * KEY_BLOCK;
                let later = index > first_block;
                // Queries before this block's first key see none of it.
                let skipped = first_key.saturating_sub(self.queries.first);
                for first in (skipped..count).step_by(ROWS) {
                    let tile = first..count.min(first + ROWS);
                    self.accumulate(head, tile, first_key, keys, later, &mut state);
                }
            }
            for query in 0..count {
                let sums = &mut state.sums[query * padded..][..shape.head_dim];
                elementwise::scale(self.ops.isa, sums, 1.0 / state.weight[query]);
                let offset = (first_row + query) * shape.output_columns() + head * shape.head_dim;
                // SAFETY: this task alone writes these rows of this head, and they are in the result.
                unsafe { out.write(offset, sums) };
            }
        }
    }

    /// Adds a block of keys to the softmax of a tile of queries; a `later` one than the first.
    fn accumulate(
        &self,
        head: usize,
        tile: Range<usize>,
        first_key: usize,
        keys: KeyBlock,
        later: bool,
        state: &mut SoftmaxState,
    ) {
        let isa = self.ops.isa;
        let AttentionShape { head_dim, soft_cap, .. } = self.projection.shape;
        let padded = head_dim.next_multiple_of(PANEL);
        // Keys beyond the last query's own are seen by none; their weights would be zeros.
        let seen = self.queries.first + tile.end - first_key;
        let width = seen.next_multiple_of(LANES).min(KEY_BLOCK);
        let query_values =
            (self.queries.row + tile.start) * self.query_values.columns + head * head_dim;
        let scores = Strided { start: state.scores.as_mut_ptr(), stride: KEY_BLOCK };
        let stride = self.query_values.columns;
        for panel in 0..width.div_ceil(PANEL) {
            let offset = panel * head_dim * PANEL;
            // SAFETY: the tile's queries are rows of `query_values`, a block has KEY_BLOCK / PANEL panels of keys,
            // and `scores` holds ROWS rows of them.
            unsafe {
                let out = Strided { start: scores.start.add(panel * PANEL), ..scores };
                match (&self.query_values.values, keys) {
                    (Values::F32(values), KeyBlock::F32 { keys, .. }) => {
                        let x = Strided { start: values[query_values..].as_ptr(), stride };
                        tile::multiply(isa, tile.len(), head_dim, x, keys.add(offset), out, false);
                    }
                    (Values::Bf16(values), KeyBlock::Bf16 { keys, .. }) => {
                        let x = Strided { start: values[query_values..].as_ptr(), stride };
                        let keys =
                            PairPanel { start: keys.add(offset / 2), next: std::ptr::null() };
                        bf16::multiply(tile.len(), head_dim, x, keys, out, false);
                    }
                    _ => unreachable!("queries and keys of one device have one precision"),
                }
            }
        }
        for (row, scores) in state.scores.chunks_exact_mut(KEY_BLOCK).take(tile.len()).enumerate() {
            let query = tile.start + row;
            let position = self.queries.first + query;
            let hidden = self.projection.shape.first_seen(position).saturating_sub(first_key);
            let visible = hidden..(position + 1 - first_key).min(width);
            if visible.is_empty() {
                // All of the block is before the query's window: zeros leave what was summed as it is.
                match self.ops.precision {
                    Precision::F32 => scores[..width].fill(0.0),
                    Precision::Bf16 => state.rounded[row * KEY_BLOCK..][..width].fill(0),
                }
                continue;
            }
            let (maximum, weight) = (&mut state.maximum[query], &mut state.weight[query]);
            let scores = &mut scores[..width];
            if let Some(cap) = soft_cap {
                elementwise::soft_cap(isa, scores, cap);
            }
            let shrink = match self.ops.precision {
                Precision::F32 => elementwise::softmax_block(isa, scores, visible, maximum, weight),
                Precision::Bf16 => {
                    let rounded = &mut state.rounded[row * KEY_BLOCK..][..width];
                    bf16::softmax_block(scores, visible, maximum, weight, rounded)
                }
            };
            if later && shrink != 1.0 {
                elementwise::scale(isa, &mut state.sums[query * padded..][..padded], shrink);
            }
        }
        for panel in 0..padded / PANEL {
            let offset = panel * KEY_BLOCK * PANEL;
            // SAFETY: the tile's weights are `width` wide and a block's values deeper, and `sums` holds all
            // queries, of which this tile's rows are written.
            unsafe {
                let start = state.sums[tile.start * padded + panel * PANEL..].as_mut_ptr();
                let out = Strided { start, stride: padded };
                match keys {
                    KeyBlock::F32 { values, .. } => {
                        let x = Strided { start: state.scores.as_ptr(), stride: KEY_BLOCK };
                        tile::multiply(isa, tile.len(), width, x, values.add(offset), out, later);
                    }
                    KeyBlock::Bf16 { values, .. } => {
                        let x = Strided { start: state.rounded.as_ptr(), stride: KEY_BLOCK };
                        let values =
                            PairPanel { start: values.add(offset / 2), next: std::ptr::null() };
                        bf16::multiply(tile.len(), width, x, values, out, later);
                    }
                }
            }
        }
    }
}
