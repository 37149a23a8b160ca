//! From GGUF's metadata and tensor names to Hugging Face's.

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::checkpoint::CheckpointError;

const ARCHITECTURE_KEY: &str = "general.architecture";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
/// What the frequencies of the rotary embedding are divided by.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Architectures that are read, with Hugging Face's class and `model_type`.
const ARCHITECTURES: [(&str, &str, &str); 1] = [("llama", "LlamaForCausalLM", "llama")];

/// The keys of `config.json`.
pub(super) fn keys(gguf: &Gguf) -> Result<Map<String, Value>, CheckpointError> {
    let (architecture, class, model_type) = architecture(gguf)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| gguf.size(&key(name));
    let optional = |name: &str| gguf.optional(&key(name), Gguf::size);
    let number = |gguf: &Gguf, key: &str| gguf.value(key, "a number", Value::as_f64);

    let heads = size("attention.head_count")?;
    let hidden = size("embedding_length")?;
    let head_dim = match optional("attention.key_length")? {
        Some(length) => length,
        None => hidden.checked_div(heads).unwrap_or_default(),
    };
    let rotated = optional("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim {
        let message = format!("found {rotated}, supported is all of a head, {head_dim}");
        return Err(gguf.wrong(&key("rope.dimension_count"), message));
    }
    if let Some(experts) = optional("expert_count")?.filter(|&experts| experts > 0) {
        let message = format!("found {experts}, mixtures of experts are not supported");
        return Err(gguf.wrong(&key("expert_count"), message));
    }
    let has = |name: &str| gguf.container.tensors.iter().any(|tensor| tensor.name == name);
    let mut keys = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": vocabulary(gguf)?,
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": size("context_length")?,
        "rms_norm_eps": number(gguf, &key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": gguf.optional(&key("rope.freq_base"), number)?.unwrap_or(10_000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
    });
    if let Some(scaling) = rope_scaling(gguf, architecture, head_dim, &keys["rope_theta"])? {
        keys["rope_scaling"] = scaling;
    }
    for token in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = gguf.optional(&format!("tokenizer.ggml.{token}"), Gguf::size)? {
            keys[token] = json!(id);
        }
    }
    Ok(match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    })
}

fn architecture(
    gguf: &Gguf,
) -> Result<(&'static str, &'static str, &'static str), CheckpointError> {
    let found = gguf.text(ARCHITECTURE_KEY)?;
    ARCHITECTURES.into_iter().find(|(name, ..)| *name == found).ok_or_else(|| {
        let known = ARCHITECTURES.map(|(name, ..)| name).join(", ");
        let message = format!("found \"{found}\", this build reads GGUF files of {known}");
        gguf.wrong(ARCHITECTURE_KEY, message)
    })
}

/// Rows of the embedding table, or tokens where there is none.
fn vocabulary(gguf: &Gguf) -> Result<usize, CheckpointError> {
    let table = gguf.container.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    match table.and_then(|table| table.shape.first()) {
        Some(&rows) => Ok(rows),
        None => gguf.value(TOKENS_KEY, "a list", |tokens| Some(tokens.as_array()?.len())),
    }
}

/// `rope_scaling` in the words of `config.json`.
fn rope_scaling(
    gguf: &Gguf,
    architecture: &str,
    head_dim: usize,
    theta: &Value,
) -> Result<Option<Value>, CheckpointError> {
    if let Some(factors) = gguf.container.tensors.iter().find(|t| t.name == ROPE_FACTORS) {
        let bytes = &gguf.container.map[factors.range.0..factors.range.1];
        let numbers = bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number));
        let factors: Vec<f32> = numbers.collect();
        let theta = theta.as_f64().unwrap_or_default();
        return llama3(&factors, head_dim, theta).map(Some).ok_or_else(|| {
            CheckpointError::DamagedGguf {
                file: gguf.file().to_owned(),
                message: format!("tensor `{ROPE_FACTORS}`: these are not the factors of Llama 3"),
            }
        });
    }
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let kind = match gguf.optional(&key("type"), Gguf::text)? {
        None | Some("none") => return Ok(None),
        Some(kind) => kind,
    };
    let factor = gguf.value(&key("factor"), "a number", Value::as_f64)?;
    let mut scaling = json!({"rope_type": kind, "factor": factor});
    if let Some(length) = gguf.optional(&key("original_context_length"), Gguf::size)? {
        scaling["original_max_position_embeddings"] = json!(length);
    }
    Ok(Some(scaling))
}

/// Llama 3.1 and later: GGUF has what each frequency is divided by, not what that was computed from. All
/// released models share the three other parameters; whether they explain the factors is checked.
fn llama3(factors: &[f32], head_dim: usize, theta: f64) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const CONTEXT: usize = 8192;
    let factor = factors.iter().copied().fold(1f32, f32::max);
    let explains = |(index, found): (usize, &f32)| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * index as f64 / head_dim as f64);
        let turns = CONTEXT as f64 / wavelength;
        let smooth = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / f64::from(factor) + smooth);
        (f64::from(*found) / expected - 1.0).abs() < 1e-5
    };
    let explained = factors.len() == head_dim / 2 && factors.iter().enumerate().all(explains);
    explained.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": CONTEXT,
        })
    })
}

/// What a tensor is called in a Hugging Face folder.
pub(super) struct TensorNames {
    heads: usize,
    key_value_heads: usize,
}

impl TensorNames {
    pub(super) fn of(gguf: &Gguf) -> Result<Self, CheckpointError> {
        let (architecture, ..) = architecture(gguf)?;
        let heads = gguf.size(&format!("{architecture}.attention.head_count"))?;
        let key = format!("{architecture}.attention.head_count_kv");
        Ok(Self { heads, key_value_heads: gguf.optional(&key, Gguf::size)?.unwrap_or(heads) })
    }

    /// The name, and how many heads the rows are if GGUF has them in pairs, else 0. A tensor that no model here
    /// reads keeps its name.
    pub(super) fn place(&self, name: &str) -> (String, usize) {
        let whole = match name {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            _ => None,
        };
        if let Some(whole) = whole {
            return (whole.to_owned(), 0);
        }
        let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, (part, suffix))) =
            parts.and_then(|(layer, rest)| Some((layer, rest.rsplit_once('.')?)))
        else {
            return (name.to_owned(), 0);
        };
        let (part, heads) = match part {
            "attn_norm" => ("input_layernorm", 0),
            "attn_q" => ("self_attn.q_proj", self.heads),
            "attn_k" => ("self_attn.k_proj", self.key_value_heads),
            "attn_v" => ("self_attn.v_proj", 0),
            "attn_output" => ("self_attn.o_proj", 0),
            "ffn_norm" => ("post_attention_layernorm", 0),
            "ffn_gate" => ("mlp.gate_proj", 0),
            "ffn_up" => ("mlp.up_proj", 0),
            "ffn_down" => ("mlp.down_proj", 0),
            _ => return (name.to_owned(), 0),
        };
        (format!("model.layers.{layer}.{part}.{suffix}"), heads)
    }
}
