//! The statistics of a window against scikit-learn, SciPy and NumPy (`golden/statistics.py`).

use std::sync::Arc;

use crate::support::recipe::{Recipe, close};
use inform::monitor::statistics::StatisticsParameters;
use inform::monitor::statistics::correlation::spearman;
use inform::monitor::statistics::csi::{CsiParameters, EpsMode};
use inform::monitor::statistics::energy::energy_distance;
use inform::monitor::statistics::pca::Pca;
use inform::monitor::statistics::tsne::tsne;
use inform::monitor::{BaselineAnswers, BaselineOrigin, BaselineSet, Sample};
use inform::monitor::{WindowEvaluation, evaluate_window};
use ndarray::{Array2, ArrayView2};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    windows: Vec<Case>,
    answers: Vec<Answers>,
    map: Map,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    dimension: usize,
    window: Recipe,
    baseline: Recipe,
    neighbours: usize,
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    energy: f64,
    knn_distance: f64,
    eps: f64,
    mahalanobis_mean: f64,
    mop: f64,
    dispersion_ratio: f64,
    dispersion_log_det: Option<f64>,
}

#[derive(Deserialize)]
struct Answers {
    name: String,
    rewards: Vec<f32>,
    lengths: Vec<u32>,
    rho: Option<f64>,
    quantiles: [f64; 5],
    mean: f64,
    std: f64,
}

#[derive(Deserialize)]
struct Map {
    dimension: usize,
    points: Recipe,
    pca: Vec<[f64; 2]>,
    explained: [f64; 2],
    pca_trustworthiness: f64,
    tsne_trustworthiness: f64,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../golden/statistics.json")).unwrap()
}

fn sample(latent: &[f32]) -> Sample {
    Sample {
        latent: latent.to_vec(),
        sigma: 0.5,
        divergence: 3.0,
        reward: 0.0,
        tokens: 1,
        response_characters: None,
        prompt: None,
        sequence: 0,
        request: Arc::from("request"),
        index: 0,
    }
}

fn window(latents: &Array2<f64>) -> Vec<Sample> {
    let single = |value: &f64| *value as f32;
    latents.outer_iter().map(|row| sample(&row.iter().map(single).collect::<Vec<_>>())).collect()
}

fn baseline(latents: &Array2<f64>) -> BaselineSet {
    let answers = BaselineAnswers {
        latents: latents.iter().copied().collect(),
        dimension: latents.ncols(),
        ..BaselineAnswers::default()
    };
    BaselineSet::new(answers, BaselineOrigin::Recorded, 1).unwrap()
}

/// The share of the `k` nearest neighbours in the map that are also near in space, as scikit-learn's
/// `trustworthiness` (Venna and Kaski 2001).
fn trustworthiness(points: ArrayView2<'_, f64>, map: ArrayView2<'_, f64>, k: usize) -> f64 {
    let order = |set: ArrayView2<'_, f64>, row: usize| -> Vec<usize> {
        let square = |other: &usize| (&set.row(row) - &set.row(*other)).mapv(|v| v * v).sum();
        let mut others: Vec<usize> = (0..set.nrows()).filter(|other| *other != row).collect();
        others.sort_by(|a, b| f64::total_cmp(&square(a), &square(b)));
        others
    };
    let n = points.nrows();
    let mut penalty = 0;
    for row in 0..n {
        let near = order(points, row);
        for neighbour in &order(map, row)[..k] {
            let rank = near.iter().position(|other| other == neighbour).unwrap() + 1;
            penalty += rank.saturating_sub(k);
        }
    }
    1.0 - penalty as f64 * 2.0 / (n * k * (2 * n - 3 * k - 1)) as f64
}

#[test]
fn statistics_of_latents_are_those_of_scikit_learn_and_scipy() {
    for case in golden().windows {
        let (samples, set) = (
            window(&case.window.points(case.dimension)),
            baseline(&case.baseline.points(case.dimension)),
        );
        let parameters = StatisticsParameters {
            neighbours: case.neighbours,
            csi: CsiParameters {
                eps_mode: EpsMode::Calibrated,
                min_samples: case.neighbours,
                ..CsiParameters::default()
            },
            ..StatisticsParameters::default()
        };
        let WindowEvaluation { statistics, distances, .. } =
            evaluate_window(&samples, Some(&set), &parameters);
        assert_eq!(distances.len(), samples.len());
        let expected = case.expected;
        // Where every baseline latent is its own k-th neighbour there is nothing to calibrate with.
        let eps = (expected.eps > 0.0).then_some(expected.eps);
        for (name, found, expected) in [
            ("energy", statistics.energy, Some(expected.energy)),
            ("knn_distance", statistics.knn_distance, Some(expected.knn_distance)),
            ("eps", statistics.eps, eps),
            ("mahalanobis_mean", statistics.mahalanobis_mean, Some(expected.mahalanobis_mean)),
            ("mop", statistics.mop, Some(expected.mop)),
            ("dispersion_ratio", statistics.dispersion_ratio, Some(expected.dispersion_ratio)),
            ("dispersion_log_det", statistics.dispersion_log_det, expected.dispersion_log_det),
        ] {
            let equal = match (found, expected) {
                (Some(found), Some(expected)) => close(found, expected, 1e-9),
                (found, expected) => found == expected,
            };
            assert!(equal, "{}, {name}: {found:?}, not {expected:?}", case.name);
        }
    }
}

