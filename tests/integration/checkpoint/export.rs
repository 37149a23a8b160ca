//! What is written for transformers, and what transformers writes.
//!
//! `tests/trainer_outputs/transformers_folders.py` has transformers load what is exported. `tests/golden/saved.py` makes
//! the folders that transformers saved, and their rewards.

use std::fs;
use std::path::Path;

use crate::support::folders::{Scratch, config, json_file, set_config, stored};
use crate::support::golden::golden;
use crate::support::server::{Server, floats};
use inform::checkpoint::{
    Checkpoint, DecodeKind, HeadConfig, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
    TensorSource, WeightType,
};
use inform::model::{RewardModel, Score, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::{ExportSettings, export, init_head};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};

/// Sequences whose tokens every golden model knows.
const SEQUENCES: [&[u32]; 4] =
    [&[2, 1], &[5, 6, 7, 1], &[5, 6, 40, 9, 33, 1], &[60, 3, 3, 3, 12, 1]];

fn scores(folder: &Path) -> Vec<Score> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    model.score(&SEQUENCES).unwrap()
}

fn rewards(folder: &Path) -> Vec<f32> {
    scores(folder).into_iter().map(|score| score.reward).collect()
}

fn exported(model: &Path, output: &Path, fold_head: bool) -> anyhow::Result<()> {
    export(&ExportSettings { model, output, fold_head, weight_type: None })
}

fn assert_refused(result: anyhow::Result<()>, parts: &[&str]) {
    let error = format!("{:#}", result.expect_err(parts[0]));
    println!("{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

const FAMILIES: [(&str, &str, &str); 8] = [
    ("llama_llama3", "LlamaForSequenceClassification", "llama"),
    ("mistral", "MistralForSequenceClassification", "mistral"),
    ("qwen2", "Qwen2ForSequenceClassification", "qwen2"),
    ("qwen3", "Qwen3ForSequenceClassification", "qwen3"),
    ("gpt_neox", "GPTNeoXForSequenceClassification", "gpt_neox"),
    ("phi3", "Phi3ForSequenceClassification", "phi3"),
    ("gemma2", "Gemma2ForSequenceClassification", "gemma2"),
    ("gemma3", "Gemma3TextForSequenceClassification", "gemma3_text"),
];

#[test]
fn a_standard_head_keeps_its_rewards_to_the_bit_in_every_family() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    for (name, class, model_type) in FAMILIES {
        let model = scratch.family(name);
        exported(&model, &output, false).unwrap();
        assert_eq!(stored(&output), stored(&model), "{name}");
        assert_eq!(rewards(&output), rewards(&model), "{name}");
        let keys = config(&output);
        assert_eq!(keys["architectures"], json!([class]));
        assert_eq!(keys["model_type"], model_type);
        assert_eq!((&keys["num_labels"], &keys["problem_type"]), (&json!(1), &json!("regression")));
        for (key, value) in config(&model) {
            assert!(keys[&key] == value || key == "pad_token_id", "{name}: {key}");
        }
    }
}

/// The reward of the posterior's mean, in every family.
#[test]
fn an_inform_head_is_folded_where_that_is_asked_for() {
    let scratch = Scratch::new();
    let (headed, output) = (scratch.path("headed"), scratch.path("exported"));
    for (name, class, _) in FAMILIES {
        let head = HeadConfig::inform(6, DecodeKind::Linear);
        init_head(&scratch.family(name), &headed, &head, 4).unwrap();
        assert_refused(exported(&headed, &output, false), &["headed", "--fold-head", "latents"]);
        exported(&headed, &output, true).unwrap();

        let (before, after) = (scores(&headed), scores(&output));
        for (before, after) in before.iter().zip(&after) {
            let difference = (before.reward - after.reward).abs();
            assert!(difference < 2e-6, "{name}: {difference:e}");
            assert!(before.latent.is_some() && after.latent.is_none());
        }
        let keys = config(&output);
        assert_eq!(keys["architectures"], json!([class]));
        assert_eq!(keys["id2label"], json!({"0": "reward"}));
        assert_eq!(keys["label2id"], json!({"reward": 0}));
        for key in ["use_inform", "latent_dim", "encode_head_prefix", "use_complex_decoder"] {
            assert!(!keys.contains_key(key), "{key}");
        }
        let names: Vec<String> = stored(&output).into_iter().map(|(name, ..)| name).collect();
        assert!(!names.iter().any(|name| name.contains("code_head")), "{names:?}");
        assert!(names.contains(&"score.weight".to_owned()));
    }
}

/// `W_decode W_encode[:d]`, elementwise.
#[test]
fn the_folded_row_is_the_product() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    exported(&golden("tiny/linear"), &output, true).unwrap();
    let original = Checkpoint::open(&golden("tiny/linear")).unwrap();
    let (d, hidden) =
        (original.config.head.latent_dim().unwrap(), original.config.decoder.hidden_size);
    let encode = original.tensors.f32("encode_head.weight", &[2 * d, hidden]).unwrap();
    let decode = original.tensors.f32("decode_head.weight", &[1, d]).unwrap();
    let found = Checkpoint::open(&output).unwrap().tensors;
    let found = found.f32("score.weight", &[1, hidden]).unwrap();
    for (column, found) in found.into_iter().enumerate() {
        let terms = (0..d).map(|i| f64::from(decode[i]) * f64::from(encode[i * hidden + column]));
        assert_eq!(found, terms.sum::<f64>() as f32, "{column}");
    }
}

