//! Tiny checkpoints against PyTorch, and bf16 against f32.
//!
//! `tests/golden/tiny.py` makes the checkpoints and the golden values.

use crate::support::golden::{Golden, golden, relative_error};
use inform::checkpoint::{Checkpoint, Input, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DeviceOps, Packing};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// An InfoRM head with a linear and with a gated decode head, and a standard head.
const CHECKPOINTS: [&str; 3] = ["linear", "gated", "standard"];

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&golden("tiny").join(name)).unwrap()
}

#[test]
fn agrees_with_pytorch() {
    for name in CHECKPOINTS {
        let checkpoint = open(name);
        let expected = Golden::read(&format!("tiny/{name}.safetensors"));
        let sequences = expected.sequences();
        let ops = CpuOps::new(1, Precision::F32).unwrap();
        let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
        let mut worst = 0f64;
        let mut compare = |what: &str, found: &[f32], expected: &[f32]| {
            let error = relative_error(found, expected);
            assert!(error < 1e-5, "{name}: {what}: {error:e}");
            worst = worst.max(error);
        };

        let packing = Packing::new(&sequences).unwrap();
        let hidden = model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap();
        let width = checkpoint.config.decoder.hidden_size;
        for (found, expected) in hidden.chunks(width).zip(expected.f32("hidden").chunks(width)) {
            compare("hidden", found, expected);
        }
        let scores = model.score(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let rewards: Vec<f32> = scores.iter().map(|score| score.reward).collect();
        compare("reward", &rewards, &expected.f32("reward"));
        if let Some(d) = checkpoint.config.head.latent_dim() {
            let (mu, logvar) = (expected.f32("mu"), expected.f32("logvar"));
            for ((score, mu), logvar) in scores.iter().zip(mu.chunks(d)).zip(logvar.chunks(d)) {
                let latent = score.latent.as_ref().unwrap();
                compare("mu", &latent.mean, mu);
                let found: Vec<f32> = latent.sigma.iter().map(|sigma| 2.0 * sigma.ln()).collect();
                compare("logvar", &found, logvar);
            }
        } else {
            assert!(scores.iter().all(|score| score.latent.is_none()));
        }
        println!("{name}: worst relative error {worst:.1e}");
    }
}

/// Products in bf16 stay close to those in f32.
#[test]
fn bf16_is_near_f32() {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let checkpoint = open("linear");
    let vocabulary = checkpoint.config.decoder.vocab_size as u32;
    let texts: Vec<Vec<u32>> = (0..64)
        .map(|_| {
            let length = random.random_range(1..=300);
            (0..length).map(|_| random.random_range(0..vocabulary)).collect()
        })
        .collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let rewards = |precision| {
        let ops = CpuOps::new(2, precision).ok()?;
        let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
        let scores = model.score(&texts).unwrap();
        Some(scores.into_iter().map(|score| f64::from(score.reward)).collect::<Vec<f64>>())
    };
    let exact = rewards(Precision::F32).unwrap();
    let Some(rounded) = rewards(Precision::Bf16) else {
        println!("skipped: this processor has no bf16 products");
        return;
    };
    let root_mean_square =
        |x: &mut dyn Iterator<Item = f64>| (x.map(|v| v * v).sum::<f64>() / 64.0).sqrt();
    let error = root_mean_square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b));
    let scale = root_mean_square(&mut exact.iter().copied());
    println!("bf16 against f32: {:.1e} of the rewards' size", error / scale);
    assert!(error > 0.0 && error < 0.02 * scale, "{error} against {scale}");
}

#[derive(Deserialize)]
struct Case {
    messages: Option<Vec<Message>>,
    text: Option<String>,
    ids: Vec<u32>,
}

#[test]
fn encodes_as_transformers() {
    for name in CHECKPOINTS {
        let encoder = open(name).encoder;
        let cases = std::fs::read(golden(&format!("tiny/{name}.json"))).unwrap();
        for case in serde_json::from_slice::<Vec<Case>>(&cases).unwrap() {
            let input = case.messages.map(Input::Messages).or(case.text.map(Input::Text)).unwrap();
            let encoding = encoder.encode(&input, false).unwrap();
            assert_eq!(encoding.ids, case.ids, "{name}: {input:?}");
        }
    }
}
