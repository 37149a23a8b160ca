//! Packed causal attention with its gradient.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::{TrainingLayout, host, values};
use crate::ops::AttentionShape;
use crate::ops::cpu::{CpuOps, Matrix, rotate};

/// Rotary embedding and attention: of `[q | k | v]` rows as in [`crate::ops::Ops::advance`], or of q
/// and `[k | v]` as [`crate::ops::Ops::last_attention`].
pub(super) struct PackedAttention {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) layout: Arc<TrainingLayout>,
    pub(super) shape: AttentionShape,
}

impl PackedAttention {
    /// Rotates rows `[heads.. | rest]` forward.
    fn rotated(&self, mut rows: Vec<f32>, heads: usize, positions: &[usize]) -> Vec<f32> {
        self.cpu.rotate_rows(
            &mut rows,
            heads,
            self.shape.head_dim,
            &self.layout.attention,
            positions,
        );
        rows
    }

    /// Undoes the rotation of a row's first heads.
    fn rotate_back(&self, row: &mut [f32], heads: usize, position: usize) {
        let (cosine, sine) = self.layout.attention.rotation(position);
        let back: Vec<f32> = sine.iter().map(|s| -s).collect();
        rotate(self.cpu.isa(), row, heads, self.shape.head_dim, cosine, &back);
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
        let qkv_rows = self.rotated(host(qkv)?, heads, positions);
        let (output, gradient) = (host(result)?, host(gradient)?);
        let (columns, width) = (self.shape.qkv_columns(), self.shape.output_columns());
        let mut out = vec![0f32; qkv_rows.len()];
        let mut sequences = Vec::new();
        let mut rest = out.as_mut_slice();
        for rows in &self.layout.sequences {
            let (own, others) = rest.split_at_mut(rows.len() * columns);
            sequences.push((rows, own));
            rest = others;
        }
        let gradient_of = |(rows, out): (&Range<usize>, &mut [f32])| {
            let (start, length) = (rows.start, rows.len());
            let own = |x, columns| Block::new(x, start, length, columns);
            let (qkv, output, gradient) =
                (own(&qkv_rows, columns), own(&output, width), own(&gradient, width));
            let gradients = sequence_gradient(
                &self.shape,
                qkv,
                Block { first_column: width, ..qkv },
                output,
                gradient,
            );
            for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                let kv = columns - width;
                out[..width].copy_from_slice(&gradients.q[row * width..][..width]);
                out[width..].copy_from_slice(&gradients.kv[row * kv..][..kv]);
                self.rotate_back(out, heads, positions[start + row]);
            }
        };
        self.cpu.install(|| sequences.into_par_iter().for_each(gradient_of));
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
        let key_heads = self.shape.key_value_heads;
        let last = self.layout.attention.last_positions();
        let q_rows = self.rotated(host(q)?, self.shape.heads, last);
        let kv_rows = self.rotated(host(kv)?, key_heads, self.layout.attention.positions());
        let (output, gradient) = (host(result)?, host(gradient)?);
        let (columns, width) = (self.shape.key_value_columns(), self.shape.output_columns());
        let gradient_of = |sequence: usize| {
            let rows = &self.layout.sequences[sequence];
            let one = |x| Block::new(x, sequence, 1, width);
            let kv = Block::new(&kv_rows, rows.start, rows.len(), columns);
            let mut gradients =
                sequence_gradient(&self.shape, one(&q_rows), kv, one(&output), one(&gradient));
            self.rotate_back(&mut gradients.q, self.shape.heads, last[sequence]);
            for (position, row) in gradients.kv.chunks_exact_mut(columns).enumerate() {
                self.rotate_back(row, key_heads, position);
            }
            gradients
        };
        let gradients: Vec<Gradients> = self.cpu.install(|| {
            (0..self.layout.sequences.len()).into_par_iter().map(gradient_of).collect()
        });
        let q_gradient = gradients.iter().flat_map(|g| &g.q).copied().collect();
        let kv_gradient = gradients.iter().flat_map(|g| &g.kv).copied().collect();
        Ok((
            Some(Tensor::from_vec(q_gradient, q.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(kv_gradient, kv.shape(), &Device::Cpu)?),
        ))
    }
}

fn output(matrix: &Matrix) -> (CpuStorage, Shape) {
    (CpuStorage::F32(matrix.to_vec()), Shape::from(matrix.shape()))
}

