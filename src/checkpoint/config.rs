//! `config.json`: the backbone's keys as Hugging Face names them, and the reward head's.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{CheckpointError, CheckpointSource};
use crate::ops::AttentionShape;

/// Name of the configuration file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

/// Architectures that this build knows.
const ARCHITECTURES: [&str; 4] =
    ["LlamaForCausalLM", "LlamaModel", "LlamaForSequenceClassification", "LlamaForInfoRM"];

/// A Llama-family decoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads and rotary base.
    pub attention: AttentionShape,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the root-mean-square norms.
    pub rms_norm_eps: f32,
}

/// How a latent becomes a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeKind {
    /// One linear layer without bias (`use_complex_decoder = false`).
    #[default]
    Linear,
    /// `down(silu(gate s) * up s)` with inner width 4 d (`use_complex_decoder = true`).
    Gated,
}

/// The reward head.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HeadConfig {
    /// Variational information bottleneck (InfoRM, NeurIPS 2024, section 4).
    Inform {
        /// Dimension d of the latent.
        latent_dim: usize,
        /// The decode head.
        decode: DecodeKind,
        /// Name of the encode head's tensors, before `.weight`.
        encode_head_prefix: String,
        /// Name of the decode head's tensors, before `.weight`.
        decode_head_prefix: String,
    },
    /// One linear layer on the pooled hidden state: `score.weight`.
    Standard,
}

impl HeadConfig {
    /// An InfoRM head with the usual tensor names.
    pub fn inform(latent_dim: usize, decode: DecodeKind) -> Self {
        Self::Inform {
            latent_dim,
            decode,
            encode_head_prefix: "encode_head".to_owned(),
            decode_head_prefix: "decode_head".to_owned(),
        }
    }

    /// Dimension of the latent; `None` for a standard head, which has none.
    pub fn latent_dim(&self) -> Option<usize> {
        match self {
            Self::Inform { latent_dim, .. } => Some(*latent_dim),
            Self::Standard => None,
        }
    }
}

/// Reward normalisation `(r - mean) / std`, applied when scoring only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RewardScale {
    /// Mean of the rewards on the evaluation set.
    pub mean: f32,
    /// Their standard deviation.
    pub std: f32,
}

/// Everything in `config.json` that decides how a checkpoint is computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The backbone.
    pub decoder: DecoderConfig,
    /// The reward head.
    pub head: HeadConfig,
    /// Set where `normalize_reward` is true.
    pub reward_scale: Option<RewardScale>,
}

/// `config.json` as it is written, with what may be left out.
#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    /// Where newer releases of transformers keep `rope_theta` and the scaling type.
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Value>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_inform: bool,
    latent_dim: Option<usize>,
    encode_head_prefix: Option<String>,
    decode_head_prefix: Option<String>,
    #[serde(default)]
    use_complex_decoder: bool,
    #[serde(default)]
    normalize_reward: bool,
    mean: Option<f32>,
    std: Option<f32>,
}

fn silu() -> String {
    "silu".to_owned()
}

