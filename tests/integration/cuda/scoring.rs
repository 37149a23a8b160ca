//! The CUDA device against PyTorch, and beside a second one. Needs the feature `cuda` and a device, real or
//! emulated (`tests/kernels/device`); skipped without one, unless `REQUIRE_CUDA` is set.

use std::path::Path;

use crate::support::golden::{Golden, golden, relative_error};
use inform::checkpoint::{
    Checkpoint, DecodeKind, FolderTensors, HeadConfig, MemoryTensors, ModelConfig,
};
use inform::config::{DeviceChoice, ServerConfig};
use inform::model::{RewardModel, Score, Scorer, initialise_head, standard_normal};
use inform::model_loader::ServedModel;
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::cuda::{CudaError, CudaOps};
use inform::ops::{DeviceOps, HeadOps, Packing, WeightOps};
use inform::ops::{InformHead, LatentDecoder, inform_head_in_steps};
use inform::placement::Devices;
use inform::train::init_head;

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

/// A bf16 product rounds its inputs and weights by 2^-9 each, independently, and two layers of seven products add such
/// errors to states of their size: 2 % is some five times what that comes to, and far from what a wrong element does.
fn compare(what: &str, found: &[f32], expected: &[f32]) {
    let error = relative_error(found, expected);
    println!("{what}: {error:.1e}");
    assert!(error > 0.0 && error < 0.02, "{what}: {error:e}");
}

fn latents(scores: &[Score]) -> (Vec<f32>, Vec<f32>) {
    let latents = || scores.iter().map(|score| score.latent.as_ref().unwrap());
    let logvar = latents().flat_map(|latent| latent.sigma.iter().map(|sigma| 2.0 * sigma.ln()));
    (latents().flat_map(|latent| latent.mean.clone()).collect(), logvar.collect())
}

fn rewards(scores: &[Score]) -> Vec<f32> {
    scores.iter().map(|score| score.reward).collect()
}

#[test]
fn agrees_with_pytorch_to_the_precision_of_bf16() {
    let Some(ops) = device() else { return };
    let checkpoint = Checkpoint::open(&golden("tiny/linear")).unwrap();
    let expected = Golden::read("tiny/linear.safetensors");
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    let packing = Packing::shared(&expected.sequences()).unwrap();
    let hidden = model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap();
    compare("hidden", &hidden, &expected.f32("hidden"));
    let scores = model.score_packed(&packing).unwrap();
    compare("reward", &rewards(&scores), &expected.f32("reward"));
    let (mean, logvar) = latents(&scores);
    compare("mu", &mean, &expected.f32("mu"));
    compare("logvar", &logvar, &expected.f32("logvar"));
}

/// Every kind of head, and the spread over draws of a latent.
#[test]
fn agrees_with_the_cpu() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-heads");
    let texts: Vec<Vec<u32>> =
        (1..30).map(|n| (0..3 * n).map(|i| (7 * n + i) % 256).collect()).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let heads = [
        HeadConfig::inform(24, DecodeKind::Linear),
        HeadConfig::inform(24, DecodeKind::Gated),
        HeadConfig::standard(),
    ];
    for (index, head) in heads.into_iter().enumerate() {
        let Some(ops) = device() else { return };
        let folder = folder.join(index.to_string());
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        init_head(&golden("tiny/linear"), &folder, &head, 5).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let Checkpoint { config, tensors, .. } = &checkpoint;
        let cpu = CpuOps::new(1, Precision::F32).unwrap();
        let (cpu, gpu) = (
            RewardModel::load(cpu, config, tensors).unwrap(),
            RewardModel::load(ops, config, tensors).unwrap(),
        );
        let (expected, found) = (cpu.score(&texts).unwrap(), gpu.score(&texts).unwrap());
        compare(&format!("{head:?}: reward"), &rewards(&found), &rewards(&expected));
        if expected[3].latent.is_some() {
            let ((mean, logvar), (cpu_mean, cpu_logvar)) = (latents(&found), latents(&expected));
            compare("mu", &mean, &cpu_mean);
            compare("logvar", &logvar, &cpu_logvar);
            // The same noise on the same latent, and heads are f32 on both.
            let models: [&dyn Scorer; 2] = [&cpu, &gpu];
            let [cpu, gpu] =
                models.map(|model| model.reward_spread(&expected[3], 100).unwrap().unwrap());
            assert!(cpu > 0.0 && (cpu - gpu).abs() < 1e-5 * cpu, "{gpu} against {cpu}");
        }
    }
}

