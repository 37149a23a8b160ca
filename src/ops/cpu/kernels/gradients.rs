//! Gradients of norm, activation and softmax pieces, vectorised for each instruction set.

use std::ops::Range;

use super::elementwise::{
    GELU_CUBE, GELU_FACTOR, LANES, add_lanes, exp, gelu_exact, gelu_tanh, normal_distribution,
};
use crate::isa::vectorised;
use crate::layer::Gelu;

vectorised! {
    /// Gradient of [`rms_norm`](super::elementwise::rms_norm): with `n = 1 / sqrt(mean(x^2) + epsilon)`,
    /// `dx = n * (dy * scale - x * n^2 * mean(dy * scale * x))`, and `dscale += sum(dy * x * n)`.
    pub(in crate::ops) fn rms_norm_gradient(
        x: &[f32],
        dy: &[f32],
        scale: &[f32],
        epsilon: f32,
        dx: &mut [f32],
        dscale: &mut [f32]
    ) {
        let columns = scale.len();
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            let (mut squares, mut products) = ([0f32; LANES], [0f32; LANES]);
            for start in (0..columns).step_by(LANES) {
                let end = (start + LANES).min(columns);
                for i in start..end {
                    squares[i - start] += x[i] * x[i];
                    products[i - start] += dy[i] * scale[i] * x[i];
                }
            }
            let n = 1.0 / (add_lanes(squares) / columns as f32 + epsilon).sqrt();
            let factor = n * n * (add_lanes(products) / columns as f32);
            for i in 0..columns {
                dx[i] = n * (dy[i] * scale[i] - x[i] * factor);
                dscale[i] += dy[i] * x[i] * n;
            }
        }
    }
}

vectorised! {
    /// Gradient of [`layer_norm`](super::elementwise::layer_norm): with `n = 1 / sqrt(var(x) + epsilon)`,
    /// `h = n * (x - mean(x))` and `g = dy * scale`, `dx = n * (g - mean(g) - h * mean(g * h))`; and of `[scale, bias]`,
    /// `dscale += sum(dy * h)` and `dbias += sum(dy)`.
    pub(in crate::ops) fn layer_norm_gradient(
        x: &[f32],
        dy: &[f32],
        scale: &[f32],
        epsilon: f32,
        dx: &mut [f32],
        weights: [&mut [f32]; 2]
    ) {
        let columns = scale.len();
        let [dscale, dbias] = weights;
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            let (mut values, mut gradients) = ([0f32; LANES], [0f32; LANES]);
            for start in (0..columns).step_by(LANES) {
                let end = (start + LANES).min(columns);
                for i in start..end {
                    values[i - start] += x[i];
                    gradients[i - start] += dy[i] * scale[i];
                }
            }
            let mean = add_lanes(values) / columns as f32;
            let mean_gradient = add_lanes(gradients) / columns as f32;
            let (mut squares, mut products) = ([0f32; LANES], [0f32; LANES]);
            for start in (0..columns).step_by(LANES) {
                let end = (start + LANES).min(columns);
                for i in start..end {
                    let centred = x[i] - mean;
                    squares[i - start] += centred * centred;
                    products[i - start] += dy[i] * scale[i] * centred;
                }
            }
            let n = 1.0 / (add_lanes(squares) / columns as f32 + epsilon).sqrt();
            let factor = n * n * (add_lanes(products) / columns as f32);
            for i in 0..columns {
                let centred = x[i] - mean;
                dx[i] = n * (dy[i] * scale[i] - mean_gradient - centred * factor);
                dscale[i] += dy[i] * centred * n;
                dbias[i] += dy[i];
            }
        }
    }
}

