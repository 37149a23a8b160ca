//! Gradients of the InfoRM loss against PyTorch's autograd, for every tensor of a checkpoint.
//!
//! `tests/golden/gradients.py` makes the golden values.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use candle_core::{D, Tensor};
use common::{Golden, golden, sketch, sketch_error};
use inform::checkpoint::Checkpoint;
use inform::model::RewardModel;
use inform::ops::Packing;
use inform::ops::autograd::AutogradOps;
use inform::ops::cpu::Precision;

const BETA: f64 = 0.1;

/// `-log sigmoid(r_w - r_l) + beta (KL_w + KL_l)`, mean over pairs; sequences 0, 2, ... are preferred
/// to sequences 1, 3, ...
fn loss(reward: &Tensor, posterior: &Tensor) -> candle_core::Result<Tensor> {
    let pairs = reward.elem_count() / 2;
    let reward = reward.reshape((pairs, 2))?;
    let margin = (reward.narrow(1, 0, 1)? - reward.narrow(1, 1, 1)?)?;
    let preference = (margin.neg()?.exp()? + 1.0)?.log()?.mean_all()?;
    let dimension = posterior.dim(D::Minus1)? / 2;
    let mu = posterior.narrow(1, 0, dimension)?;
    let logvar = posterior.narrow(1, dimension, dimension)?;
    let divergence = (((mu.sqr()? + logvar.exp()?)? - 1.0)? - logvar)?;
    preference + (divergence.sum_all()? * (0.5 * BETA / pairs as f64))?
}

fn compare(name: &str) {
    let checkpoint = Checkpoint::open(&golden("tiny").join(name)).unwrap();
    let expected = Golden::read("gradients.safetensors");
    let sequences = Golden::read(&format!("tiny/{name}.safetensors")).sequences();
    let packing = Packing::new(&sequences).unwrap();
    let noise = expected.f32(&format!("{name}.noise"));
    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();

    let output = model.forward(&packing, Some(&noise)).unwrap();
    let loss = loss(&output.reward, &output.posterior.unwrap()).unwrap();
    let error = loss.to_scalar::<f32>().unwrap() / expected.f32(&format!("{name}.loss"))[0] - 1.0;
    assert!(error.abs() < 1e-5, "{name}: loss: {error:e}");

    let gradients = loss.backward().unwrap();
    let mut compared = Vec::new();
    let mut worst = (0f64, String::new());
    for parameter in model.ops().parameters() {
        let gradient = gradients.get(&parameter.var).unwrap();
        assert_eq!(gradient.shape(), parameter.var.shape());
        let mut first = 0;
        for (tensor, rows) in parameter.parts {
            let part = gradient.narrow(0, first, rows).unwrap().flatten_all().unwrap();
            first += rows;
            let found = sketch(&part.to_vec1::<f32>().unwrap());
            let error = sketch_error(&found, &expected.f64(&format!("{name}:{tensor}")));
            assert!(error < 1e-5, "{name}: {tensor}: {error:e}");
            if error > worst.0 {
                worst = (error, tensor.clone());
            }
            compared.push(tensor);
        }
    }
    compared.sort();
    let stored: Vec<String> = checkpoint
        .tensors
        .to_memory()
        .unwrap()
        .iter()
        .map(|(tensor, ..)| tensor.to_owned())
        .collect();
    assert_eq!(compared, stored, "{name}: every stored tensor is trained, once");
    println!("{name}: worst relative error {:.1e}, of {}", worst.0, worst.1);
}

#[test]
fn linear_decode_head_with_grouped_queries() {
    compare("linear");
}

#[test]
fn gated_decode_head() {
    compare("gated");
}
