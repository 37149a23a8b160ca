//! Norm, activation, rotary embedding and softmax pieces, vectorised for each instruction set.

use std::ops::Range;

use crate::isa::vectorised;
use crate::layer::Gelu;

/// Lanes that sums are kept in, so that a sum vectorises and still has one fixed order.
pub(in crate::ops::cpu) const LANES: usize = 16;

/// Adds the lanes as a balanced tree.
#[inline(always)]
pub(in crate::ops::cpu) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x` for `x <= 88`, within 2 units in the last place; 0 below -87.3. Range reduction by
/// multiples of ln 2 and a degree-6 polynomial (Cephes `expf`, Moshier 1992).
#[inline(always)]
pub(in crate::ops::cpu) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first exact in few bits, so that the reduced argument is accurate.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    let scaled = value * f32::from_bits(exponent);
    if x < -87.3 { 0.0 } else { scaled }
}

vectorised! {
    /// `out = x / sqrt(mean(x^2) + epsilon) * scale`, row by row.
    pub(in crate::ops) fn rms_norm(x: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) {
        let columns = scale.len();
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
            let mut lanes = [0f32; LANES];
            let chunks = x.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += value * value;
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane += value * value;
            }
            let inverse = 1.0 / (add_lanes(lanes) / columns as f32 + epsilon).sqrt();
            for ((out, value), scale) in out.iter_mut().zip(x).zip(scale) {
                *out = value * inverse * scale;
            }
        }
    }
}

vectorised! {
    /// `out = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, row by row. The variance is of the differences from
    /// the mean, not `mean(x^2) - mean(x)^2`, which cancels.
    pub(in crate::ops) fn layer_norm(x: &[f32], scale: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
        let columns = scale.len();
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
            let mut lanes = [0f32; LANES];
            for chunk in x.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += value;
                }
            }
            let mean = add_lanes(lanes) / columns as f32;
            let mut lanes = [0f32; LANES];
            for chunk in x.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += (value - mean) * (value - mean);
                }
            }
            let inverse = 1.0 / (add_lanes(lanes) / columns as f32 + epsilon).sqrt();
            for (((out, value), scale), bias) in out.iter_mut().zip(x).zip(scale).zip(bias) {
                *out = (value - mean) * inverse * scale + bias;
            }
        }
    }
}

vectorised! {
    /// `out = silu(gate) * up` of rows `[gate | up]`, each half `columns` wide.
    pub(in crate::ops) fn swiglu(gate_up: &[f32], columns: usize, out: &mut [f32]) {
        for (row, out) in gate_up.chunks_exact(2 * columns).zip(out.chunks_exact_mut(columns)) {
            let (gate, up) = row.split_at(columns);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp((-gate).min(88.0))) * up;
            }
        }
    }
}

/// `Phi(x)` and `e^(-x^2 / 2)`. The tail is `e^(-x^2 / 2) p(1 / (1 + 0.28 |x|))` (the form of Abramowitz and Stegun 1964,
/// 7.1.26), the polynomial a fit of our own whose error in `x Phi(x)` is below 6e-9.
#[inline(always)]
pub(in crate::ops::cpu) fn normal_distribution(x: f32) -> (f32, f32) {
    let t = 1.0 / (1.0 + 0.28 * x.abs());
    let mut p = -0.107_034_68;
    for coefficient in [0.394_934_7, -0.245_292_35, 0.275_669_04, 0.064_763_61, 0.116_959_676] {
        p = p * t + coefficient;
    }
    let bell = exp(-0.5 * (x * x));
    let tail = p * t * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

/// GELU by the normal distribution function, within 2e-7 of it for a value of size 1.
#[inline(always)]
pub(in crate::ops::cpu) fn gelu_exact(x: f32) -> f32 {
    x * normal_distribution(x).0
}

/// `sqrt(2 / pi)`, of GELU by tanh.
pub(in crate::ops::cpu) const GELU_FACTOR: f32 = 0.797_884_6;
/// Of the cube in GELU by tanh.
pub(in crate::ops::cpu) const GELU_CUBE: f32 = 0.044_715;

/// GELU by tanh: `x / 2 (1 + tanh(y))` is `x / (1 + e^(-2 y))`.
#[inline(always)]
pub(in crate::ops::cpu) fn gelu_tanh(x: f32) -> f32 {
    let y = GELU_FACTOR * (x + GELU_CUBE * (x * x * x));
    x / (1.0 + exp((-2.0 * y).min(88.0)))
}

vectorised! {
    /// [`Gelu`] in place.
    pub(in crate::ops) fn gelu(values: &mut [f32], kind: Gelu) {
        match kind {
            Gelu::Exact => {
                for value in values {
                    *value = gelu_exact(*value);
                }
            }
            Gelu::Tanh => {
                for value in values {
                    *value = gelu_tanh(*value);
                }
            }
        }
    }
}

vectorised! {
    /// `out = gelu(gate) * up` of rows `[gate | up]`, each half `columns` wide.
    pub(in crate::ops) fn geglu(gate_up: &[f32], columns: usize, kind: Gelu, out: &mut [f32]) {
        for (row, out) in gate_up.chunks_exact(2 * columns).zip(out.chunks_exact_mut(columns)) {
            let (gate, up) = row.split_at(columns);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                let activated = match kind {
                    Gelu::Exact => gelu_exact(gate),
                    Gelu::Tanh => gelu_tanh(gate),
                };
                *out = activated * up;
            }
        }
    }
}

