//! Trainings of every family: what is stored has the family's own names and layout, in every mode, and only what is trained
//! differs from the start.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::golden::golden;
use inform::checkpoint::{
    CONFIG_FILE, Checkpoint, CheckpointError, CheckpointFiles, DecodeKind, FolderTensors,
    HeadConfig, MemoryTensors, ModelConfig, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
    WeightType, write_checkpoint,
};
use inform::model::initialise_head;
use inform::train::{ExportSettings, FitConfig, FitReport, export, fit, init_head};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const FAMILIES: [&str; 7] =
    ["gpt_neox", "phi3", "gemma2", "gemma3", "mistral", "qwen2_sliding", "qwen3"];
const MODES: [&str; 4] = [
    "mode = \"full\"",
    "mode = \"lora\"\n[lora]\nrank = 2\nalpha = 4\ntargets = [\"q_proj\", \"down_proj\"]",
    "mode = \"last_layers\"\nlast_layers = 1\n",
    "mode = \"head\"",
];
/// So small that no number changes.
const NO_STEP: f64 = 1e-30;

/// A model of the family for the vocabulary of `tiny/linear`, with an InfoRM head.
fn start(folder: &Path, family: &str) {
    let source = golden("families").join(family);
    let mut keys: Map<String, Value> =
        serde_json::from_slice(&fs::read(source.join(CONFIG_FILE)).unwrap()).unwrap();
    let tokenizer = golden("tiny/linear");
    let vocabulary = ModelConfig::read(&tokenizer).unwrap().decoder.vocab_size;
    keys.insert("vocab_size".to_owned(), json!(vocabulary));
    // Of the head that it has not any more.
    keys.retain(|key, _| key != "id2label" && key != "label2id");
    let mut config = ModelConfig::read(&source).unwrap();
    config.head = HeadConfig::inform(3, DecodeKind::Linear);
    let mut tensors = MemoryTensors::default();
    for (name, shape, values) in FolderTensors::open(&source).unwrap().to_memory().unwrap().iter() {
        if name.contains("embed") {
            let values = values.iter().copied().cycle().take(vocabulary * shape[1]).collect();
            tensors.insert(name, &[vocabulary, shape[1]], values);
        } else if name != "score.weight" {
            tensors.insert(name, shape, values.to_vec());
        }
    }
    initialise_head(&mut tensors, &config.head, config.decoder.hidden_size, 1);
    let files = [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE]
        .map(|file| (file.to_owned(), fs::read(tokenizer.join(file)).unwrap()));
    let contents = CheckpointFiles {
        config: &config,
        other_keys: keys,
        tensors: &tensors,
        weight_type: WeightType::F32,
        files: files.to_vec(),
    };
    write_checkpoint::<CheckpointError>(folder, &contents, |_| Ok((None, Vec::new()))).unwrap();
}

struct Workshop {
    folder: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pairs = (0..24).map(|number| {
            let prompt = format!("What comes after {number}, and what comes after that?");
            let (right, wrong) = (number + 1, number * 7 % 24);
            json!({"prompt": prompt, "chosen": format!("{right}."), "rejected": format!("{wrong}!")})
        });
        let lines: Vec<String> = pairs.map(|pair| pair.to_string()).collect();
        fs::write(folder.path().join("pairs.jsonl"), lines.join("\n")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Trains `start` and gives the output.
    fn fit(&self, start: &str, mode: &str, rate: f64) -> anyhow::Result<(PathBuf, FitReport)> {
        let (output, settings) = (self.path("output"), self.path("settings.toml"));
        let text = format!(
            "output = {output:?}
weight_type = \"f32\"
threads = 2
{mode}
[start]
folder = {:?}
[head]
latent_dim = 3
[data]
files = [{:?}]
train_pairs = 16
max_tokens = 128
[optimiser]
learning_rate = {rate:e}
[schedule]
kind = \"constant\"
pairs_per_step = 8
[evaluation]
every_steps = 2
",
            self.path(start),
            self.path("pairs.jsonl"),
        );
        fs::write(&settings, text).unwrap();
        let report = fit(&FitConfig::read(&settings)?)?;
        Ok((output, report))
    }
}

/// Names, shapes and bits.
fn stored(folder: &Path) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let tensors = FolderTensors::open(folder).unwrap().to_memory().unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    tensors
        .iter()
        .map(|(name, shape, values)| (name.to_owned(), shape.to_vec(), bits(values)))
        .collect()
}

