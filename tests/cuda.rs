//! The CUDA device against PyTorch, and beside a second one. Needs the feature `cuda` and a device, real or
//! emulated (`tests/kernels/device`); skipped without one, unless `REQUIRE_CUDA` is set.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Golden, golden, relative_error};
use inform::checkpoint::Checkpoint;
use inform::config::{DeviceChoice, ServerConfig};
use inform::device::Devices;
use inform::model::{RewardModel, Scorer};
use inform::ops::cuda::{CudaError, CudaOps};
use inform::ops::{Ops, Packing};

/// Small: an emulated device is slow.
const PIECES: [usize; 2] = [16, 64];

/// The device, or why the test is skipped.
fn device() -> Option<CudaOps> {
    match CudaOps::new(0, &PIECES) {
        Ok(ops) => Some(ops),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// Hidden states, posteriors and rewards of PyTorch in f32. A bf16 product rounds its inputs and weights to 2^-9 each,
/// independently, and two layers of seven products add such errors to states of their size: 1 % is some five
/// times what that comes to, and far from what a wrong element does.
#[test]
fn agrees_with_pytorch_to_the_precision_of_bf16() {
    for name in ["linear", "gated", "standard"] {
        let Some(ops) = device() else { return };
        let checkpoint = Checkpoint::open(&golden("tiny").join(name)).unwrap();
        let expected = Golden::read(&format!("tiny/{name}.safetensors"));
        let sequences = expected.sequences();
        let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
        let packing = Packing::shared(&sequences).unwrap();
        let hidden = model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap();
        let mut errors = vec![("hidden", relative_error(&hidden, &expected.f32("hidden")))];
        let scores = model.score_packed(&packing).unwrap();
        let rewards: Vec<f32> = scores.iter().map(|score| score.reward).collect();
        errors.push(("reward", relative_error(&rewards, &expected.f32("reward"))));
        if checkpoint.config.head.latent_dim().is_some() {
            let latents = || scores.iter().map(|score| score.latent.as_ref().unwrap());
            let mean: Vec<f32> = latents().flat_map(|latent| latent.mean.clone()).collect();
            errors.push(("mu", relative_error(&mean, &expected.f32("mu"))));
            let sigma = latents().flat_map(|latent| latent.sigma.clone());
            let logvar: Vec<f32> = sigma.map(|sigma| 2.0 * sigma.ln()).collect();
            errors.push(("logvar", relative_error(&logvar, &expected.f32("logvar"))));
            let spread = model.reward_spread(scores[0].latent.as_ref().unwrap(), 100).unwrap();
            assert!(spread.is_finite() && spread > 0.0);
        }
        println!("{name}: {errors:?}");
        for (what, error) in errors {
            assert!(error > 0.0 && error < 0.01, "{name}: {what}: {error:e}");
        }
    }
}

#[test]
fn every_device_gives_the_same_bits() {
    let Some(_) = device() else { return };
    let checkpoint = Checkpoint::open(&golden("tiny").join("linear")).unwrap();
    let mut config = ServerConfig { device: DeviceChoice::Cuda(Vec::new()), ..Default::default() };
    config.cuda.product_rows = PIECES.to_vec();
    let devices = Devices::load(&config, &checkpoint).unwrap();
    println!("{}", devices.name);
    assert_eq!(devices.scorers.len(), CudaOps::count().unwrap());
    let scores: Vec<_> = devices
        .scorers
        .iter()
        .map(|scorer| scorer.score(&[&[1, 2, 3], &[1, 2]]).unwrap())
        .collect();
    assert!(scores.iter().all(|score| *score == scores[0]));
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let Some(_) = device() else { return };
    let count = CudaOps::count().unwrap();
    let error = CudaOps::new(count, &PIECES).unwrap_err();
    assert!(matches!(error, CudaError::NoSuchDevice { .. }));
    assert_eq!(error.to_string(), format!("there is no GPU {count}: the driver knows {count}"));
}
