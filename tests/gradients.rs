//! Gradients of the InfoRM loss against PyTorch's autograd, for every tensor of a checkpoint.
//!
//! `tests/golden/gradients.py` makes the golden values.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use candle_core::{D, Tensor};
use common::{Golden, golden};
use inform::checkpoint::Checkpoint;
use inform::model::RewardModel;
use inform::ops::Packing;
use inform::ops::autograd::AutogradOps;
use inform::ops::cpu::{CpuOps, Precision};

const BETA: f64 = 0.1;
/// Signed sums by which a gradient is compared.
const SUMS: usize = 32;

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

fn splitmix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The norm, then sums over all entries with random signs.
fn sketch(gradient: &[f32]) -> Vec<f64> {
    let mut sums = vec![0f64; 1 + SUMS];
    for (i, &value) in gradient.iter().enumerate() {
        let value = f64::from(value);
        sums[0] += value * value;
        let signs = splitmix(i as u64);
        for (bit, sum) in sums[1..].iter_mut().enumerate() {
            *sum += if signs >> bit & 1 == 1 { value } else { -value };
        }
    }
    sums[0] = sums[0].sqrt();
    sums
}

/// The relative error of a gradient, estimated from its sketch: a signed sum's expected square is
/// the squared norm.
fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    let sums = found[1..].iter().zip(&expected[1..]);
    let sums = (sums.map(|(f, e)| (f - e).powi(2)).sum::<f64>() / SUMS as f64).sqrt();
    sums.max((found[0] - expected[0]).abs()) / expected[0]
}

fn compare(name: &str) {
    let checkpoint = Checkpoint::open(&golden("tiny").join(name)).unwrap();
    let expected = Golden::read("gradients.safetensors");
    let sequences = Golden::read(&format!("tiny/{name}.safetensors")).sequences();
    let packing = Packing::new(&sequences).unwrap();
    let noise = expected.f32(&format!("{name}.noise"));
    let ops = AutogradOps::new(CpuOps::new(1, Precision::F32).unwrap());
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
            let error = relative_error(&found, &expected.f64(&format!("{name}:{tensor}")));
            assert!(error < 1e-4, "{name}: {tensor}: {error:e}");
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
