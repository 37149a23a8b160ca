//! Causal grouped-query attention over packed sequences with shared prefixes.
//!
//! One task is one block of queries of a segment, and one key-value head. It walks the keys of the
//! segment and of those before it in blocks of [`KEY_BLOCK`] that start at absolute positions 0, 64,
//! 128, ..., and keeps an online softmax per query. Each query's arithmetic is fixed by its own position,
//! not by the batch around it or by where its keys lie.

use super::CpuOps;
use super::elementwise;
use super::linear::Shared;
use super::operand::Target;
use super::tile::{self, PANEL, Strided};
use crate::ops::{AttentionShape, Packing};

/// Keys of a block; a multiple of the panel width.
const KEY_BLOCK: usize = 64;
/// Queries of a task.
const QUERY_BLOCK: usize = 48;

/// Rotary tables and the tasks of a batch.
#[derive(Debug)]
pub struct AttentionLayout {
    rotary: Rotary,
    /// Position of each packed row, and of each sequence's last row.
    positions: Vec<usize>,
    last_positions: Vec<usize>,
    /// For each segment, the rows of its keys, from position 0 on.
    key_rows: Vec<Vec<usize>>,
    all: Vec<QueryBlock>,
    last: Vec<QueryBlock>,
}

/// Cosines and sines `[positions, head_dim / 2]`.
#[derive(Debug)]
struct Rotary {
    cosine: Vec<f32>,
    sine: Vec<f32>,
    half: usize,
}

/// Queries at consecutive positions of a segment.
#[derive(Debug, Clone, Copy)]
struct QueryBlock {
    segment: usize,
    /// Positions `first .. end`.
    first: usize,
    end: usize,
    /// Row of the first query, in the matrix of queries and in the result.
    row: usize,
}

/// Rows of `[.. | queries | ..]` or `[.. | keys | .. | values | ..]` in one matrix.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Heads<'a> {
    pub(in crate::ops) values: &'a [f32],
    /// Columns of the matrix.
    pub(in crate::ops) columns: usize,
    /// Column of the first head.
    pub(in crate::ops) first: usize,
}

impl<'a> Heads<'a> {
    fn row(&self, row: usize, head: usize, head_dim: usize) -> &'a [f32] {
        &self.values[row * self.columns + self.first + head * head_dim..][..head_dim]
    }
}

impl AttentionLayout {
    pub(in crate::ops) fn new(packing: &Packing, shape: &AttentionShape) -> Self {
        let positions = packing.positions().to_vec();
        let count = positions.iter().max().map_or(0, |last| last + 1);
        let segments = packing.segments().iter().enumerate();
        let all = segments.flat_map(|(index, segment)| {
            let first = segment.first_position;
            let end = first + segment.rows.len();
            (first..end).step_by(QUERY_BLOCK).map(move |start| QueryBlock {
                segment: index,
                first: start,
                end: (start + QUERY_BLOCK).min(end),
                row: segment.rows.start + start - first,
            })
        });
        let last_positions: Vec<usize> =
            packing.last_rows().into_iter().map(|row| positions[row]).collect();
        let last = packing.last_segments().zip(&last_positions).enumerate();
        let last = last.map(|(row, (segment, &position))| QueryBlock {
            segment,
            first: position,
            end: position + 1,
            row,
        });
        let key_rows = (0..packing.segments().len()).map(|s| packing.rows_through(s)).collect();
        Self {
            rotary: Rotary::new(count, shape),
            all: all.collect(),
            last: last.collect(),
            positions,
            last_positions,
            key_rows,
        }
    }

    /// Position of each packed row.
    pub(in crate::ops) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Position of each sequence's last row.
    pub(in crate::ops) fn last_positions(&self) -> &[usize] {
        &self.last_positions
    }

    /// Number of sequences.
    pub(in crate::ops) fn sequences(&self) -> usize {
        self.last.len()
    }

    /// Rows of the keys that the last token of a sequence sees, from position 0 on.
    pub(in crate::ops) fn sequence_rows(&self, sequence: usize) -> &[usize] {
        let QueryBlock { segment, end, .. } = self.last[sequence];
        &self.key_rows[segment][..end]
    }

    /// Cosines and sines of a position, `[head_dim / 2]` each.
    pub(in crate::ops) fn rotation(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.rotary.half..(position + 1) * self.rotary.half;
        (&self.rotary.cosine[range.clone()], &self.rotary.sine[range])
    }
}

