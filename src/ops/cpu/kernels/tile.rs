//! The multiply-add microkernel that linear layers and attention share.
//!
//! The right operand is packed in panels of [`PANEL`] columns, `[depth][PANEL]`, so that every step
//! of the inner loop reads one contiguous stretch. A tile keeps `R x PANEL` sums in registers:
//! with AVX-512, 12 x 2 accumulators, 2 panel vectors and 1 broadcast fill 27 of 32 registers.
//! Each sum runs over `depth` in ascending order, whatever `R` is: a row's bits do not depend on
//! the other rows of the call.

use crate::isa::Isa;

/// Columns of a panel.
pub(in crate::ops::cpu) const PANEL: usize = 32;
/// Rows of the widest tile.
pub(in crate::ops::cpu) const ROWS: usize = 12;

/// A matrix operand in memory that other threads may write elsewhere in: first element and stride.
#[derive(Clone, Copy)]
pub(in crate::ops::cpu) struct Strided<P> {
    /// First element.
    pub(in crate::ops::cpu) start: P,
    /// Elements from one row to the next.
    pub(in crate::ops::cpu) stride: usize,
}

/// `out[r][0..PANEL] = x[r][0..depth] . panel`, or `+=` where `accumulate` is set.
///
/// # Safety
/// `x` is readable for `rows` rows of `depth`, `panel` for `depth * PANEL` and `out` is writable for
/// `rows` rows of `PANEL` elements; `isa` is one the processor has.
pub(in crate::ops::cpu) unsafe fn multiply(
    isa: Isa,
    rows: usize,
    depth: usize,
    x: Strided<*const f32>,
    panel: *const f32,
    out: Strided<*mut f32>,
    accumulate: bool,
) {
    let step = match isa {
        Isa::Avx512 => 12,
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    };
    let mut row = 0;
    while row < rows {
        let count = step.min(rows - row);
        // SAFETY: the caller's bounds cover rows `row .. row + count`.
        unsafe {
            let x = Strided { start: x.start.add(row * x.stride), ..x };
            let out = Strided { start: out.start.add(row * out.stride), ..out };
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::avx512(count, depth, x, panel, out, accumulate),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2(count, depth, x, panel, out, accumulate),
                _ => portable(count, depth, x, panel, out, accumulate),
            }
        }
        row += count;
    }
}

/// Evaluates an expression in which `R` is the run-time `$count`.
macro_rules! with_rows {
    ($count:expr, $call:expr, [$($rows:literal)*]) => {
        match $count {
            $($rows => { const R: usize = $rows; $call })*
            _ => unreachable!("a tile has at most as many rows as its kernel"),
        }
    };
}
pub(in crate::ops::cpu) use with_rows;