/// Consecutive rows of a matrix, from a column on.
#[derive(Clone, Copy)]
struct Block<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    first_column: usize,
}

impl<'a> Block<'a> {
    fn new(values: &'a [f32], start: usize, rows: usize, columns: usize) -> Self {
        let values = &values[start * columns..(start + rows) * columns];
        Self { values, rows, columns, first_column: 0 }
    }

    /// The columns of a head.
    fn head(&self, index: usize, head_dim: usize) -> View {
        View { start: self.first_column + index * head_dim, row: self.columns, column: 1 }
    }

    fn head_row(&self, row: usize, index: usize, head_dim: usize) -> &'a [f32] {
        &self.values[row * self.columns + self.first_column + index * head_dim..][..head_dim]
    }
}

/// Gradients of one sequence's rotated q `[queries, heads * head_dim]` and `[k | v]` `[keys, ..]`.
struct Gradients {
    q: Vec<f32>,
    kv: Vec<f32>,
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

/// The gradient of one sequence, whose last tokens are the queries. Recomputes the probabilities `P` of
/// each head rather than keeping them. With scores `S = scale * Q K^T`: `dV = P^T dO`, `dP = dO V^T`,
/// `dS = P * (dP - rowsum(dO * O))`, `dQ = scale * dS K`, `dK = scale * dS^T Q`.
fn sequence_gradient(
    shape: &AttentionShape,
    q: Block<'_>,
    kv: Block<'_>,
    output: Block<'_>,
    gradient: Block<'_>,
) -> Gradients {
    let AttentionShape { heads, key_value_heads, head_dim, .. } = *shape;
    let (queries, keys) = (q.rows, kv.rows);
    let (width, kv_width) = (shape.output_columns(), shape.key_value_columns());
    let scale = 1.0 / (head_dim as f32).sqrt();
    let square = View { start: 0, row: keys, column: 1 };
    let mut out = Gradients { q: vec![0.0; queries * width], kv: vec![0.0; keys * kv_width] };
    let mut probabilities = vec![0f32; queries * keys];
    let mut score_gradient = vec![0f32; queries * keys];
    for head in 0..heads {
        let key_head = head / (heads / key_value_heads);
        let value_head = key_value_heads + key_head;
        let queries_view = q.head(head, head_dim);
        let (k, v) = (kv.head(key_head, head_dim), kv.head(value_head, head_dim));
        let o = gradient.head(head, head_dim);
        let into = |head: usize, row| View { start: head * head_dim, row, column: 1 };

        let scores = (queries, keys, head_dim);
        let (a, b) = ((q.values, queries_view), (kv.values, k.transposed()));
        product(scores, (&mut probabilities, square), a, b, scale, false);
        let (a, b) = ((gradient.values, o), (kv.values, v.transposed()));
        product(scores, (&mut score_gradient, square), a, b, 1.0, false);
        for row in 0..queries {
            let seen = keys - queries + row + 1;
            let p = &mut probabilities[row * keys..][..keys];
            let ds = &mut score_gradient[row * keys..][..keys];
            let maximum = p[..seen].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for value in &mut p[..seen] {
                *value = (*value - maximum).exp();
                sum += *value;
            }
            p[seen..].fill(0.0);
            ds[seen..].fill(0.0);
            let of = |x: Block<'_>| x.head_row(row, head, head_dim).to_vec();
            let dot: f32 = of(output).iter().zip(of(gradient)).map(|(o, g)| o * g).sum();
            for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                *p /= sum;
                *ds = *p * (*ds - dot);
            }
        }
        let key_sums = (keys, head_dim, queries);
        let p = (probabilities.as_slice(), square.transposed());
        let target = (out.kv.as_mut_slice(), into(value_head, kv_width));
        product(key_sums, target, p, (gradient.values, o), 1.0, true);
        let ds = score_gradient.as_slice();
        let target = (out.q.as_mut_slice(), into(head, width));
        product((queries, head_dim, keys), target, (ds, square), (kv.values, k), scale, true);
        let target = (out.kv.as_mut_slice(), into(key_head, kv_width));
        let q = (q.values, queries_view);
        product(key_sums, target, (ds, square.transposed()), q, scale, true);
    }
    out
}