impl Rotary {
    fn new(positions: usize, shape: &AttentionShape) -> Self {
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
        let (sine, cosine) = (0..positions)
            .flat_map(|position| {
                inverse_frequencies.iter().map(move |f| {
                    let (sine, cosine) = f64::from(position as f32 * f).sin_cos();
                    (sine as f32, cosine as f32)
                })
            })
            .unzip();
        Self { cosine, sine, half }
    }
}

/// Applies the rotary embedding in place to the first `heads` heads of rows `[heads.. | rest]`;
/// `positions` is one a row.
pub(in crate::ops) fn rotate(
    ops: &CpuOps,
    values: &mut [f32],
    heads: usize,
    layout: &AttentionLayout,
    positions: &[usize],
) {
    if positions.is_empty() {
        return;
    }
    let columns = values.len() / positions.len();
    let target = Shared(values.as_mut_ptr());
    ops.parallel_rows(positions.len(), |range| {
        for row in range {
            let (cosine, sine) = layout.rotation(positions[row]);
            // SAFETY: rows are disjoint and within `values`.
            let values =
                unsafe { std::slice::from_raw_parts_mut(target.at(row * columns), columns) };
            elementwise::rotate(ops.isa, values, heads, cosine, sine);
        }
    });
}

/// Attention of every packed row: `out` is `[rows, heads * head_dim]`.
pub(in crate::ops) fn forward(
    ops: &CpuOps,
    qkv: &[f32],
    layout: &AttentionLayout,
    shape: &AttentionShape,
    out: Target<'_>,
) {
    let columns = shape.qkv_columns();
    assert_eq!(qkv.len(), layout.positions.len() * columns);
    assert_eq!(out.len(), layout.positions.len() * shape.output_columns());
    let heads = |first| Heads { values: qkv, columns, first };
    let key = shape.output_columns();
    let value = key + shape.key_value_columns() / 2;
    run(ops, &layout.all, heads(0), heads(key), heads(value), layout, shape, out);
}

/// Attention of each sequence's last row: `q` is `[sequences, heads * head_dim]`, `kv` is `[k | v]` of
/// all rows, `out` is like `q`.
pub(in crate::ops) fn forward_last(
    ops: &CpuOps,
    q: &[f32],
    kv: &[f32],
    layout: &AttentionLayout,
    shape: &AttentionShape,
    out: Target<'_>,
) {
    let columns = shape.key_value_columns();
    assert_eq!(q.len(), layout.last.len() * shape.output_columns());
    assert_eq!(out.len(), q.len());
    assert_eq!(kv.len(), layout.positions.len() * columns);
    let queries = Heads { values: q, columns: shape.output_columns(), first: 0 };
    let heads = |first| Heads { values: kv, columns, first };
    run(ops, &layout.last, queries, heads(0), heads(columns / 2), layout, shape, out);
}

#[allow(clippy::too_many_arguments)]
fn run(
    ops: &CpuOps,
    blocks: &[QueryBlock],
    queries: Heads<'_>,
    keys: Heads<'_>,
    values: Heads<'_>,
    layout: &AttentionLayout,
    shape: &AttentionShape,
    out: Target<'_>,
) {
    ops.parallel(blocks.len() * shape.key_value_heads, |task| {
        let block = blocks[task / shape.key_value_heads];
        let key_rows = &layout.key_rows[block.segment][..block.end];
        let head = task % shape.key_value_heads;
        let task = Task { ops, block, key_rows, head, queries, keys, values, shape };
        task.run(out);
    });
}

/// One block of queries against one key-value head.
struct Task<'a> {
    ops: &'a CpuOps,
    block: QueryBlock,
    key_rows: &'a [usize],
    head: usize,
    queries: Heads<'a>,
    keys: Heads<'a>,
    values: Heads<'a>,
    shape: &'a AttentionShape,
}

/// Keys and values of one block as panels, and the running softmax of a task's queries.
struct Scratch {
    /// `[KEY_BLOCK / PANEL][head_dim][PANEL]`.
    keys: Vec<f32>,
    /// `[head_dim / PANEL][KEY_BLOCK][PANEL]`.
    values: Vec<f32>,
    /// `[queries, KEY_BLOCK]`.
    scores: Vec<f32>,
    /// `[group * queries, head_dim]`, filled up to whole panels.
    sums: Vec<f32>,
    maximum: Vec<f32>,
    weight: Vec<f32>,
}

