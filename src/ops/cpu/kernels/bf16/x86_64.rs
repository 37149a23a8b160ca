//! The kernels of a bf16 device, in AVX-512 BF16.
//!
//! The microkernel keeps a tile of 12 x 32 f32 sums in registers: 24 accumulators, 2 panel vectors and 1
//! broadcast of 32 registers. `vdpbf16ps` adds two products to a sum, so operands hold pairs of the inner
//! dimension side by side. From the second-level cache it runs at the rate of the instruction itself; the first
//! tile of a panel therefore fetches the next panel there.

use std::arch::x86_64::*;
use std::ops::Range;

use super::panel::PairPanel;
use crate::ops::cpu::kernels::tile::{PANEL, ROWS, Strided, with_rows};

/// Sums of `R` rows by a panel, `[[__m512; 2]; R]`: pairs in ascending order.
macro_rules! sums {
    ($rows:ident, $prefetch:ident, $depth:ident, $x:ident, $panel:ident) => {{
        let mut sums = [[_mm512_setzero_ps(); 2]; $rows];
        for pair in 0..$depth / 2 {
            // SAFETY: `2 * pair + 1 < depth`, and `r < R` rows are readable. The vector types are 64 bytes of
            // any content. A prefetch may name any address.
            unsafe {
                let load = |half: usize| -> __m512bh {
                    std::mem::transmute(_mm512_loadu_si512(
                        $panel.start.add(pair * PANEL + half * 16).cast(),
                    ))
                };
                let (low, high) = (load(0), load(1));
                if $prefetch {
                    let next = $panel.next.wrapping_add(pair * PANEL);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(16).cast());
                }
                for (r, sum) in sums.iter_mut().enumerate() {
                    let factors =
                        $x.start.add(r * $x.stride + 2 * pair).cast::<i32>().read_unaligned();
                    let factors: __m512bh = std::mem::transmute(_mm512_set1_epi32(factors));
                    sum[0] = _mm512_dpbf16_ps(sum[0], factors, low);
                    sum[1] = _mm512_dpbf16_ps(sum[1], factors, high);
                }
            }
        }
        sums
    }};
}

/// Calls `kernel::<R, PREFETCH>` for tiles of at most ROWS rows of `x` and `out`; the first fetches the next panel.
macro_rules! tiles {
    ($rows:ident, $x:ident, $out:ident, $panel:ident, $kernel:ident($depth:ident, $last:ident)) => {
        for row in (0..$rows).step_by(ROWS) {
            let x = Strided { start: $x.start.add(row * $x.stride), ..$x };
            let out = Strided { start: $out.start.add(row * $out.stride), ..$out };
            let count = ROWS.min($rows - row);
            if row == 0 && !$panel.next.is_null() {
                with_rows!(count, $kernel::<R, true>($depth, x, $panel, out, $last), [1 2 3 4 5 6 7 8 9 10 11 12]);
            } else {
                with_rows!(count, $kernel::<R, false>($depth, x, $panel, out, $last), [1 2 3 4 5 6 7 8 9 10 11 12]);
            }
        }
    };
}

