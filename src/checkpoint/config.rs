//! `config.json`: the backbone's keys as Hugging Face names them, and the reward head's.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::families::Keys;
use super::{CheckpointError, CheckpointSource, DecoderConfig, Family, StandardConfig};

/// Name of the configuration file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

/// OpenRLHF's classes, which name no family: `model_type` does.
const REGRESSION_CLASSES: [&str; 3] = ["RewardModel", "CriticModel", "LLMForSequenceRegression"];

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
    /// One linear layer on the pooled hidden state.
    Standard(StandardConfig),
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

    /// A standard head with one label: `score.weight`.
    pub fn standard() -> Self {
        Self::Standard(StandardConfig::default())
    }

    fn read(keys: &Keys<'_>) -> Result<Self, CheckpointError> {
        if !keys.or("use_inform", false)? {
            return Ok(Self::Standard(StandardConfig::read(keys)?));
        }
        let latent_dim = keys.get("latent_dim")?.filter(|&d: &usize| d > 0).ok_or_else(|| {
            keys.wrong("latent_dim", "must be at least 1 where `use_inform` is true")
        })?;
        Ok(Self::Inform {
            latent_dim,
            decode: match keys.or("use_complex_decoder", false)? {
                true => DecodeKind::Gated,
                false => DecodeKind::Linear,
            },
            encode_head_prefix: keys.or("encode_head_prefix", "encode_head".to_owned())?,
            decode_head_prefix: keys.or("decode_head_prefix", "decode_head".to_owned())?,
        })
    }

    /// Dimension of the latent; `None` for a standard head, which has none.
    pub fn latent_dim(&self) -> Option<usize> {
        match self {
            Self::Inform { latent_dim, .. } => Some(*latent_dim),
            Self::Standard(_) => None,
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

impl RewardScale {
    fn read(keys: &Keys<'_>) -> Result<Option<Self>, CheckpointError> {
        if !keys.or("normalize_reward", false)? {
            return Ok(None);
        }
        let mean = keys.get("mean")?.filter(|mean: &f32| mean.is_finite()).ok_or_else(|| {
            keys.wrong("mean", "must be a number where `normalize_reward` is true")
        })?;
        let std = keys.get("std")?.filter(|std: &f32| std.is_finite() && *std > 0.0).ok_or_else(
            || keys.wrong("std", "must be positive where `normalize_reward` is true"),
        )?;
        Ok(Some(Self { mean, std }))
    }
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
        let (file, map) = (source.path_of(CONFIG_FILE), source.config_keys()?);
        let keys = Keys::new(&map, &file);
        let architectures: Vec<String> = keys.or("architectures", Vec::new())?;
        let mut family = architectures.iter().find_map(|name| Family::of(name));
        if family.is_none()
            && architectures.iter().any(|name| REGRESSION_CLASSES.contains(&name.as_str()))
        {
            family = keys.get::<String>("model_type")?.as_deref().and_then(Family::of_model_type);
        }
        let family = family.ok_or_else(|| CheckpointError::UnknownArchitecture {
            file: file.clone(),
            found: format!("{architectures:?}"),
            expected: Family::known(),
        })?;
        Ok(Self {
            decoder: family.read(&keys)?,
            head: HeadConfig::read(&keys)?,
            reward_scale: RewardScale::read(&keys)?,
        })
    }

    /// The keys of `config.json` that this configuration decides, to be laid over those that a
    /// folder already had. Those of the decoder where it is a Llama, whose folder may be a new one.
    pub fn to_json(&self) -> Map<String, Value> {
        let family = self.decoder.architecture.family;
        let mut keys = match family {
            Family::Llama => self.llama_keys(),
            _ => json!({}),
        };
        keys["architectures"] = json!([family.class(self.head.latent_dim().is_some())]);
        keys["use_inform"] = json!(self.head.latent_dim().is_some());
        keys["normalize_reward"] = json!(self.reward_scale.is_some());
        match &self.head {
            HeadConfig::Inform { latent_dim, decode, encode_head_prefix, decode_head_prefix } => {
                keys["latent_dim"] = json!(latent_dim);
                keys["encode_head_prefix"] = json!(encode_head_prefix);
                keys["decode_head_prefix"] = json!(decode_head_prefix);
                keys["use_complex_decoder"] = json!(*decode == DecodeKind::Gated);
            }
            HeadConfig::Standard(_) => keys["num_labels"] = json!(1),
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

    /// The keys of a Llama's decoder.
    fn llama_keys(&self) -> Value {
        let decoder = &self.decoder;
        let mut keys = json!({
            "architectures": [],
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
            "attention_bias": decoder.architecture.biases.query_key_value,
            "mlp_bias": false,
        });
        let scaling = decoder.attention.rope_scaling;
        if !scaling.is_none() {
            keys["rope_scaling"] = json!(scaling);
        }
        keys
    }
}

/// An f32 as the shortest decimal that reads back as the same f32, not as its f64 neighbour.
pub(super) fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}