impl Task<'_> {
    fn run(&self, out: Target<'_>) {
        let head_dim = self.shape.head_dim;
        let group = self.shape.heads / self.shape.key_value_heads;
        let queries = self.block.end - self.block.first;
        let padded = head_dim.next_multiple_of(PANEL);
        let rows = group * queries;
        let mut scratch = Scratch {
            keys: vec![0.0; head_dim * KEY_BLOCK],
            values: vec![0.0; padded * KEY_BLOCK],
            scores: vec![0.0; queries * KEY_BLOCK],
            sums: vec![0.0; rows * padded],
            maximum: vec![f32::NEG_INFINITY; rows],
            weight: vec![0.0; rows],
        };
        for first_key in (0..self.block.end).step_by(KEY_BLOCK) {
            self.pack(first_key, &mut scratch);
            for member in 0..group {
                self.accumulate(first_key, member, &mut scratch);
            }
        }
        for member in 0..group {
            let head = self.head * group + member;
            for query in 0..queries {
                let state = member * queries + query;
                let sums = &mut scratch.sums[state * padded..][..head_dim];
                elementwise::scale(self.ops.isa, sums, 1.0 / scratch.weight[state]);
                let row = self.block.row + query;
                let offset = row * self.shape.output_columns() + head * head_dim;
                // SAFETY: this task alone writes these rows of this head, and they are in the result.
                unsafe { out.write(self.ops.isa, offset, sums) };
            }
        }
    }

    /// Lays out the keys and values from `first_key` on; those beyond the last key are zeros.
    fn pack(&self, first_key: usize, scratch: &mut Scratch) {
        let head_dim = self.shape.head_dim;
        for key in 0..KEY_BLOCK {
            let (panel, lane) = (key / PANEL * head_dim * PANEL, key % PANEL);
            let row = self.key_rows.get(first_key + key);
            let keys = row.map(|&row| self.keys.row(row, self.head, head_dim));
            for channel in 0..head_dim {
                scratch.keys[panel + channel * PANEL + lane] =
                    keys.map_or(0.0, |keys| keys[channel]);
            }
            let values = row.map(|&row| self.values.row(row, self.head, head_dim));
            for (panel, first) in (0..head_dim).step_by(PANEL).enumerate() {
                let width = PANEL.min(head_dim - first);
                let target = &mut scratch.values[(panel * KEY_BLOCK + key) * PANEL..][..width];
                match values {
                    Some(values) => target.copy_from_slice(&values[first..first + width]),
                    None => target.fill(0.0),
                }
            }
        }
    }

    /// Adds a block of keys to the softmax of one query head of the group.
    fn accumulate(&self, first_key: usize, member: usize, scratch: &mut Scratch) {
        let AttentionShape { heads, key_value_heads, head_dim, .. } = *self.shape;
        let isa = self.ops.isa;
        let padded = head_dim.next_multiple_of(PANEL);
        let queries = self.block.end - self.block.first;
        let scale = 1.0 / (head_dim as f32).sqrt();
        // Queries before this block's first key see none of it.
        let skipped = first_key.saturating_sub(self.block.first);
        let seeing = queries - skipped;
        let head = self.head * (heads / key_value_heads) + member;
        let row = self.block.row + skipped;
        let query = &self.queries.values
            [row * self.queries.columns + self.queries.first + head * head_dim..];
        for panel in 0..KEY_BLOCK / PANEL {
            // SAFETY: `query` holds `seeing` rows `columns` apart, `keys` whole panels, and `scores`
            // `queries >= seeing` rows of `KEY_BLOCK`.
            unsafe {
                tile::multiply(
                    isa,
                    seeing,
                    head_dim,
                    Strided { start: query.as_ptr(), stride: self.queries.columns },
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
            let position = self.block.first + skipped + r;
            let state = first_sum + r;
            let shrink = elementwise::softmax_block(
                isa,
                scores,
                (position + 1 - first_key).min(KEY_BLOCK),
                scale,
                &mut scratch.maximum[state],
                &mut scratch.weight[state],
            );
            elementwise::scale(isa, &mut scratch.sums[state * padded..][..padded], shrink);
        }
        for panel in 0..padded / PANEL {
            // SAFETY: `scores` holds `seeing` rows, `values` whole panels, and `sums` the rows of all
            // states, of which this head's from `first_sum` on are written.
            unsafe {
                tile::multiply(
                    isa,
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