vectorised! {
    /// `values = cap * tanh(values / cap)`.
    pub(in crate::ops) fn soft_cap(values: &mut [f32], cap: f32) {
        for value in values {
            *value = cap * tanh(*value / cap);
        }
    }
}

/// Within 2 units in the last place: an odd polynomial where `1 - 2 / (e^2x + 1)` would cancel (Cephes `tanhf`, Moshier
/// 1992).
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * square + 2.063_909e-2;
    p = p * square - 5.373_971_5e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let near = p * square * x + x;
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp((2.0 * size).min(88.0)) + 1.0);
    // NaN stays so.
    if size > 0.625 { far.copysign(x) } else { near }
}

vectorised! {
    /// Rotates the first `rotated_heads` heads of one row in place: of the first channels of a head, twice as many as there
    /// are cosines, the two halves are the two coordinates of each rotation. A negated sine rotates back.
    pub(in crate::ops) fn rotate(
        row: &mut [f32],
        rotated_heads: usize,
        head_dim: usize,
        cosine: &[f32],
        sine: &[f32]
    ) {
        let half = cosine.len();
        for head in row.chunks_exact_mut(head_dim).take(rotated_heads) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cosine).zip(sine) {
                let (x, y) = (*a, *b);
                *a = x * c - y * s;
                *b = y * c + x * s;
            }
        }
    }
}

vectorised! {
    /// One step of an online softmax (Milakov and Gimelshein 2018) over a block of scores of which
    /// those in `visible` count, at least one. Turns the scores into weights relative to the running maximum,
    /// updates that maximum and the running sum of weights, and returns the factor by which what
    /// was summed before shrinks.
    pub(in crate::ops::cpu) fn softmax_block(
        scores: &mut [f32],
        visible: Range<usize>,
        maximum: &mut f32,
        sum: &mut f32
    ) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..].fill(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(LANES) {
            for (lane, &score) in lanes.iter_mut().zip(chunk) {
                *lane = if score > *lane { score } else { *lane };
            }
        }
        let block = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let updated = if block > *maximum { block } else { *maximum };
        let shrink = exp(*maximum - updated);
        let mut sums = [0f32; LANES];
        for chunk in scores.chunks_exact_mut(LANES) {
            for (lane, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - updated);
                *lane += *score;
            }
        }
        *sum = *sum * shrink + add_lanes(sums);
        *maximum = updated;
        shrink
    }
}

vectorised! {
    /// `values += others`.
    pub(in crate::ops) fn add(values: &mut [f32], others: &[f32]) {
        for (value, other) in values.iter_mut().zip(others) {
            *value += other;
        }
    }
}

vectorised! {
    /// `values *= factor`.
    pub(in crate::ops::cpu) fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{exp, gelu_exact, gelu_tanh, tanh};

    #[test]
    fn gelu_is_the_formula() {
        let mut worst = [0f64; 2];
        for i in -100_000..=100_000 {
            let x = i as f32 / 10_000.0;
            let wide = f64::from(x);
            let exact = 0.5 * wide * libm::erfc(-wide / std::f64::consts::SQRT_2);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let by_tanh = 0.5 * wide * (1.0 + inner.tanh());
            let scale = wide.abs().max(1.0);
            for (worst, (found, expected)) in
                worst.iter_mut().zip([(gelu_exact(x), exact), (gelu_tanh(x), by_tanh)])
            {
                *worst = worst.max((f64::from(found) - expected).abs() / scale);
            }
        }
        assert!(worst.iter().all(|worst| *worst < 2e-7), "{worst:?}");
        for gelu in [gelu_exact, gelu_tanh] {
            assert_eq!(gelu(0.0), 0.0);
            assert_eq!(gelu(200.0), 200.0);
            assert!(gelu(-200.0).abs() < 1e-30);
            assert!(gelu(f32::NAN).is_nan());
        }
    }

    #[test]
    fn tanh_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -120_000..=120_000 {
            let x = i as f32 / 10_000.0;
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs();
            worst = worst.max(if exact == 0.0 { error } else { error / exact.abs() });
        }
        assert!(worst <= 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -873_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact;
            worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
        }
        assert!(worst <= 2.0, "{worst} units");
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
