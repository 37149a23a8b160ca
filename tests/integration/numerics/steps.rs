//! Ten optimiser steps against PyTorch's in f64: gradients, clipping, schedule and AdamW together, through the whole model.
//!
//! `tests/golden/steps.py` makes the golden values.

use std::collections::HashMap;

use crate::support::golden::{Golden, golden, sketch, sketch_error};
use inform::checkpoint::Checkpoint;
use inform::model::RewardModel;
use inform::ops::Packing;
use inform::ops::autograd::AutogradOps;
use inform::ops::cpu::Precision;
use inform::train::{
    AdamW, Backward, Gradients, LossConfig, OptimiserConfig, ScheduleConfig, pair_loss,
};

const STEPS: usize = 10;

fn values(ops: &AutogradOps) -> HashMap<String, Vec<f32>> {
    let mut found = HashMap::new();
    for parameter in ops.parameters() {
        let mut first = 0;
        for (tensor, rows) in parameter.parts {
            let part = parameter.var.narrow(0, first, rows).unwrap().flatten_all().unwrap();
            first += rows;
            found.insert(tensor, part.to_vec1().unwrap());
        }
    }
    found
}

/// A loss and a tensor to 1e-5 relative. What was added to a tensor is less sure: AdamW divides by a gradient's own size,
/// so an entry whose gradient is rounding alone moves as far as others.
fn compare(name: &str) {
    let checkpoint = Checkpoint::open(&golden("tiny").join(name)).unwrap();
    let expected = Golden::read("steps.safetensors");
    // Preferred ones first, as training packs them.
    let sequences = Golden::read(&format!("tiny/{name}.safetensors")).sequences();
    let order: Vec<usize> =
        (0..sequences.len()).step_by(2).chain((1..sequences.len()).step_by(2)).collect();
    let texts: Vec<&Vec<u32>> = order.iter().map(|&index| &sequences[index]).collect();
    let packing = Packing::new(&texts).unwrap();
    let d = checkpoint.config.head.latent_dim().unwrap();
    let noise = expected.f32(&format!("{name}.noise"));

    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    let before = values(model.ops());
    let config = OptimiserConfig {
        learning_rate: 3e-3,
        weight_decay: 0.1,
        clip_norm: 0.5,
        ..OptimiserConfig::default()
    };
    let mut optimiser = AdamW::new(config, model.ops().parameters());
    let schedule = ScheduleConfig { warmup_share: 0.2, ..ScheduleConfig::default() };
    let (losses, norms) =
        (expected.f64(&format!("{name}.losses")), expected.f64(&format!("{name}.norms")));
    let mut worst = 0f64;
    for (step, noise) in noise.chunks_exact(sequences.len() * d).enumerate() {
        let noise: Vec<f32> =
            order.iter().flat_map(|&index| &noise[index * d..][..d]).copied().collect();
        let mut gradients = Gradients::new(model.ops().parameters());
        let recompute = step % 2 == 1;
        let noise = Some(noise.as_slice());
        let backward =
            Backward { model: &model, packing: &packing, entering: None, noise, recompute };
        let loss = |output: &_| Ok(pair_loss(output, &LossConfig::default(), &[])?);
        let (_, loss) = backward.run(loss, &mut gradients).unwrap();
        let total = f64::from(loss.total.to_scalar::<f32>().unwrap());
        let norm = optimiser.step(&gradients, schedule.share(step, STEPS)).unwrap();
        for (found, expected) in [(total, losses[step]), (norm, norms[step])] {
            let error = (found / expected - 1.0).abs();
            worst = worst.max(error);
            assert!(error < 1e-5, "{name}, step {step}: {found} for {expected}");
        }
    }
    let after = values(model.ops());
    let (mut worst_tensor, mut worst_step) = (0f64, 0f64);
    for (tensor, after) in after {
        let before = &before[&tensor];
        let added: Vec<f32> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let expected = expected.f64(&format!("{name}:{tensor}"));
        let error = sketch_error(&sketch(&added), &expected);
        let share = expected[0] / sketch(&after)[0];
        worst_step = worst_step.max(error);
        worst_tensor = worst_tensor.max(error * share);
        assert!(error * share < 1e-5, "{name}: {tensor}: {:e} of the tensor", error * share);
        assert!(error < 1e-3, "{name}: {tensor}: {error:e} of what was added");
    }
    println!(
        "{name}: losses and norms {worst:.1e}, tensors {worst_tensor:.1e}, what was added {worst_step:.1e}"
    );
}

#[test]
fn linear_decode_head() {
    compare("linear");
}

#[test]
fn gated_decode_head() {
    compare("gated");
}
