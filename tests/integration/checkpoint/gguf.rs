//! GGUF files: what is read in them against ggml's Python package, transformers, tokenizers and SentencePiece,
//! and what is said of damaged ones.
//!
//! `tests/golden/gguf_files.py` and `tests/golden/gguf_families.py` make the files and the golden values.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::golden::{Golden, golden, relative_error};
use inform::checkpoint::{
    Checkpoint, FolderTensors, Gguf, HeadConfig, Input, MemoryTensors, ModelConfig, StandardConfig,
    TOKENIZER_FILE, TensorSource,
};
use inform::model::{RewardModel, initialise_head};
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DeviceOps, Packing};
use inform::train::init_head;
use safetensors::SafeTensors;
use serde::Deserialize;
use tokenizers::Tokenizer;

fn file(name: &str) -> PathBuf {
    golden("gguf").join(name)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_type_has_ggmls_values_to_the_bit() {
    let tensors = FolderTensors::open(&file("types.gguf")).unwrap();
    let expected = Golden::read("gguf/types.safetensors");
    let found = tensors.to_memory().unwrap();
    assert_eq!(found.iter().count(), 13);
    for (name, shape, values) in found.iter() {
        assert_eq!(shape, [2, 256]);
        assert_eq!(bits(values), bits(&expected.f32(name)), "{name}");
    }
}

/// The backbone of a language model, with the head that a server needs to load anything.
fn with_head(path: &Path, folder: &Path) -> Checkpoint {
    init_head(path, folder, &HeadConfig::standard(), 0).unwrap();
    Checkpoint::open(folder).unwrap()
}

fn last_hidden(checkpoint: &Checkpoint, sequences: &[Vec<u32>]) -> Vec<f32> {
    hidden_of(&checkpoint.config, &checkpoint.tensors, sequences)
}

fn hidden_of(config: &ModelConfig, tensors: &FolderTensors, sequences: &[Vec<u32>]) -> Vec<f32> {
    let mut head = MemoryTensors::default();
    initialise_head(&mut head, &HeadConfig::standard(), config.decoder.hidden_size, 0);
    let source = Both { backbone: tensors, head: &head };
    let ops = CpuOps::new(2, Precision::F32).unwrap();
    let model = RewardModel::load(ops, config, &source).unwrap();
    let packing = Packing::new(sequences).unwrap();
    model.ops().read(&model.last_hidden(&packing).unwrap()).unwrap()
}

/// A backbone straight from its file, with a head from memory.
struct Both<'a> {
    backbone: &'a FolderTensors,
    head: &'a MemoryTensors,
}

