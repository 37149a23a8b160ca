//! Common prefixes are computed once, and no bit of a score changes: not with the sharing, the batch, the
//! order, the threads or the precision in which it is done.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{bits, golden};
use inform::checkpoint::Checkpoint;
use inform::model::{RewardModel, Scorer};
use inform::ops::Packing;
use inform::ops::cpu::{CpuOps, Precision};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A tree of texts: each continues an earlier one from a random cut, or stands alone; some stand twice.
fn texts(random: &mut ChaCha8Rng, vocabulary: u32) -> Vec<Vec<u32>> {
    let mut texts: Vec<Vec<u32>> = Vec::new();
    for _ in 0..64 {
        let mut text = match texts.choose(random) {
            Some(earlier) if random.random_bool(0.8) => {
                let cut = random.random_range(0..=earlier.len());
                earlier[..cut].to_vec()
            }
            _ => Vec::new(),
        };
        let tail = random.random_range(0..=200);
        text.extend((0..tail).map(|_| random.random_range(0..vocabulary)));
        if text.is_empty() {
            text.push(random.random_range(0..vocabulary));
        }
        texts.push(text);
    }
    texts
}

#[test]
fn sharing_changes_no_bit() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for name in ["tiny/linear", "tiny/gated", "tiny/standard"] {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap();
        let texts = texts(&mut random, checkpoint.config.decoder.vocab_size as u32);
        for precision in [Precision::F32, Precision::Bf16] {
            let Ok(ops) = CpuOps::new(1, precision) else {
                println!("skipped: this processor has no {}", precision.name());
                continue;
            };
            let load =
                |ops| RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
            let one = load(ops);
            let two = load(CpuOps::new(2, precision).unwrap());
            let alone: Vec<Vec<u32>> =
                texts.iter().map(|text| bits(&one.score(&[text]).unwrap()[0])).collect();
            let mut saved = 0;
            for composition in 0..70 {
                let count = random.random_range(1..=24);
                let chosen: Vec<usize> =
                    (0..count).map(|_| random.random_range(0..texts.len())).collect();
                let batch: Vec<&[u32]> = chosen.iter().map(|&i| texts[i].as_slice()).collect();
                saved +=
                    Packing::new(&batch).unwrap().rows() - Packing::shared(&batch).unwrap().rows();
                for model in [&one, &two] {
                    for packing in [Packing::new(&batch), Packing::shared(&batch)] {
                        let packing = packing.unwrap();
                        let scores = model.score_packed(&packing).unwrap();
                        for (score, &index) in scores.iter().zip(&chosen) {
                            assert_eq!(
                                bits(score),
                                alone[index],
                                "{name}, {}, composition {composition}, {} rows",
                                precision.name(),
                                packing.rows()
                            );
                        }
                    }
                }
            }
            assert!(saved > 10_000, "only {saved} tokens were shared: the test shows nothing");
        }
    }
}

/// Products in bf16 stay close to those in f32.
#[test]
fn bf16_is_near_f32() {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let checkpoint = Checkpoint::open(&golden("tiny/linear")).unwrap();
    let texts = texts(&mut random, checkpoint.config.decoder.vocab_size as u32);
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
