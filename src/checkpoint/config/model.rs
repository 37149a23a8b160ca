//! `config.json`: the backbone's keys as Hugging Face names them, and the reward head's.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::head::{DecodeKind, HeadConfig, RewardScale};
use crate::checkpoint::decoder::{DecoderConfig, Family};
use crate::checkpoint::families::read_decoder;
use crate::checkpoint::files::{CONFIG_FILE, CheckpointError, ConfigKeys, shortest};
use crate::checkpoint::source::CheckpointSource;

/// OpenRLHF's classes, which name no family: `model_type` does.
const REGRESSION_CLASSES: [&str; 3] = ["RewardModel", "CriticModel", "LLMForSequenceRegression"];

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
    pub(in crate::checkpoint) fn of(source: &CheckpointSource) -> Result<Self, CheckpointError> {
        let (file, map) = (source.path_of(CONFIG_FILE), source.config_keys()?);
        let keys = ConfigKeys::new(&map, &file);
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
            decoder: read_decoder(family, &keys)?,
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
