//! The Mahalanobis distance against scikit-learn (`golden/mahalanobis.py`), and where it has none.

use crate::support::recipe::{Recipe, SplitMix64, close};
use inform::monitor::statistics::mahalanobis::{Mahalanobis, MahalanobisError};
use ndarray::{Array2, Axis, array, concatenate, s};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    dimension: usize,
    baseline: Recipe,
    latents: Recipe,
    shrinkage: f64,
    distances: Vec<f64>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../golden/mahalanobis.json")).unwrap()
}

fn distances(fitted: &Mahalanobis, latents: &Array2<f64>) -> Vec<f64> {
    let single = |value: &f64| *value as f32;
    let rows = latents.outer_iter();
    rows.map(|row| fitted.distance(&row.iter().map(single).collect::<Vec<_>>())).collect()
}

#[test]
fn shrinkage_and_distances_are_those_of_scikit_learn() {
    for case in cases() {
        let fitted = Mahalanobis::fit(case.baseline.points(case.dimension).view()).unwrap();
        assert_eq!(fitted.dimension(), case.dimension, "{}", case.name);
        let found = distances(&fitted, &case.latents.points(case.dimension));
        assert_eq!(found.len(), case.distances.len(), "{}", case.name);
        let pairs = found.into_iter().zip(case.distances);
        for (found, expected) in pairs.chain([(fitted.shrinkage(), case.shrinkage)]) {
            assert!(close(found, expected, 1e-9), "{}: {found}, not {expected}", case.name);
        }
    }
}

#[test]
fn the_scale_of_a_latent_space_does_not_matter() {
    for case in cases() {
        let [baseline, latents] = [&case.baseline, &case.latents].map(|r| r.points(case.dimension));
        let fitted = Mahalanobis::fit(baseline.view()).unwrap();
        for scale in [2f64.powi(60), 2f64.powi(-60)] {
            let scaled = Mahalanobis::fit((&baseline * scale).view()).unwrap();
            assert_eq!(scaled.shrinkage(), fitted.shrinkage(), "{}", case.name);
            let found = distances(&scaled, &(&latents * scale));
            assert_eq!(found, distances(&fitted, &latents), "{}", case.name);
        }
        // Beyond what fourth powers allow.
        for scale in [2f64.powi(400), 2f64.powi(-400)] {
            let scaled = Mahalanobis::fit((&baseline * scale).view()).unwrap();
            assert_eq!(scaled.shrinkage(), fitted.shrinkage(), "{}", case.name);
        }
    }
}

#[test]
fn one_dimension_counts_standard_deviations() {
    let fitted = Mahalanobis::fit(array![[3.0], [7.0]].view()).unwrap();
    assert_eq!(fitted.shrinkage(), 0.0);
    assert_eq!([5.0, 3.0, 11.0].map(|latent| fitted.distance(&[latent])), [0.0, 1.0, 3.0]);
}

#[test]
fn a_latent_without_a_distance_has_one_that_is_not_finite() {
    let fitted = Mahalanobis::fit(array![[0.0, 1.0], [2.0, 0.0], [3.0, 5.0]].view()).unwrap();
    assert!(fitted.distance(&[]).is_nan());
    assert!(fitted.distance(&[0.0]).is_nan());
    assert!(fitted.distance(&[0.0; 3]).is_nan());
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!fitted.distance(&[value, 0.0]).is_finite());
        assert!(!fitted.distance(&[0.0, value]).is_finite());
    }
    assert!(fitted.distance(&[f32::MAX, f32::MIN]).is_finite());
}

#[test]
fn unusable_baselines_are_named() {
    let of = |baseline: &Array2<f64>| Mahalanobis::fit(baseline.view()).unwrap_err();
    assert_eq!(of(&Array2::zeros((0, 2))), MahalanobisError::TooFew { rows: 0 });
    assert_eq!(of(&array![[1.0, 2.0]]), MahalanobisError::TooFew { rows: 1 });
    assert_eq!(of(&Array2::zeros((2, 0))), MahalanobisError::ZeroDimension);
    let broken = of(&array![[0.0, 1.0], [2.0, f64::NAN], [f64::INFINITY, 0.0]]);
    assert_eq!(broken, MahalanobisError::NonFinite { row: 1 });
    assert!(broken.to_string().starts_with("row 1 of the baseline latents is not finite"));
    // The mean of 0.1, 0.1 and 0.1 is rounded: that must not make up a variance.
    let constant = Array2::from_elem((3, 2), 0.1);
    assert_eq!(of(&constant), MahalanobisError::Constant { rows: 3 });
    for scale in [1e200, 1e-200, f64::MAX] {
        let extreme = array![[0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]] * scale;
        assert_eq!(of(&extreme), MahalanobisError::OutOfRange, "{scale}");
    }
}

#[test]
fn two_different_latents_are_too_few_above_one_dimension() {
    let mut random = SplitMix64(5);
    for dimension in [2, 3, 20, 128, 300] {
        for offset in [0.0, 1e4] {
            let two = Array2::from_shape_fn((2, dimension), |_| {
                offset + random.next() as f64 / u64::MAX as f64
            });
            for baseline in [two.clone(), concatenate![Axis(0), two, two, two]] {
                let error = Mahalanobis::fit(baseline.view()).unwrap_err();
                let rows = baseline.nrows();
                assert_eq!(error, MahalanobisError::NotPositiveDefinite { rows }, "{dimension}");
            }
            let third = concatenate![Axis(0), two, two.slice(s![..1, ..])];
            assert!(Mahalanobis::fit(third.view()).is_ok(), "{dimension}");
        }
    }
}
