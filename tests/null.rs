//! The nulls: against brute-force permutations (`golden/null.py`), and on fresh windows.
#![allow(clippy::unwrap_used)]

mod recipe;

use std::sync::Arc;

use inform::model::standard_normal;
use inform::monitor::statistics::csi::CsiParameters;
use inform::monitor::statistics::null::{EnergyNull, Null, Observed};
use ndarray::{Array2, ArrayView2};
use recipe::Recipe;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    dimension: usize,
    baseline: Recipe,
    window: usize,
    samples: usize,
    mean: f64,
    levels: Vec<f64>,
    quantiles: Vec<f64>,
}

#[test]
fn the_law_of_the_energy_distance_is_that_of_permutations() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/null.json")).unwrap();
    for case in cases {
        let baseline = case.baseline.points(case.dimension);
        // The recipe has n + m points; the law knows m of the fit, so fit all and convert.
        let null = EnergyNull::fit(baseline.view()).unwrap();
        let fitted = baseline.nrows() as f64;
        let unit = |n: f64, m: f64| 1.0 / n + 1.0 / m;
        let (n, m) = (case.window as f64, case.samples as f64);
        let convert = unit(n, fitted) / unit(n, m);
        let mean = null.mean(n);
        assert!((mean / (case.mean * convert) - 1.0).abs() < 0.03, "{}: {mean}", case.name);
        for (level, quantile) in case.levels.into_iter().zip(case.quantiles) {
            let p = null.p(quantile * convert, n);
            let ratio = p / level;
            assert!((0.5..2.0).contains(&ratio), "{}: {p}, not {level}", case.name);
            let back = null.upper_quantile(p, n);
            assert!((back / (quantile * convert) - 1.0).abs() < 1e-6, "{}", case.name);
        }
    }
}

fn normal(seed: u64, rows: usize, columns: usize) -> Array2<f64> {
    let values = standard_normal(seed, 0, rows * columns).into_iter().map(f64::from).collect();
    Array2::from_shape_vec((rows, columns), values).unwrap()
}

fn mean_distance(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> f64 {
    let mut total = 0.0;
    for a in x.outer_iter() {
        for b in y.outer_iter() {
            total += (&a - &b).mapv(|value| value * value).sum().sqrt();
        }
    }
    total / (x.nrows() * y.nrows()) as f64
}

fn energy(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
    2.0 * mean_distance(x.view(), y.view())
        - mean_distance(x.view(), x.view())
        - mean_distance(y.view(), y.view())
}

/// Far into the tail: an exact law. In one direction, with latents -1 and 1, the energy distance is
/// `4 (p - q)^2` of the two shares of ones, so that `T` tends to a chi-square.
#[test]
fn the_far_tail_is_that_of_a_chi_square() {
    let baseline = Array2::from_shape_fn((2000, 1), |(i, _)| if i % 2 == 0 { 1.0 } else { -1.0 });
    let null = EnergyNull::fit(baseline.view()).unwrap();
    let (n, m) = (1000.0, 2000.0);
    for (chi_square, p) in [(3.841_459, 0.05), (15.136_705, 1e-4), (28.373_987, 1e-7)] {
        let found = null.p(chi_square * (1.0 / n + 1.0 / m), n);
        assert!((found / p - 1.0).abs() < 0.15, "{found}, not {p}");
    }
}

#[test]
fn p_values_of_fresh_windows_are_uniform() {
    let mut below = [[0_usize; 3]; 4];
    let mut judged = 0;
    for population in 0..12 {
        let baseline = normal(1000 + population, 200, 6);
        let null =
            Null::fit(Arc::new(baseline.clone()), CsiParameters { eps: 1.0, ..Default::default() });
        let threshold = null.outlier_distance(0.05).unwrap();
        let fitted =
            inform::monitor::statistics::mahalanobis::Mahalanobis::fit(baseline.view()).unwrap();
        let spread = |x: &Array2<f64>| x.var_axis(ndarray::Axis(0), 0.0).sum();
        for window in 0..25 {
            let n = [40, 100, 300][window % 3];
            let fresh = normal(population * 100 + window as u64, n, 6);
            let flagged = fresh.outer_iter().filter(|row| {
                fitted.distance(&row.iter().map(|&v| v as f32).collect::<Vec<_>>()) > threshold
            });
            let values = null.judge(&Observed {
                samples: n,
                effective_samples: n as f64,
                energy: Some(energy(&fresh, &baseline)),
                mop: Some(flagged.count() as f64 / n as f64),
                mop_threshold: Some(threshold),
                dispersion_ratio: Some(spread(&fresh) / spread(&baseline)),
                csi_per_sample: inform::monitor::statistics::csi::csi(
                    fresh.view(),
                    baseline.view(),
                    &CsiParameters { eps: 1.0, ..Default::default() },
                )
                .ok()
                .map(|csi| csi.per_sample),
                distinct_ratio: None,
            });
            judged += 1;
            for (statistic, found) in
                [values.energy, values.csi, values.mop, values.dispersion].into_iter().enumerate()
            {
                let p = found.unwrap().p.unwrap();
                assert!((0.0..=1.0).contains(&p));
                for (level, count) in [0.5, 0.1, 0.01].into_iter().zip(&mut below[statistic]) {
                    *count += usize::from(p <= level);
                }
            }
        }
    }
    let share = |count: usize| count as f64 / judged as f64;
    for (statistic, counts) in below.iter().enumerate() {
        // Windows share their baselines, hence the room; too few is the safe side.
        assert!(share(counts[0]) < 0.65, "{statistic}: {below:?} of {judged}");
        assert!(share(counts[1]) < 0.2, "{statistic}: {below:?} of {judged}");
        assert!(share(counts[2]) < 0.04, "{statistic}: {below:?} of {judged}");
    }
    for statistic in [0, 3] {
        assert!((0.35..0.65).contains(&share(below[statistic][0])), "{below:?} of {judged}");
    }
}

#[test]
fn answers_of_one_prompt_count_as_fewer() {
    let null = Null::fit(Arc::new(normal(1, 400, 4)), CsiParameters::default());
    let latents = normal(2, 80, 4);
    let apart: Vec<_> = (0..80).map(Some).collect();
    assert_eq!(null.effective_samples(latents.view(), &apart), 80.0);
    assert_eq!(null.effective_samples(latents.view(), &[None; 80]), 80.0);
    // Eight equal answers to each of ten prompts tell what ten answers do.
    let same = Array2::from_shape_fn((80, 4), |(i, j)| latents[[i / 8, j]]);
    let prompts: Vec<_> = (0..80).map(|i| Some(i / 8)).collect();
    assert!((null.effective_samples(same.view(), &prompts) - 10.0).abs() < 1e-9);
    // Answers that have nothing to do with their prompts.
    let independent = null.effective_samples(latents.view(), &prompts);
    assert!(independent > 50.0, "{independent}");
}

#[test]
fn a_baseline_that_is_too_small_or_constant_has_no_null() {
    let observed = Observed {
        samples: 40,
        effective_samples: 40.0,
        energy: Some(1.0),
        csi_per_sample: Some(1.0),
        mop: Some(0.5),
        mop_threshold: Some(1.0),
        dispersion_ratio: Some(f64::NAN),
        distinct_ratio: None,
    };
    for latents in [normal(1, 10, 3), Array2::from_elem((50, 3), 0.5)] {
        let values = Null::fit(Arc::new(latents), CsiParameters::default()).judge(&observed);
        assert_eq!((values.energy, values.mop, values.dispersion), (None, None, None));
    }
}