/// `out[r][0..PANEL] = x[r][0..depth] . panel`, or `+=` where `accumulate` is set. Products are exact and summed in
/// f32.
///
/// # Safety
/// `x` is readable for `rows` rows of `depth`, the panel for `depth * PANEL` and `out` is writable for `rows` rows
/// of `PANEL` elements; `depth` is even; the device is a bf16 one.
pub(in crate::ops::cpu) unsafe fn multiply(
    rows: usize,
    depth: usize,
    x: Strided<*const u16>,
    panel: PairPanel,
    out: Strided<*mut f32>,
    accumulate: bool,
) {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn kernel<const R: usize, const PREFETCH: bool>(
        depth: usize,
        x: Strided<*const u16>,
        panel: PairPanel,
        out: Strided<*mut f32>,
        accumulate: bool,
    ) {
        let sums = sums!(R, PREFETCH, depth, x, panel);
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
    unsafe { tiles!(rows, x, out, panel, kernel(depth, accumulate)) }
}

/// `out[r][c] = silu(x[r] . panel[c]) * (x[r] . panel[PANEL / 2 + c])` for the first `columns` of PANEL / 2 columns,
/// rounded (SwiGLU, Shazeer 2020).
///
/// # Safety
/// As [`multiply`]; `out` is writable for `rows` rows of `columns` elements.
pub(in crate::ops::cpu) unsafe fn multiply_gated(
    rows: usize,
    depth: usize,
    x: Strided<*const u16>,
    panel: PairPanel,
    out: Strided<*mut u16>,
    columns: usize,
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn kernel<const R: usize, const PREFETCH: bool>(
        depth: usize,
        x: Strided<*const u16>,
        panel: PairPanel,
        out: Strided<*mut u16>,
        mask: __mmask16,
    ) {
        let sums = sums!(R, PREFETCH, depth, x, panel);
        let (one, limit) = (_mm512_set1_ps(1.0), _mm512_set1_ps(88.0));
        for (r, &[gate, up]) in sums.iter().enumerate() {
            // The order of operands keeps NaN.
            let negative = _mm512_min_ps(limit, _mm512_sub_ps(_mm512_setzero_ps(), gate));
            let silu = _mm512_div_ps(gate, _mm512_add_ps(one, exp(negative)));
            let rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(silu, up));
            // SAFETY: the mask covers the columns that are writable; both types are 32 bytes of any content.
            unsafe {
                let rounded: __m256i = std::mem::transmute(rounded);
                _mm256_mask_storeu_epi16(out.start.add(r * out.stride).cast(), mask, rounded);
            }
        }
    }
    let mask = first(columns);
    // SAFETY: the caller's bounds.
    unsafe { tiles!(rows, x, out, panel, kernel(depth, mask)) }
}

/// A mask of the first `lanes` of 16 lanes.
fn first(lanes: usize) -> __mmask16 {
    if lanes >= 16 { !0 } else { (1 << lanes) - 1 }
}

/// `e^x` for `x <= 88`, within 2 units in the last place; 0 below -104. Range reduction by multiples of ln 2 and a
/// degree-6 polynomial (Cephes `expf`, Moshier 1992).
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    // The order of operands keeps NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-104.0), x);
    let n = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(p, n)
}

/// One step of an online softmax (Milakov and Gimelshein 2018) over a block of at most 64 scores, of which those in
/// `visible` count, at least one. Writes their weights relative to the running maximum, zeros for the others, updates
/// that maximum and the running sum of weights, and returns the factor by which what was summed before shrinks.
pub(in crate::ops::cpu) fn softmax_block(
    scores: &[f32],
    visible: Range<usize>,
    maximum: &mut f32,
    sum: &mut f32,
    weights: &mut [u16],
) -> f32 {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn vectors<const N: usize>(
        scores: &[f32],
        visible: Range<usize>,
        maximum: &mut f32,
        sum: &mut f32,
        weights: &mut [u16],
    ) -> f32 {
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut values = [nothing; N];
        let mut largest = _mm512_set1_ps(*maximum);
        for (i, value) in values.iter_mut().enumerate() {
            // SAFETY: `scores` holds N vectors.
            let loaded = unsafe { _mm512_loadu_ps(scores.as_ptr().add(i * 16)) };
            let before = |end: usize| first(end.saturating_sub(i * 16));
            let mask = before(visible.end) & !before(visible.start);
            *value = _mm512_mask_mov_ps(nothing, mask, loaded);
            largest = _mm512_max_ps(largest, *value);
        }
        let updated = _mm512_reduce_max_ps(largest);
        let mut total = _mm512_setzero_ps();
        for (i, &value) in values.iter().enumerate() {
            let weight = exp(_mm512_sub_ps(value, _mm512_set1_ps(updated)));
            total = _mm512_add_ps(total, weight);
            // SAFETY: `weights` holds N vectors; both types are 32 bytes of any content.
            unsafe {
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(weight));
                _mm256_storeu_si256(weights.as_mut_ptr().add(i * 16).cast(), rounded);
            }
        }
        let shrink = if *maximum == updated {
            1.0
        } else {
            _mm512_cvtss_f32(exp(_mm512_set1_ps(*maximum - updated)))
        };
        *sum = *sum * shrink + _mm512_reduce_add_ps(total);
        *maximum = updated;
        shrink
    }
    assert_eq!(scores.len(), weights.len());
    // SAFETY: the lengths; `CpuOps::new` refuses the precision where the instructions are missing.
    unsafe {
        match scores.len() {
            16 => vectors::<1>(scores, visible, maximum, sum, weights),
            32 => vectors::<2>(scores, visible, maximum, sum, weights),
            48 => vectors::<3>(scores, visible, maximum, sum, weights),
            64 => vectors::<4>(scores, visible, maximum, sum, weights),
            _ => unreachable!("attention takes whole vectors of a block"),
        }
    }
}

