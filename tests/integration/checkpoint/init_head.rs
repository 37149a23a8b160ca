//! A fresh reward head on the checkpoints that a training run may start from.

use std::fs;
use std::path::Path;

use crate::support::golden::golden;
use inform::checkpoint::{
    CONFIG_FILE, Checkpoint, CheckpointError, CheckpointFiles, DecodeKind, HeadConfig,
    MemoryTensors, ModelConfig, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WeightType,
    write_checkpoint,
};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DeviceOps, Packing};
use inform::train::init_head;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

/// Names and values of the tensors that `keep` names.
fn tensors(checkpoint: &Checkpoint, keep: fn(&str) -> bool) -> Vec<(String, Vec<f32>)> {
    let memory = checkpoint.tensors.to_memory().unwrap();
    let tensors = memory.iter().filter(|(name, ..)| keep(name));
    tensors.map(|(name, _, values)| (name.to_owned(), values.to_vec())).collect()
}

fn is_backbone(name: &str) -> bool {
    name.starts_with("model.")
}

fn head_names(checkpoint: &Checkpoint) -> Vec<String> {
    let head = tensors(checkpoint, |name| !is_backbone(name));
    head.into_iter().map(|(name, _)| name).collect()
}

fn config(folder: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap()
}

fn score(checkpoint: &Checkpoint) -> f32 {
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    model.score(&[&[1, 2, 3]]).unwrap()[0].reward
}

#[test]
fn keeps_all_but_the_head() {
    let scratch = tempfile::tempdir().unwrap();
    let source = golden("tiny/gated");
    let output = scratch.path().join("new");
    let head = HeadConfig::inform(6, DecodeKind::Linear);
    init_head(&source, &output, &head, 3).unwrap();

    let (old, new) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&output).unwrap());
    assert_eq!(new.config, ModelConfig { head, ..old.config.clone() });
    assert_eq!(tensors(&new, is_backbone), tensors(&old, is_backbone));
    assert_eq!(head_names(&new), ["decode_head.weight", "encode_head.weight"]);
    assert!(score(&new).is_finite());
    for file in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE] {
        assert_eq!(fs::read(output.join(file)).unwrap(), fs::read(source.join(file)).unwrap());
    }
    let mut expected = config(&source);
    expected.extend(
        json!({"latent_dim": 6, "use_complex_decoder": false}).as_object().cloned().unwrap(),
    );
    assert_eq!(config(&output), expected);

    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        assert_eq!(tensor.dtype(), safetensors::Dtype::BF16, "{name}");
    }
}

#[test]
fn the_seed_decides_the_head() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("new");
    let weights = |seed| {
        init_head(&golden("tiny/linear"), &output, &HeadConfig::standard(), seed).unwrap();
        Checkpoint::open(&output).unwrap().weights
    };
    assert_eq!(weights(0), weights(0));
    assert_ne!(weights(0), weights(1));
}

