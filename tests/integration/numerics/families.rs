//! Every decoder family against PyTorch: models that transformers saved, at every token, with prefixes shared.
//!
//! `tests/golden/families.py` makes the models and the golden values.

use crate::support::golden::{Golden, golden, relative_error};
use inform::checkpoint::{FolderTensors, ModelConfig};
use inform::model::{RewardModel, Scorer};
use inform::ops::autograd::AutogradOps;
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DeviceOps, Packing};

const LLAMA: [&str; 5] =
    ["llama_bias", "llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn"];
const OTHERS: [&str; 10] = [
    "qwen2",
    "qwen2_sliding",
    "mistral",
    "qwen3",
    "gpt_neox",
    "gpt_neox_sequential",
    "phi3",
    "phi3_long",
    "gemma2",
    "gemma3",
];

/// Hidden states after the final norm at every token, and rewards; `None` without the precision.
fn computed(name: &str, threads: usize, precision: Precision) -> Option<(Vec<f32>, Vec<f32>)> {
    let folder = golden("families").join(name);
    let config = ModelConfig::read(&folder).unwrap();
    let tensors = FolderTensors::open(&folder).unwrap();
    let ops = CpuOps::new(threads, precision).ok()?;
    let model = RewardModel::load(ops, &config, &tensors).unwrap();
    let sequences = Golden::read(&format!("families/{name}.safetensors")).sequences();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let packing = Packing::shared(&sequences).unwrap();
    assert!(packing.rows() < sequences.iter().map(|ids| ids.len()).sum(), "nothing is shared");
    // The state at a token is that at the end of the text up to there.
    let ends: Vec<&[u32]> =
        sequences.iter().flat_map(|ids| (1..=ids.len()).map(|end| &ids[..end])).collect();
    let hidden = model.last_hidden(&Packing::shared(&ends).unwrap()).unwrap();
    let rewards = model.score_packed(&packing).unwrap().into_iter().map(|score| score.reward);
    Some((model.ops().read(&hidden).unwrap(), rewards.collect()))
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

fn agrees(name: &str) {
    let expected = Golden::read(&format!("families/{name}.safetensors"));
    let (hidden, rewards) = computed(name, 1, Precision::F32).unwrap();
    let hidden = difference(&hidden, &expected.f32("hidden"));
    let rewards = difference(&rewards, &expected.f32("reward"));
    println!("{name}: hidden states within {hidden:.1e}, rewards within {rewards:.1e}");
    assert!(hidden < 1e-5 && rewards < 1e-5, "{name}: {hidden:e} {rewards:e}");
}

#[test]
fn llama_with_scaled_rotary_embedding_agrees_with_pytorch() {
    LLAMA.into_iter().for_each(agrees);
}

#[test]
fn other_families_agree_with_pytorch() {
    OTHERS.into_iter().for_each(agrees);
}

/// bf16 rounds what products read by 2^-9 each: 3 % of a state is some five times what two or three layers of them add up
/// to, and far from what a wrong element does.
#[test]
fn bf16_is_near() {
    for name in LLAMA.into_iter().chain(OTHERS) {
        let Some((hidden, _)) = computed(name, 2, Precision::Bf16) else {
            println!("skipped: this processor has no bf16 products");
            return;
        };
        let expected = Golden::read(&format!("families/{name}.safetensors")).f32("hidden");
        let error = relative_error(&hidden, &expected);
        println!("{name}: hidden states off by {error:.1e}");
        assert!(error > 1e-4 && error < 0.03, "{name}: {error:e}");
    }
}

/// Longer texts would need other frequencies.
#[test]
fn longrope_takes_texts_of_its_original_length() {
    let config = ModelConfig::read(&golden("families/phi3_long")).unwrap();
    assert_eq!(config.decoder.max_position_embeddings, 256);
}

/// As training computes it.
#[test]
fn training_computes_what_is_scored() {
    for name in LLAMA.into_iter().chain(OTHERS) {
        let folder = golden("families").join(name);
        let config = ModelConfig::read(&folder).unwrap();
        let ops = AutogradOps::new(1, Precision::F32).unwrap();
        let tensors = FolderTensors::open(&folder).unwrap();
        let model = RewardModel::load(ops, &config, &tensors).unwrap();
        let expected = Golden::read(&format!("families/{name}.safetensors"));
        let packing = Packing::new(&expected.sequences()).unwrap();
        let output = model.forward(&packing, None).unwrap();
        let rewards = model.ops().read(&output.reward).unwrap();
        assert!(difference(&rewards, &expected.f32("reward")) < 1e-5, "{name}");
    }
}