vectorised! {
    /// Gradient of [`swiglu`](super::elementwise::swiglu): with `s = sigmoid(gate)`, `dgate = dy * up * s * (1 + gate * (1 - s))` and
    /// `dup = dy * gate * s`.
    pub(in crate::ops) fn swiglu_gradient(gate_up: &[f32], dy: &[f32], columns: usize, out: &mut [f32]) {
        let rows = gate_up.chunks_exact(2 * columns).zip(dy.chunks_exact(columns));
        for ((row, dy), out) in rows.zip(out.chunks_exact_mut(2 * columns)) {
            let (gate, up) = row.split_at(columns);
            let (gate_gradient, up_gradient) = out.split_at_mut(columns);
            for i in 0..columns {
                let sigmoid = 1.0 / (1.0 + exp((-gate[i]).min(88.0)));
                gate_gradient[i] = dy[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
                up_gradient[i] = dy[i] * gate[i] * sigmoid;
            }
        }
    }
}

/// Value and slope of GELU by the normal distribution function: `Phi(x) + x phi(x)`.
#[inline(always)]
fn gelu_exact_slope(x: f32) -> (f32, f32) {
    // 1 / sqrt(2 pi)
    const DENSITY: f32 = 0.398_942_3;
    let (below, bell) = normal_distribution(x);
    (gelu_exact(x), below + x * (DENSITY * bell))
}

/// Value and slope of GELU by tanh: with `s = sigmoid(2 y)`, `s + 2 x s (1 - s) y'`.
#[inline(always)]
fn gelu_tanh_slope(x: f32) -> (f32, f32) {
    let y = GELU_FACTOR * (x + GELU_CUBE * (x * x * x));
    let sigmoid = 1.0 / (1.0 + exp((-2.0 * y).min(88.0)));
    // `1 - s`, which cancels where s is near 1.
    let rest = 1.0 / (1.0 + exp((2.0 * y).min(88.0)));
    let inner = GELU_FACTOR * (1.0 + 3.0 * GELU_CUBE * (x * x));
    (gelu_tanh(x), sigmoid + 2.0 * x * sigmoid * rest * inner)
}

#[inline(always)]
fn gelu_slope(x: f32, kind: Gelu) -> (f32, f32) {
    match kind {
        Gelu::Exact => gelu_exact_slope(x),
        Gelu::Tanh => gelu_tanh_slope(x),
    }
}

vectorised! {
    /// Gradient of [`gelu`](super::elementwise::gelu): `dx = dy * gelu'(x)`.
    pub(in crate::ops) fn gelu_gradient(x: &[f32], dy: &[f32], kind: Gelu, dx: &mut [f32]) {
        for ((dx, &x), dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = dy * gelu_slope(x, kind).1;
        }
    }
}

vectorised! {
    /// Gradient of [`geglu`](super::elementwise::geglu): `dgate = dy * up * gelu'(gate)` and `dup = dy * gelu(gate)`.
    pub(in crate::ops) fn geglu_gradient(
        gate_up: &[f32],
        dy: &[f32],
        columns: usize,
        kind: Gelu,
        out: &mut [f32]
    ) {
        let rows = gate_up.chunks_exact(2 * columns).zip(dy.chunks_exact(columns));
        for ((row, dy), out) in rows.zip(out.chunks_exact_mut(2 * columns)) {
            let (gate, up) = row.split_at(columns);
            let (gate_gradient, up_gradient) = out.split_at_mut(columns);
            for i in 0..columns {
                let (value, slope) = gelu_slope(gate[i], kind);
                gate_gradient[i] = dy[i] * up[i] * slope;
                up_gradient[i] = dy[i] * value;
            }
        }
    }
}

vectorised! {
    /// Of one query: its scores become probabilities `P`, and their gradient `dP` becomes that of the scores,
    /// `P * (dP - dot)`. Keys that are not `visible` get 0 in both.
    pub(in crate::ops) fn softmax_gradient(scores: &mut [f32], gradient: &mut [f32], visible: Range<usize>, dot: f32) {
        for values in [&mut *scores, &mut *gradient] {
            values[..visible.start].fill(0.0);
            values[visible.end..].fill(0.0);
        }
        let (scores, gradient) = (&mut scores[visible.clone()], &mut gradient[visible]);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = scores.chunks_exact(LANES);
        let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        for chunk in chunks {
            for (lane, &score) in lanes.iter_mut().zip(chunk) {
                *lane = if score > *lane { score } else { *lane };
            }
        }
        let maximum = lanes.iter().fold(rest, |a, &b| if b > a { b } else { a });
        let mut sums = [0f32; LANES];
        for chunk in scores.chunks_mut(LANES) {
            for (lane, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - maximum);
                *lane += *score;
            }
        }
        let inverse = 1.0 / add_lanes(sums);
        for (score, gradient) in scores.iter_mut().zip(gradient) {
            *score *= inverse;
            *gradient = *score * (*gradient - dot);
        }
    }
}

vectorised! {
    /// Gradient of [`soft_cap`](super::elementwise::soft_cap), in place, of what it gave: `1 - tanh^2` times.
    pub(in crate::ops) fn soft_cap_gradient(capped: &[f32], cap: f32, gradient: &mut [f32]) {
        for (gradient, capped) in gradient.iter_mut().zip(capped) {
            let tanh = capped / cap;
            *gradient *= 1.0 - tanh * tanh;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{gelu_exact_slope, gelu_tanh_slope};

    #[test]
    fn slopes_of_gelu_are_the_formulas() {
        let mut worst = [0f64; 2];
        for i in -100_000..=100_000 {
            let x = i as f32 / 10_000.0;
            let wide = f64::from(x);
            let below = 0.5 * libm::erfc(-wide / std::f64::consts::SQRT_2);
            let density = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (factor * (wide + 0.044715 * wide.powi(3))).tanh();
            let inner = factor * (1.0 + 3.0 * 0.044715 * wide * wide);
            let by_tanh = 0.5 * (1.0 + tanh) + 0.5 * wide * (1.0 - tanh * tanh) * inner;
            let found =
                [(gelu_exact_slope(x), below + wide * density), (gelu_tanh_slope(x), by_tanh)];
            for (worst, ((_, slope), expected)) in worst.iter_mut().zip(found) {
                *worst = worst.max((f64::from(slope) - expected).abs());
            }
        }
        assert!(worst.iter().all(|worst| *worst < 4e-7), "{worst:?}");
        for slope in [gelu_exact_slope, gelu_tanh_slope] {
            assert_eq!(slope(0.0), (0.0, slope(0.0).1));
            assert_eq!(slope(200.0), (200.0, 1.0));
            assert!(slope(-200.0).1.abs() < 1e-30);
            assert!(slope(f32::NAN).1.is_nan());
        }
    }
}
