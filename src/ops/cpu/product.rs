//! Products whose factors both change from call to call, as training has them.
//!
//! Both are packed for the call, `O(m k + n k)` beside `O(m n k)`, and multiplied by the kernels of linear layers.

use super::buffers::Buffer;
use super::device::CpuOps;
use super::kernels::bf16;
use super::kernels::tile::PANEL;
use super::linear::{self, PackedWeight};
use super::operand::{Operand, Precision};
use super::shared_pointer::SharedPointer;

/// Inner dimension that is packed at once: its panels stay in the second-level cache. Even, for pairs of bf16.
const DEPTH: usize = 1024;
/// Rows and columns of a block that is transposed in the first-level cache.
const BLOCK: usize = 32;

/// A row-major factor `[outer, depth]`, or its transpose in memory.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Factor<'a> {
    values: &'a [f32],
    outer: usize,
    depth: usize,
    is_transposed: bool,
}

impl<'a> Factor<'a> {
    /// `values` `[outer, depth]`.
    pub(in crate::ops) fn new(values: &'a [f32], outer: usize, depth: usize) -> Self {
        assert_eq!(values.len(), outer * depth);
        Self { values, outer, depth, is_transposed: false }
    }

    /// `values` `[depth, outer]`.
    pub(in crate::ops) fn transposed(values: &'a [f32], outer: usize, depth: usize) -> Self {
        Self { is_transposed: true, ..Self::new(values, outer, depth) }
    }

    /// The outer dimension.
    pub(in crate::ops) fn outer(&self) -> usize {
        self.outer
    }
}

/// `out = a b^T`: `[m, k]` and `[n, k]` to `[m, n]`. Each output is one sum over k in an order that neither m nor n
/// changes. With [`Precision::Bf16`] factors are rounded; sums are f32.
pub(in crate::ops) fn product(
    ops: &CpuOps,
    precision: Precision,
    a: Factor<'_>,
    b: Factor<'_>,
    out: &mut [f32],
) {
    assert_eq!((a.depth, out.len()), (b.depth, a.outer * b.outer));
    for first in (0..a.depth).step_by(DEPTH) {
        let depth = DEPTH.min(a.depth - first);
        // A zero more changes no sum.
        let padded = depth.next_multiple_of(2);
        let x = operand(ops, precision, a, first, depth, padded);
        let weight = weight(ops, precision, b, first, depth, padded);
        linear::multiply(ops, &x, &weight, out, first > 0);
    }
}

/// `a[.., first .. first + depth]` with zeros up to `padded` columns.
fn operand(
    ops: &CpuOps,
    precision: Precision,
    a: Factor<'_>,
    first: usize,
    depth: usize,
    padded: usize,
) -> Operand {
    let mut operand = Operand::stale(precision, a.outer, padded);
    let target = operand.target();
    ops.parallel(a.outer.div_ceil(BLOCK), |block| {
        let start = block * BLOCK;
        let count = BLOCK.min(a.outer - start);
        let mut rows = Buffer::stale(count * padded);
        if a.is_transposed {
            for k in 0..depth {
                let column = &a.values[(first + k) * a.outer + start..][..count];
                for (row, &value) in column.iter().enumerate() {
                    rows[row * padded + k] = value;
                }
            }
        } else {
            for (row, out) in rows.chunks_exact_mut(padded).enumerate() {
                let row = &a.values[(start + row) * a.depth + first..][..depth];
                out[..depth].copy_from_slice(row);
            }
        }
        for row in rows.chunks_exact_mut(padded) {
            row[depth..].fill(0.0);
        }
        // SAFETY: blocks of rows are disjoint, and within the operand.
        unsafe { target.write(start * padded, &rows) };
    });
    operand
}

