//! A new model: random weights and a tokenizer trained on the pairs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::ensure;
use serde_json::{Map, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, models::TrainerWrapper};

use super::config::ScratchConfig;
use crate::checkpoint::{
    Architecture, CheckpointError, CheckpointFiles, DecoderConfig, HeadConfig, MemoryTensors,
    ModelConfig, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WeightType,
    write_checkpoint,
};
use crate::layer::AttentionShape;
use crate::model::{initialise_decoder, initialise_head};
use crate::train::data::Pair;

const EOS: &str = "<|end|>";
const ROLES: [&str; 3] = ["<|system|>", "<|user|>", "<|assistant|>"];
const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor -%}
";

/// Writes a checkpoint folder with a new decoder and `head`, and a byte-level BPE tokenizer trained
/// on `pairs`.
///
/// # Errors
/// Settings that contradict each other, or a folder that cannot be written.
pub(in crate::train) fn create(
    folder: &Path,
    config: &ScratchConfig,
    head: &HeadConfig,
    pairs: &[Pair],
    seed: u64,
) -> anyhow::Result<()> {
    let heads = config.num_attention_heads;
    ensure!(
        heads > 0 && config.hidden_size.is_multiple_of(2 * heads),
        "start.scratch.hidden_size: must be a multiple of twice num_attention_heads"
    );
    let tokenizer = train_tokenizer(pairs, config.vocab_size)?;
    let decoder = DecoderConfig {
        vocab_size: tokenizer.get_vocab_size(true),
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        attention: AttentionShape {
            heads,
            key_value_heads: config.num_key_value_heads,
            head_dim: config.hidden_size / heads,
            rope_theta: config.rope_theta,
            ..AttentionShape::default()
        },
        max_position_embeddings: config.max_position_embeddings,
        rms_norm_eps: 1e-5,
        architecture: Architecture::default(),
    };
    let mut tensors = MemoryTensors::default();
    initialise_decoder(&mut tensors, &decoder, seed);
    initialise_head(&mut tensors, head, decoder.hidden_size, seed);
    let eos_id = tokenizer.token_to_id(EOS);
    let mut other_keys = Map::new();
    other_keys.insert("eos_token_id".to_owned(), json!(eos_id));
    other_keys.insert("tie_word_embeddings".to_owned(), json!(true));
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": config.max_position_embeddings,
    });
    let text = tokenizer.to_string(false).map_err(|error| anyhow::anyhow!("{error}"))?;
    let contents = CheckpointFiles {
        config: &ModelConfig { decoder, head: head.clone(), reward_scale: None },
        other_keys,
        tensors: &tensors,
        weight_type: WeightType::F32,
        files: vec![
            (TOKENIZER_FILE.to_owned(), text.into_bytes()),
            (TOKENIZER_CONFIG_FILE.to_owned(), serde_json::to_vec_pretty(&settings)?),
            (TEMPLATE_FILE.to_owned(), CHAT_TEMPLATE.as_bytes().to_vec()),
        ],
    };
    Ok(write_checkpoint::<CheckpointError>(folder, &contents, |_| Ok((None, Vec::new())))?)
}

/// A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) of `vocab_size` tokens.
fn train_tokenizer(pairs: &[Pair], vocab_size: usize) -> anyhow::Result<Tokenizer> {
    let failed = |error: tokenizers::Error| anyhow::anyhow!("training the tokenizer: {error}");
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special: Vec<AddedToken> = std::iter::once(EOS)
        .chain(ROLES)
        .map(|token| AddedToken::from(token, true).normalized(false))
        .collect();
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    // Each text once: both answers of a pair repeat its prompt.
    let texts: BTreeSet<&str> = pairs
        .iter()
        .flat_map(|pair| pair.chosen.iter().chain(&pair.rejected))
        .map(|message| message.content.as_str())
        .collect();
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(failed)?;
    Ok(tokenizer)
}
