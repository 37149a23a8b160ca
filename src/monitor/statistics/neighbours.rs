//! Exact Euclidean neighbours by a matrix product over all pairs.
//!
//! At the dimensions of a latent space (64 to 256) a tree visits nearly every point, and the
//! product is the faster search. It only screens: what it leaves open is settled by plain sums of
//! squared differences, so that every answer is that of the plain sum, which is what the trees of
//! scikit-learn compute.

use linfa::Float;
use linfa_nn::{BuildError, NearestNeighbour, NearestNeighbourIndex, NnError, distance::Distance};
use ndarray::{ArrayBase, ArrayView1, ArrayView2, Axis, Data, Ix2};

use super::gram::{Centred, mean, squared_distance, to_f64};

/// A nearest-neighbour algorithm with one radius known in advance, for DBSCAN.
///
/// Building the index over `[N, d]` points costs `N^2 d` floating-point operations and `N^2 / 8`
/// bytes, however dense the neighbourhoods are: 50 MB at `N = 20_000`. A range query at the radius
/// by a row of the batch then reads `N / 64` words; any other query scans the points, `O(N d)`.
///
/// The metric is always the Euclidean one, whatever distance function the index is handed, and a
/// point at exactly the radius is a neighbour, as in scikit-learn.
#[derive(Clone, Debug, PartialEq)]
pub struct GramNeighbours {
    /// Distance up to which two points are neighbours, inclusive.
    pub radius: f64,
}

impl NearestNeighbour for GramNeighbours {
    fn from_batch_with_leaf_size<'a, F: Float, DT: Data<Elem = F>, D: 'a + Distance<F>>(
        &self,
        batch: &'a ArrayBase<DT, Ix2>,
        leaf_size: usize,
        _euclidean: D,
    ) -> Result<Box<dyn 'a + Send + Sync + NearestNeighbourIndex<F>>, BuildError> {
        if batch.ncols() == 0 {
            return Err(BuildError::ZeroDimension);
        }
        if leaf_size == 0 {
            return Err(BuildError::EmptyLeaf);
        }
        Ok(Box::new(GramIndex::new(batch.view(), self.radius)))
    }
}

/// The neighbour graph of a batch: one bit for each ordered pair of rows.
struct GramIndex<'a, F> {
    points: ArrayView2<'a, F>,
    radius: f64,
    words_per_row: usize,
    adjacency: Vec<u64>,
}

impl<'a, F: Float> GramIndex<'a, F> {
    fn new(points: ArrayView2<'a, F>, radius: f64) -> Self {
        let words_per_row = points.nrows().div_ceil(64);
        let mut adjacency = vec![0_u64; points.nrows() * words_per_row];
        let mut connect =
            |i: usize, j: usize| adjacency[i * words_per_row + j / 64] |= 1_u64 << (j % 64);

        let limit = radius * radius;
        let wide = points.mapv(to_f64);
        let origin = mean(&wide);
        let centred = Centred::new(wide, &origin);
        centred.screen(
            &centred,
            |row| row,
            |i, j, low, high| {
                let near = if high <= limit {
                    true
                } else if low > limit {
                    false
                } else {
                    squared_distance(points.row(i), points.row(j)) <= limit
                };
                if near {
                    connect(i, j);
                    connect(j, i);
                }
            },
        );
        Self { points, radius, words_per_row, adjacency }
    }

    /// The row that `point`, of the batch's dimension, is a view of, if it is one.
    ///
    /// A view that has the address and the stride of a row reads the memory of that row, which the
    /// index keeps borrowed, so it holds the same values. Addresses are only compared.
    fn row_of(&self, point: ArrayView1<'_, F>) -> Option<usize> {
        let (row_stride, stride) = (self.points.stride_of(Axis(0)), self.points.stride_of(Axis(1)));
        let step = row_stride.checked_mul(size_of::<F>() as isize)?;
        let offset =
            (point.as_ptr().addr() as isize).checked_sub(self.points.as_ptr().addr() as isize)?;
        let row = usize::try_from(offset.checked_div(step)?).ok()?;
        let is_row =
            offset % step == 0 && row < self.points.nrows() && point.stride_of(Axis(0)) == stride;
        is_row.then_some(row)
    }

    /// Neighbours of a row of the batch, itself included, in ascending order.
    fn neighbours_of(&self, row: usize) -> impl Iterator<Item = usize> {
        self.adjacency[row * self.words_per_row..][..self.words_per_row]
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits != 0)
            .flat_map(|(word, bits)| {
                (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| 64 * word + bit)
            })
    }

    fn squared_distances(&self, point: ArrayView1<'_, F>) -> Result<Vec<(f64, usize)>, NnError> {
        if point.len() != self.points.ncols() {
            return Err(NnError::WrongDimension);
        }
        let rows = self.points.rows().into_iter().enumerate();
        Ok(rows.map(|(index, row)| (squared_distance(point, row), index)).collect())
    }
}

impl<F: Float> NearestNeighbourIndex<F> for GramIndex<'_, F> {
    /// Equal distances are returned in the order of the batch.
    fn k_nearest(
        &self,
        point: ArrayView1<'_, F>,
        k: usize,
    ) -> Result<Vec<(ArrayView1<'_, F>, usize)>, NnError> {
        let mut nearest = self.squared_distances(point)?;
        nearest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        nearest.truncate(k);
        Ok(nearest.into_iter().map(|(_, index)| (self.points.row(index), index)).collect())
    }

    /// Points at exactly `range` are included; the order is that of the batch.
    fn within_range(
        &self,
        point: ArrayView1<'_, F>,
        range: F,
    ) -> Result<Vec<(ArrayView1<'_, F>, usize)>, NnError> {
        let range = to_f64(range);
        let known = (range == self.radius && point.len() == self.points.ncols())
            .then(|| self.row_of(point))
            .flatten();
        let with_point = |index| (self.points.row(index), index);
        Ok(match known {
            Some(row) => self.neighbours_of(row).map(with_point).collect(),
            None => self
                .squared_distances(point)?
                .into_iter()
                .filter(|(squared, _)| *squared <= range * range)
                .map(|(_, index)| with_point(index))
                .collect(),
        })
    }
}

/// Euclidean distance from each query to the nearest point of a set.
///
/// `queries` is `[M, d]` and `set` is `[N, d]`; the result has length `M`, and is infinite for an
/// empty set. Each value is the smallest plain sum of squared differences, rooted: equation 7 of
/// InfoRM (NeurIPS 2024) where the queries are cluster centroids and the set is the SFT outputs.
/// Costs `2 M N d` floating-point operations in the screen, and a plain sum for the few points that
/// come closer than all before.
///
/// # Errors
///
/// [`NnError::WrongDimension`] if the two differ in `d`.
pub fn nearest_distances(
    queries: ArrayView2<'_, f64>,
    set: ArrayView2<'_, f64>,
) -> Result<Vec<f64>, NnError> {
    if queries.ncols() != set.ncols() {
        return Err(NnError::WrongDimension);
    }
    let origin = mean(&set);
    let (left, right) =
        (Centred::new(queries.to_owned(), &origin), Centred::new(set.to_owned(), &origin));
    let mut nearest = vec![f64::INFINITY; queries.nrows()];
    left.screen(
        &right,
        |_| 0,
        |i, j, low, _| {
            if low > nearest[i] {
                return;
            }
            nearest[i] = nearest[i].min(squared_distance(queries.row(i), set.row(j)));
        },
    );
    Ok(nearest.into_iter().map(f64::sqrt).collect())
}
