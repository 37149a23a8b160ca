//! A checkpoint's backbone as the folder of an embedding model that mistral.rs reads: names without `model.`, and
//! sentence-transformers' description of what to do with hidden states.

use std::borrow::Cow;
use std::fs;

use anyhow::{Context, ensure};
use safetensors::{Dtype, View, serialize_to_file};
use serde_json::json;
use tempfile::TempDir;

use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointSource, DecoderConfig, DecoderTensors, Family,
    TOKENIZER_FILE, TensorSource,
};
use crate::layer::RopeScaling;

/// Name of the folder that describes the pooling.
const POOLING: &str = "1_Pooling";
/// Prefix of a decoder's tensors, which mistral.rs's embedding models do without.
const PREFIX: &str = "model.";
/// The final norm's scale there: ones, since this program's own norm follows, with the scale.
const FINAL_NORM: &str = "norm.weight";

/// Writes the folder; it goes when it is dropped. Weights are stored as f32: none of them loses anything.
///
/// # Errors
/// A backbone that mistral.rs does not compute as it is, tensors that do not fit, no room for the copy.
pub(super) fn write(checkpoint: &Checkpoint) -> anyhow::Result<TempDir> {
    let decoder = &checkpoint.config.decoder;
    check(decoder)?;
    let folder = tempfile::tempdir().context("no folder for mistral.rs's copy of the weights")?;
    let path = folder.path();
    let put = |name: &str, bytes: Vec<u8>| {
        fs::write(path.join(name), bytes).with_context(|| path.join(name).display().to_string())
    };
    fs::create_dir(path.join(POOLING)).context(POOLING)?;
    put("config.json", serde_json::to_vec(&config(decoder))?)?;
    let module = |index: usize, kind: &str, path: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({"idx": index, "name": index.to_string(), "path": path, "type": kind})
    };
    let modules = json!([module(0, "Transformer", ""), module(1, "Pooling", POOLING)]);
    put("modules.json", serde_json::to_vec(&modules)?)?;
    // The mean, which 0.8.1 does not divide, besides the last: of two tokens they give the first one's, see `mistral.rs`.
    let pooling = json!({
        "word_embedding_dimension": decoder.hidden_size,
        "pooling_mode_cls_token": false,
        "pooling_mode_mean_tokens": true,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
        "pooling_mode_weightedmean_tokens": false,
        "pooling_mode_lasttoken": true,
        "include_prompt": true,
    });
    put(&format!("{POOLING}/config.json"), serde_json::to_vec(&pooling)?)?;
    let source = CheckpointSource::open(&checkpoint.folder)?;
    put(TOKENIZER_FILE, source.read(TOKENIZER_FILE)?.context(TOKENIZER_FILE)?)?;
    // One after the other is read when it is written: the whole never lies in memory.
    let tensors = decoder.tensors(&checkpoint.tensors);
    let stored: Vec<_> = tensors_of(decoder)
        .into_iter()
        .map(|(name, shape)| ViewTensor::check(&tensors, name, shape))
        .collect::<Result<_, _>>()?;
    let named = stored.iter().map(|stored| (stored.name.clone(), stored));
    let file = path.join("model.safetensors");
    serialize_to_file(named, None, &file).with_context(|| file.display().to_string())?;
    Ok(folder)
}

fn check(decoder: &DecoderConfig) -> anyhow::Result<()> {
    let DecoderConfig { architecture, attention, .. } = decoder;
    ensure!(
        architecture.family == Family::Qwen3,
        "encoder: mistral.rs computes hidden states of Qwen3 alone, and this is {}; leave `encoder` at own",
        architecture.family
    );
    let biases = architecture.biases;
    ensure!(
        !biases.query_key_value && !biases.attention_output,
        "encoder: mistral.rs leaves out the biases of this checkpoint's attention; leave `encoder` at own"
    );
    ensure!(
        architecture.sliding.is_none() && attention.window.is_none(),
        "encoder: mistral.rs computes no sliding windows here; leave `encoder` at own"
    );
    ensure!(
        matches!(attention.rope_scaling, RopeScaling::None),
        "encoder: mistral.rs leaves out the scaling of this checkpoint's rotary embedding; leave `encoder` at own"
    );
    Ok(())
}

fn config(decoder: &DecoderConfig) -> serde_json::Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.attention.heads,
        "num_key_value_heads": decoder.attention.key_value_heads,
        "head_dim": decoder.attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": decoder.max_position_embeddings,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_theta": decoder.attention.rope_theta,
        "sliding_window": null,
        "use_sliding_window": false,
        "max_window_layers": decoder.num_hidden_layers,
        "tie_word_embeddings": true,
    })
}

/// Names and shapes of the backbone's tensors, by Llama's names.
fn tensors_of(decoder: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let DecoderConfig { hidden_size: hidden, intermediate_size: inner, attention, .. } = decoder;
    let (hidden, inner, head_dim) = (*hidden, *inner, attention.head_dim);
    let queries = attention.output_columns();
    let keys = attention.key_value_heads * head_dim;
    let mut all = vec![
        (format!("{PREFIX}embed_tokens.weight"), vec![decoder.vocab_size, hidden]),
        (format!("{PREFIX}{FINAL_NORM}"), vec![hidden]),
    ];
    for index in 0..decoder.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize]| {
            all.push((format!("{PREFIX}layers.{index}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[queries, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, queries]);
        add("self_attn.q_norm", &[head_dim]);
        add("self_attn.k_norm", &[head_dim]);
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
    }
    all
}

/// A tensor that is read when it is written.
struct ViewTensor<'a> {
    tensors: &'a DecoderTensors<'a>,
    /// Without the prefix.
    name: String,
    shape: Vec<usize>,
}

impl<'a> ViewTensor<'a> {
    /// Reads it once: while it is written there is nobody to tell that it is missing.
    fn check(
        tensors: &'a DecoderTensors<'a>,
        name: String,
        shape: Vec<usize>,
    ) -> Result<Self, CheckpointError> {
        tensors.values(&name, &shape)?;
        let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        Ok(Self { tensors, name, shape })
    }
}

impl View for &ViewTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = match self.name == FINAL_NORM {
            true => vec![1.0; self.shape[0]],
            // It was read before.
            false => self
                .tensors
                .f32(&format!("{PREFIX}{}", self.name), &self.shape)
                .unwrap_or_else(|_| vec![f32::NAN; self.shape.iter().product()]),
        };
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}
