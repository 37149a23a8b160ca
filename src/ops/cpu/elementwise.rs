//! Norm, activation, rotary embedding and softmax pieces, vectorised for each instruction set.

use super::isa::vectorised;

/// Lanes that sums are kept in, so that a sum vectorises and still has one fixed order.
const LANES: usize = 16;

/// Adds the lanes as a balanced tree.
#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
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
pub(super) fn exp(x: f32) -> f32 {
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

vectorised! {
    /// Gradient of [`rms_norm`]: with `n = 1 / sqrt(mean(x^2) + epsilon)`,
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
    /// Gradient of [`swiglu`]: with `s = sigmoid(gate)`, `dgate = dy * up * s * (1 + gate * (1 - s))` and
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

vectorised! {
    /// Rotates the first `rotated_heads` heads of one row in place: the two halves of a head are the
    /// two coordinates of each rotation. `cosine` and `sine` are `[head_dim / 2]`; a negated sine
    /// rotates back.
    pub(in crate::ops) fn rotate(row: &mut [f32], rotated_heads: usize, cosine: &[f32], sine: &[f32]) {
        let half = cosine.len();
        for head in row.chunks_exact_mut(2 * half).take(rotated_heads) {
            let (first, second) = head.split_at_mut(half);
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
    /// the first `visible` count, at least one. Turns the scores into weights relative to the running maximum,
    /// updates that maximum and the running sum of weights, and returns the factor by which what
    /// was summed before shrinks.
    pub(super) fn softmax_block(scores: &mut [f32], visible: usize, maximum: &mut f32, sum: &mut f32) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        scores[visible..].fill(f32::NEG_INFINITY);
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
    /// Of one query: its scores become probabilities `P`, and their gradient `dP` becomes that of the scores,
    /// `P * (dP - dot)`. Keys from `visible` on are not seen, and get 0 in both.
    pub(in crate::ops) fn softmax_gradient(scores: &mut [f32], gradient: &mut [f32], visible: usize, dot: f32) {
        scores[visible..].fill(0.0);
        gradient[visible..].fill(0.0);
        let (scores, gradient) = (&mut scores[..visible], &mut gradient[..visible]);
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
    /// `values *= factor`.
    pub(super) fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

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