/// # Safety
/// As [`multiply`], with `count` at most 4.
unsafe fn portable(
    count: usize,
    depth: usize,
    x: Strided<*const f32>,
    panel: *const f32,
    out: Strided<*mut f32>,
    accumulate: bool,
) {
    // SAFETY: the caller's bounds.
    unsafe fn kernel<const R: usize>(
        depth: usize,
        x: Strided<*const f32>,
        panel: *const f32,
        out: Strided<*mut f32>,
        accumulate: bool,
    ) {
        let mut sums = [[0f32; PANEL]; R];
        for k in 0..depth {
            // SAFETY: `k < depth`.
            let column = unsafe { &*panel.add(k * PANEL).cast::<[f32; PANEL]>() };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `r < R` rows are readable.
                let factor = unsafe { *x.start.add(r * x.stride + k) };
                for (s, c) in sum.iter_mut().zip(column) {
                    *s += factor * c;
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: `r < R` rows are writable.
            let target = unsafe { &mut *out.start.add(r * out.stride).cast::<[f32; PANEL]>() };
            for (t, s) in target.iter_mut().zip(sum) {
                *t = if accumulate { *t + s } else { *s };
            }
        }
    }
    // SAFETY: the caller's bounds.
    unsafe { with_rows!(count, kernel::<R>(depth, x, panel, out, accumulate), [1 2 3 4]) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{PANEL, Strided};

    /// # Safety
    /// As [`super::multiply`], with `count` at most 12.
    #[target_feature(enable = "avx512f")]
    pub(in crate::ops::cpu) unsafe fn avx512(
        count: usize,
        depth: usize,
        x: Strided<*const f32>,
        panel: *const f32,
        out: Strided<*mut f32>,
        accumulate: bool,
    ) {
        #[target_feature(enable = "avx512f")]
        unsafe fn kernel<const R: usize>(
            depth: usize,
            x: Strided<*const f32>,
            panel: *const f32,
            out: Strided<*mut f32>,
            accumulate: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for k in 0..depth {
                // SAFETY: `k < depth`, and `r < R` rows are readable.
                unsafe {
                    let low = _mm512_loadu_ps(panel.add(k * PANEL));
                    let high = _mm512_loadu_ps(panel.add(k * PANEL + 16));
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let factor = _mm512_set1_ps(*x.start.add(r * x.stride + k));
                        sum[0] = _mm512_fmadd_ps(factor, low, sum[0]);
                        sum[1] = _mm512_fmadd_ps(factor, high, sum[1]);
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                for (half, &value) in sum.iter().enumerate() {
                    // SAFETY: `R` rows of `PANEL` are writable.
                    unsafe {
                        let target = out.start.add(r * out.stride + half * 16);
                        let value = if accumulate {
                            _mm512_add_ps(_mm512_loadu_ps(target), value)
                        } else {
                            value
                        };
                        _mm512_storeu_ps(target, value);
                    }
                }
            }
        }
        // SAFETY: the caller's bounds.
        unsafe {
            with_rows!(count, kernel::<R>(depth, x, panel, out, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12])
        }
    }

    /// # Safety
    /// As [`super::multiply`], with `count` at most 6.
    #[target_feature(enable = "avx2,fma")]
    pub(in crate::ops::cpu) unsafe fn avx2(
        count: usize,
        depth: usize,
        x: Strided<*const f32>,
        panel: *const f32,
        out: Strided<*mut f32>,
        accumulate: bool,
    ) {
        /// Sixteen of the panel's columns: 6 x 2 accumulators, 2 vectors and 1 broadcast fill 15 of
        /// the 16 registers.
        #[target_feature(enable = "avx2,fma")]
        unsafe fn kernel<const R: usize>(
            depth: usize,
            x: Strided<*const f32>,
            panel: *const f32,
            out: Strided<*mut f32>,
            accumulate: bool,
        ) {
            for column in [0, 16] {
                let mut sums = [[_mm256_setzero_ps(); 2]; R];
                for k in 0..depth {
                    // SAFETY: `k < depth`, and `r < R` rows are readable.
                    unsafe {
                        let low = _mm256_loadu_ps(panel.add(k * PANEL + column));
                        let high = _mm256_loadu_ps(panel.add(k * PANEL + column + 8));
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let factor = _mm256_set1_ps(*x.start.add(r * x.stride + k));
                            sum[0] = _mm256_fmadd_ps(factor, low, sum[0]);
                            sum[1] = _mm256_fmadd_ps(factor, high, sum[1]);
                        }
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    for (half, &value) in sum.iter().enumerate() {
                        // SAFETY: `r < R` rows of `PANEL` are writable.
                        unsafe {
                            let target = out.start.add(r * out.stride + column + half * 8);
                            let value = if accumulate {
                                _mm256_add_ps(_mm256_loadu_ps(target), value)
                            } else {
                                value
                            };
                            _mm256_storeu_ps(target, value);
                        }
                    }
                }
            }
        }
        // SAFETY: the caller's bounds.
        unsafe { with_rows!(count, kernel::<R>(depth, x, panel, out, accumulate), [1 2 3 4 5 6]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set this processor has gives the sums of a plain loop, for every number of
    /// rows, and a row's bits are those it has alone.
    #[test]
    fn equals_a_plain_loop_and_ignores_other_rows() {
        let (rows, depth) = (29, 37);
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.0 - 1.0;
        let x: Vec<f32> = (0..rows * depth).map(value).collect();
        let panel: Vec<f32> = (0..depth * PANEL).map(|i| value(i + 5)).collect();
        let run = |isa, first: usize, count: usize| {
            let mut out = vec![0f32; count * PANEL];
            // SAFETY: the buffers have the shapes that the call states.
            unsafe {
                multiply(
                    isa,
                    count,
                    depth,
                    Strided { start: x[first * depth..].as_ptr(), stride: depth },
                    panel.as_ptr(),
                    Strided { start: out.as_mut_ptr(), stride: PANEL },
                    false,
                );
            }
            out
        };
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                sets.push(Isa::Avx512);
            }
        }
        for isa in sets {
            let together = run(isa, 0, rows);
            for r in 0..rows {
                for c in 0..PANEL {
                    let exact: f64 = (0..depth)
                        .map(|k| f64::from(x[r * depth + k]) * f64::from(panel[k * PANEL + c]))
                        .sum();
                    assert!((f64::from(together[r * PANEL + c]) - exact).abs() < 1e-5);
                }
                let alone = run(isa, r, 1);
                assert_eq!(alone, together[r * PANEL..(r + 1) * PANEL], "{isa:?} row {r}");
            }
        }
    }
}
