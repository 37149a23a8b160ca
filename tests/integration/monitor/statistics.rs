//! The statistics of windows that have little to compute them from: absent, never NaN, never a panic.

use std::sync::Arc;

use inform::monitor::statistics::StatisticsParameters;
use inform::monitor::statistics::csi::{
    CsiError, CsiParameters, EpsMode, LatentSet, NoisePolicy, csi,
};
use inform::monitor::{BaselineAnswers, BaselineOrigin, BaselineSet, Sample};
use inform::monitor::{WindowEvaluation, evaluate_window};
use ndarray::Array2;

fn sample(latent: &[f32], reward: f32, prompt: Option<u64>, sequence: u64) -> Sample {
    Sample {
        latent: latent.to_vec(),
        sigma: 0.5,
        divergence: 3.0,
        reward,
        tokens: sequence as u32 + 10,
        response_characters: None,
        prompt,
        sequence,
        request: Arc::from("request"),
        index: sequence as u32,
    }
}

fn baseline(samples: &[Sample]) -> BaselineSet {
    let mut answers = BaselineAnswers::default();
    samples.iter().for_each(|sample| answers.push(sample));
    BaselineSet::new(answers, BaselineOrigin::Recorded, 1).unwrap()
}

fn evaluate(samples: &[Sample], baseline: Option<&BaselineSet>) -> WindowEvaluation {
    evaluate_window(samples, baseline, &StatisticsParameters::default())
}

/// Points on a curve in `dimension` dimensions, of which no two are the same.
fn curve(count: usize, dimension: usize, offset: f32) -> Vec<Sample> {
    let point = |i: usize| -> Vec<f32> {
        (0..dimension).map(|j| offset + ((i * (j + 3)) as f32 * 0.7).sin()).collect()
    };
    (0..count).map(|i| sample(&point(i), i as f32, Some(i as u64 / 2), i as u64)).collect()
}

fn all_finite(evaluation: &WindowEvaluation) {
    let value = serde_json::to_value(&evaluation.statistics).unwrap();
    // serde_json writes what is not finite as null; what may not be null must be there.
    for name in ["reward_mean", "reward_std", "tokens_mean"] {
        assert!(value[name].is_number(), "{name}: {value}");
    }
    let shown = format!("{:?}", evaluation.statistics);
    assert!(!shown.contains("NaN") && !shown.contains("inf"), "{shown}");
}

#[test]
fn every_size_of_window_and_baseline_has_an_evaluation() {
    for dimension in [0, 1, 2, 5, 130] {
        for policy in [0, 1, 2, 3, 70] {
            for sft in [1, 2, 3, 5, 40] {
                for identical in [false, true] {
                    let take = |count, offset| {
                        let samples = curve(count, dimension, offset);
                        let same =
                            |s: &Sample| Sample { latent: vec![offset; dimension], ..s.clone() };
                        if identical { samples.iter().map(same).collect() } else { samples }
                    };
                    let samples: Vec<Sample> = take(policy, 0.3);
                    all_finite(&evaluate(&samples, None));
                    if dimension > 0 {
                        let evaluation = evaluate(&samples, Some(&baseline(&take(sft, 0.0))));
                        all_finite(&evaluation);
                        let statistics = &evaluation.statistics;
                        assert_eq!(statistics.csi.is_some(), policy > 0);
                        assert_eq!(statistics.energy.is_some(), policy > 0);
                        assert_eq!(statistics.knn_distance.is_some(), policy > 0 && sft >= 5);
                        assert_eq!(evaluation.csi_error, None);
                    }
                }
            }
        }
    }
}

#[test]
fn without_a_baseline_there_is_what_needs_none() {
    let samples = curve(40, 3, 0.0);
    let evaluation = evaluate(&samples, None);
    let statistics = &evaluation.statistics;
    assert_eq!(evaluation.csi_error, None);
    assert!(evaluation.distances.is_empty());
    assert_eq!((statistics.csi, statistics.energy, statistics.mop), (None, None, None));
    assert_eq!((statistics.dispersion_ratio, statistics.saturation), (None, None));
    assert_eq!((statistics.eps, statistics.distinct_ratio), (Some(0.5), Some(1.0)));
    assert!(statistics.clusters.is_some() && statistics.noise_fraction.is_some());
    assert_eq!((statistics.groups, statistics.group_zero_variance_rate), (20, Some(0.0)));
    assert_eq!((statistics.sigma_mean, statistics.divergence_mean), (Some(0.5), Some(3.0)));
    assert!(statistics.reward_length_rho.unwrap() > 0.99);
}

