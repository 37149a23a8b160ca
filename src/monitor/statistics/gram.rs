//! Distances of all pairs of two sets, out of blocked Gram matrices.
//!
//! The identity `|x - y|^2 = |x|^2 + |y|^2 - 2 x.y` makes a matrix product of all distances, but it
//! cancels where points are close. Hence each distance is an interval, and a question that the
//! interval leaves open is one for the plain sum of squared differences, [`squared_distance`].
//!
//! One walk over the blocks answers all questions about their pairs: which are neighbours, which
//! are nearest, how far apart they are on average. The block lies in the second-level cache then,
//! and a run of one of its rows is dismissed or summed by vector instructions, [`RowRun::survey`].
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
//! higher orders, plus the smallest normal number for underflow. With the mean as the origin `T` is
//! small, and few pairs are open as long as points lie within some `1e5` radii of their mean; beyond
//! that a search gets slow, but stays exact. Where squares overflow every question is open.

use gemm::Parallelism;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::isa::vectorised;
use crate::ops::cpu::Isa;

/// Rows and columns of a block: the block (512 KiB) and its two panels stay in a second-level cache.
/// A multiple of [`WORD`].
pub(in crate::monitor) const BLOCK: usize = 256;

/// Pairs whose questions are answered by the bits of one word.
pub(in crate::monitor) const WORD: usize = u64::BITS as usize;

/// Half-lengths of vectors: sums and minima are kept in so many lanes, in one fixed order.
const LANES: usize = 16;

/// Half squared distance, in units of `T`, below which a distance is not taken from the estimate.
/// There the interval is `1e-3 sqrt(T)` of relative width `5e-11` at `d = 128`, and an average over
/// pairs that has a thousandth of the points' spread is still right to ten digits.
const CLOSE: f64 = 1e-3;

/// Points less an origin, with half their squared norms.
#[derive(Debug)]
pub(in crate::monitor) struct Centred {
    rows: Array2<f64>,
    half_norms: Vec<f64>,
    largest: f64,
}

impl Centred {
    pub(in crate::monitor) fn new(points: ArrayView2<'_, f64>, origin: &Array1<f64>) -> Self {
        // Rows must lie one after the other for the products.
        let mut rows = points.as_standard_layout().into_owned();
        rows -= origin;
        let half_norms: Vec<f64> = rows.outer_iter().map(|row| 0.5 * row.dot(&row)).collect();
        let largest = half_norms.iter().fold(0.0, |largest, &norm| f64::max(largest, norm));
        // A NaN is no maximum: it must not pass for a small one.
        let largest = if half_norms.iter().any(|norm| norm.is_nan()) { f64::NAN } else { largest };
        Self { rows, half_norms, largest }
    }