impl TensorSource for Both<'_> {
    fn values(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<inform::checkpoint::TensorValues, inform::checkpoint::CheckpointError> {
        match name.starts_with("model.") {
            true => self.backbone.values(name, shape),
            false => self.head.values(name, shape),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.backbone.shape(name).or_else(|| self.head.shape(name))
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let expected = Golden::read("gguf/model.safetensors");
    let checkpoint = Checkpoint::open(&file("model.gguf")).unwrap();
    let hidden = last_hidden(&checkpoint, &expected.sequences());
    let mut worst = 0f64;
    for (found, expected) in hidden.chunks(64).zip(expected.f32("hidden").chunks(64)) {
        worst = worst.max(relative_error(found, expected));
    }
    println!("worst relative error {worst:.1e}");
    assert!(worst < 1e-5, "{worst:e}");
}

/// Every architecture but `llama`, with the names and metadata of the gguf package.
#[test]
fn other_architectures_have_pytorchs_hidden_states() {
    for name in ["qwen2", "qwen3", "phi3", "phi3_long", "gemma2", "gemma3"] {
        let expected = Golden::read(&format!("gguf_families/{name}.safetensors"));
        let path = golden("gguf_families").join(format!("{name}.gguf"));
        let config = ModelConfig::read(&path).unwrap();
        let tensors = FolderTensors::open(&path).unwrap();
        let found = hidden_of(&config, &tensors, &expected.sequences());
        let error = relative_error(&found, &expected.f32("hidden"));
        println!("{name}: relative error {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

/// Their vocabularies have the ids of the tokenizers that they came from, and a folder that is made of a file is no other
/// model.
#[test]
fn other_architectures_become_ordinary_folders() {
    let texts = fs::read(golden("gguf_families/tokenizers.json")).unwrap();
    let expected: Texts = serde_json::from_slice(&texts).unwrap();
    assert_eq!(expected.ids.len(), 6);
    let scratch = tempfile::tempdir().unwrap();
    for (name, expected_ids) in &expected.ids {
        let path = golden("gguf_families").join(format!("{name}.gguf"));
        let original = Checkpoint::open(&path).unwrap();
        let copy = with_head(&path, &scratch.path().join(name));
        assert_eq!(copy.config.decoder, original.config.decoder, "{name}");
        for (text, expected) in expected.texts.iter().zip(expected_ids) {
            assert_eq!(ids(&original, text), *expected, "{name}: {text:?}");
            assert_eq!(ids(&copy, text), *expected, "{name}'s folder: {text:?}");
        }
        let sequences = Golden::read(&format!("gguf_families/{name}.safetensors")).sequences();
        let hidden = last_hidden(&original, &sequences);
        assert_eq!(bits(&last_hidden(&copy, &sequences)), bits(&hidden), "{name}");
    }
}

/// llama.cpp divides scores in the largest Gemmas by another number, and knows them by their layers.
#[test]
fn the_scale_of_gemmas_scores_follows_its_size() {
    let path = golden("gguf_families/gemma2.gguf");
    let scalar = |path: &Path| {
        let keys = Gguf::open(path).unwrap().config_keys().unwrap();
        keys["query_pre_attn_scalar"].as_u64().unwrap()
    };
    assert_eq!(scalar(&path), 16);
    let scratch = tempfile::tempdir().unwrap();
    let large = scratch.path().join("large.gguf");
    let mut bytes = fs::read(&path).unwrap();
    behind("gemma2.block_count", 4, &[46])(&mut bytes);
    fs::write(&large, bytes).unwrap();
    assert_eq!(scalar(&large), 32 / 4);
}

#[test]
fn a_fresh_head_makes_an_ordinary_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&file("model.gguf")).unwrap();
    let copy = with_head(&file("model.gguf"), &scratch.path().join("headed"));
    assert_eq!(copy.config.decoder, original.config.decoder);
    // The folder says that its head has one label; the file has no head to speak of.
    let labels = vec!["LABEL_0".to_owned()];
    let head = HeadConfig::Standard(StandardConfig { labels, ..StandardConfig::default() });
    assert_eq!(copy.config, ModelConfig { head, ..original.config.clone() });
    let kept = copy.tensors.to_memory().unwrap();
    for (name, shape, values) in kept.iter().filter(|(name, ..)| name.starts_with("model.")) {
        assert_eq!(bits(values), bits(&original.tensors.f32(name, shape).unwrap()), "{name}");
    }
    assert_eq!(copy.encoder.limit(), 512);
    let messages = [("user", "Is it 12?"), ("assistant", " Yes.")];
    let messages = messages.map(|(role, text)| inform::checkpoint::Message::new(role, text));
    let input = Input::Messages(messages.to_vec());
    let ids = copy.encoder.encode(&input, false).unwrap().ids;
    assert_eq!(ids, original.encoder.encode(&input, false).unwrap().ids);
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1, "one BOS: {ids:?}");
}

/// GGUF has what the parameters made, and `config.json` the parameters.
#[test]
fn the_scaling_of_llama_3_is_found_in_its_factors() {
    let keys = Gguf::open(&file("rope.gguf")).unwrap().config_keys().unwrap();
    let expected = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(keys["rope_scaling"], expected);

    let scratch = tempfile::tempdir().unwrap();
    let changed = scratch.path().join("rope.gguf");
    let mut bytes = fs::read(file("rope.gguf")).unwrap();
    // The last factor, which is the last tensor's last.
    let last = bytes.chunks_exact(4).rposition(|number| number == 32f32.to_le_bytes()).unwrap();
    bytes[4 * last..4 * last + 4].copy_from_slice(&31f32.to_le_bytes());
    fs::write(&changed, bytes).unwrap();
    let error = Gguf::open(&changed).unwrap().config_keys().unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
    ids: std::collections::BTreeMap<String, Vec<Vec<u32>>>,
}

/// Ids as they are scored, less the EOS that scoring needs.
fn ids(checkpoint: &Checkpoint, text: &str) -> Vec<u32> {
    match checkpoint.encoder.encode(&Input::Text(text.to_owned()), false) {
        Ok(mut encoding) => {
            encoding.ids.pop();
            encoding.ids
        }
        Err(error) => {
            assert_eq!(error.code(), "empty_input", "{text:?}: {error}");
            Vec::new()
        }
    }
}

#[test]
fn tokenizers_give_the_ids_of_tokenizers_and_sentencepiece() {
    let golden: Texts =
        serde_json::from_slice(&fs::read(file("tokenizers.json")).unwrap()).unwrap();
    assert_eq!(golden.ids.len(), 6);
    for (name, expected) in &golden.ids {
        let checkpoint = Checkpoint::open(&file(&format!("{name}.gguf"))).unwrap();
        for (text, expected) in golden.texts.iter().zip(expected) {
            assert_eq!(ids(&checkpoint, text), *expected, "{name}: {text:?}");
        }
    }
}

/// Vocabularies of released models, with texts and their ids by transformers, as llama.cpp has them in its folder
/// `models`.
#[test]
fn released_vocabularies_give_the_ids_of_transformers() {
    let Some(folder) = std::env::var_os("LLAMA_CPP_MODELS") else {
        println!("skipped: LLAMA_CPP_MODELS does not name the folder `models` of llama.cpp");
        return;
    };
    let names = [
        "llama-bpe",
        "llama-spm",
        "phi-3",
        "gpt-2",
        "qwen2",
        "starcoder",
        "refact",
        "mpt",
        "command-r",
    ];
    for name in names {
        let path = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf"));
        let json = Gguf::open(&path).unwrap().text_file(TOKENIZER_FILE).unwrap().unwrap();
        let tokenizer = Tokenizer::from_bytes(json).unwrap();
        let texts = fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let expected = fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut compared = 0;
        for (text, expected) in texts.into_iter().zip(expected.lines()) {
            let expected: Vec<u32> =
                expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found.get_ids(), expected, "{name}: {text:?}");
            compared += 1;
        }
        println!("{name}: {compared} texts");
        assert!(compared > 40);
    }
}

/// What is said of a file whose bytes `change` has changed.
fn error_of(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("changed.gguf");
    let mut bytes = fs::read(file("model.gguf")).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("changed.gguf"), "{error}");
    error
}

fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

/// Overwrites the first `old`, which is as long.
fn replace(old: &'static str, new: &'static str) -> impl FnOnce(&mut Vec<u8>) {
    assert_eq!(old.len(), new.len());
    move |bytes| {
        let at = find(bytes, old);
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
}

/// Overwrites what stands `skip` bytes behind the first `text`.
fn behind(text: &'static str, skip: usize, new: &'static [u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let at = find(bytes, text) + text.len() + skip;
        bytes[at..at + new.len()].copy_from_slice(new);
    }
}

#[test]
fn damaged_files_are_refused_by_key_or_tensor() {
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    const HUGE: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let cases: Vec<(Change, &[&str])> = vec![
        (Box::new(Vec::clear), &[]),
        (Box::new(|b| b.truncate(3)), &["3 are left"]),
        (Box::new(|b| b.truncate(20)), &["8 bytes are announced, 4 are left"]),
        (Box::new(|b| b.truncate(100)), &["metadata"]),
        (
            Box::new(|b| b.truncate(b.len() - 1)),
            &["tensor `blk.1.ffn_down.weight`", "ends at byte"],
        ),
        (Box::new(|b| b[..4].copy_from_slice(b"GGML")), &["instead of \"GGUF\""]),
        (Box::new(|b| b[4] = 1), &["version 1"]),
        (Box::new(|b| b[4] = 9), &["version 9"]),
        (Box::new(|b| b[4..8].copy_from_slice(&[0, 0, 0, 3])), &["big-endian"]),
        (
            Box::new(|b| b[8..16].copy_from_slice(&HUGE)),
            &["tensor after `blk.1.ffn_down.weight`", "no name"],
        ),
        (Box::new(|b| b[16..24].copy_from_slice(&HUGE)), &["metadata"]),
        (
            // The length of the architecture's name.
            Box::new(behind("general.architecture", 4, &HUGE)),
            &["metadata `general.architecture`", "9223372036854775807 bytes are announced"],
        ),
        (
            Box::new(behind("general.architecture", 0, &[77])),
            &["metadata `general.architecture`", "unknown type 77"],
        ),
        (
            // The length of the list of tokens.
            Box::new(behind("tokenizer.ggml.tokens", 8, &HUGE)),
            &["metadata `tokenizer.ggml.tokens`"],
        ),
        (
            Box::new(behind("general.architecture", 12, b"mamba")),
            &["`general.architecture`", "mamba"],
        ),
        (Box::new(replace("llama.block_count", "llama.block_xxxxx")), &["`llama.block_count`"]),
        (
            Box::new(replace("layer_norm_rms_epsilon", "layer_norm_rms_epsilox")),
            &["`llama.attention.layer_norm_rms_epsilon`", "no such key"],
        ),
        // A 32-bit integer as a float.
        (
            Box::new(behind("llama.context_length", 0, &[6])),
            &["`llama.context_length`", "expected a whole number"],
        ),
        (
            Box::new(behind("llama.rope.dimension_count", 4, &[8])),
            &["`llama.rope.dimension_count`", "found 8"],
        ),
        (
            Box::new(replace("tokenizer.ggml.tokens", "tokenizer.ggml.xokens")),
            &["`tokenizer.ggml.tokens`"],
        ),
        (
            Box::new(replace("tokenizer.ggml.merges", "tokenizer.ggml.xerges")),
            &["`tokenizer.ggml.merges`"],
        ),
        (
            Box::new(replace("tokenizer.ggml.eos_token_id", "tokenizer.ggml.xos_token_id")),
            &["eos_token"],
        ),
        (
            Box::new(behind("tokenizer.ggml.bos_token_id", 4, &[0, 0, 1, 0])),
            &["`tokenizer.ggml.bos_token_id`", "65536"],
        ),
        (
            Box::new(behind("tokenizer.ggml.model", 12, b"bert")),
            &["`tokenizer.ggml.model`", "bert"],
        ),
        (Box::new(behind("tokenizer.ggml.pre", 12, b"gpt-X")), &["`tokenizer.ggml.pre`", "gpt-X"]),
        // Behind the name: the number of dimensions, the dimensions, the type, the offset.
        (
            Box::new(behind("blk.1.attn_q.weight", 20, &[18])),
            &["tensor `blk.1.attn_q.weight`", "type IQ (number 18)", "Q4_K"],
        ),
        (
            Box::new(behind("blk.1.attn_q.weight", 4, &[65])),
            &["tensor `blk.1.attn_q.weight`", "65 columns are no whole blocks of 32"],
        ),
        (Box::new(behind("blk.1.attn_q.weight", 4, &HUGE)), &["tensor `blk.1.attn_q.weight`"]),
        (
            Box::new(behind("blk.1.attn_q.weight", 0, &[99])),
            &["tensor `blk.1.attn_q.weight`", "99 dimensions"],
        ),
        (
            Box::new(behind("blk.1.attn_q.weight", 24, &[1])),
            &["tensor `blk.1.attn_q.weight`", "multiple of 32"],
        ),
        (
            Box::new(behind("blk.1.attn_q.weight", 24, &[0, 0, 0, 0, 0, 0, 0, 0x7f])),
            &["tensor `blk.1.attn_q.weight`"],
        ),
    ];
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        let error = error_of(change);
        println!("{error}");
        for part in expected {
            assert!(error.contains(part), "{number}: {part:?} is not in {error}");
        }
    }
}

