//! Packed causal attention with its gradient.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::{host, values};
use crate::ops::AttentionShape;
use crate::ops::cpu::{AttentionLayout, CpuOps, attention_forward, rotate, rotate_rows};

/// Rotary embedding and attention of `[q | k | v]` rows, as [`crate::ops::Ops::attention`].
pub(super) struct PackedAttention {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) layout: Arc<AttentionLayout>,
    pub(super) shape: AttentionShape,
}

impl CustomOp1 for PackedAttention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut qkv = values(storage, layout)?.to_vec();
        rotate_rows(&self.cpu, &mut qkv, &self.layout, &self.shape);
        let rows = qkv.len() / self.shape.qkv_columns();
        let mut out = vec![0f32; rows * self.shape.output_columns()];
        attention_forward(&self.cpu, &qkv, &self.layout, &self.shape, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((rows, self.shape.output_columns()))))
    }

    /// Recomputes the probabilities `P` of each head rather than keeping them. With scores
    /// `S = scale * Q K^T`: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(dO * O))`,
    /// `dQ = scale * dS K`, `dK = scale * dS^T Q`; then the rotation is undone.
    fn bwd(&self, qkv: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut rotated = host(qkv)?;
        rotate_rows(&self.cpu, &mut rotated, &self.layout, &self.shape);
        let (output, gradient) = (host(result)?, host(gradient)?);
        let columns = self.shape.qkv_columns();
        let mut out = vec![0f32; rotated.len()];
        let mut sequences = Vec::new();
        let mut rest = out.as_mut_slice();
        for range in self.layout.sequences() {
            let (own, others) = rest.split_at_mut(range.len() * columns);
            sequences.push((range, own));
            rest = others;
        }
        let gradient_of = |(range, out): (Range<usize>, &mut [f32])| {
            let width = self.shape.output_columns();
            sequence_gradient(
                &self.shape,
                &rotated[range.start * columns..range.end * columns],
                &output[range.start * width..range.end * width],
                &gradient[range.start * width..range.end * width],
                out,
            );
            for (row, values) in range.zip(out.chunks_exact_mut(columns)) {
                let (cosine, sine) = self.layout.rotation(row);
                let back: Vec<f32> = sine.iter().map(|s| -s).collect();
                let heads = self.shape.heads + self.shape.key_value_heads;
                rotate(self.cpu.isa(), values, heads, cosine, &back);
            }
        };
        self.cpu.install(|| sequences.into_par_iter().for_each(gradient_of));
        Ok(Some(Tensor::from_vec(out, qkv.shape(), &Device::Cpu)?))
    }
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

/// The gradient of one sequence's rotated `[q | k | v]` rows.
fn sequence_gradient(
    shape: &AttentionShape,
    qkv: &[f32],
    output: &[f32],
    gradient: &[f32],
    out: &mut [f32],
) {
    let AttentionShape { heads, key_value_heads, head_dim, .. } = *shape;
    let (columns, width) = (shape.qkv_columns(), shape.output_columns());
    let length = qkv.len() / columns;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let square = View { start: 0, row: length, column: 1 };
    let mut probabilities = vec![0f32; length * length];
    let mut score_gradient = vec![0f32; length * length];
    for head in 0..heads {
        let key_value_head = head / (heads / key_value_heads);
        let at = |column| View { start: column, row: columns, column: 1 };
        let q = at(head * head_dim);
        let k = at((heads + key_value_head) * head_dim);
        let v = at((heads + key_value_heads + key_value_head) * head_dim);
        let o = View { start: head * head_dim, row: width, column: 1 };
        let (ll, ld) = ((length, length, head_dim), (length, head_dim, length));

        product(ll, (&mut probabilities, square), (qkv, q), (qkv, k.transposed()), scale, false);
        product(
            ll,
            (&mut score_gradient, square),
            (gradient, o),
            (qkv, v.transposed()),
            1.0,
            false,
        );
        for row in 0..length {
            let p = &mut probabilities[row * length..][..length];
            let ds = &mut score_gradient[row * length..][..length];
            let maximum = p[..=row].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for value in &mut p[..=row] {
                *value = (*value - maximum).exp();
                sum += *value;
            }
            p[row + 1..].fill(0.0);
            ds[row + 1..].fill(0.0);
            let of = |x: &[f32]| x[row * width + o.start..][..head_dim].to_vec();
            let dot: f32 = of(output).iter().zip(of(gradient)).map(|(o, g)| o * g).sum();
            for (p, ds) in p[..=row].iter_mut().zip(&mut ds[..=row]) {
                *p /= sum;
                *ds = *p * (*ds - dot);
            }
        }
        let p = (probabilities.as_slice(), square.transposed());
        product(ld, (out, v), p, (gradient, o), 1.0, true);
        product(ld, (out, q), (&score_gradient, square), (qkv, k), scale, true);
        product(ld, (out, k), (&score_gradient, square.transposed()), (qkv, q), scale, true);
    }
}