    pub(in crate::monitor) fn rows(&self) -> ArrayView2<'_, f64> {
        self.rows.view()
    }

    pub(in crate::monitor) fn len(&self) -> usize {
        self.half_norms.len()
    }

    /// Shows `visit` every pair of a row here and a row of `other`, one [`RowRun`] at a time: block by
    /// block, in each block row by row, in each row in ascending order of columns. With `upper` only
    /// the pairs whose column is greater than their row. The two must share their origin and dimension.
    pub(in crate::monitor) fn walk(
        &self,
        other: &Self,
        upper: bool,
        mut visit: impl FnMut(&RowRun<'_>),
    ) {
        let dimension = self.rows.ncols();
        debug_assert_eq!(dimension, other.rows.ncols());
        let width = 2.0 * (dimension as f64 + 8.0) * f64::EPSILON;
        let bounded = self.largest + other.largest < 1e300;
        let isa = Isa::detect();
        let mut gram = vec![0.0; BLOCK * BLOCK];
        let (n, m) = (self.len(), other.len());
        for top in (0..n).step_by(BLOCK) {
            let bottom = n.min(top + BLOCK);
            for left in (if upper { top } else { 0 }..m).step_by(BLOCK) {
                let right = m.min(left + BLOCK);
                self.products(other, top..bottom, left..right, &mut gram);
                for (row, products) in (top..bottom).zip(gram.chunks_exact(right - left)) {
                    let first = if upper { left.max(row + 1) } else { left };
                    if first < right {
                        visit(&RowRun {
                            row,
                            first,
                            products: &products[first - left..],
                            half_norm: self.half_norms[row],
                            half_norms: &other.half_norms[first..right],
                            width,
                            bounded,
                            isa,
                        });
                    }
                }
            }
        }
    }

    /// `gram = self[rows] other[columns]^T`, row by row.
    fn products(
        &self,
        other: &Self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        gram: &mut [f64],
    ) {
        let dimension = self.rows.ncols();
        let left = self.rows.as_slice().unwrap_or_default();
        let right = other.rows.as_slice().unwrap_or_default();
        let left = &left[rows.start * dimension..rows.end * dimension];
        let right = &right[columns.start * dimension..columns.end * dimension];
        let (m, n) = (rows.len(), columns.len());
        let gram = &mut gram[..m * n];
        let stride = dimension as isize;
        // SAFETY: `gram` holds m x n values, `left` m x dimension and `right` n x dimension, each in
        // rows one after the other, as the strides say; nothing else refers to `gram`.
        unsafe {
            gemm::gemm(
                m,
                n,
                dimension,
                gram.as_mut_ptr(),
                1,
                n as isize,
                false,
                left.as_ptr(),
                1,
                stride,
                right.as_ptr(),
                stride,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// The pairs of one row with up to [`BLOCK`] consecutive rows of the other set, its columns.
pub(in crate::monitor) struct RowRun<'a> {
    pub(in crate::monitor) row: usize,
    /// The first column.
    pub(in crate::monitor) first: usize,
    products: &'a [f64],
    half_norm: f64,
    half_norms: &'a [f64],
    width: f64,
    /// Whether the interval holds: no square overflowed.
    bounded: bool,
    isa: Isa,
}

/// What can be said of a run without looking at its pairs.
pub(in crate::monitor) struct Survey {
    /// No squared distance is smaller.
    pub(in crate::monitor) lowest: f64,
    /// The sum of the distances, but for those of close pairs.
    far_sum: f64,
    /// Whether there are close pairs.
    close: bool,
}

impl RowRun<'_> {
    pub(in crate::monitor) fn len(&self) -> usize {
        self.products.len()
    }

    pub(in crate::monitor) fn survey(&self) -> Survey {
        if !self.bounded {
            return Survey { lowest: f64::NEG_INFINITY, far_sum: 0.0, close: true };
        }
        let [far_sum, lowest, closest] =
            survey(self.isa, self.products, self.half_norms, self.half_norm, self.width);
        Survey { lowest: 2.0 * (lowest - f64::MIN_POSITIVE), far_sum, close: closest < 0.0 }
    }

    /// The sum of the distances of all pairs; `plain` gives the squared distance of the row and the
    /// column where that takes a plain sum.
    pub(in crate::monitor) fn distance_sum(
        &self,
        survey: &Survey,
        plain: impl Fn(usize, usize) -> f64,
    ) -> f64 {
        let mut sum = survey.far_sum;
        if survey.close {
            for (column, (product, half_norm)) in
                (self.first..).zip(self.products.iter().zip(self.half_norms))
            {
                let scale = self.half_norm + half_norm;
                if !self.bounded || scale - product < CLOSE * scale {
                    sum += plain(self.row, column).sqrt();
                }
            }
        }
        sum
    }

    /// Of [`WORD`] columns from `first + skip`: those whose squared distance is certainly at most
    /// `limit`, and those of which the interval leaves it open.
    pub(in crate::monitor) fn within(&self, skip: usize, limit: f64) -> (u64, u64) {
        let end = self.len().min(skip + WORD);
        if !self.bounded {
            return (0, u64::MAX >> (WORD - (end - skip)));
        }
        let limit = 0.5 * limit;
        let (products, half_norms) = (&self.products[skip..end], &self.half_norms[skip..end]);
        let [near, maybe] =
            within(self.isa, products, half_norms, self.half_norm, self.width, limit);
        (near, maybe & !near)
    }

    /// Shows `found` the columns whose squared distance may be at most `limit`, which is from then on
    /// what `found` answers.
    pub(in crate::monitor) fn candidates(
        &self,
        mut limit: f64,
        mut found: impl FnMut(usize) -> f64,
    ) {
        for skip in (0..self.len()).step_by(WORD) {
            let (near, open) = self.within(skip, limit);
            for column in bits(near | open) {
                limit = found(self.first + skip + column);
            }
        }
    }
}

/// The places of the bits that are set, in ascending order.
pub(in crate::monitor) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (word != 0).then(|| word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        place
    })
}