/// One launch and many give the same to f32's precision, with weights that bf16 holds and that it does not.
#[test]
fn the_fused_head_is_the_head_step_by_step() {
    for (index, decode) in [DecodeKind::Linear, DecodeKind::Gated].into_iter().enumerate() {
        let Some(ops) = device() else { return };
        let (hidden, d, rows) = (72, 20, 37);
        let mut tensors = MemoryTensors::default();
        initialise_head(&mut tensors, &HeadConfig::inform(d, decode), hidden, 3);
        let norm: Vec<f32> = (0..hidden).map(|i| 1.0 + i as f32 / 100.0).collect();
        tensors.insert("norm", &[hidden], norm);
        let weight =
            |parts: &[(&str, usize)], columns| ops.head_weight(&tensors, parts, columns).unwrap();
        let decode = if decode == DecodeKind::Linear {
            LatentDecoder::Linear(weight(&[("decode_head.weight", 1)], d))
        } else {
            let parts = ["gate_proj", "up_proj"].map(|part| format!("decode_head.{part}.weight"));
            let gate_up = weight(&[(&parts[0], 4 * d), (&parts[1], 4 * d)], d);
            LatentDecoder::Gated {
                gate_up,
                down: weight(&[("decode_head.down_proj.weight", 1)], 4 * d),
            }
        };
        let encode = weight(&[("encode_head.weight", 2 * d)], hidden);
        let head = InformHead { encode, decode, latent_dim: d };
        let scale = ops.scale(&tensors, "norm", hidden).unwrap();
        let x = ops.upload(standard_normal(1, index as u64, rows * hidden), hidden).unwrap();
        let fused = ops.inform_head(&x, (&scale, 1e-5), &head, None).unwrap();
        let steps = inform_head_in_steps(&ops, &x, (&scale, 1e-5), &head, None).unwrap();
        for (fused, steps) in [(fused.0, steps.0), (fused.1, steps.1)] {
            let error = relative_error(&ops.read(&fused).unwrap(), &ops.read(&steps).unwrap());
            println!("fused against step by step: {error:.1e}");
            assert!(error < 2e-5, "{error:e}");
        }
    }
}

/// Heads of 12 channels: no kernel, and a plain answer before anything is loaded.
#[test]
fn a_model_that_the_kernels_do_not_know_is_refused() {
    let Some(ops) = device() else { return };
    let served = ServedModel::from(Checkpoint::open(&golden("tiny/gated")).unwrap());
    let error = ops.supports(&served.checkpoint.config.decoder).unwrap_err();
    assert!(error.to_string().contains("heads have 12 channels"), "{error}");
    let mut config = ServerConfig { device: DeviceChoice::Cuda(vec![0]), ..Default::default() };
    let error = Devices::load(&config, &served).err().unwrap();
    assert!(format!("{error:#}").starts_with("device: heads have 12"), "{error:#}");
    config.device = DeviceChoice::Auto;
    assert!(Devices::load(&config, &served).unwrap().name.starts_with("cpu"));
    let qwen = ModelConfig::read(&golden("families/qwen2")).unwrap();
    let error = ops.supports(&qwen.decoder).unwrap_err();
    assert_eq!(error.to_string(), "a GPU does not support this Qwen2 model yet: biases");
}

#[test]
fn a_sliding_window_agrees_with_pytorch_to_the_precision_of_bf16() {
    let Some(ops) = device() else { return };
    let folder = golden("families/mistral");
    let config = ModelConfig::read(&folder).unwrap();
    let tensors = FolderTensors::open(&folder).unwrap();
    let model = RewardModel::load(ops, &config, &tensors).unwrap();
    let expected = Golden::read("families/mistral.safetensors");
    let sequences = expected.sequences();
    let packing = Packing::shared(&sequences).unwrap();
    let hidden = model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap();
    let width = config.decoder.hidden_size;
    let all = expected.f32("hidden");
    let mut end = 0;
    for (found, ids) in hidden.chunks(width).zip(&sequences) {
        end += ids.len();
        compare(&format!("{} tokens", ids.len()), found, &all[(end - 1) * width..end * width]);
    }
}

#[test]
fn every_device_gives_the_same_bits() {
    let Some(_) = device() else { return };
    let served = ServedModel::from(Checkpoint::open(&golden("tiny").join("linear")).unwrap());
    let mut config = ServerConfig { device: DeviceChoice::Cuda(Vec::new()), ..Default::default() };
    config.cuda.product_rows = PIECES.to_vec();
    let devices = Devices::load(&config, &served).unwrap();
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
