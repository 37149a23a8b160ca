//! Squared distances of all pairs, enclosed by intervals out of blocked Gram matrices.
//!
//! The identity `|x - y|^2 = |x|^2 + |y|^2 - 2 x.y` makes a matrix product of all distances, but it
//! cancels where points are close. Hence each distance is an interval, and a question that the
//! interval leaves open is one for the plain sum of squared differences, [`squared_distance`].
//!
//! # The interval
//!
//! Let `x`, `y` be two points of dimension `d` less a common origin, `T = (|x|^2 + |y|^2) / 2` and
//! `u = 2^-53`. By Cauchy-Schwarz `|x.y| <= T`, and `|x - y|^2 / 2 <= 2 T`. The estimate `T - x.y`
//! of half the squared distance and half the plain sum then differ, to first order, by at most
//!
//! | rounding of | units of `u T` |
//! |---|---|
//! | the two subtractions of the origin | 4 |
//! | the two half norms and the product, added in any order | 2 d |
//! | the sum of the half norms, and the estimate | 3 |
//! | the plain sum | 2 d + 4 |
//! | the ends of the interval | 2 |
//!
//! that is `(4 d + 13) u T`. The half-width taken is `(4 d + 32) u T`, which leaves room for the
//! higher orders, plus the smallest normal number for underflow. Overflow makes an interval
//! unbounded or NaN, which leaves every question open. With the mean as the origin `T` is small,
//! and few pairs are open as long as points lie within some `1e5` radii of their mean; beyond that
//! a search gets slow, but stays exact.

use linfa::Float;
use ndarray::{Array1, Array2, ArrayBase, ArrayView1, Axis, Data, Ix2, s};

/// Rows of a Gram block: the block (512 KiB) and its two panels stay in a second-level cache.
const BLOCK: usize = 256;

/// Points less an origin, with half their squared norms.
pub(super) struct Centred {
    rows: Array2<f64>,
    half_norms: Vec<f64>,
}

impl Centred {
    pub(super) fn new(points: Array2<f64>, origin: &Array1<f64>) -> Self {
        let rows = points - origin;
        let half_norms = rows.outer_iter().map(|row| 0.5 * row.dot(&row)).collect();
        Self { rows, half_norms }
    }

    /// Calls `visit(i, j, low, high)` for each row `i` here and each row `j >= first(i)` of
    /// `other`, where `low..=high` holds their squared distance as the plain sum gives it. `first`
    /// must not decrease. The two must share their origin and dimension.
    pub(super) fn screen(
        &self,
        other: &Self,
        first: impl Fn(usize) -> usize,
        mut visit: impl FnMut(usize, usize, f64, f64),
    ) {
        let width = 2.0 * (self.rows.ncols() as f64 + 8.0) * f64::EPSILON;
        let (n, m) = (self.rows.nrows(), other.rows.nrows());
        for top in (0..n).step_by(BLOCK) {
            let bottom = n.min(top + BLOCK);
            for left in (first(top)..m).step_by(BLOCK) {
                let right = m.min(left + BLOCK);
                let gram = self
                    .rows
                    .slice(s![top..bottom, ..])
                    .dot(&other.rows.slice(s![left..right, ..]).t());
                for (i, products) in (top..bottom).zip(gram.outer_iter()) {
                    let skipped = first(i).saturating_sub(left);
                    for (j, product) in (left..right).zip(products).skip(skipped) {
                        let scale = self.half_norms[i] + other.half_norms[j];
                        let estimate = scale - product;
                        let half_width = width * scale + f64::MIN_POSITIVE;
                        let (low, high) = (estimate - half_width, estimate + half_width);
                        visit(i, j, 2.0 * low, 2.0 * high);
                    }
                }
            }
        }
    }
}

/// The mean row, or zeros for an empty set.
pub(super) fn mean(points: &ArrayBase<impl Data<Elem = f64>, Ix2>) -> Array1<f64> {
    let zeros = || Array1::zeros(points.ncols());
    points.mean_axis(Axis(0)).unwrap_or_else(zeros)
}

pub(super) fn to_f64<F: Float>(value: F) -> f64 {
    value.to_f64().unwrap_or(f64::NAN)
}

/// The plain sum, in the order of the coordinates: reordering it would decide ties differently.
pub(super) fn squared_distance<F: Float>(x: ArrayView1<'_, F>, y: ArrayView1<'_, F>) -> f64 {
    x.iter().zip(y).fold(0.0, |sum, (&x, &y)| {
        let difference = to_f64(x) - to_f64(y);
        sum + difference * difference
    })
}