/// `b[.., first .. first + depth]` as panels, with zeros up to `padded` columns.
fn weight(
    ops: &CpuOps,
    precision: Precision,
    b: Factor<'_>,
    first: usize,
    depth: usize,
    padded: usize,
) -> PackedWeight {
    let panels = b.outer.div_ceil(PANEL);
    let fill = |panel: usize, out: &mut [f32]| {
        let start = panel * PANEL;
        let count = PANEL.min(b.outer - start);
        if count < PANEL || depth < padded {
            out.fill(0.0);
        }
        if b.is_transposed {
            for (k, out) in out.chunks_exact_mut(PANEL).take(depth).enumerate() {
                out[..count].copy_from_slice(&b.values[(first + k) * b.outer + start..][..count]);
            }
        } else {
            for lane in 0..count {
                let row = &b.values[(start + lane) * b.depth + first..][..depth];
                for (out, &value) in out.chunks_exact_mut(PANEL).zip(row) {
                    out[lane] = value;
                }
            }
        }
    };
    match precision {
        Precision::F32 => {
            let mut packed = Buffer::stale(panels * padded * PANEL);
            let target = SharedPointer::new(&mut packed);
            ops.parallel(panels, |panel| {
                // SAFETY: panels are disjoint, and within the buffer.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(
                        target.at(panel * padded * PANEL),
                        padded * PANEL,
                    )
                };
                fill(panel, out);
            });
            PackedWeight::from_f32_panels(packed, b.outer, padded)
        }
        Precision::Bf16 => {
            let mut packed = Buffer::<u32>::stale(panels * padded / 2 * PANEL);
            let target = SharedPointer::new(&mut packed);
            ops.parallel(panels, |panel| {
                let mut values = Buffer::stale(padded * PANEL);
                fill(panel, &mut values);
                // SAFETY: panels are disjoint, and within the buffer.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(
                        target.at(panel * padded / 2 * PANEL),
                        padded / 2 * PANEL,
                    )
                };
                let mut rounded = [0u16; 2 * PANEL];
                for (out, pair) in out.chunks_exact_mut(PANEL).zip(values.chunks_exact(2 * PANEL)) {
                    bf16::round(pair, &mut rounded);
                    let (even, odd) = rounded.split_at(PANEL);
                    for ((out, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
                        *out = u32::from(even) | u32::from(odd) << 16;
                    }
                }
            });
            PackedWeight::from_bf16_panels(packed, b.outer, padded)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    /// Against a plain loop in f64, for factors as they are and transposed, around the depth that is packed at once.
    #[test]
    fn equals_a_plain_loop_in_every_order_of_memory() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.0 - 1.0;
        let round = |x: f32| half::bf16::from_f32(x).to_f32();
        let mut precisions = vec![Precision::F32];
        if isa::has_bf16() {
            precisions.push(Precision::Bf16);
        }
        let ops = CpuOps::new(2, Precision::F32).expect("two threads");
        for (m, n, k) in [(1, 1, 1), (37, 45, 19), (5, 64, 1025), (98, 33, 2 * DEPTH + 7)] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let transpose = |x: &[f32], rows: usize| -> Vec<f32> {
                (0..k).flat_map(|c| (0..rows).map(move |r| x[r * k + c])).collect()
            };
            let (at, bt) = (transpose(&a, m), transpose(&b, n));
            for &precision in &precisions {
                let exact = |r: usize, c: usize| -> f64 {
                    let factor = |x: f32| if precision == Precision::F32 { x } else { round(x) };
                    (0..k)
                        .map(|i| f64::from(factor(a[r * k + i])) * f64::from(factor(b[c * k + i])))
                        .sum()
                };
                for order in 0..4 {
                    let mut out = vec![f32::NAN; m * n];
                    let left = [Factor::new(&a, m, k), Factor::transposed(&at, m, k)][order / 2];
                    let right = [Factor::new(&b, n, k), Factor::transposed(&bt, n, k)][order % 2];
                    product(&ops, precision, left, right, &mut out);
                    for r in 0..m {
                        for c in 0..n {
                            let (found, exact) = (f64::from(out[r * n + c]), exact(r, c));
                            let bound = 1e-6 * k as f64;
                            assert!(
                                (found - exact).abs() < bound,
                                "{precision:?} {m} {n} {k}: {found} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}
