//! What the latents of a head carry, against PyTorch and NumPy.
//!
//! `tests/golden/latents.py` makes the golden values.

use crate::support::golden::golden;
use inform::model::{Latent, Score};
use inform::train::LatentDiagnostics;
use serde::Deserialize;

#[derive(Deserialize)]
struct GoldenFile {
    mean: Vec<Vec<f32>>,
    sigma: Vec<Vec<f32>>,
    kl: f64,
    kl_by_dimension: Vec<f64>,
    mean_variance: Vec<f64>,
    active_units: usize,
    sigma_mean: f64,
}

fn scores(golden: &GoldenFile) -> Vec<Score> {
    let latents = golden.mean.iter().cloned().zip(golden.sigma.iter().cloned());
    let latents = latents.map(|(mean, sigma)| Latent { mean, sigma });
    latents.map(|latent| Score { latent: Some(latent), ..Score::default() }).collect()
}

#[test]
fn divergence_active_units_and_width_are_those_of_pytorch_and_numpy() {
    let text = std::fs::read(golden("latents.json")).unwrap();
    let golden: GoldenFile = serde_json::from_slice(&text).unwrap();
    let found = LatentDiagnostics::of(&scores(&golden)).unwrap();
    let near = |found: f64, expected: f64| {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} {expected}");
    };
    assert_eq!((found.answers, found.dimension()), (golden.mean.len(), golden.mean[0].len()));
    assert_eq!(found.active_units, golden.active_units);
    near(found.kl, golden.kl);
    near(found.sigma_mean, golden.sigma_mean);
    for unit in 0..found.dimension() {
        near(found.kl_by_dimension[unit], golden.kl_by_dimension[unit]);
        near(found.mean_variance[unit], golden.mean_variance[unit]);
    }
    let sorted: Vec<f64> = found.largest().into_iter().map(|(_, kl)| kl).collect();
    assert!(sorted.is_sorted_by(|a, b| a >= b));
    for (unit, kl) in found.largest() {
        assert_eq!(found.kl_by_dimension[unit], kl);
    }
}

#[test]
fn without_latents_or_finite_ones_there_are_no_diagnostics() {
    let text = std::fs::read(golden("latents.json")).unwrap();
    let mut scores = scores(&serde_json::from_slice(&text).unwrap());
    assert_eq!(LatentDiagnostics::of(&[]), None);
    // A sigma that underflowed has an infinite divergence, which no JSON holds.
    scores[7].latent.as_mut().unwrap().sigma[2] = 0.0;
    assert_eq!(LatentDiagnostics::of(&scores), None);
    scores[7].latent = None;
    assert_eq!(LatentDiagnostics::of(&scores), None);
}