#[test]
fn an_earlier_head_leaves_no_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    init_head(&golden("tiny/standard"), &first, &HeadConfig::inform(4, DecodeKind::Gated), 0)
        .unwrap();
    let keys = config(&first);
    for key in ["mean", "std", "num_labels"] {
        assert!(!keys.contains_key(key), "{key}");
    }
    assert_eq!(keys["architectures"], json!(["LlamaForInfoRM"]));
    assert_eq!(keys["dtype"], "float32", "F16 does not fit into BF16");
    let checkpoint = Checkpoint::open(&first).unwrap();
    assert_eq!(
        head_names(&checkpoint),
        ["down_proj", "gate_proj", "up_proj"]
            .map(|name| format!("decode_head.{name}.weight"))
            .into_iter()
            .chain(["encode_head.weight".to_owned()])
            .collect::<Vec<_>>()
    );
    let old = Checkpoint::open(&golden("tiny/standard")).unwrap();
    assert_eq!(tensors(&checkpoint, is_backbone), tensors(&old, is_backbone));

    init_head(&first, &second, &HeadConfig::standard(), 0).unwrap();
    let keys = config(&second);
    for key in ["latent_dim", "encode_head_prefix", "decode_head_prefix", "use_complex_decoder"] {
        assert!(!keys.contains_key(key), "{key}");
    }
    assert_eq!(keys["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(head_names(&Checkpoint::open(&second).unwrap()), ["score.weight"]);
}

/// A causal language model has a head of its own; a headless one has no `model.` in its names.
#[test]
fn starts_from_a_language_model_with_or_without_head() {
    let scratch = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("tiny/linear")).unwrap();
    let backbone = original.tensors.to_memory().unwrap();
    for (name, prefix, with_head) in [("causal", "model.", true), ("headless", "", false)] {
        let mut renamed = MemoryTensors::default();
        for (tensor, shape, values) in backbone.iter() {
            if let Some(tensor) = tensor.strip_prefix("model.") {
                renamed.insert(&format!("{prefix}{tensor}"), shape, values.to_vec());
            }
        }
        if with_head {
            renamed.insert("lm_head.weight", &[280, 64], vec![0.0; 280 * 64]);
        }
        let files = [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE]
            .map(|file| (file.to_owned(), fs::read(original.folder.join(file)).unwrap()));
        let contents = CheckpointFiles {
            config: &ModelConfig { head: HeadConfig::standard(), ..original.config.clone() },
            other_keys: Map::new(),
            tensors: &renamed,
            weight_type: WeightType::F32,
            files: files.to_vec(),
        };
        let source = scratch.path().join(name);
        write_checkpoint::<CheckpointError>(&source, &contents, |_| Ok((None, Vec::new())))
            .unwrap();

        let output = scratch.path().join(format!("{name}-inform"));
        init_head(&source, &output, &original.config.head, 0).unwrap();
        let checkpoint = Checkpoint::open(&output).unwrap();
        assert_eq!(tensors(&checkpoint, is_backbone), tensors(&original, is_backbone), "{name}");
        assert_eq!(head_names(&checkpoint), head_names(&original), "{name}");
        assert!(score(&checkpoint).is_finite());
    }
}

/// Names and layout of tensors stay the family's own; masks that old releases stored are left out.
#[test]
fn starts_from_other_families() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, prefix, class) in [
        ("gpt_neox", "gpt_neox.", "GPTNeoXForInfoRM"),
        ("phi3", "model.", "Phi3ForInfoRM"),
        ("gemma3", "model.", "Gemma3TextForInfoRM"),
    ] {
        let (source, output) = (scratch.path().join(name), scratch.path().join("new"));
        fs::create_dir(&source).unwrap();
        for file in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE] {
            fs::copy(golden("tiny/linear").join(file), source.join(file)).unwrap();
        }
        let family = golden("families").join(name);
        fs::copy(family.join(CONFIG_FILE), source.join(CONFIG_FILE)).unwrap();
        let bytes = fs::read(family.join("model.safetensors")).unwrap();
        let mut stored = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let mask = format!("{prefix}layers.0.attention.bias");
        let mask_values = TensorView::new(safetensors::Dtype::BOOL, vec![4], &[1; 4]).unwrap();
        stored.push((mask.clone(), mask_values));
        let bytes = safetensors::serialize(stored, None).unwrap();
        fs::write(source.join("model.safetensors"), bytes).unwrap();

        init_head(&source, &output, &HeadConfig::inform(4, DecodeKind::Linear), 0).unwrap();
        let (old, new) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&output).unwrap());
        assert_eq!(new.config.decoder, old.config.decoder);
        assert_eq!(config(&output)["architectures"], json!([class]));
        let names = |folder: &Path| -> Vec<String> {
            let bytes = fs::read(folder.join("model.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let mut names: Vec<_> = tensors.names().into_iter().map(str::to_owned).collect();
            names.sort();
            names
        };
        let mut expected = names(&source);
        expected.retain(|name| name.starts_with(prefix) && *name != mask);
        expected.splice(0..0, ["decode_head.weight".to_owned(), "encode_head.weight".to_owned()]);
        assert_eq!(names(&output), expected);
        let pooled = |checkpoint: &Checkpoint| {
            let ops = CpuOps::new(1, Precision::F32).unwrap();
            let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
            let packing = Packing::new(&[[1, 2, 3]]).unwrap();
            model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap()
        };
        assert_eq!(pooled(&new), pooled(&old));
    }
}

#[test]
fn a_folder_that_cannot_be_opened_leaves_the_output_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("new");
    fs::create_dir(&output).unwrap();
    let missing = scratch.path().join("missing");
    let error = init_head(&missing, &output, &HeadConfig::standard(), 0).unwrap_err();
    assert!(error.to_string().contains("missing/config.json"), "{error}");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}
