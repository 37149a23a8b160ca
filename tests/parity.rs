//! Tiny checkpoints against PyTorch, and every sequence against itself in other batches.
//!
//! `tests/golden/tiny.py` makes the checkpoints and the golden values.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Golden, bits, golden, relative_error};
use inform::checkpoint::{Checkpoint, Input, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{Ops, Packing};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// An InfoRM head with a linear and with a gated decode head, and a standard head.
const CHECKPOINTS: [&str; 3] = ["linear", "gated", "standard"];

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&golden("tiny").join(name)).unwrap()
}

fn load(checkpoint: &Checkpoint, threads: usize) -> RewardModel<CpuOps> {
    let ops = CpuOps::new(threads, Precision::F32).unwrap();
    RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap()
}

#[test]
fn agrees_with_pytorch() {
    for name in CHECKPOINTS {
        let checkpoint = open(name);
        let expected = Golden::read(&format!("tiny/{name}.safetensors"));
        let sequences = expected.sequences();
        let model = load(&checkpoint, 1);
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

/// A reward's bits depend on its tokens alone: not on the batch, the order or the threads.
#[test]
fn batches_do_not_change_bits() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for name in CHECKPOINTS {
        let checkpoint = open(name);
        let models = [1, 2].map(|threads| load(&checkpoint, threads));
        let edges = [1, 1, 2, 47, 48, 49, 63, 64, 65, 96, 97, 128, 129, 299, 300];
        let drawn: Vec<usize> = (0..25).map(|_| random.random_range(1..=300)).collect();
        let alone: Vec<(Vec<u32>, Vec<u32>)> = edges
            .into_iter()
            .chain(drawn)
            .map(|length| {
                let vocabulary = checkpoint.config.decoder.vocab_size as u32;
                let ids: Vec<u32> =
                    (0..length).map(|_| random.random_range(0..vocabulary)).collect();
                let bits = bits(&models[0].score(&[&ids]).unwrap()[0]);
                (ids, bits)
            })
            .collect();
        for (ids, expected) in &alone {
            assert_eq!(bits(&models[1].score(&[ids]).unwrap()[0]), *expected, "{name}, 2 threads");
        }
        for composition in 0..50 {
            let count = random.random_range(2..=12);
            let batch: Vec<_> = (0..count).map(|_| alone.choose(&mut random).unwrap()).collect();
            let sequences: Vec<&[u32]> = batch.iter().map(|(ids, _)| ids.as_slice()).collect();
            for model in &models {
                let scores = model.score(&sequences).unwrap();
                assert_eq!(scores.len(), batch.len());
                for (score, (ids, expected)) in scores.iter().zip(&batch) {
                    let threads = model.ops().threads();
                    assert_eq!(
                        bits(score),
                        *expected,
                        "{name}: composition {composition}, {threads} threads, {} tokens",
                        ids.len()
                    );
                }
            }
        }
    }
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