#[test]
fn what_cannot_be_compared_is_named() {
    let set = baseline(&curve(20, 3, 0.0));
    let mismatch = CsiError::DimensionMismatch { policy: 2, baseline: 3 };
    assert_eq!(evaluate(&curve(9, 2, 0.0), Some(&set)).csi_error, Some(mismatch.clone()));
    let mut samples = curve(9, 3, 0.0);
    samples[4].latent.pop();
    assert_eq!(evaluate(&samples, Some(&set)).csi_error, Some(mismatch));
    samples[4].latent.push(f32::NAN);
    let broken = CsiError::NonFinite { set: LatentSet::Policy, row: 4 };
    let evaluation = evaluate(&samples, Some(&set));
    assert_eq!(evaluation.csi_error, Some(broken));
    all_finite(&evaluation);
    // A standard reward model has no latents.
    let empty = CsiError::Empty { set: LatentSet::Policy, rows: 9, dimension: 0 };
    assert_eq!(evaluate(&curve(9, 0, 0.0), Some(&set)).csi_error, Some(empty));
}

#[test]
fn the_window_has_the_csi_of_its_latents_under_every_policy() {
    let (policy, sft) = (curve(300, 4, 0.2), curve(270, 4, 0.0));
    let set = baseline(&sft);
    let values = policy.iter().flat_map(|sample| &sample.latent).map(|&v| f64::from(v)).collect();
    let latents = Array2::from_shape_vec((300, 4), values).unwrap();
    for noise in [NoisePolicy::Paper, NoisePolicy::Singletons, NoisePolicy::Drop] {
        for (eps_mode, eps, min_samples) in
            [(EpsMode::Fixed, 0.1, 5), (EpsMode::Fixed, 0.5, 1), (EpsMode::Calibrated, 0.5, 4)]
        {
            let csi_parameters =
                CsiParameters { eps, eps_mode, min_samples, noise, eps_quantile: 0.5 };
            let expected = csi(latents.view(), set.latents.view(), &csi_parameters).unwrap();
            let parameters =
                StatisticsParameters { csi: csi_parameters, ..StatisticsParameters::default() };
            let found = evaluate_window(&policy, Some(&set), &parameters).statistics;
            assert!((found.csi.unwrap() - expected.csi).abs() <= 1e-12 * expected.csi);
            assert_eq!(found.clusters, Some(expected.clusters));
            assert_eq!(found.noise_fraction, Some(expected.noise_fraction));
            assert_eq!(found.eps, Some(expected.eps));
            assert_eq!(eps_mode == EpsMode::Fixed, expected.eps == eps);
        }
    }
}

#[test]
fn answers_are_paired_with_the_nearest_of_their_prompt() {
    let sft = [
        sample(&[0.0, 0.0], 0.0, Some(1), 0),
        sample(&[6.0, 0.0], 1.0, Some(1), 1),
        sample(&[9.0, 9.0], 2.0, Some(2), 2),
        sample(&[5.0, 5.0], 3.0, None, 3),
    ];
    let policy = [
        sample(&[3.0, 4.0], 0.5, Some(1), 0),
        sample(&[9.0, 8.0], 9.0, Some(2), 1),
        sample(&[0.0, 0.0], 9.0, Some(3), 2),
        sample(&[0.0, 0.0], 9.0, Some(3), 2),
        sample(&[0.0, 0.0], 9.0, None, 2),
    ];
    let found = evaluate(&policy, Some(&baseline(&sft))).statistics;
    assert_eq!(found.paired_samples, 2);
    assert!((found.paired_distance.unwrap() - 3.0).abs() < 1e-12);
    assert_eq!(found.saturation, Some(0.8));
    assert_eq!((found.groups, found.group_zero_variance_rate), (1, Some(1.0)));
    assert_eq!(found.distinct_ratio, Some(0.6));
}

#[test]
fn a_collapse_shows_in_the_dispersion() {
    let set = baseline(&curve(100, 6, 0.0));
    let same: Vec<Sample> =
        curve(50, 6, 0.0).iter().map(|s| Sample { latent: vec![0.1; 6], ..s.clone() }).collect();
    let found = evaluate(&same, Some(&set)).statistics;
    assert_eq!((found.dispersion_ratio, found.dispersion_log_det), (Some(0.0), None));
    assert_eq!(found.clusters, Some(1));
    assert!(found.energy.unwrap() > 0.0);
}
