//! The nulls: against brute-force permutations (`golden/null.py`), and on fresh windows.

use crate::support::recipe::Recipe;
use inform::model::standard_normal;
use inform::monitor::statistics::csi::{CsiParameters, csi};
use inform::monitor::statistics::dispersion::total_variance;
use inform::monitor::statistics::energy::energy_distance;
use inform::monitor::statistics::null::{EnergyNull, Null, Observed};
use inform::monitor::{BaselineAnswers, BaselineOrigin, BaselineSet};
use ndarray::Array2;
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
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../golden/null.json")).unwrap();
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
            // The law is a limit: the far tail of few answers, some of a wide cluster, is heavier.
            let least = if n < 100.0 && level < 0.01 { 0.25 } else { 0.5 };
            assert!((least..2.0).contains(&ratio), "{}: {p}, not {level}", case.name);
            let back = null.upper_quantile(p, n);
            assert!((back / (quantile * convert) - 1.0).abs() < 1e-6, "{}", case.name);
        }
    }
}

fn normal(seed: u64, rows: usize, columns: usize) -> Array2<f64> {
    let values = standard_normal(seed, 0, rows * columns).into_iter().map(f64::from).collect();
    Array2::from_shape_vec((rows, columns), values).unwrap()
}

fn baseline(latents: &Array2<f64>) -> BaselineSet {
    let answers = BaselineAnswers {
        latents: latents.iter().copied().collect(),
        dimension: latents.ncols(),
        ..BaselineAnswers::default()
    };
    BaselineSet::new(answers, BaselineOrigin::Recorded, 1).unwrap()
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
        let parameters = CsiParameters { eps: 1.0, ..CsiParameters::default() };
        let set = baseline(&normal(1000 + population, 200, 6));
        let (reference, null) = (set.reference(&parameters), set.null(&parameters));
        let threshold = reference.outlier_distance(0.05).unwrap();
        for window in 0..25 {
            let n = [40, 100, 300][window % 3];
            let fresh = normal(population * 100 + window as u64, n, 6);
            let distances = reference.mahalanobis().unwrap().distances(fresh.view());
            let flagged = distances.iter().filter(|distance| **distance > threshold).count();
            let spread =
                total_variance(fresh.view()).unwrap() / reference.total_variance().unwrap();
            let separation = csi(fresh.view(), set.latents.view(), &parameters).unwrap();
            let observed = Observed {
                samples: n,
                effective_samples: n as f64,
                energy: energy_distance(fresh.view(), set.latents.view()),
                mop: Some(flagged as f64 / n as f64),
                mop_threshold: Some(threshold),
                dispersion_ratio: Some(spread),
                csi_per_sample: Some(separation.per_sample),
                distinct_ratio: None,
            };
            let values = null.judge(set.latents.view(), &observed);
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
    let null = Null::fit(normal(1, 400, 4).view(), &[], CsiParameters::default());
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
        let null = Null::fit(latents.view(), &[], CsiParameters::default());
        let values = null.judge(latents.view(), &observed);
        assert_eq!((values.energy, values.mop, values.dispersion), (None, None, None));
    }
}
