//! Packed causal attention with its gradient.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::host::{host, values};
use crate::layer::AttentionShape;
use crate::ops::batch::Rotary;
use crate::ops::cpu::{
    AttentionLayout, CpuOps, Isa, Matrix, rotate, soft_cap, soft_cap_gradient, softmax_gradient,
};

/// SegmentQueries that are taken at once: keys after the last of them are not looked at.
const QUERY_BLOCK: usize = 128;

/// A batch as attention sees it.
#[derive(Debug)]
pub struct AutogradLayout {
    pub(super) attention: AttentionLayout,
    /// Each segment's rows, with all keys that they read.
    pub(super) segments: Vec<SegmentQueries>,
    /// Each sequence's last row; rows count sequences.
    pub(super) lasts: Vec<SegmentQueries>,
}

/// Rotary embedding and attention: of `[q | k | v]` rows as in [`next_projection`](crate::ops::DecoderOps::next_projection), or of q
/// and `[k | v]` as [`last_attention`](crate::ops::DecoderOps::last_attention).
pub(super) struct PackedAttention {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) layout: Arc<AutogradLayout>,
    pub(super) shape: AttentionShape,
    pub(super) rotary: Arc<Rotary>,
}

/// SegmentQueries at consecutive positions, and the rows of the keys from position 0 to that of the last one.
#[derive(Debug)]
pub(super) struct SegmentQueries {
    pub(super) rows: Range<usize>,
    pub(super) keys: Vec<usize>,
}

impl PackedAttention {
    /// Rotates rows `[heads.. | rest]` forward.
    fn rotated(&self, mut rows: Vec<f32>, heads: usize, positions: &[usize]) -> Vec<f32> {
        self.cpu.rotate_rows(&mut rows, heads, self.shape.head_dim, &self.rotary, positions);
        rows
    }

    /// Undoes the rotation of rows `[heads.. | rest]`.
    fn rotate_back(&self, rows: &mut [f32], heads: usize, positions: &[usize]) {
        let columns = rows.len() / positions.len();
        let rotate_row = |(row, &position): (&mut [f32], &usize)| {
            let (cosine, sine) = self.rotary.at(position);
            let back: Vec<f32> = sine.iter().map(|s| -s).collect();
            rotate(self.cpu.isa(), row, heads, self.shape.head_dim, cosine, &back);
        };
        let rows = rows.par_chunks_exact_mut(columns).zip(positions).with_min_len(QUERY_BLOCK);
        self.cpu.install(|| rows.for_each(rotate_row));
    }

    /// Adds the gradients of rotated queries to the rows of the first target, those of rotated `[k | v]` to the last
    /// target's; each from its column of `first` on. Keys that several queries share get the sum in the order of `queries`.
    fn gradients<const N: usize>(
        &self,
        queries: &[SegmentQueries],
        inputs: Inputs<'_>,
        mut targets: [GradientRows<'_>; N],
        first: [usize; 2],
    ) {
        let AttentionShape { heads, key_value_heads, head_dim, .. } = self.shape;
        let group = heads / key_value_heads;
        let tasks: Vec<(&SegmentQueries, usize)> = queries
            .iter()
            .flat_map(|queries| (0..key_value_heads).map(move |head| (queries, head)))
            .collect();
        let found: Vec<HeadGradient> = self.cpu.install(|| {
            let of = |&(queries, head): &(&SegmentQueries, usize)| {
                head_gradient(self.cpu.isa(), &self.shape, queries, head, inputs)
            };
            tasks.par_iter().with_max_len(1).map(of).collect()
        });
        for ((queries, head), found) in tasks.iter().zip(&found) {
            let q_column = first[0] + head * group * head_dim;
            targets[0].add(queries.rows.clone(), q_column, group * head_dim, &found.q);
            for (values, head) in [(&found.k, *head), (&found.v, key_value_heads + head)] {
                let keys = queries.keys.iter().copied();
                targets[N - 1].add(keys, first[1] + head * head_dim, head_dim, values);
            }
        }
    }
}

impl CustomOp1 for PackedAttention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = Matrix::from_slice(values(storage, layout)?, self.shape.qkv_columns());
        Ok(output(&self.cpu.attention(qkv, &self.layout.attention, &self.shape)))
    }

    fn bwd(&self, qkv: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let heads = self.shape.heads + self.shape.key_value_heads;
        let positions = self.layout.attention.positions();
        let rows = self.rotated(host(qkv)?, heads, positions);
        let (output, gradient) = (host(result)?, host(gradient)?);
        let (columns, width) = (self.shape.qkv_columns(), self.shape.output_columns());
        let mut out = vec![0f32; rows.len()];
        let inputs = Inputs {
            q: Rows { values: &rows, columns, first: 0 },
            kv: Rows { values: &rows, columns, first: width },
            output: Rows { values: &output, columns: width, first: 0 },
            gradient: Rows { values: &gradient, columns: width, first: 0 },
        };
        let queries = &self.layout.segments;
        self.gradients(queries, inputs, [GradientRows { values: &mut out, columns }], [0, width]);
        self.rotate_back(&mut out, heads, positions);
        Ok(Some(Tensor::from_vec(out, qkv.shape(), &Device::Cpu)?))
    }
}