#[test]
fn what_cannot_be_exported_says_why() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    for fold_head in [false, true] {
        let parts = ["gated", "not linear", "use_complex_decoder"];
        assert_refused(exported(&golden("tiny/gated"), &output, fold_head), &parts);
    }
    let standard = golden("tiny/standard");
    assert_refused(exported(&standard, &output, true), &["standard", "--fold-head", "InfoRM"]);
    let gguf = golden("gguf/model.gguf");
    let parts = ["model.gguf", "score.weight", "trainer init-head"];
    assert_refused(exported(&gguf, &output, false), &parts);
    let biased = scratch.family("qwen2");
    let bytes = fs::read(biased.join("model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let bias = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    tensors.push(("score.bias".to_owned(), bias));
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(biased.join("model.safetensors"), bytes).unwrap();
    assert_refused(exported(&biased, &output, false), &["qwen2", "`score.bias`", "no bias"]);
    assert_refused(exported(&scratch.path("none"), &output, false), &["none"]);
    assert!(!output.exists());
    assert_refused(exported(&biased, &biased, false), &["output", "qwen2 would be replaced"]);
}

#[test]
fn heads_of_other_libraries_get_transformers_name() {
    let scratch = Scratch::new();
    let with_head = |name: &str| scratch.with_tokenizer(&format!("heads/{name}"), name);
    let names = |folder: &Path| -> Vec<String> {
        let heads = stored(folder).into_iter().map(|(name, ..)| name);
        heads.filter(|name| !name.starts_with("model.")).collect()
    };
    for name in ["reward", "critic", "own_name"] {
        let (model, output) = (with_head(name), scratch.path(&format!("{name}-exported")));
        exported(&model, &output, false).unwrap();
        assert_eq!(names(&output), ["score.weight"], "{name}");
        assert!(!config(&output).contains_key("value_head_prefix"), "{name}");
        assert_eq!(rewards(&output), rewards(&model), "{name}");
    }

    let (model, output) = (with_head("objectives"), scratch.path("objectives-exported"));
    exported(&model, &output, false).unwrap();
    assert_eq!(stored(&output), stored(&model));
    let (before, after) = (config(&model), config(&output));
    assert_eq!((&after["num_labels"], &after["id2label"]), (&json!(3), &before["id2label"]));

    for (name, bias) in [("trl", "v_head.summary.bias"), ("tokens", "score.bias")] {
        let refused = exported(&with_head(name), &scratch.path("refused"), false);
        assert_refused(refused, &[name, bias, "no bias"]);
    }
}

/// A GGUF file with a head goes the way of a folder.
#[test]
fn a_gguf_file_is_exported_with_the_head_that_it_gets() {
    let scratch = Scratch::new();
    let (headed, output) = (scratch.path("headed"), scratch.path("exported"));
    let head = HeadConfig::inform(6, DecodeKind::Linear);
    init_head(&golden("gguf/model.gguf"), &headed, &head, 0).unwrap();
    exported(&headed, &output, true).unwrap();
    for (before, after) in rewards(&headed).iter().zip(rewards(&output)) {
        assert!((before - after).abs() < 2e-6, "{before} {after}");
    }
    let policies = [&headed, &output].map(|folder| {
        let checkpoint = Checkpoint::open(folder).unwrap();
        checkpoint.encoder.policy().clone()
    });
    assert_eq!(policies[0], policies[1]);
}

/// What transformers computes is not normalised; the server still finds the numbers.
#[test]
fn a_normalisation_stays_in_the_configuration() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    let source = golden("tiny/standard");
    exported(&source, &output, false).unwrap();
    assert_eq!(rewards(&output), rewards(&source));
    let keys = config(&output);
    assert_eq!((&keys["mean"], &keys["std"]), (&json!(0.75), &json!(2.5)));
    let score = |folder: &Path| {
        stored(folder).into_iter().find(|(name, ..)| name == "score.weight").unwrap()
    };
    assert_eq!(score(&output), score(&source));
    assert_eq!(score(&output).1, Dtype::F16);
    let card = fs::read_to_string(output.join("README.md")).unwrap();
    for part in ["(r - mean) / std", "0.75", "2.5"] {
        assert!(card.contains(part), "{part}: {card}");
    }
}