vectorised! {
    /// The sum of the distances of pairs that are not close, the lowest end of the intervals, and a
    /// number below zero if a pair is close; the last two of half the squared distances.
    fn survey(products: &[f64], half_norms: &[f64], half_norm: f64, width: f64) -> [f64; 3] {
        #[inline(always)]
        fn step(
            product: f64,
            other: f64,
            half_norm: f64,
            width: f64,
            sum: &mut f64,
            lowest: &mut f64,
            closest: &mut f64,
        ) {
            let scale = half_norm + other;
            let estimate = scale - product;
            let margin = estimate - CLOSE * scale;
            let far = if margin >= 0.0 { 2.0 * estimate } else { 0.0 };
            *sum += far.sqrt();
            let low = estimate - width * scale;
            *lowest = if low < *lowest { low } else { *lowest };
            *closest = if margin < *closest { margin } else { *closest };
        }
        let mut sums = [0.0; LANES];
        let mut lowest = [f64::INFINITY; LANES];
        let mut closest = [f64::INFINITY; LANES];
        let (chunks, others) = (products.chunks_exact(LANES), half_norms.chunks_exact(LANES));
        let rest = chunks.remainder().iter().zip(others.remainder());
        for (lane, (&product, &other)) in rest.enumerate() {
            step(product, other, half_norm, width, &mut sums[lane], &mut lowest[lane], &mut closest[lane]);
        }
        for (products, others) in chunks.zip(others) {
            for lane in 0..LANES {
                step(
                    products[lane],
                    others[lane],
                    half_norm,
                    width,
                    &mut sums[lane],
                    &mut lowest[lane],
                    &mut closest[lane],
                );
            }
        }
        let least = |lanes: [f64; LANES]| lanes.into_iter().fold(f64::INFINITY, f64::min);
        [sums.into_iter().sum(), least(lowest), least(closest)]
    }
}

vectorised! {
    /// Bits of the columns, at most [`WORD`], whose interval of half the squared distance ends at or
    /// below `limit`, and of those whose interval begins there.
    fn within(products: &[f64], half_norms: &[f64], half_norm: f64, width: f64, limit: f64) -> [u64; 2] {
        const LANES: usize = 8;
        let (mut near, mut maybe) = ([0_u64; LANES], [0_u64; LANES]);
        let mut bit = |index: usize, lane: usize, product: f64, other: f64| {
            let scale = half_norm + other;
            let estimate = scale - product;
            let half_width = width * scale + f64::MIN_POSITIVE;
            near[lane] |= u64::from(estimate + half_width <= limit) << index;
            maybe[lane] |= u64::from(estimate - half_width <= limit) << index;
        };
        let (chunks, others) = (products.chunks_exact(LANES), half_norms.chunks_exact(LANES));
        let done = chunks.len() * LANES;
        for (lane, (&product, &other)) in chunks.remainder().iter().zip(others.remainder()).enumerate() {
            bit(done + lane, lane, product, other);
        }
        for (chunk, (products, others)) in chunks.zip(others).enumerate() {
            for lane in 0..LANES {
                bit(LANES * chunk + lane, lane, products[lane], others[lane]);
            }
        }
        [near, maybe].map(|lanes| lanes.into_iter().fold(0, |all, bits| all | bits))
    }
}

/// The mean row, or zeros for an empty set. Exactly the common row where all rows are the same.
pub(in crate::monitor) fn mean(points: ArrayView2<'_, f64>) -> Array1<f64> {
    let Some(first) = points.outer_iter().next() else { return Array1::zeros(points.ncols()) };
    let offsets = points.outer_iter().fold(Array1::zeros(points.ncols()), |mut sum, row| {
        ndarray::Zip::from(&mut sum)
            .and(&row)
            .and(&first)
            .for_each(|sum: &mut f64, x, o| *sum += x - o);
        sum
    });
    offsets / points.len_of(Axis(0)) as f64 + first
}

/// The plain sum, in the order of the coordinates: reordering it would decide ties differently.
pub(in crate::monitor) fn squared_distance(x: ArrayView1<'_, f64>, y: ArrayView1<'_, f64>) -> f64 {
    x.iter().zip(y).fold(0.0, |sum, (x, y)| {
        let difference = x - y;
        sum + difference * difference
    })
}
