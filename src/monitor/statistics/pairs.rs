//! Everything that is asked of pairs of latents, answered in one walk over them.

use ndarray::{ArrayView2, Axis};

use super::gram::{Centred, WORD, bits, mean, squared_distance};
use super::neighbours::NeighbourGraph;

/// Points, and the same less an origin.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct Points<'a> {
    /// `[N, d]`: what plain sums are taken of.
    pub(in crate::monitor) plain: ArrayView2<'a, f64>,
    /// `[N, d]`: what is multiplied.
    pub(in crate::monitor) centred: &'a Centred,
}

impl NeighbourGraph {
    /// The graph of the rows of `points`, `[N, d]`, whose Euclidean distance is at most `radius`.
    ///
    /// A point at exactly the radius is a neighbour, as in scikit-learn, and every answer is that of
    /// the plain sum of squared differences: at the dimensions of a latent space (64 to 256) a tree
    /// visits nearly every point, and a matrix product over all pairs is the faster search, but it
    /// only screens. Costs `N^2 d` floating-point operations.
    pub fn new(points: ArrayView2<'_, f64>, radius: f64) -> Self {
        within(points, Some(radius), false).0
    }
}

/// The graph of neighbours at `radius`, if one is given, and the mean distance of all ordered pairs,
/// those of a point with itself included, or 0 if `means` is not set.
///
/// Half of the pairs are walked: `N^2 d` floating-point operations, with `means` `N^2 / 2` roots.
pub(in crate::monitor) fn within(
    points: ArrayView2<'_, f64>,
    radius: Option<f64>,
    means: bool,
) -> (NeighbourGraph, f64) {
    let limit = radius.map_or(-1.0, |radius| radius * radius);
    let centred = Centred::new(points, &mean(points));
    let mut graph = NeighbourGraph::isolated(points.nrows());
    let mut sum = 0.0;
    let plain = |i, j| squared_distance(points.row(i), points.row(j));
    centred.walk(&centred, true, |run| {
        if means {
            let survey = run.survey();
            sum += run.distance_sum(&survey, plain);
            if radius.is_none() || survey.lowest > limit {
                return;
            }
        }
        for skip in (0..run.len()).step_by(WORD) {
            let first = run.first + skip;
            let (mut near, open) = run.within(skip, limit);
            for bit in bits(open) {
                near |= u64::from(plain(run.row, first + bit) <= limit) << bit;
            }
            if near != 0 {
                graph.connect(run.row, first, near);
            }
        }
    });
    graph.mirror();
    (graph, 2.0 * sum / (points.nrows() as f64).powi(2))
}

/// What is asked of the pairs between two sets.
#[derive(Debug, Default)]
pub(in crate::monitor) struct PairDistances {
    /// Mean distance of each query to all points of the set; `[N]`, or empty if it was not asked for.
    pub(in crate::monitor) mean_distances: Vec<f64>,
    /// Distances to the nearest points of the set, ascending; `[N, k]` row by row, infinite where the
    /// set has fewer.
    pub(in crate::monitor) nearest: Vec<f64>,
}

/// Distances from each of `queries` to its `k` nearest points of `set`, and to all of them on average
/// if `means` is set. The two must share their origin.
///
/// `2 N M d` floating-point operations, with `means` `N M` roots, and plain sums for the few points
/// that come closer than the `k` closest before.
pub(in crate::monitor) fn between(
    queries: Points<'_>,
    set: Points<'_>,
    k: usize,
    means: bool,
) -> PairDistances {
    let rows = queries.centred.len();
    let mut mean_distances = vec![0.0; if means { rows } else { 0 }];
    let mut nearest = vec![f64::INFINITY; rows * k];
    let plain = |i, j| squared_distance(queries.plain.row(i), set.plain.row(j));
    queries.centred.walk(set.centred, false, |run| {
        let nearest = &mut nearest[run.row * k..][..k];
        let worst = nearest.last().copied().unwrap_or(f64::NEG_INFINITY);
        if means {
            let survey = run.survey();
            mean_distances[run.row] += run.distance_sum(&survey, plain);
            if survey.lowest > worst {
                return;
            }
        }
        if k > 0 {
            run.candidates(worst, |column| {
                insert(nearest, plain(run.row, column));
                nearest[k - 1]
            });
        }
    });
    for sum in &mut mean_distances {
        *sum /= set.centred.len() as f64;
    }
    for squared in &mut nearest {
        *squared = squared.sqrt();
    }
    PairDistances { mean_distances, nearest }
}

/// Keeps the smallest of the values and `value`, in ascending order.
fn insert(smallest: &mut [f64], value: f64) {
    let place = smallest.partition_point(|smaller| *smaller <= value);
    if place < smallest.len() {
        smallest[place..].rotate_right(1);
        smallest[place] = value;
    }
}

/// [`between`] for sets that nothing else is asked of.
pub(in crate::monitor) fn between_plain(
    queries: ArrayView2<'_, f64>,
    set: ArrayView2<'_, f64>,
    k: usize,
    means: bool,
) -> PairDistances {
    debug_assert_eq!(queries.len_of(Axis(1)), set.len_of(Axis(1)));
    let origin = mean(set);
    let (left, right) = (Centred::new(queries, &origin), Centred::new(set, &origin));
    let queries = Points { plain: queries.view(), centred: &left };
    between(queries, Points { plain: set.view(), centred: &right }, k, means)
}
