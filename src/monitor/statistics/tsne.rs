//! t-SNE (van der Maaten 2014): the map of figure 7 of the paper, on demand, for it takes seconds.

use linfa::traits::Transformer;
use linfa_tsne::TSneParams;
use ndarray::{Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Where t-SNE puts some of a set of points.
#[derive(Clone, Debug, PartialEq)]
pub struct TsneMap {
    /// The rows that were drawn, ascending.
    pub rows: Vec<usize>,
    /// `[rows, 2]`, finite.
    pub coordinates: Array2<f64>,
}

/// A map of at most `limit` of the rows of `points`, `[N, d]`, which are drawn with `seed`; the same
/// arguments give the same map.
///
/// `None` below four points or two dimensions, or where there is no map, as of points that are all the
/// same. Costs a thousand steps of `O(n^2)` for `n` points on one thread: the library's approximation by
/// trees begins with random pivots, and would give another map each time. The perplexity is 30, or a third
/// of the points where they are fewer.
pub fn tsne(points: ArrayView2<'_, f64>, limit: usize, seed: u64) -> Option<TsneMap> {
    const STEPS: usize = 1000;
    let rows = if points.nrows() <= limit {
        (0..points.nrows()).collect()
    } else {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = rand::seq::index::sample(&mut random, points.nrows(), limit).into_vec();
        rows.sort_unstable();
        rows
    };
    let drawn = points.select(Axis(0), &rows);
    let (count, dimension) = drawn.dim();
    let differs = drawn.outer_iter().skip(1).any(|row| row != drawn.row(0));
    if count < 4 || dimension < 2 || !differs {
        return None;
    }
    let perplexity = 30_f64.min((count - 1) as f64 / 3.0);
    // One thread: sums of several differ from call to call, and scoring needs the others.
    let thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok()?;
    let embed = || {
        TSneParams::embedding_size(2)
            .perplexity(perplexity)
            .approx_threshold(0.0)
            .max_iter(STEPS)
            .transform(drawn)
    };
    let coordinates = thread.install(embed).ok()?;
    let finite = coordinates.iter().all(|value: &f64| value.is_finite());
    finite.then_some(TsneMap { rows, coordinates })
}