#[test]
fn energy_distance_is_symmetric_and_zero_for_equal_sets() {
    for case in golden().windows {
        let x = case.window.points(case.dimension);
        let y = case.baseline.points(case.dimension);
        let energy =
            |x: &Array2<f64>, y: &Array2<f64>| energy_distance(x.view(), y.view()).unwrap();
        assert!(close(energy(&x, &y), energy(&y, &x), 1e-11), "{}", case.name);
        assert!(energy(&x, &x) < 1e-12 * energy(&x, &y), "{}", case.name);
    }
    let (two, one, none) = (Array2::zeros((3, 2)), Array2::zeros((3, 1)), Array2::zeros((0, 2)));
    assert_eq!(energy_distance(two.view(), two.view()), Some(0.0));
    assert_eq!(energy_distance(two.view(), one.view()), None);
    assert_eq!(energy_distance(two.view(), none.view()), None);
    assert_eq!(energy_distance(none.view(), two.view()), None);
}

#[test]
fn statistics_of_rewards_are_those_of_numpy_and_scipy() {
    for case in golden().answers {
        let same = |found: f64, expected: f64| {
            assert!(
                (found - expected).abs() <= 1e-9 * expected.abs() + 1e-15,
                "{}: {found}, not {expected}",
                case.name
            );
        };
        let samples: Vec<Sample> = case
            .rewards
            .iter()
            .zip(&case.lengths)
            .map(|(&reward, &tokens)| Sample { reward, tokens, ..sample(&[]) })
            .collect();
        let found = evaluate_window(&samples, None, &StatisticsParameters::default()).statistics;
        let quantiles = found.reward_quantiles.unwrap();
        let quantiles = [quantiles.p05, quantiles.p25, quantiles.p50, quantiles.p75, quantiles.p95];
        for (found, expected) in quantiles.into_iter().zip(case.quantiles) {
            same(found, expected);
        }
        same(found.reward_mean, case.mean);
        same(found.reward_std, case.std);
        assert_eq!(found.reward_length_rho.is_some(), case.rho.is_some(), "{}", case.name);
        if let Some(expected) = case.rho {
            same(found.reward_length_rho.unwrap(), expected);
            // The length is that of the response where all answers have one.
            let characters = |sample: &Sample| Some(1_000_000 - sample.tokens);
            let with_characters: Vec<Sample> = samples
                .iter()
                .map(|sample| Sample { response_characters: characters(sample), ..sample.clone() })
                .collect();
            let parameters = StatisticsParameters::default();
            let found = evaluate_window(&with_characters, None, &parameters).statistics;
            same(found.reward_length_rho.unwrap(), -expected);
        }
    }
    assert_eq!(spearman(&[1.0, 2.0], &[1.0]), None);
    assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
}

#[test]
fn principal_components_are_those_of_scikit_learn() {
    let map = golden().map;
    let points = map.points.points(map.dimension);
    let pca = Pca::fit(points.view()).unwrap();
    let projected = pca.project(points.view()).unwrap();
    for (found, expected) in projected.outer_iter().zip(&map.pca) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
        }
    }
    for (found, expected) in pca.explained().into_iter().zip(map.explained) {
        assert!(close(found, expected, 1e-9));
    }
    let found = trustworthiness(points.view(), projected.view(), 5);
    assert!(close(found, map.pca_trustworthiness, 1e-9), "{found}");
    assert!(pca.project(Array2::zeros((1, 3)).view()).is_none());
    for none in [(1, 3), (5, 1), (0, 4), (5, 3)] {
        assert!(Pca::fit(Array2::zeros(none).view()).is_none(), "{none:?}");
    }
}

#[test]
fn t_sne_is_as_trustworthy_as_that_of_scikit_learn_and_stays_the_same() {
    let map = golden().map;
    let points = map.points.points(map.dimension);
    let all = tsne(points.view(), 1000, 0).unwrap();
    assert_eq!(all.rows, Vec::from_iter(0..points.nrows()));
    let found = trustworthiness(points.view(), all.coordinates.view(), 5);
    assert!(found > map.tsne_trustworthiness - 0.02, "{found} {}", map.tsne_trustworthiness);
    // A part of the points.
    let thick = ndarray::concatenate![ndarray::Axis(0), points, points.mapv(|v| v + 1e-3)];
    for limit in [250, 40] {
        let some = tsne(thick.view(), limit, 7).unwrap();
        assert_eq!(some.rows.len(), limit);
        assert!(some.rows.is_sorted_by(|a, b| a < b));
        assert_eq!(some.coordinates.dim(), (limit, 2));
        assert_eq!(tsne(thick.view(), limit, 7).unwrap(), some, "{limit}");
        let drawn = thick.select(ndarray::Axis(0), &some.rows);
        let found = trustworthiness(drawn.view(), some.coordinates.view(), 5);
        assert!(found > map.pca_trustworthiness, "{found}");
    }
    for none in [(3, 3), (50, 1), (50, 3), (0, 2)] {
        assert!(tsne(Array2::zeros(none).view(), 100, 0).is_none(), "{none:?}");
    }
}