/// transformers pools at the last token that is not padding: never at the EOS, if that is the padding.
#[test]
fn padding_is_another_token_than_the_eos() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    let model = scratch.copy("saved/llama", "model");
    let set = |file: &str, key: &str, value: Value| {
        let mut keys = json_file(&model, file);
        keys.insert(key.to_owned(), value);
        fs::write(model.join(file), serde_json::to_vec(&keys).unwrap()).unwrap();
    };
    let found = || {
        exported(&model, &output, false).unwrap();
        let token = json_file(&output, TOKENIZER_CONFIG_FILE)["pad_token"].clone();
        (token, config(&output)["pad_token_id"].clone())
    };
    // Nothing is named: BOS.
    assert_eq!(found(), (json!("<|bos|>"), json!(0)));
    // What many tokenizers say.
    set(TOKENIZER_CONFIG_FILE, "pad_token", json!("<|end|>"));
    set_config(&model, |keys| drop(keys.insert("pad_token_id".to_owned(), json!(1))));
    assert_eq!(found(), (json!("<|bos|>"), json!(0)));
    set(TOKENIZER_CONFIG_FILE, "unk_token", json!("!"));
    let exclamation = found();
    assert_eq!(exclamation.0, "!");
    set_config(&model, |keys| drop(keys.insert("pad_token_id".to_owned(), json!(7))));
    assert_eq!(found().1, 7);
    set(TOKENIZER_CONFIG_FILE, "pad_token", json!({"content": "!", "special": true}));
    assert_eq!(found(), exclamation);
    // A token without a row in the embedding table.
    set(TOKENIZER_CONFIG_FILE, "pad_token", json!("no token"));
    set_config(&model, |keys| drop(keys.insert("pad_token_id".to_owned(), json!(100_000))));
    assert_eq!(found(), exclamation);
    // An older file that names special tokens, too.
    fs::write(model.join("special_tokens_map.json"), r#"{"pad_token": "<|end|>"}"#).unwrap();
    let (token, _) = found();
    assert_eq!(json_file(&output, "special_tokens_map.json")["pad_token"], token);
    for file in [TOKENIZER_FILE, TEMPLATE_FILE] {
        assert_eq!(fs::read(output.join(file)).unwrap(), fs::read(model.join(file)).unwrap());
    }
}

#[test]
fn only_weights_of_the_model_are_exported_in_the_type_that_is_asked_for() {
    let scratch = Scratch::new();
    let output = scratch.path("exported");
    let model = scratch.family("gpt_neox");
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    for name in ["gpt_neox.layers.0.attention.bias", "embed_out.weight"] {
        let view = TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap();
        tensors.push((name.to_owned(), view));
    }
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(model.join("model.safetensors"), bytes).unwrap();
    let weight_type = Some(WeightType::Bf16);
    let settings = ExportSettings { model: &model, output: &output, fold_head: false, weight_type };
    export(&settings).unwrap();
    let found = stored(&output);
    assert!(found.iter().all(|(_, dtype, _)| *dtype == Dtype::BF16));
    assert_eq!(config(&output)["dtype"], "bfloat16");
    let original = stored(&golden("families/gpt_neox"));
    let names = |tensors: &[(String, Dtype, Vec<u8>)]| -> Vec<String> {
        tensors.iter().map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(names(&found), names(&original));
}

#[derive(Deserialize)]
struct Case {
    messages: Value,
    input_ids: Vec<u32>,
    reward: f32,
}

/// Folders as `save_pretrained` writes them: a file in F32, and shards in BF16.
#[test]
fn what_transformers_saves_is_served_with_pytorchs_rewards() {
    for name in ["llama", "qwen2"] {
        let folder = golden("saved").join(name);
        let cases = fs::read(folder.with_extension("json")).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
        let server = Server::start(&["--dtype", "f32", "--model", folder.to_str().unwrap()]);
        let messages: Vec<_> =
            cases.iter().map(|case| json!({"messages": case.messages})).collect();
        let ids: Vec<_> = cases.iter().map(|case| json!({"input_ids": case.input_ids})).collect();
        let found = floats(&server.score(&messages)["rewards"]);
        assert_eq!(found, floats(&server.score(&ids)["rewards"]), "{name}");
        assert_eq!(found.len(), 4);
        for (found, case) in found.iter().zip(&cases) {
            println!("{name}: {found}, PyTorch {}", case.reward);
            assert!((found - case.reward).abs() < 1e-5, "{name}: {found} {}", case.reward);
        }
    }
}
