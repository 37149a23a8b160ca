//! From GGUF's metadata to the keys of `config.json`.

use serde_json::{Map, Value, json};

use super::file::GgufFile;
use crate::checkpoint::decoder::Family;
use crate::checkpoint::files::CheckpointError;

const ARCHITECTURE_KEY: &str = "general.architecture";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
/// What the frequencies of the rotary embedding are divided by, as Llama 3 and Phi-3 have it.
const ROPE_FACTORS: &str = "rope_freqs.weight";
const SHORT_ROPE_FACTORS: &str = "rope_factors_short.weight";

/// Architectures that are read. Mistral's files call themselves `llama`.
const ARCHITECTURES: [(&str, Family); 6] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("phi3", Family::Phi3),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
];

/// The keys of `config.json`.
pub(super) fn keys(gguf: &GgufFile) -> Result<Map<String, Value>, CheckpointError> {
    let (architecture, family) = architecture(gguf)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| gguf.size(&key(name));
    let optional = |name: &str| gguf.optional(&key(name), GgufFile::size);
    let number = |gguf: &GgufFile, key: &str| gguf.value(key, "a number", Value::as_f64);

    let heads = size("attention.head_count")?;
    let hidden = size("embedding_length")?;
    let head_dim = match optional("attention.key_length")? {
        Some(length) => length,
        None => hidden.checked_div(heads).unwrap_or_default(),
    };
    let rotated = optional("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim && family != Family::Phi3 {
        let message = format!("found {rotated}, supported is all of a head, {head_dim}");
        return Err(gguf.wrong(&key("rope.dimension_count"), message));
    }
    if let Some(experts) = optional("expert_count")?.filter(|&experts| experts > 0) {
        let message = format!("found {experts}, mixtures of experts are not supported");
        return Err(gguf.wrong(&key("expert_count"), message));
    }
    let has = |name: &str| gguf.container.tensors.iter().any(|tensor| tensor.name == name);
    let mut keys = json!({
        "architectures": [format!("{family}ForCausalLM")],
        "model_type": family.model_type(),
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
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
    });
    if let Some(scaling) = rope_scaling(gguf, architecture, head_dim, &keys["rope_theta"])? {
        keys["rope_scaling"] = scaling;
    }
    let window = optional("attention.sliding_window")?.filter(|&window| window > 0);
    match family {
        Family::Phi3 => {
            keys["hidden_act"] = json!("silu");
            keys["sliding_window"] = json!(window);
            keys["partial_rotary_factor"] = json!(rotated as f64 / head_dim as f64);
        }
        Family::Gemma2 | Family::Gemma3 => {
            let layers = keys["num_hidden_layers"].as_u64();
            // The metadata does not say; llama.cpp knows the sizes that divide by another number than the others.
            let is_largest = layers == Some(if family == Family::Gemma2 { 46 } else { 62 });
            let scalar =
                if is_largest { hidden.checked_div(heads).unwrap_or_default() } else { head_dim };
            keys["query_pre_attn_scalar"] = json!(scalar);
            keys["hidden_activation"] = json!("gelu_pytorch_tanh");
            if let Some(window) = window {
                keys["sliding_window"] = json!(window);
            }
            if family == Family::Gemma2 {
                let cap = gguf.optional(&key("attn_logit_softcapping"), number)?;
                keys["attn_logit_softcapping"] = json!(cap.unwrap_or(50.0));
            } else {
                let local = gguf.optional(&key("rope.freq_base_swa"), number)?;
                keys["rope_local_base_freq"] = json!(local.unwrap_or(10_000.0));
            }
        }
        _ => keys["hidden_act"] = json!("silu"),
    }
    for token in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = gguf.optional(&format!("tokenizer.ggml.{token}"), GgufFile::size)? {
            keys[token] = json!(id);
        }
    }
    Ok(match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    })
}

pub(super) fn architecture(gguf: &GgufFile) -> Result<(&'static str, Family), CheckpointError> {
    let found = gguf.text(ARCHITECTURE_KEY)?;
    ARCHITECTURES.into_iter().find(|(name, ..)| *name == found).ok_or_else(|| {
        let known = ARCHITECTURES.map(|(name, ..)| name).join(", ");
        let message = format!("found \"{found}\", this build reads GGUF files of {known}");
        gguf.wrong(ARCHITECTURE_KEY, message)
    })
}

/// Rows of the embedding table, or tokens where there is none.
fn vocabulary(gguf: &GgufFile) -> Result<usize, CheckpointError> {
    let table = gguf.container.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    match table.and_then(|table| table.shape.first()) {
        Some(&rows) => Ok(rows),
        None => gguf.value(TOKENS_KEY, "a list", |tokens| Some(tokens.as_array()?.len())),
    }
}

/// `rope_scaling` in the words of `config.json`.
fn rope_scaling(
    gguf: &GgufFile,
    architecture: &str,
    head_dim: usize,
    theta: &Value,
) -> Result<Option<Value>, CheckpointError> {
    let factors = |name: &str| -> Option<Vec<f32>> {
        let tensor = gguf.container.tensors.iter().find(|tensor| tensor.name == name)?;
        let bytes = &gguf.container.map[tensor.range.0..tensor.range.1];
        Some(bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
    };
    if let Some(factors) = factors(ROPE_FACTORS) {
        let theta = theta.as_f64().unwrap_or_default();
        return llama3(&factors, head_dim, theta).map(Some).ok_or_else(|| {
            CheckpointError::DamagedGguf {
                file: gguf.file().to_owned(),
                message: format!("tensor `{ROPE_FACTORS}`: these are not the factors of Llama 3"),
            }
        });
    }
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    if let Some(factors) = factors(SHORT_ROPE_FACTORS) {
        let mut scaling = json!({"rope_type": "longrope", "short_factor": factors});
        if let Some(length) = gguf.optional(&key("original_context_length"), GgufFile::size)? {
            scaling["original_max_position_embeddings"] = json!(length);
        }
        let number = |gguf: &GgufFile, key: &str| gguf.value(key, "a number", Value::as_f64);
        if let Some(factor) = gguf.optional(&key("attn_factor"), number)? {
            scaling["attention_factor"] = json!(factor);
        }
        return Ok(Some(scaling));
    }
    let kind = match gguf.optional(&key("type"), GgufFile::text)? {
        None | Some("none") => return Ok(None),
        Some(kind) => kind,
    };
    let factor = gguf.value(&key("factor"), "a number", Value::as_f64)?;
    let mut scaling = json!({"rope_type": kind, "factor": factor});
    if let Some(length) = gguf.optional(&key("original_context_length"), GgufFile::size)? {
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
