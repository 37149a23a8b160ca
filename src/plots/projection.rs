//! Latents on a plane: principal components at once, t-SNE for who waits a moment.

use ndarray::{Array2, ArrayView2, Axis, s};
use serde::Deserialize;

use super::map::{LatentMap, MapOutlier};
use super::number::short;
use crate::monitor::statistics::pca::Pca;
use crate::monitor::statistics::tsne::tsne;
use crate::monitor::{Latest, Sample};

/// Answers of the policy, and of the baseline, that are drawn; of more, every n-th.
const MAX_POINTS: usize = 600;
/// Answers that are named.
const NAMED: usize = 10;
/// t-SNE begins at random places: the same ones each time, so that the same window looks the same.
const SEED: u64 = 0;

/// How latents become points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[serde(expecting = "enum Projection")]
pub enum MapProjection {
    /// The two principal components of baseline and window together.
    #[default]
    Pca,
    /// t-SNE of them, which takes seconds.
    Tsne,
}

impl MapProjection {
    fn name(self) -> &'static str {
        match self {
            Self::Pca => "PCA",
            Self::Tsne => "t-SNE",
        }
    }
}

/// The window's answers that lie farthest from the SFT answers, the farthest first: position in the window,
/// and Mahalanobis distance. Empty without a baseline.
pub fn farthest(latest: &Latest) -> Vec<(usize, f64)> {
    let Some(distances) = latest.baseline.as_ref().and_then(|b| b.mahalanobis.as_ref()) else {
        return Vec::new();
    };
    let samples = &latest.window.samples;
    let mut found: Vec<(usize, f64)> = samples
        .iter()
        .map(|sample| distances.distance(&sample.latent))
        .enumerate()
        .filter(|(_, distance)| distance.is_finite())
        .collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.truncate(NAMED);
    found
}

/// The map of a run's last window. `farthest` are the answers to mark, by their position in it.
pub fn project(
    run: &str,
    latest: &Latest,
    farthest: &[(usize, f64)],
    projection: MapProjection,
) -> LatentMap {
    let samples = &latest.window.samples;
    let chosen = chosen(samples.len(), farthest);
    let (points, baseline) = latents(latest, samples, &chosen);
    let map =
        LatentMap { run: run.to_owned(), projection: projection.name(), ..LatentMap::default() };
    let projected = match projection {
        MapProjection::Pca => principal(points.view()),
        MapProjection::Tsne => neighbourly(points.view()),
    };
    let Some((coordinates, note)) = projected else {
        return LatentMap { empty: "Too few different latents for a map.".to_owned(), ..map };
    };
    let place = |row: usize| [coordinates[[row, 0]], coordinates[[row, 1]]];
    let outliers = farthest.iter().filter_map(|&(position, distance)| {
        let row = chosen.binary_search(&position).ok()?;
        let sample = &samples[position];
        let words = format!(
            "Request {}, input {}: Mahalanobis distance {}, reward {}",
            sample.request,
            sample.index,
            short(distance),
            short(f64::from(sample.reward)),
        );
        Some(MapOutlier { at: place(baseline + row), words })
    });
    LatentMap {
        note,
        baseline: (0..baseline).map(place).collect(),
        policy: (baseline..coordinates.nrows()).map(place).collect(),
        outliers: outliers.collect(),
        ..map
    }
}

/// Positions in the window that are drawn, ascending: spread over it, and all that are to be marked.
fn chosen(count: usize, farthest: &[(usize, f64)]) -> Vec<usize> {
    let mut chosen = spread(count);
    chosen.extend(farthest.iter().map(|(position, _)| *position));
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn spread(count: usize) -> Vec<usize> {
    let drawn = count.min(MAX_POINTS);
    (0..drawn).map(|number| number * count / drawn).collect()
}

/// Latents of the baseline and, below them, of the window, `[N, d]`; and how many are the baseline's.
fn latents(latest: &Latest, samples: &[Sample], chosen: &[usize]) -> (Array2<f64>, usize) {
    let dimension = samples.first().map_or(0, |sample| sample.latent.len());
    let baseline = latest
        .baseline
        .as_ref()
        .filter(|baseline| baseline.latents.ncols() == dimension)
        .map(|baseline| baseline.latents.select(Axis(0), &spread(baseline.latents.nrows())));
    let known = baseline.as_ref().map_or(0, Array2::nrows);
    let mut points = Array2::zeros((known + chosen.len(), dimension));
    if let Some(baseline) = baseline {
        points.slice_mut(s![..known, ..]).assign(&baseline);
    }
    for (row, &position) in chosen.iter().enumerate() {
        for (place, &value) in points.row_mut(known + row).iter_mut().zip(&samples[position].latent)
        {
            *place = f64::from(value);
        }
    }
    (points, known)
}

fn principal(points: ArrayView2<'_, f64>) -> Option<(Array2<f64>, String)> {
    let pca = Pca::fit(points)?;
    let [first, second] = pca.explained().map(|share| 100.0 * share);
    let note = format!("The two directions hold {first:.0} % and {second:.0} % of the variance.");
    Some((pca.project(points)?, note))
}

fn neighbourly(points: ArrayView2<'_, f64>) -> Option<(Array2<f64>, String)> {
    let map = tsne(points, points.nrows(), SEED)?;
    let note = "Neighbours stay neighbours; distances between groups and their sizes mean little.";
    Some((map.coordinates, note.to_owned()))
}