fn keys(folder: &Path) -> Map<String, Value> {
    let mut keys: Map<String, Value> =
        serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap();
    // Of the rewards on held-out pairs.
    keys.retain(|key, _| key != "mean" && key != "std");
    keys
}

#[test]
fn what_is_not_changed_is_stored_bit_for_bit() {
    let workshop = Workshop::new();
    for family in FAMILIES {
        start(&workshop.path(family), family);
        for mode in MODES {
            let (output, report) = workshop.fit(family, mode, NO_STEP).unwrap();
            assert_eq!(report.steps, 2);
            assert_eq!(stored(&output), stored(&workshop.path(family)), "{family}, {mode}");
            assert_eq!(keys(&output), keys(&workshop.path(family)), "{family}, {mode}");
        }
    }
}

/// Names of the tensors in which two folders differ.
fn changed(one: &Path, other: &Path) -> BTreeSet<String> {
    let both = stored(one).into_iter().zip(stored(other));
    both.filter(|(a, b)| a != b).map(|((name, ..), _)| name).collect()
}

#[test]
fn what_is_trained_is_what_changes() {
    let workshop = Workshop::new();
    for family in FAMILIES {
        let origin = workshop.path(family);
        start(&origin, family);
        let names: BTreeSet<String> = stored(&origin).into_iter().map(|(name, ..)| name).collect();
        let layers = ModelConfig::read(&origin).unwrap().decoder.num_hidden_layers;
        let is_head = |name: &str| name.ends_with("code_head.weight");
        let last = format!("layers.{}.", layers - 1);
        let adapted = match family {
            "gpt_neox" => [".query_key_value.weight", ".dense_4h_to_h.weight"],
            "phi3" => [".qkv_proj.weight", ".down_proj.weight"],
            _ => [".q_proj.weight", ".down_proj.weight"],
        };
        let expected: [&dyn Fn(&str) -> bool; 4] = [
            &|_| true,
            &|name| is_head(name) || adapted.iter().any(|layer| name.ends_with(layer)),
            &|name| {
                let is_final_norm = name.contains("norm") && !name.contains("layers.");
                is_head(name) || name.contains(&last) || is_final_norm
            },
            &is_head,
        ];
        for (mode, trained) in MODES.into_iter().zip(expected) {
            let (output, report) = workshop.fit(family, mode, 1e-2).unwrap();
            let trained: BTreeSet<String> =
                names.iter().filter(|name| trained(name)).cloned().collect();
            assert_eq!(changed(&origin, &output), trained, "{family}, {mode}");
            assert!(report.epochs[0].loss.is_finite());

            // The evaluation of the weights in memory is that of the stored ones.
            let log = fs::read_to_string(output.join("log.jsonl")).unwrap();
            let record: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
            let held_out = report.held_out.unwrap();
            let margin = record["evaluation"]["margin_mean"].as_f64().unwrap();
            assert!((margin - held_out.margin_mean).abs() < 1e-5, "{family}, {mode}");
        }
    }
}

/// Rows of keys and values of GPT-NeoX are those between the queries', head by head.
#[test]
fn an_adapter_changes_its_own_rows_of_a_fused_weight() {
    let workshop = Workshop::new();
    for (family, fused) in [
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value"),
        ("phi3", "model.layers.0.self_attn.qkv_proj"),
    ] {
        let origin = workshop.path(family);
        start(&origin, family);
        let (output, _) = workshop.fit(family, MODES[1], 1e-2).unwrap();
        let weight = |folder: &Path| {
            let name = format!("{fused}.weight");
            stored(folder).into_iter().find(|(found, ..)| *found == name).unwrap()
        };
        let (shape, before) = (weight(&origin).1, weight(&origin).2);
        let after = weight(&output).2;
        let shape_of = ModelConfig::read(&origin).unwrap().decoder.attention;
        let (heads, head_dim) = (shape_of.heads, shape_of.head_dim);
        let is_query = |row: usize| match family {
            "gpt_neox" => (row / head_dim).is_multiple_of(3),
            _ => row < heads * head_dim,
        };
        // What is added is `scale B A` of the adapter that stands beside it.
        let bytes = fs::read(output.join("adapter/adapter_model.safetensors")).unwrap();
        let adapter = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let factor = |which: &str| -> Vec<f32> {
            let name = format!("base_model.model.{fused}.lora_{which}.weight");
            let (values, _) = adapter.tensor(&name).unwrap().data().as_chunks();
            values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        };
        let (a, b) = (factor("A"), factor("B"));
        for row in 0..shape[0] {
            let row_of = |bits: &[u32]| bits[row * shape[1]..][..shape[1]].to_vec();
            let (before, after) = (row_of(&before), row_of(&after));
            assert_eq!(before != after, is_query(row), "{family}, row {row}");
            for (column, (before, after)) in before.into_iter().zip(after).enumerate() {
                let product: f32 = (0..2).map(|k| b[row * 2 + k] * a[k * shape[1] + column]).sum();
                let added = f32::from_bits(after) - f32::from_bits(before);
                assert!((added - 2.0 * product).abs() < 1e-5, "{family}: {added} {product}");
            }
        }
    }
}

