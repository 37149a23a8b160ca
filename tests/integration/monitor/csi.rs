//! CSI against scikit-learn and NumPy (`golden/csi.py`), and the properties that hold for any
//! points.

use crate::support::recipe::{Recipe, SplitMix64, close};
use inform::monitor::statistics::csi::{
    Csi, CsiError, CsiParameters, EpsMode, LatentSet, NoisePolicy, csi,
};
use ndarray::{Array2, Axis, array};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    dimension: usize,
    policy: Recipe,
    baseline: Recipe,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    eps: f64,
    min_samples: usize,
    noise: NoisePolicy,
    csi: f64,
    per_sample: f64,
    clusters: usize,
    noise_points: usize,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../golden/csi.json")).unwrap()
}

#[test]
fn csi_is_that_of_scikit_learn_and_numpy() {
    for case in cases() {
        let policy = case.policy.points(case.dimension);
        let baseline = case.baseline.points(case.dimension);
        for expected in case.expected {
            let parameters = CsiParameters {
                eps: expected.eps,
                min_samples: expected.min_samples,
                noise: expected.noise,
                ..CsiParameters::default()
            };
            let found = csi(policy.view(), baseline.view(), &parameters).unwrap();
            let context = format!("{}, {parameters:?}: {found:?}", case.name);
            assert_eq!(found.clusters, expected.clusters, "{context}");
            assert_eq!(found.samples, policy.nrows(), "{context}");
            let noise_fraction = expected.noise_points as f64 / policy.nrows() as f64;
            assert_eq!(found.noise_fraction, noise_fraction, "{context}");
            assert!(close(found.csi, expected.csi, 1e-9), "{context}");
            assert!(close(found.per_sample, expected.per_sample, 1e-9), "{context}");
        }
    }
}

#[test]
fn the_order_of_rows_does_not_matter_where_no_border_point_is_shared() {
    let mut random = SplitMix64(3);
    let is_shared = |case: &Case| case.name.contains("of two clusters");
    for case in cases().into_iter().filter(|case| !is_shared(case)) {
        let policy = case.policy.points(case.dimension);
        let baseline = case.baseline.points(case.dimension);
        let mut order: Vec<_> = (0..policy.nrows()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, (random.next() % (last as u64 + 1)) as usize);
        }
        let shuffled = policy.select(Axis(0), &order);
        for expected in case.expected {
            let parameters = CsiParameters {
                eps: expected.eps,
                min_samples: expected.min_samples,
                noise: NoisePolicy::Paper,
                ..CsiParameters::default()
            };
            let [one, other] = [&policy, &shuffled]
                .map(|policy| csi(policy.view(), baseline.view(), &parameters).unwrap());
            let context = format!("{}, {parameters:?}", case.name);
            assert!(close(other.csi, one.csi, 1e-12), "{context}: {one:?} {other:?}");
            assert_eq!(other.clusters, one.clusters, "{context}");
        }
    }
}

#[test]
fn a_policy_without_clusters_has_no_csi_once_noise_is_dropped() {
    let policy = array![[3.0, 4.0], [-3.0, 4.0]];
    let baseline = array![[0.0, 0.0]];
    let of = |noise| {
        let parameters = CsiParameters { noise, ..CsiParameters::default() };
        csi(policy.view(), baseline.view(), &parameters).unwrap()
    };
    assert_eq!(of(NoisePolicy::Paper).csi, 8.0);
    assert_eq!(of(NoisePolicy::Singletons).csi, 10.0);
    let dropped =
        Csi { csi: 0.0, per_sample: 0.0, clusters: 0, noise_fraction: 1.0, samples: 2, eps: 0.5 };
    assert_eq!(of(NoisePolicy::Drop), dropped);
    assert!(of(NoisePolicy::Drop).csi.is_sign_positive());
}

#[test]
fn unusable_sets_and_parameters_are_named() {
    let set = array![[0.0, 1.0], [2.0, 3.0]];
    let default = CsiParameters::default();
    let of = |policy: &Array2<f64>, baseline: &Array2<f64>, parameters: &CsiParameters| {
        csi(policy.view(), baseline.view(), parameters).unwrap_err()
    };
    let empty = |set, rows, dimension| CsiError::Empty { set, rows, dimension };
    let (none, flat) = (Array2::zeros((0, 2)), Array2::zeros((2, 0)));
    assert_eq!(of(&none, &set, &default), empty(LatentSet::Policy, 0, 2));
    assert_eq!(of(&set, &flat, &default), empty(LatentSet::Baseline, 2, 0));
    assert_eq!(
        of(&set, &array![[1.0]], &default),
        CsiError::DimensionMismatch { policy: 2, baseline: 1 }
    );
    let broken = array![[0.0, 1.0], [f64::NAN, 3.0], [f64::INFINITY, 0.0]];
    let error = of(&set, &broken, &default);
    assert_eq!(error, CsiError::NonFinite { set: LatentSet::Baseline, row: 1 });
    assert_eq!(error.to_string(), "row 1 of the baseline latents is not finite");
    for eps in [0.0, -1.0, f64::INFINITY] {
        let parameters = CsiParameters { eps, ..default.clone() };
        assert_eq!(of(&set, &set, &parameters), CsiError::Eps(eps));
    }
    let parameters = CsiParameters { min_samples: 0, ..default.clone() };
    assert_eq!(of(&set, &set, &parameters), CsiError::MinSamples);
    for eps_quantile in [-0.1, 1.1] {
        let parameters = CsiParameters { eps_quantile, ..default.clone() };
        assert_eq!(of(&set, &set, &parameters), CsiError::EpsQuantile(eps_quantile));
    }
    let calibrated =
        CsiParameters { eps_mode: EpsMode::Calibrated, min_samples: 2, ..default.clone() };
    assert!(csi(set.view(), set.view(), &calibrated).is_ok());
    // One latent has no neighbours, and equal ones have them at no distance.
    for baseline in [array![[0.0, 1.0]], array![[0.0, 1.0], [0.0, 1.0]]] {
        let error = of(&set, &baseline, &calibrated);
        let expected =
            CsiError::Uncalibrated { rows: baseline.nrows(), quantile: 0.9, min_samples: 2 };
        assert_eq!(error, expected);
    }
}

#[test]
fn parameters_default_to_scikit_learn_and_refuse_unknown_names() {
    let read = serde_json::from_str::<CsiParameters>;
    assert_eq!(read("{}").unwrap(), CsiParameters::default());
    let parameters = read(r#"{"noise": "singletons", "min_samples": 3}"#).unwrap();
    let noise = NoisePolicy::Singletons;
    let expected = CsiParameters { min_samples: 3, noise, ..CsiParameters::default() };
    assert_eq!(parameters, expected);
    assert!(read(r#"{"epsilon": 1.0}"#).is_err());
}
