//! SmolLM2-135M-Instruct against PyTorch in f32: text to ids, ids to hidden states, and the rewards of
//! a fresh head.
//!
//! Runs where `SMOLLM2_FOLDER` names the model's folder. `tests/golden/smollm2.py` makes the golden
//! values, and reads the head's weights from the folder that this test leaves in `target/tmp`.

use std::path::Path;
use std::time::Instant;

use crate::support::golden::{Golden, golden, relative_error};
use inform::checkpoint::{Checkpoint, DecodeKind, HeadConfig, Input, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DeviceOps, Packing};
use inform::train::init_head;

/// As in `tests/golden/smollm2.py`.
const COUNTS: [usize; 20] =
    [0, 1, 2, 3, 5, 8, 13, 21, 25, 34, 42, 50, 55, 75, 89, 120, 144, 233, 420, 1055];

struct SplitMix(u64);

impl SplitMix {
    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        from[((z ^ (z >> 31)) % from.len() as u64) as usize]
    }
}

fn text(seed: usize, count: usize) -> String {
    let mut separators = [" "; 16];
    separators[..4].copy_from_slice(&[".\n", ", ", "\n\n", ": "]);
    let words: Vec<&str> = include_str!("../golden/words.txt").split_whitespace().collect();
    let mut random = SplitMix(seed as u64);
    let mut text = String::new();
    for i in 0..count {
        if i > 0 {
            text += random.choose(&separators);
        }
        text += random.choose(&words);
    }
    text
}

fn input(index: usize) -> Input {
    let words = text(index, COUNTS[index]);
    match index % 4 {
        3 => Input::Messages(vec![
            Message::new("user", text(1000 + index, 10)),
            Message::new("assistant", words),
        ]),
        _ => Input::Text(words + "<|im_end|>"),
    }
}

#[test]
fn agrees_with_pytorch() {
    let Some(folder) = std::env::var_os("SMOLLM2_FOLDER") else {
        println!("skipped: SMOLLM2_FOLDER does not name a folder of SmolLM2-135M-Instruct");
        return;
    };
    let with_head = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2-inform");
    let head = HeadConfig::inform(128, DecodeKind::Linear);
    init_head(Path::new(&folder), &with_head, &head, 0).unwrap();
    let checkpoint = Checkpoint::open(&with_head).unwrap();
    let ops = CpuOps::new(0, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();

    assert!(
        golden("smollm2.safetensors").exists(),
        "no golden values: run tests/golden/smollm2.py on {}",
        with_head.display()
    );
    let expected = Golden::read("smollm2.safetensors");
    let sequences: Vec<Vec<u32>> = (0..COUNTS.len())
        .map(|index| checkpoint.encoder.encode(&input(index), false).unwrap().ids)
        .collect();
    for (index, (found, expected)) in sequences.iter().zip(expected.sequences()).enumerate() {
        assert_eq!(*found, expected, "{:?}", input(index));
    }

    let start = Instant::now();
    let packing = Packing::new(&sequences).unwrap();
    let hidden = model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap();
    println!("{} tokens in {:.1?}", packing.rows(), start.elapsed());
    let width = checkpoint.config.decoder.hidden_size;
    let errors: Vec<f64> = hidden
        .chunks(width)
        .zip(expected.f32("hidden").chunks(width))
        .map(|(found, expected)| relative_error(found, expected))
        .collect();
    for (error, sequence) in errors.iter().zip(&sequences) {
        println!("{:5} tokens: hidden state {error:.1e}", sequence.len());
        assert!(*error < 1e-4, "{} tokens: {error:e}", sequence.len());
    }

    let start = Instant::now();
    let longest = sequences.last().unwrap();
    model.score(&[longest]).unwrap();
    let rate = longest.len() as f64 / start.elapsed().as_secs_f64();
    println!("{rate:.0} tokens/s on {} threads, {} tokens", model.ops().threads(), longest.len());

    let scores = model.score(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    let expected = expected.f32("reward");
    let scale =
        (expected.iter().map(|r| f64::from(r * r)).sum::<f64>() / expected.len() as f64).sqrt();
    let mut worst = 0f64;
    for (score, expected) in scores.iter().zip(&expected) {
        let error = f64::from((score.reward - expected).abs()) / scale;
        assert!(error < 1e-4, "{} instead of {expected}", score.reward);
        worst = worst.max(error);
    }
    println!("rewards: {worst:.1e} of their root mean square, {scale:.3}");
}