impl ModelConfig {
    /// Reads and checks `config.json` of a folder, or a GGUF file's metadata.
    ///
    /// # Errors
    /// Where it is missing, not JSON, of an unknown architecture, or contradicts itself; the message
    /// names the key.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        Self::of(&CheckpointSource::open(folder)?)
    }

    /// [`ModelConfig::read`] of a source that is open already.
    pub(super) fn of(source: &CheckpointSource) -> Result<Self, CheckpointError> {
        let (file, keys) = (source.path_of(CONFIG_FILE), source.config_keys()?);
        let raw = serde_json::from_value(Value::Object(keys))
            .map_err(|source| CheckpointError::Json { file: file.clone(), source })?;
        Self::from_raw(raw, &file)
    }

    fn from_raw(raw: RawConfig, file: &Path) -> Result<Self, CheckpointError> {
        let wrong = |key: &str, message: String| CheckpointError::Config {
            file: file.to_owned(),
            key: key.to_owned(),
            message,
        };
        if !raw.architectures.iter().any(|a| ARCHITECTURES.contains(&a.as_str())) {
            return Err(CheckpointError::UnknownArchitecture {
                file: file.to_owned(),
                found: format!("{:?}", raw.architectures),
                expected: ARCHITECTURES.join(", "),
            });
        }
        for (key, value) in [
            ("vocab_size", raw.vocab_size),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("max_position_embeddings", raw.max_position_embeddings),
        ] {
            if value == 0 {
                return Err(wrong(key, "must be at least 1".to_owned()));
            }
        }
        for (key, value) in
            [("hidden_size", raw.hidden_size), ("intermediate_size", raw.intermediate_size)]
        {
            if !value.is_multiple_of(2) {
                return Err(wrong(key, format!("must be even, found {value}")));
            }
        }
        if raw.hidden_act != "silu" {
            let found = raw.hidden_act;
            return Err(wrong("hidden_act", format!("found {found:?}, supported is \"silu\"")));
        }
        if raw.attention_bias || raw.mlp_bias {
            let key = if raw.attention_bias { "attention_bias" } else { "mlp_bias" };
            return Err(wrong(key, "biases are not supported by the Llama family here".to_owned()));
        }
        let scaling = raw.rope_scaling.as_ref().and_then(Value::as_object);
        let kind = [scaling, raw.rope_parameters.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|rope| rope.get("rope_type").or_else(|| rope.get("type")));
        if kind.is_some_and(|kind| kind != "default") {
            return Err(wrong(
                "rope_scaling",
                format!("found type {}, supported is none", kind.unwrap_or(&Value::Null)),
            ));
        }
        let in_parameters = raw.rope_parameters.as_ref().and_then(|rope| rope.get("rope_theta"));
        let rope_theta =
            raw.rope_theta.or_else(|| in_parameters.and_then(Value::as_f64)).unwrap_or(10_000.0);
        let heads = raw.num_attention_heads;
        let key_value_heads = raw.num_key_value_heads.unwrap_or(heads);
        if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
            return Err(wrong(
                "num_key_value_heads",
                format!("{key_value_heads} does not divide the {heads} query heads"),
            ));
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", format!("must be even, found {head_dim}")));
        }
        let head = if raw.use_inform {
            let latent_dim = raw.latent_dim.filter(|&d| d > 0).ok_or_else(|| {
                wrong("latent_dim", "must be at least 1 where `use_inform` is true".to_owned())
            })?;
            HeadConfig::Inform {
                latent_dim,
                decode: if raw.use_complex_decoder {
                    DecodeKind::Gated
                } else {
                    DecodeKind::Linear
                },
                encode_head_prefix: raw
                    .encode_head_prefix
                    .unwrap_or_else(|| "encode_head".to_owned()),
                decode_head_prefix: raw
                    .decode_head_prefix
                    .unwrap_or_else(|| "decode_head".to_owned()),
            }
        } else {
            HeadConfig::Standard
        };
        let reward_scale = if raw.normalize_reward {
            let mean = raw.mean.filter(|m| m.is_finite()).ok_or_else(|| {
                wrong("mean", "must be a number where `normalize_reward` is true".to_owned())
            })?;
            let std = raw.std.filter(|s| s.is_finite() && *s > 0.0).ok_or_else(|| {
                wrong("std", "must be positive where `normalize_reward` is true".to_owned())
            })?;
            Some(RewardScale { mean, std })
        } else {
            None
        };
        Ok(Self {
            decoder: DecoderConfig {
                vocab_size: raw.vocab_size,
                hidden_size: raw.hidden_size,
                intermediate_size: raw.intermediate_size,
                num_hidden_layers: raw.num_hidden_layers,
                attention: AttentionShape { heads, key_value_heads, head_dim, rope_theta },
                max_position_embeddings: raw.max_position_embeddings,
                rms_norm_eps: raw.rms_norm_eps,
            },
            head,
            reward_scale,
        })
    }

    /// The keys of `config.json` that this configuration decides, to be laid over those that a
    /// folder already had.
    pub fn to_json(&self) -> Map<String, Value> {
        let decoder = &self.decoder;
        let mut keys = json!({
            "architectures": ["LlamaForInfoRM"],
            "model_type": "llama",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.attention.heads,
            "num_key_value_heads": decoder.attention.key_value_heads,
            "head_dim": decoder.attention.head_dim,
            "max_position_embeddings": decoder.max_position_embeddings,
            "rms_norm_eps": shortest(decoder.rms_norm_eps),
            "rope_theta": decoder.attention.rope_theta,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "use_inform": self.head.latent_dim().is_some(),
            "normalize_reward": self.reward_scale.is_some(),
        });
        match &self.head {
            HeadConfig::Inform { latent_dim, decode, encode_head_prefix, decode_head_prefix } => {
                keys["latent_dim"] = json!(latent_dim);
                keys["encode_head_prefix"] = json!(encode_head_prefix);
                keys["decode_head_prefix"] = json!(decode_head_prefix);
                keys["use_complex_decoder"] = json!(*decode == DecodeKind::Gated);
            }
            HeadConfig::Standard => {
                keys["architectures"] = json!(["LlamaForSequenceClassification"]);
                keys["num_labels"] = json!(1);
            }
        }
        if let Some(scale) = self.reward_scale {
            keys["mean"] = shortest(scale.mean);
            keys["std"] = shortest(scale.std);
        }
        match keys {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// An f32 as the shortest decimal that reads back as the same f32, not as its f64 neighbour.
pub(super) fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}