impl CustomOp2 for PackedAttention {
    fn name(&self) -> &'static str {
        "last-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        kv: &CpuStorage,
        kv_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = Matrix::from_slice(values(q, q_layout)?, self.shape.output_columns());
        let kv = Matrix::from_slice(values(kv, kv_layout)?, self.shape.key_value_columns());
        Ok(output(&self.cpu.attention_of_last(q, kv, &self.layout.attention, &self.shape)))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (heads, key_heads) = (self.shape.heads, self.shape.key_value_heads);
        let last = self.layout.attention.last_positions();
        let positions = self.layout.attention.positions();
        let q_rows = self.rotated(host(q)?, heads, last);
        let kv_rows = self.rotated(host(kv)?, key_heads, positions);
        let (output, gradient) = (host(result)?, host(gradient)?);
        let (columns, width) = (self.shape.key_value_columns(), self.shape.output_columns());
        let (mut q_out, mut kv_out) = (vec![0f32; q_rows.len()], vec![0f32; kv_rows.len()]);
        let inputs = Inputs {
            q: Rows { values: &q_rows, columns: width, first: 0 },
            kv: Rows { values: &kv_rows, columns, first: 0 },
            output: Rows { values: &output, columns: width, first: 0 },
            gradient: Rows { values: &gradient, columns: width, first: 0 },
        };
        let targets = [
            GradientRows { values: &mut q_out, columns: width },
            GradientRows { values: &mut kv_out, columns },
        ];
        self.gradients(&self.layout.lasts, inputs, targets, [0, 0]);
        self.rotate_back(&mut q_out, heads, last);
        self.rotate_back(&mut kv_out, key_heads, positions);
        Ok((
            Some(Tensor::from_vec(q_out, q.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(kv_out, kv.shape(), &Device::Cpu)?),
        ))
    }
}

fn output(matrix: &Matrix) -> (CpuStorage, Shape) {
    (CpuStorage::F32(matrix.to_vec()), Shape::from(matrix.shape()))
}

/// Rows of a matrix, of which columns from `first` on are meant.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    columns: usize,
    first: usize,
}

impl<'a> Rows<'a> {
    /// `count` columns of a row.
    fn get(&self, row: usize, column: usize, count: usize) -> &'a [f32] {
        &self.values[row * self.columns + self.first + column..][..count]
    }
}

/// What the gradient is computed of: rotated queries, rotated `[k | v]`, the attention's output and its gradient.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: Rows<'a>,
    kv: Rows<'a>,
    output: Rows<'a>,
    gradient: Rows<'a>,
}

/// A matrix that gradients are added to.
struct GradientRows<'a> {
    values: &'a mut [f32],
    columns: usize,
}