/// Rounds to brain floats, to nearest even; subnormal numbers become zeros, as the dot product takes them.
pub(in crate::ops::cpu) fn round(values: &[f32], out: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn vectors(values: &[f32], out: &mut [u16]) {
        for (values, out) in values.chunks(16).zip(out.chunks_mut(16)) {
            let mask = first(values.len());
            // SAFETY: the mask covers `values`, and `out` is as long.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, values.as_ptr()));
                let rounded: __m256i = std::mem::transmute(rounded);
                _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, rounded);
            }
        }
    }
    assert_eq!(values.len(), out.len());
    // SAFETY: `CpuOps::new` refuses the precision where the instructions are missing.
    unsafe { vectors(values, out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn present() -> bool {
        let present = isa::has_bf16();
        if !present {
            eprintln!("skipped: this processor has no AVX-512 BF16");
        }
        present
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        if !present() {
            return;
        }
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE];
        let random = (0..1_000_003u32).map(|i| f32::from_bits(i.wrapping_mul(4_294_967_291)));
        let values: Vec<f32> = special.into_iter().chain(random).collect();
        let mut rounded = vec![0u16; values.len()];
        round(&values, &mut rounded);
        for (value, rounded) in values.into_iter().zip(rounded) {
            let expected = if value.is_subnormal() { 0.0f32.copysign(value) } else { value };
            assert_eq!(rounded, half::bf16::from_f32(expected).to_bits(), "{value}");
        }
    }

    /// Weights add up to one, against the formula in f64, whatever the split into blocks.
    #[test]
    fn softmax_is_the_formula() {
        if !present() {
            return;
        }
        let scores: Vec<f32> = (0..128).map(|i| ((i * 7919) % 1009) as f32 / 50.0 - 10.0).collect();
        for visible in [1usize, 5, 16, 31, 64, 65, 100, 128] {
            let (mut maximum, mut sum) = (f32::NEG_INFINITY, 0.0);
            let mut weights = vec![0u16; 128];
            let mut shrinks = Vec::new();
            for start in (0..visible).step_by(64) {
                let seen = visible - start;
                let width = seen.next_multiple_of(16).min(64);
                let (scores, weights) =
                    (&scores[start..start + width], &mut weights[start..start + width]);
                let seen = seen.min(width);
                shrinks.push(softmax_block(scores, 0..seen, &mut maximum, &mut sum, weights));
            }
            let largest = scores[..visible].iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            assert_eq!(maximum, largest);
            let exact: Vec<f64> =
                scores[..visible].iter().map(|&s| f64::from(s - largest).exp()).collect();
            let total: f64 = exact.iter().sum();
            assert!((f64::from(sum) - total).abs() < 1e-6 * total, "{visible}: {sum} {total}");
            for (i, exact) in exact.iter().enumerate() {
                let later: f32 = shrinks[i / 64 + 1..].iter().product();
                let weight = half::bf16::from_bits(weights[i]).to_f32() * later;
                assert!((f64::from(weight) - exact).abs() <= 0.004 * exact, "{visible} {i}");
            }
            for weight in &weights[visible..visible.next_multiple_of(16)] {
                assert_eq!(*weight, 0);
            }
        }
    }
}