#[test]
fn adapters_of_fused_layers_stand_side_by_side() {
    let workshop = Workshop::new();
    start(&workshop.path("phi3"), "phi3");
    let mode = "mode = \"lora\"\n[lora]\nrank = 2\nalpha = 4\n\
                targets = [\"q_proj\", \"v_proj\", \"o_proj\"]";
    let (output, _) = workshop.fit("phi3", mode, 1e-2).unwrap();
    let read = |file: &str| fs::read(output.join("adapter").join(file)).unwrap();
    let config: Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
    assert_eq!(config["target_modules"], json!(["o_proj", "qkv_proj"]));
    assert_eq!(config["rank_pattern"], json!({"qkv_proj": 4}));
    assert_eq!(config["alpha_pattern"], json!({"qkv_proj": 8.0}));
    let checkpoint = Checkpoint::open(&output).unwrap();
    let shape = checkpoint.config.decoder.attention;
    let bytes = read("adapter_model.safetensors");
    let adapter = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let b = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight";
    let b = adapter.tensor(b).unwrap();
    assert_eq!(b.shape(), [shape.qkv_columns(), 4]);
    let (values, _) = b.data().as_chunks();
    let values: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let keys = shape.output_columns()..shape.qkv_columns() - shape.key_value_columns() / 2;
    for (row, values) in values.chunks_exact(4).enumerate() {
        let is_zero = |columns: &[f32]| columns.iter().all(|value| *value == 0.0);
        assert_eq!(is_zero(&values[..2]), row >= keys.start, "{row}");
        assert_eq!(is_zero(&values[2..]), row < keys.end, "{row}");
    }
}

#[test]
fn adapters_that_a_family_has_not_are_refused() {
    let workshop = Workshop::new();
    start(&workshop.path("gpt_neox"), "gpt_neox");
    let mode = "mode = \"lora\"\n[lora]\ntargets = [\"gate_proj\"]";
    let error = workshop.fit("gpt_neox", mode, 1e-2).unwrap_err().to_string();
    assert_eq!(error, "lora.targets: this GPTNeoX model has none of [\"gate_proj\"]");
}

/// Trainings and exports that start from GGUF files have the names, the values and the keys of a folder.
#[test]
fn gguf_files_are_trained_and_exported() {
    let workshop = Workshop::new();
    let backbone = |folder: &Path| -> Vec<_> {
        stored(folder).into_iter().filter(|(name, ..)| name.starts_with("model.")).collect()
    };
    for name in ["qwen2", "qwen3", "phi3", "phi3_long", "gemma2", "gemma3"] {
        let file = format!("{name}.gguf");
        fs::copy(golden("gguf_families").join(&file), workshop.path(&file)).unwrap();
        let folder = workshop.path(name);
        let head = HeadConfig::inform(3, DecodeKind::Linear);
        init_head(&workshop.path(&file), &folder, &head, 1).unwrap();

        let (output, _) = workshop.fit(&file, MODES[0], NO_STEP).unwrap();
        let (found, expected) = (backbone(&output), backbone(&folder));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{name}");
            // Quantised weights have zeros, which such a step does change.
            let same =
                |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() < 1e-20;
            assert!(found.2.iter().zip(&expected.2).all(same), "{name}: {}", found.0);
        }
        assert_eq!(keys(&output), keys(&folder), "{name}");

        let (output, report) = workshop.fit(&file, MODES[0], 1e-2).unwrap();
        assert!(report.epochs[0].loss.is_finite());
        let all: BTreeSet<String> = stored(&folder).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(changed(&folder, &output), all, "{name}");

        let exported = workshop.path(&format!("{name}-exported"));
        let settings = ExportSettings {
            model: &output,
            output: &exported,
            fold_head: true,
            weight_type: None,
        };
        export(&settings).unwrap();
        assert!(backbone(&exported) == backbone(&output), "{name}");
        let checkpoint = Checkpoint::open(&exported).unwrap();
        assert_eq!(checkpoint.config.decoder, ModelConfig::read(&folder).unwrap().decoder);
    }
}