impl GradientRows<'_> {
    /// Adds `values` `[rows, count]` to these rows, from a column on.
    fn add(
        &mut self,
        rows: impl Iterator<Item = usize>,
        column: usize,
        count: usize,
        values: &[f32],
    ) {
        for (row, values) in rows.zip(values.chunks_exact(count)) {
            let target = &mut self.values[row * self.columns + column..][..count];
            for (sum, value) in target.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
}

/// Gradients of a key head: of its queries `[queries, group * head_dim]`, keys and values `[keys, head_dim]`.
struct HeadGradient {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// A matrix inside a slice: where it starts, and the strides of its rows and columns.
#[derive(Clone, Copy)]
struct View {
    start: usize,
    row: usize,
    column: usize,
}

impl View {
    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// `target = alpha * a b`, or `+=` where `accumulate` is set, for `a` `[m, k]` and `b` `[k, n]`.
fn product(
    (m, n, k): (usize, usize, usize),
    (target, t): (&mut [f32], View),
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    alpha: f32,
    accumulate: bool,
) {
    let end = |v: View, rows: usize, columns: usize| {
        v.start + (rows - 1) * v.row + (columns - 1) * v.column
    };
    assert!(end(t, m, n) < target.len());
    assert!(end(a_view, m, k) < a.len() && end(b_view, k, n) < b.len());
    // SAFETY: the last element of each matrix was asserted to be within its slice.
    unsafe {
        gemm(
            m,
            n,
            k,
            target.as_mut_ptr().add(t.start),
            t.column as isize,
            t.row as isize,
            accumulate,
            a.as_ptr().add(a_view.start),
            a_view.column as isize,
            a_view.row as isize,
            b.as_ptr().add(b_view.start),
            b_view.column as isize,
            b_view.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The gradient of the queries that read one key head. Recomputes the probabilities `P` rather than keeping them.
/// With scores `S = scale * Q K^T`: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(dO * O))`,
/// `dQ = scale * dS K`, `dK = scale * dS^T Q`. A soft-cap adds a factor to `dS`, a window takes keys away.
fn head_gradient(
    isa: Isa,
    shape: &AttentionShape,
    queries: &SegmentQueries,
    key_head: usize,
    inputs: Inputs<'_>,
) -> HeadGradient {
    let AttentionShape { heads, key_value_heads, head_dim, soft_cap: cap, .. } = *shape;
    let group = heads / key_value_heads;
    let SegmentQueries { rows, keys } = queries;
    let scale = shape.scale();
    let gathered = |head: usize| -> Vec<f32> {
        let rows = keys.iter().flat_map(|&row| inputs.kv.get(row, head * head_dim, head_dim));
        rows.copied().collect()
    };
    let (k, v) = (gathered(key_head), gathered(key_value_heads + key_head));
    let width = group * head_dim;
    let mut out = HeadGradient {
        q: vec![0.0; rows.len() * width],
        k: vec![0.0; k.len()],
        v: vec![0.0; v.len()],
    };
    let mut probabilities = vec![0f32; QUERY_BLOCK.min(rows.len()) * keys.len()];
    let mut score_gradient = probabilities.clone();
    // A query's scores after the soft-cap.
    let mut capped = cap.map_or(Vec::new(), |_| vec![0f32; keys.len()]);
    let before = keys.len() - rows.len();
    for first in (0..rows.len()).step_by(QUERY_BLOCK) {
        let count = QUERY_BLOCK.min(rows.len() - first);
        // Positions that queries of the block see.
        let (start, end) = (shape.first_seen(before + first), before + first + count);
        let seen = end - start;
        let square = View { start: 0, row: seen, column: 1 };
        let dense = View { start: start * head_dim, row: head_dim, column: 1 };
        for own in 0..group {
            let column = (key_head * group + own) * head_dim;
            let row = rows.start + first;
            let view = |of: &Rows<'_>| View {
                start: row * of.columns + of.first + column,
                row: of.columns,
                column: 1,
            };
            let (q, gradient) = (view(&inputs.q), view(&inputs.gradient));
            let into_q = View { start: first * width + own * head_dim, row: width, column: 1 };

            let scores = (count, seen, head_dim);
            let (a, b) = ((inputs.q.values, q), (k.as_slice(), dense.transposed()));
            product(scores, (&mut probabilities, square), a, b, scale, false);
            let (a, b) = ((inputs.gradient.values, gradient), (v.as_slice(), dense.transposed()));
            product(scores, (&mut score_gradient, square), a, b, 1.0, false);
            for index in 0..count {
                let position = before + first + index;
                let visible = shape.first_seen(position) - start..position + 1 - start;
                let p = &mut probabilities[index * seen..][..seen];
                let ds = &mut score_gradient[index * seen..][..seen];
                let output = inputs.output.get(row + index, column, head_dim);
                let gradient = inputs.gradient.get(row + index, column, head_dim);
                let dot: f32 = output.iter().zip(gradient).map(|(o, g)| o * g).sum();
                if let Some(cap) = cap {
                    soft_cap(isa, &mut p[visible.clone()], cap);
                    capped[..seen].copy_from_slice(p);
                }
                softmax_gradient(isa, p, ds, visible.clone(), dot);
                if let Some(cap) = cap {
                    soft_cap_gradient(isa, &capped[visible.clone()], cap, &mut ds[visible]);
                }
            }
            let key_sums = (seen, head_dim, count);
            let p = (probabilities.as_slice(), square.transposed());
            let gradient = (inputs.gradient.values, gradient);
            product(key_sums, (&mut out.v, dense), p, gradient, 1.0, true);
            let ds = score_gradient.as_slice();
            let keys = (k.as_slice(), dense);
            product(
                (count, head_dim, seen),
                (&mut out.q, into_q),
                (ds, square),
                keys,
                scale,
                false,
            );
            let q = (inputs.q.values, q);
            product(key_sums, (&mut out.k, dense), (ds, square.transposed()), q, scale, true);
        }
    }
    out
}