#[test]
fn a_language_model_is_told_how_to_get_a_head() {
    let checkpoint = Checkpoint::open(&file("model.gguf")).unwrap();
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let error = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap_err();
    let error = error.to_string();
    for part in ["model.gguf", "score.weight", "trainer init-head --model"] {
        assert!(error.contains(part), "{error}");
    }
}

/// SmolLM2 as it was published, in Q4_1, beside a folder of the same, dequantised by ggml's Python package and
/// rounded to BF16.
#[test]
fn smollm2_equals_its_dequantised_folder() {
    let Some(folder) = std::env::var_os("SMOLLM2_FOLDER") else {
        println!("skipped: SMOLLM2_FOLDER does not name a folder of SmolLM2-135M-Instruct");
        return;
    };
    let folder = PathBuf::from(folder);
    let found = Checkpoint::open(&folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let expected = Checkpoint::open(&folder).unwrap();
    assert_eq!(found.config, expected.config);

    let stored = fs::read(folder.join("model.safetensors")).unwrap();
    let mut values = 0;
    for (name, tensor) in SafeTensors::deserialize(&stored).unwrap().tensors() {
        let exact = found.tensors.f32(&name, tensor.shape()).unwrap();
        let rounded = exact.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes());
        assert!(rounded.eq(tensor.data().iter().copied()), "{name}");
        values += exact.len();
    }
    println!("{values} values, rounded to BF16, are the folder's to the bit");

    let golden: Texts =
        serde_json::from_slice(&fs::read(file("tokenizers.json")).unwrap()).unwrap();
    let words: Vec<&str> = include_str!("../../golden/words.txt").split_whitespace().collect();
    let mut texts = golden.texts;
    texts.extend(words.chunks(40).map(|words| words.join(" ")));
    texts.extend(include_str!("gguf.rs").lines().map(str::to_owned));
    texts.push(include_str!("../../golden/gguf_files.py").to_owned());
    for text in &texts {
        assert_eq!(ids(&found, text), ids(&expected, text), "{text:?}");
    }
    println!("{} texts have the same ids", texts.len());

    let sequences: Vec<Vec<u32>> =
        texts[..12].iter().map(|text| ids(&expected, text)).filter(|ids| !ids.is_empty()).collect();
    let width = expected.config.decoder.hidden_size;
    let (found, expected) = (last_hidden(&found, &sequences), last_hidden(&expected, &sequences));
    let errors = found.chunks(width).zip(expected.chunks(width));
    let worst =
        errors.map(|(found, expected)| relative_error(found, expected)).fold(0f64, f64::max);
    println!("hidden states differ by at most {worst:.1e}, which is the rounding to BF16");
    assert!(worst < 0.05, "{worst:e}");
}
