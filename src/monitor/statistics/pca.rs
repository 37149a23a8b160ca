//! Principal components: a map of latents at once, and the same map for later ones.

use linfa_linalg::LinalgError;
use linfa_linalg::eigh::{EigSort, EighInto};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::gram::mean;

/// The first two principal components of a set of latents (Pearson 1901).
#[derive(Clone, Debug, PartialEq)]
pub struct Pca {
    mean: Array1<f64>,
    /// `[2, d]`, orthonormal.
    components: Array2<f64>,
    explained: [f64; 2],
}

impl Pca {
    /// The components of `points`, `[N, d]`: eigenvectors of their covariance, each with the sign that
    /// makes its largest element (in magnitude) positive, as in scikit-learn, so that the map does not
    /// turn over between evaluations.
    ///
    /// `None` below two points or dimensions, or where all points are the same. Costs `2 N d^2 + O(d^3)`
    /// floating-point operations.
    pub fn fit(points: ArrayView2<'_, f64>) -> Option<Self> {
        let (rows, dimension) = points.dim();
        if rows < 2 || dimension < 2 {
            return None;
        }
        let mean = mean(points);
        let centred = &points - &mean;
        let covariance = centred.t().dot(&centred) / rows as f64;
        let total = covariance.diag().sum();
        if !(total.is_finite() && total > 0.0) {
            return None;
        }
        let decompose =
            || -> Result<_, LinalgError> { Ok(covariance.eigh_into()?.sort_eig_desc()) };
        let (values, vectors) = decompose().ok()?;
        let mut components = vectors.slice(s![.., ..2]).t().to_owned();
        for mut component in components.outer_iter_mut() {
            let largest =
                component.iter().copied().reduce(|a, b| if b.abs() > a.abs() { b } else { a });
            if largest.is_some_and(|largest| largest < 0.0) {
                component *= -1.0;
            }
        }
        let explained = [0, 1].map(|index| (values[index] / total).clamp(0.0, 1.0));
        components.iter().all(|value| value.is_finite()).then_some(Self {
            mean,
            components,
            explained,
        })
    }

    /// Coordinates `[N, 2]` of `points`, `[N, d]`; `None` for another `d`.
    pub fn project(&self, points: ArrayView2<'_, f64>) -> Option<Array2<f64>> {
        (points.len_of(Axis(1)) == self.mean.len())
            .then(|| (&points - &self.mean).dot(&self.components.t()))
    }

    /// The share of the variance that each component has.
    pub fn explained(&self) -> [f64; 2] {
        self.explained
    }
}
