//! Loss, AdamW and learning rate against PyTorch and transformers.
//!
//! `tests/golden/loss.py` makes the golden values; `active_dimensions.py` those from NumPy.

use crate::support::golden::{golden, relative_error};
use candle_core::{Device, Tensor, Var};
use inform::model::HeadOutput;
use inform::ops::autograd::Parameter;
use inform::train::{
    AdamW, Gradients, KlReduction, LossConfig, LossMargin, OptimiserConfig, ScheduleConfig,
    ScheduleKind, active_dimensions, mean_margin, pair_loss,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct GoldenFile {
    dimension: usize,
    loss: Vec<LossCase>,
    adamw: Vec<AdamWCase>,
    schedule: Vec<ScheduleCase>,
}

#[derive(Deserialize)]
struct LossCase {
    reduction: String,
    beta: f64,
    pairs: usize,
    reward: Vec<f32>,
    posterior: Option<Vec<f32>>,
    total: f64,
    preference: f64,
    kl: f64,
    accuracy: f64,
    reward_gradient: Vec<f32>,
    posterior_gradient: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct AdamWCase {
    learning_rate: f64,
    beta2: f64,
    weight_decay: f64,
    clip_norm: f64,
    x: Vec<f32>,
    y: Vec<f32>,
    weight: Vec<f32>,
    scale: Vec<f32>,
    steps: Vec<AdamWStep>,
}

#[derive(Deserialize)]
struct AdamWStep {
    share: f64,
    norm: f64,
    weight: Vec<f32>,
    scale: Vec<f32>,
}

#[derive(Deserialize)]
struct ScheduleCase {
    kind: ScheduleKind,
    warmup_share: f64,
    final_share: f64,
    shares: Vec<f64>,
}

fn read() -> GoldenFile {
    serde_json::from_slice(&std::fs::read(golden("loss.json")).unwrap()).unwrap()
}

fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn pair_loss_and_its_gradients() {
    let golden = read();
    for case in &golden.loss {
        let name = format!("{}, beta {}", case.reduction, case.beta);
        let reward = var(&case.reward, &[2 * case.pairs, 1]);
        let shape = [2 * case.pairs, 2 * golden.dimension];
        let posterior = case.posterior.as_ref().map(|posterior| var(posterior, &shape));
        let output = HeadOutput {
            reward: reward.as_tensor().clone(),
            posterior: posterior.as_ref().map(|posterior| posterior.as_tensor().clone()),
        };
        let kl = match case.reduction.as_str() {
            "sample_mean" => KlReduction::SampleMean,
            "collapsed" => KlReduction::Collapsed,
            _ => KlReduction::Sum,
        };
        let settings = LossConfig { beta: case.beta, kl, ..LossConfig::default() };
        let loss = pair_loss(&output, &settings, &[]).unwrap();
        let close = |what: &str, found: f32, expected: f64| {
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs(), "{name}: {what}: {found} is not {expected}");
        };
        close("total", loss.total.to_scalar().unwrap(), case.total);
        close("preference", loss.preference, case.preference);
        close("KL", loss.kl, case.kl);
        close("accuracy", loss.accuracy, case.accuracy);

        let gradients = loss.total.backward().unwrap();
        // Entry by entry: the margin of 60 has a gradient of 1e-27 beside others of 0.1.
        let found = values(gradients.get(&reward).unwrap());
        for (found, &expected) in found.iter().zip(&case.reward_gradient) {
            close("gradient of a reward", *found, f64::from(expected));
        }
        if let (Some(posterior), Some(expected)) = (posterior, &case.posterior_gradient) {
            match gradients.get(&posterior) {
                Some(found) if case.beta > 0.0 => {
                    let error = relative_error(&values(found), expected);
                    assert!(error < 1e-6, "{name}: gradient of the posterior: {error:e}");
                }
                found => {
                    assert_eq!(case.beta, 0.0, "{name}: no gradient");
                    let found = found.map_or(Vec::new(), values);
                    assert!(found.iter().all(|&gradient| gradient == 0.0), "{name}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn adamw_with_clipping_and_decay_of_matrices_only() {
    for case in read().adamw {
        let name = format!("beta2 {}, decay {}", case.beta2, case.weight_decay);
        let weight = var(&case.weight, &[4, 3]);
        let scale = var(&case.scale, &[3]);
        let parameter = |name: &str, var: &Var, decays| Parameter {
            parts: vec![(name.to_owned(), var.dims()[0])],
            var: var.clone(),
            decays,
        };
        let config = OptimiserConfig {
            learning_rate: case.learning_rate,
            beta2: case.beta2,
            weight_decay: case.weight_decay,
            clip_norm: case.clip_norm,
            ..OptimiserConfig::default()
        };
        let parameters =
            vec![parameter("weight", &weight, true), parameter("scale", &scale, false)];
        let mut optimiser = AdamW::new(config, parameters.clone());
        let x = Tensor::from_vec(case.x, (5, 3), &Device::Cpu).unwrap();
        let y = Tensor::from_vec(case.y, (5, 4), &Device::Cpu).unwrap();
        for (number, step) in case.steps.iter().enumerate() {
            let scaled = x.broadcast_mul(&scale).unwrap();
            let error = (scaled.matmul(&weight.t().unwrap()).unwrap() - &y).unwrap();
            let loss = error.sqr().unwrap().mean_all().unwrap();
            let mut gradients = Gradients::new(parameters.clone());
            gradients.add(&mut loss.backward().unwrap()).unwrap();
            let norm = optimiser.step(&gradients, step.share).unwrap();
            assert!((norm / step.norm - 1.0).abs() < 1e-5, "{name}, step {number}: {norm}");
            for (what, found, expected) in
                [("weight", &weight, &step.weight), ("scale", &scale, &step.scale)]
            {
                let error = relative_error(&values(found), expected);
                assert!(error < 1e-5, "{name}, step {number}: {what}: {error:e}");
            }
        }
    }
}

#[test]
fn learning_rate_follows_transformers() {
    for case in read().schedule {
        let steps = case.shares.len();
        let schedule = ScheduleConfig {
            kind: case.kind,
            warmup_share: case.warmup_share,
            final_share: case.final_share,
            ..ScheduleConfig::default()
        };
        for (step, expected) in case.shares.iter().enumerate() {
            let found = schedule.share(step, steps);
            assert!((found - expected).abs() < 1e-12, "{:?}, step {step}: {found}", case.kind);
        }
    }
}

/// `-(1 - e) log sigmoid(x) - e log sigmoid(-x)` with `x = r_w - r_l - m`, and its derivative, in f64.
#[test]
fn label_smoothing_and_margins_are_their_formulas() {
    let rewards = [1.0f32, -0.5, 3.0, 0.2, 0.4, 3.0];
    let margins = [0.5f32, 0.0, -1.25];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (smoothing, margin) in
        [(0.0, LossMargin::Data), (0.1, LossMargin::None), (0.3, LossMargin::Data)]
    {
        let settings = LossConfig { label_smoothing: smoothing, margin, ..LossConfig::default() };
        let reward = Var::from_slice(&rewards, (6, 1), &Device::Cpu).unwrap();
        let output = HeadOutput { reward: reward.as_tensor().clone(), posterior: None };
        let loss = pair_loss(&output, &settings, &margins).unwrap();
        let gradients = loss.total.backward().unwrap();
        let gradients: Vec<f32> =
            gradients.get(&reward).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut expected = 0.0;
        for pair in 0..3 {
            let given = if margin == LossMargin::Data { margins[pair] } else { 0.0 };
            let x = f64::from(rewards[pair]) - f64::from(rewards[pair + 3]) - f64::from(given);
            expected -= ((1.0 - smoothing) * sigmoid(x).ln() + smoothing * sigmoid(-x).ln()) / 3.0;
            let slope = ((1.0 - smoothing) * -sigmoid(-x) + smoothing * sigmoid(x)) / 3.0;
            assert!((f64::from(gradients[pair]) - slope).abs() < 1e-6, "{smoothing} {margin:?}");
            assert!((f64::from(gradients[pair + 3]) + slope).abs() < 1e-6, "{smoothing}");
        }
        assert!((f64::from(loss.preference) - expected).abs() < 1e-6, "{smoothing} {margin:?}");
        // Accuracy is of the rewards, whatever the margin: one right, one wrong, one tie.
        assert!((loss.accuracy - 1.0 / 3.0).abs() < 1e-6);
    }
}

#[derive(Deserialize)]
struct LatentCase {
    dimension: usize,
    posterior: Vec<f32>,
    active: usize,
    rewards: Vec<f32>,
    margin: f64,
}

#[test]
fn active_dimensions_and_margins_are_numpys() {
    let cases = std::fs::read(golden("active_dimensions.json")).unwrap();
    for case in serde_json::from_slice::<Vec<LatentCase>>(&cases).unwrap() {
        assert_eq!(active_dimensions(&case.posterior, case.dimension), case.active);
        let (chosen, rejected) = case.rewards.split_at(case.rewards.len() / 2);
        let found = mean_margin(chosen, rejected);
        assert!((found - case.margin).abs() < 1e-12, "{found} is not {}", case.margin);
    }
}
